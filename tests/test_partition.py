import os
import subprocess
import sys

import pytest
import torch
from tolerances import FLOAT32, FLOAT64_EXPONENTIALS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairchem_crack.loss import tiles
from fairchem_crack.loss.crack import crack_loss, crack_terms
from fairchem_crack.loss.partition import partition_sums
from fairchem_crack.loss.relations import relation_vectors, unit_embedding

ROWS, COLUMNS = torch.tensor([0, 2, 3, 9, 14, 19]), torch.tensor([1, 2, 9, 10, 18])


@pytest.fixture
def problem():
    """Three systems of 5, 1 and 5 atoms, 10 + 0 + 10 pairs."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.triu_indices(5, 5, 1)
    pairs = torch.cat((pairs, pairs + 6), dim=1)
    student, teacher = torch.randn(2, 11, 4, dtype=torch.float64, generator=generator)
    unit = unit_embedding(student)
    scale = 1 / (0.15 * (unit[pairs[0]] - unit[pairs[1]]).norm(dim=-1))
    return unit.requires_grad_(), scale.requires_grad_(), pairs, relation_vectors(teacher, pairs)


def dense_logits(unit, scale, pairs, relations, rows, columns, system_of_pair, threshold):
    """(R, C, 2): x and -x, -inf where an entry does not count."""
    logits = scale[:, None] * ((unit[pairs[0]] - unit[pairs[1]]) @ relations.T)
    left_out = torch.zeros_like(logits, dtype=torch.bool)
    if threshold is not None:
        left_out |= ((relations @ relations.T).abs() > threshold) & ~torch.eye(len(scale), dtype=torch.bool)
    if system_of_pair is not None:
        left_out |= system_of_pair[:, None] != system_of_pair
    logits = torch.stack((logits, -logits), dim=-1).masked_fill(left_out[..., None], -torch.inf)
    logits = logits if rows is None else logits[rows]
    return logits if columns is None else logits[:, columns]


def dense_partition(logits, of_rows):
    logits = logits.flatten(1) if of_rows else logits.transpose(0, 1).flatten(1)
    log_sum = logits.logsumexp(dim=1)
    return log_sum, logits.amax(dim=1), torch.distributions.Categorical(logits=logits).entropy()


def close(ours, dense):
    return all(torch.allclose(value, expected, **FLOAT64_EXPONENTIALS) for value, expected in zip(ours, dense))


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("by_system", [False, True])
@pytest.mark.parametrize(
    "rows, columns, over_columns, over_rows",
    [(None, None, True, True), (None, None, True, False), (ROWS, None, True, False), (None, COLUMNS, False, True)],
    ids=["rows and columns", "rows", "some rows", "some columns"],
)
@pytest.mark.parametrize("tile, block", [(1, 1), (7, 3), (64, 64)])
def test_sums_and_gradients_equal_dense_logsumexp(
    problem, rows, columns, over_columns, over_rows, by_system, threshold, tile, block, monkeypatch
):
    monkeypatch.setitem(tiles.TILE_ENTRIES, "cpu", tile)
    monkeypatch.setitem(tiles.COLUMN_BLOCK, "cpu", block)
    system_of_pair = torch.tensor([0] * 10 + [2] * 10) if by_system else None
    of_rows, of_columns = partition_sums(
        *problem,
        rows=rows,
        columns=columns,
        over_columns=over_columns,
        over_rows=over_rows,
        system_of_pair=system_of_pair,
        threshold=threshold,
    )
    logits = dense_logits(*problem, rows, columns, system_of_pair, threshold)
    weighted, dense_weighted = 0, 0
    for is_requested, is_rows, ours in ((over_columns, True, of_rows), (over_rows, False, of_columns)):
        if is_requested:
            dense = dense_partition(logits, is_rows)
            assert close(ours, dense)
            weights = torch.linspace(-1, 2, len(ours.log_sum), dtype=torch.float64)
            weighted, dense_weighted = weighted + weights @ ours.log_sum, dense_weighted + weights @ dense[0]
    gradients, dense_gradients = (torch.autograd.grad(total, problem[:2]) for total in (weighted, dense_weighted))
    assert close(gradients, dense_gradients)
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("by_system", [False, True])
def test_sums_and_gradients_on_a_device_are_those_of_the_cpu(problem, by_system, device):
    unit, scale, pairs, relations = problem
    system_of_pair = torch.tensor([0] * 10 + [2] * 10) if by_system else None

    def sums(where):
        moved = [tensor.detach().to(where).requires_grad_() for tensor in (unit, scale)]
        options = {"rows": None, "columns": None, "over_columns": True, "over_rows": True, "threshold": 0.3}
        of_pair = None if system_of_pair is None else system_of_pair.to(where)
        rows, columns = partition_sums(*moved, pairs.to(where), relations.to(where), **options, system_of_pair=of_pair)
        gradients = torch.autograd.grad(rows.log_sum.sum() + columns.log_sum.square().sum(), moved)
        return [tensor.detach().cpu() for tensor in (*rows, *columns, *gradients)]

    assert close(sums(device), sums("cpu"))


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor an operation returns, in forward and backward."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor))
        self.numel = max(self.numel, *sizes, 0)
        return output


@pytest.mark.parametrize("anchor", ["student", "teacher", "symmetric"])
@pytest.mark.parametrize("max_pairs", [None, 3000])
def test_no_tensor_of_pairs_by_pairs_or_atoms_by_pairs_exists(anchor, max_pairs):
    num_atoms, width = 90, 3
    pairs = torch.triu_indices(num_atoms, num_atoms, 1)
    num_pairs = pairs.shape[1]
    limit = max(tiles.TILE_ENTRIES["cpu"], num_atoms * tiles.COLUMN_BLOCK["cpu"], num_pairs * width)
    assert limit < num_atoms * (max_pairs or num_pairs), "the limits do not bind at this size"
    student, teacher = torch.randn(2, num_atoms, width, generator=torch.Generator().manual_seed(0))
    options = {"anchor": anchor, "max_pairs": max_pairs, "false_negative_threshold": 0.9}
    with LargestTensor() as largest:
        crack_loss(student=student.requires_grad_(), teacher=teacher, pairs=pairs, **options).backward()
    assert tiles.TILE_ENTRIES["cpu"] / 2 < largest.numel <= limit


@pytest.mark.parametrize("anchor", ["student", "teacher", "symmetric"])
@pytest.mark.parametrize("negatives", ["batch", "system"])
@pytest.mark.parametrize("max_pairs", [None, 37])
def test_the_fused_kernels_compute_what_torch_computes(monkeypatch, anchor, negatives, max_pairs):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 60, 24, generator=generator)
    systems = torch.arange(60) // 20
    pairs = torch.triu_indices(60, 60, 1)
    pairs = pairs[:, (systems[pairs[0]] == systems[pairs[1]])]
    options = {"anchor": anchor, "negatives": negatives, "systems": systems, "max_pairs": max_pairs}
    results = {}
    monkeypatch.setattr(tiles, "COLUMN_BLOCK", {"cpu": 200})
    for name, kernels in (("fused", tiles.fused_kernels()), ("torch", None)):
        monkeypatch.setattr(tiles, "fused_kernels", lambda kernels=kernels: kernels)
        leaf = student.clone().requires_grad_()
        terms = crack_terms(
            student=leaf, teacher=teacher, pairs=pairs, **options, generator=torch.Generator().manual_seed(0)
        )
        terms.loss.square().sum().backward()
        results[name] = (terms.loss.detach(), leaf.grad, terms.top1, terms.entropy)
    for fused, plain in zip(results["fused"], results["torch"]):
        torch.testing.assert_close(fused, plain, **FLOAT32)


def test_the_fused_kernels_are_in_use_here():
    assert tiles.fused_kernels() is not None


def run_python(code, **environment):
    """The last line that a fresh process prints, and its exit status; `loss()` is there for it."""
    prelude = """
