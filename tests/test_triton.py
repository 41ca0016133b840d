"""The Triton kernels: interpreted on a CPU (conftest sets TRITON_INTERPRET), compiled on a GPU."""

import logging
import re
import sys

import oracle
import pytest
import torch
from test_contrastive import make_batch
from test_partition import LargestTensor
from tolerances import EXPONENTIALS, FLOAT32

from fairchem_crack.loss import triton_sums
from fairchem_crack.loss.crack import crack_loss, crack_terms
from fairchem_crack.loss.relations import NEAR

triton_kernels = pytest.importorskip(
    "fairchem_crack.loss.triton_kernels", reason="Triton comes with torch's wheels for Linux"
)

all_anchors = pytest.mark.parametrize("anchor", ["student", "teacher", "symmetric"])
all_negatives = pytest.mark.parametrize("negatives", ["batch", "system"])
all_thresholds = pytest.mark.parametrize("threshold", [None, 0.3])


DEVICE = pytest.param("cuda", marks=pytest.mark.gpu) if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=[DEVICE])
def device(request, monkeypatch):
    """Where the kernels run: float32 on it is theirs."""
    monkeypatch.setattr(triton_sums, "DEVICE_TYPES", (request.param,))
    return torch.device(request.param, 0 if request.param == "cuda" else None)


@pytest.fixture
def no_trial_before():
    triton_sums.passes_trial.cache_clear()
    yield
    triton_sums.passes_trial.cache_clear()


@pytest.fixture
def small_blocks(monkeypatch):
    """70 relations are three blocks of columns, the last one not whole."""
    monkeypatch.setattr(triton_sums, "LARGEST_BLOCK", 32)
    monkeypatch.setattr(triton_sums, "SMALLEST_BLOCK", 32)
    monkeypatch.setattr(triton_kernels, "SPLITS", 4)


def make_problem(num_pairs, width, atoms=20):
    """Float64 embeddings of systems of so many atoms, 40 in all, student and teacher correlated."""
    generator = torch.Generator().manual_seed(0)
    systems = torch.arange(40) // atoms
    pairs = torch.triu_indices(40, 40, 1)
    pairs = pairs[:, systems[pairs[0]] == systems[pairs[1]]][:, :num_pairs]
    teacher, noise = torch.randn(2, 40, width, dtype=torch.float64, generator=generator)
    return {"student": teacher + noise, "teacher": teacher, "pairs": pairs, "systems": systems}


def run(problem, device, dtype, **options):
    """Loss, gradient, top-1 accuracy, cosine, entropy, on the CPU in float64."""
    given = {key: value.to(device) for key, value in problem.items()}
    student = given["student"].detach().to(dtype, copy=True).requires_grad_()
    given |= {"student": student, "teacher": given["teacher"].to(dtype)}
    if "max_pairs" in options:
        options["generator"] = torch.Generator().manual_seed(0)
    terms = crack_terms(**given, **options)
    terms.loss.square().sum().backward()
    results = (terms.loss.detach(), student.grad, terms.top1, terms.cosine, terms.entropy)
    assert results[0].dtype == dtype or dtype == torch.bfloat16
    return [value.cpu().double() for value in results]


def assert_kernels_compute_what_torch_computes(device, problem, tolerance=1e-5, **options):
    fused = run(problem, device, torch.float32, **options)
    for ours, exact in zip(fused, run(problem, "cpu", torch.float64, **options)):
        scale = max(float(exact.abs().max()), 1) if exact.numel() else 1
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * scale)


@all_thresholds
@all_negatives
@all_anchors
def test_value_and_gradient_equal_the_double_loop(device, anchor, negatives, threshold):
    options = {"anchor": anchor, "negatives": negatives, "false_negative_threshold": threshold}
    problem = vars(make_batch(torch.float32))
    student = problem["student"].to(device).requires_grad_()
    loss = crack_loss(**{key: value.to(device) for key, value in problem.items()} | {"student": student}, **options)
    (gradient,) = torch.autograd.grad(loss, student)
    batch = make_batch(torch.float32)
    tolerance = EXPONENTIALS[torch.float32]
    assert loss.item() == pytest.approx(batch.oracle(**options).loss, rel=tolerance)
    expected = torch.from_numpy(batch.oracle(oracle.crack_gradient, **options)).float()
    torch.testing.assert_close(gradient.cpu(), expected, rtol=tolerance, atol=5 * tolerance)  # of parts that cancel


@all_thresholds
@all_negatives
@all_anchors
@pytest.mark.parametrize("max_pairs", [None, 33])
def test_every_option_agrees_over_several_programs(device, anchor, negatives, threshold, max_pairs, small_blocks):
    options = {"anchor": anchor, "negatives": negatives, "false_negative_threshold": threshold}
    assert_kernels_compute_what_torch_computes(device, make_problem(70, 7, atoms=8), **options, max_pairs=max_pairs)


@pytest.mark.parametrize("num_pairs", [0, 1, 2, 64, 65, 191, 300])
@all_anchors
def test_any_number_of_pairs_agrees_with_torch(device, anchor, num_pairs):
    problem = make_problem(num_pairs, 5)
    assert_kernels_compute_what_torch_computes(device, problem, anchor=anchor, negatives="system")


@pytest.mark.parametrize("width", [3, 16, 33, 129])
def test_any_width_agrees_with_torch(device, width):
    problem = make_problem(60, width)
    assert_kernels_compute_what_torch_computes(device, problem, anchor="symmetric", false_negative_threshold=0.3)


@pytest.mark.parametrize("temperature", [1.0, 0.012, 1 / 600])
@all_anchors
def test_any_temperature_agrees_with_torch(device, anchor, temperature):
    """The logits go up to 1 / temperature, and their rounding with them."""
    problem = make_problem(100, 16)
    assert_kernels_compute_what_torch_computes(device, problem, 1e-6 / temperature, anchor=anchor, temperature=temperature)