import multiprocessing, sys, torch
from fairchem_crack import crack_loss
def loss():
    student, teacher = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    value = crack_loss(student=student, teacher=teacher, pairs=torch.triu_indices(12, 12, 1))
    value.backward()
    return round(value.item(), 4), round(student.grad.abs().sum().item(), 4)
"""
    command, environment = [sys.executable, "-c", prelude + code], {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr[-2000:]
    return done.stdout.splitlines()[-1], done.returncode


def test_numba_is_loaded_when_a_loss_needs_it():
    assert run_python("before = 'numba' in sys.modules; loss(); print(before, 'numba' in sys.modules)") == ("False True", 0)


def test_kernels_run_without_a_directory_for_a_cache():
    refuse = "from numba.core import caching; caching.FunctionCache._impl_class._locator_classes = []\n"
    kind = "\nfrom fairchem_crack.loss import cpu_kernels; print(value, type(cpu_kernels._sum_rows._cache).__name__)"
    expected, _ = run_python("print(loss())")
    assert run_python(refuse + "value = loss()" + kind) == (f"{expected} NullCache", 0)


@pytest.mark.slow
def test_kernels_from_the_cache_sum_as_those_just_compiled(tmp_path):
    code = """
from fairchem_crack.loss import cpu_kernels as kernels
draw = lambda *size: torch.rand(size, generator=generator)
generator = torch.Generator().manual_seed(0)
gram, pairs, scale = draw(40, 1500), torch.randint(0, 40, (2, 300), generator=generator), draw(300)
rows, columns, gradients = torch.zeros(3, 300), torch.zeros(3, 1500), (torch.zeros(40, 1500), torch.zeros(300))
kernels.sum_rows(gram, pairs, scale, *rows)
kernels.sum_columns(gram, pairs, scale, *columns)
kernels.gradients(gram, pairs, scale, scale, draw(300), draw(1500), *gradients)
print([values.double().sum().item().hex() for values in (*rows, *columns, *gradients)], list(rows[0, 7:99].tolist()))
"""
    compiled, loaded = (run_python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert compiled == loaded and list(tmp_path.rglob("*.nbc"))


@pytest.mark.parametrize("parent", ["pass", "loss()"], ids=["before any loss", "after a loss"])
def test_a_forked_process_computes_the_same_loss(parent):
    fork = """
queue = multiprocessing.get_context("fork").SimpleQueue()
process = multiprocessing.get_context("fork").Process(target=lambda: queue.put(loss()))
process.start(); process.join(); print(process.exitcode == 0 and queue.get())
"""
    assert run_python(parent + fork) == run_python("print(loss())")


@pytest.mark.slow
def test_the_fused_kernels_on_several_threads():
    environment = {**os.environ, "OMP_NUM_THREADS": "4", "NUMBA_NUM_THREADS": "4"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-k", "fused_kernels", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert "13 passed" in done.stdout, done.stdout[-2000:]