@all_anchors
def test_some_pairs_are_anchors_and_all_are_negatives(device, anchor):
    problem = make_problem(200, 16)
    problem["anchors"] = torch.arange(200) % 3 == 0
    assert_kernels_compute_what_torch_computes(device, problem, anchor=anchor)


@all_anchors
def test_pairs_without_a_direction_are_left_out(device, anchor):
    problem = make_problem(210, 16)
    problem["teacher"][3] = problem["teacher"][7]
    problem["student"][21] = 0
    assert_kernels_compute_what_torch_computes(device, problem, anchor=anchor)
    terms = crack_terms(**{key: value.to(device) for key, value in problem.items()})
    assert terms.num_degenerate == 1 + 2 and terms.num_pairs == 207


@all_anchors
def test_the_gradient_of_a_near_pair_is_bounded_alike(device, anchor):
    """Rounding of the embeddings themselves is 1e-7 of a distance of 1e-4: compared with torch in float32."""
    problem = {key: value.float() if value.is_floating_point() else value for key, value in make_problem(190, 16).items()}
    towards = torch.nn.functional.normalize(problem["student"][0], dim=0)
    problem["student"][1] = problem["student"][0] + 0.1 * NEAR * problem["student"][0].norm() * towards.roll(1)
    fused = run(problem, device, torch.float32, anchor=anchor)
    triton_sums.DEVICE_TYPES = ()
    for ours, tiled in zip(fused, run(problem, "cpu", torch.float32, anchor=anchor)):
        torch.testing.assert_close(ours, tiled, rtol=2e-3, atol=2e-3 * float(tiled.abs().max()))  # 1e-7 of 1e-4, as above


def test_half_precision_is_computed_in_float32(device):
    problem = make_problem(190, 16)
    problem |= {key: problem[key].bfloat16().double() for key in ("student", "teacher")}
    for ours, exact in zip(run(problem, device, torch.bfloat16), run(problem, "cpu", torch.float64)):
        tolerance = 1e-5 if ours.shape != problem["student"].shape else 1e-2  # the gradient is rounded to bfloat16
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


def test_a_nan_reaches_the_loss(device):
    problem = make_problem(190, 16)
    problem["student"][5, 3] = torch.nan
    has_nan = (problem["pairs"] == 5).any(dim=0)
    assert has_nan.sum() == 19 and torch.equal(run(problem, device, torch.float32)[0].isnan(), has_nan)


def test_the_same_input_gives_the_same_bits(device):
    first, second = (run(make_problem(130, 16), device, torch.float32)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_differentiating_twice_raises(device):
    problem = {key: value.to(device) for key, value in make_problem(60, 8).items()}
    student = problem["student"].float().requires_grad_()
    loss = crack_loss(**problem | {"student": student, "teacher": problem["teacher"].float()})
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_no_tensor_of_pairs_by_pairs_or_atoms_by_pairs(device, small_blocks):
    num_atoms, width = 14, 3
    pairs = torch.triu_indices(num_atoms, num_atoms, 1)
    limit = num_atoms * triton_sums.LARGEST_BLOCK  # H; the rows' shares of each column's sums are as large
    student, teacher = torch.randn(2, num_atoms, width, generator=torch.Generator().manual_seed(0)).to(device)
    crack_loss(student=student, teacher=teacher, pairs=pairs.to(device), anchor="symmetric")  # the trial
    with LargestTensor() as largest:
        crack_loss(student=student.requires_grad_(), teacher=teacher, pairs=pairs.to(device), anchor="symmetric").backward()
    assert largest.numel == limit < num_atoms * pairs.shape[1] / 2


def fails_to_compile(*_, **__):
    raise RuntimeError("PassManager::run failed")


def is_off(sums):
    return triton_sums._Finished(*(values * 1.001 for values in true_finished(sums)))


true_finished = triton_sums._Sums.finished


@pytest.mark.parametrize(
    "replacement, reason",
    [
        (fails_to_compile, r"do not run here \(RuntimeError: PassManager::run failed\)"),
        (is_off, r"differ from them by \S+e-0[23] on a trial of 300 pairs, expected 2e-05 at most"),
        (None, r"do not run here \(ModuleNotFoundError: .*triton"),
    ],
    ids=["does not compile", "differs", "is missing"],
)
def test_torch_computes_where_the_kernels_fail_the_trial(device, monkeypatch, caplog, no_trial_before, replacement, reason):
    if replacement is None:
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "fairchem_crack.loss.triton_kernels", raising=False)
        monkeypatch.delattr("fairchem_crack.loss.triton_kernels", raising=False)
    elif replacement is fails_to_compile:
        monkeypatch.setattr(triton_sums._Kernels, "_launch", replacement)
    else:
        monkeypatch.setattr(triton_sums._Sums, "finished", replacement)
    problem = make_problem(60, 8)
    with caplog.at_level(logging.INFO):
        losses = [run(problem, device, torch.float32)[0] for _ in range(2)]
    assert len(caplog.messages) == 1, "said once"
    assert caplog.messages[0].startswith(f"The CRACK loss is computed by torch's operations on {device}, slower: its Triton")
    torch.testing.assert_close(losses[1], run(problem, "cpu", torch.float64)[0], **FLOAT32)
    assert re.search(reason, caplog.messages[0])


def test_the_log_names_the_kernels_in_use(device, caplog, no_trial_before):
    with caplog.at_level(logging.INFO):
        run(make_problem(60, 8), device, torch.float32)
    assert caplog.messages == [f"The CRACK loss is computed by Triton kernels on {device}."]
