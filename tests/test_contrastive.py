import inspect
import math
from dataclasses import dataclass, replace

import numpy as np
import oracle
import pytest
import torch
from tolerances import EXPONENTIALS, FLOAT32_SMALL, FLOAT32_STEEP, FLOAT64, ORACLE, REPEATED
from torch.utils._python_dispatch import TorchDispatchMode

from fairchem_crack.loss import tiles
from fairchem_crack.loss.alike import groups_of_pairs
from fairchem_crack.loss.crack import crack_loss, crack_terms
from fairchem_crack.loss.relations import NEAR, unordered_pairs

all_anchors = pytest.mark.parametrize("anchor", ["student", "teacher", "symmetric"])
all_negatives = pytest.mark.parametrize("negatives", ["batch", "system"])
all_thresholds = pytest.mark.parametrize("threshold", [None, 0.3])


@dataclass(frozen=True)
class Batch:
    """Systems of 4, 1 and 3 atoms, all pairs of each: N = 8, P = 9."""

    student: torch.Tensor
    teacher: torch.Tensor
    pairs: torch.Tensor
    systems: torch.Tensor

    def loss(self, **options):
        return crack_loss(**vars(self), **options)

    def terms(self, **options):
        return crack_terms(**vars(self), **options)

    def loss_and_gradient(self, **options):
        student = self.student.clone().requires_grad_()
        loss = replace(self, student=student).loss(**options)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    def oracle(self, function=oracle.crack, **options):
        arrays = (embedding.double().cpu().numpy() for embedding in (self.student, self.teacher))
        return function(*arrays, self.pairs.cpu().numpy(), systems=self.systems.tolist(), **options)


def make_batch(dtype=torch.float64, width=4, seed=0, device="cpu"):
    student, teacher = torch.randn(2, 8, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    systems = torch.tensor([0, 0, 0, 0, 1, 2, 2, 2])
    pairs = torch.triu_indices(8, 8, 1)
    pairs = pairs[:, systems[pairs[0]] == systems[pairs[1]]]
    return Batch(student.to(device, dtype), teacher.to(device, dtype), pairs.to(device), systems.to(device))


def without_pairs_of(batch, *pairs):
    left_out = torch.tensor([tuple(pair) in pairs for pair in batch.pairs.T.tolist()], device=batch.pairs.device)
    return replace(batch, pairs=batch.pairs[:, ~left_out])


def with_rows(embedding, rows):
    embedding = embedding.clone()
    for index, row in rows.items():
        embedding[index] = row
    return embedding


@pytest.mark.parametrize("dtype, tolerance", EXPONENTIALS.items())
@all_thresholds
@all_negatives
@all_anchors
def test_value_and_gradient_equal_the_double_loop(anchor, negatives, threshold, dtype, tolerance, device):
    batch = make_batch(dtype, device=device)
    options = {"anchor": anchor, "negatives": negatives, "false_negative_threshold": threshold}
    loss, gradient = batch.loss_and_gradient(**options)
    assert loss.dtype == gradient.dtype == dtype
    assert loss.item() == pytest.approx(batch.oracle(**options).loss, rel=tolerance)
    expected = batch.oracle(oracle.crack_gradient, **options)
    np.testing.assert_allclose(gradient.cpu(), expected, rtol=tolerance, atol=5 * tolerance)  # of parts that cancel


@all_negatives
def test_soft_targets_are_the_divergence_of_two_softmaxes(negatives, device):
    """Over all 2P directed relations, one by one; 0 for a student that is the teacher."""
    batch = make_batch(device=device)
    student, teacher = (oracle_relations(batch, embedding) for embedding in (batch.student, batch.teacher))
    systems = torch.cat([batch.systems[batch.pairs[0]]] * 2).cpu()
    logits = torch.stack((student, teacher)) @ teacher.T / 0.15
    if negatives == "system":
        logits = logits.masked_fill(systems[:, None] != systems, -torch.inf)
    q, p = logits.log_softmax(dim=2)
    expected = torch.where(p.exp() > 0, p.exp() * (p - q), 0).sum(dim=1).mean()
    options = {"targets": "soft", "negatives": negatives}
    assert float(batch.loss(**options)) == pytest.approx(float(expected), rel=1e-9)
    assert abs(float(replace(batch, student=batch.teacher).loss(**options))) < 1e-9
    some = batch.loss(**options, max_pairs=3, generator=torch.Generator().manual_seed(0))
    assert some.isfinite() and float(some) != pytest.approx(float(expected))
    with pytest.raises(ValueError, match='"soft" is of the student as anchor'):
        batch.loss(targets="soft", anchor="teacher")


def oracle_relations(batch, embedding):
    arrays = embedding.cpu().numpy()
    pairs = [*batch.pairs.T.tolist(), *batch.pairs.flip(0).T.tolist()]
    return torch.tensor(np.array([oracle.relation(arrays, i, j) for i, j in pairs]))


def test_alike_negatives_are_those_of_the_anchors_group(device):
    batch = make_batch(device=device)
    groups = torch.tensor([0, 1, 2, 1, 0, 1, 1, 2, 1], device=device)
    student, teacher = (oracle_relations(batch, embedding) for embedding in (batch.student, batch.teacher))
    logits = student @ teacher.T / 0.15
    both = torch.cat([groups] * 2).cpu()
    logits = logits.masked_fill(both[:, None] != both, -torch.inf)
    expected = -logits.log_softmax(dim=1).diagonal().mean()
    assert float(batch.loss(negatives="alike", groups=groups)) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match='negatives="alike" needs the group of each pair'):
        batch.loss(negatives="alike")


def test_pairs_are_alike_by_elements_and_nearest_distance():
    cells = torch.stack((4 * torch.eye(3), torch.zeros(3, 3)))
    positions = torch.tensor([[0.05, 0, 0], [3.9, 0, 0], [1.25, 0, 0], [2.0, 0, 0], [0, 0, 0], [0, 0.15, 0], [0, 3.75, 0]])
    pairs = torch.tensor([[0, 2, 2, 4, 4], [1, 3, 1, 5, 6]])
    numbers, systems = torch.tensor([8, 29, 29, 8, 29, 8, 8]), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    groups = groups_of_pairs(pairs, numbers, positions, cells, torch.ones(2, 3, dtype=torch.bool), systems)
    # O-Cu 0.15 A across the face, 0.75; Cu-Cu 1.35; O-Cu without a cell 0.15, 3.75
    assert len(set(groups.tolist())) == 4 and groups[0] == groups[3] and groups.max() == 3


@all_thresholds
@all_negatives
@all_anchors
def test_gradcheck(anchor, negatives, threshold):
    batch = make_batch(width=3)
    options = {"anchor": anchor, "negatives": negatives, "false_negative_threshold": threshold}
    student = batch.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda student: replace(batch, student=student).loss(**options), student)


def test_the_loss_takes_what_its_terms_take():
    parameters, of_terms = (inspect.signature(function).parameters for function in (crack_loss, crack_terms))
    assert parameters == of_terms


@pytest.mark.parametrize("of_loss", [torch.Tensor.clone, torch.square], ids=["loss", "square of the loss"])
@all_anchors
def test_differentiating_twice_raises(anchor, of_loss):
    batch = make_batch()
    student = batch.student.requires_grad_()
    with pytest.raises(RuntimeError, match="twice"):
        (gradient,) = torch.autograd.grad(of_loss(batch.loss(anchor=anchor)), student, create_graph=True)
        gradient.square().sum().backward()


@pytest.mark.parametrize("tile", [1, 7, 64])
@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("max_pairs", [None, 5])
@all_negatives
@all_anchors
def test_any_tile_size_gives_the_same_result(anchor, negatives, max_pairs, block, tile, monkeypatch):
    batch = make_batch()

    def run():
        options = {"anchor": anchor, "negatives": negatives, "max_pairs": max_pairs, "false_negative_threshold": 0.5}
        terms = batch.terms(**options, generator=torch.Generator().manual_seed(0))
        _, gradient = batch.loss_and_gradient(**options, generator=torch.Generator().manual_seed(0))
        return terms.loss, terms.top1, terms.entropy, gradient

    expected = run()
    monkeypatch.setitem(tiles.TILE_ENTRIES, "cpu", tile)
    monkeypatch.setitem(tiles.COLUMN_BLOCK, "cpu", block)
    torch.testing.assert_close(run(), expected, **FLOAT64)


def permute_atoms(batch):
    order = torch.tensor([3, 7, 0, 4, 5, 2, 6, 1])
    pairs = unordered_pairs(order.argsort()[batch.pairs], len(order))
    return Batch(batch.student[order], batch.teacher[order], pairs, batch.systems[order])


def permute_pairs(batch):
    return replace(batch, pairs=batch.pairs[:, [4, 8, 1, 0, 6, 2, 7, 3, 5]])


def flip_pairs(batch):
    return replace(batch, pairs=torch.cat((batch.pairs[:, :5], batch.pairs[:, 5:].flip(0)), dim=1))


def relabel_systems(batch):
    return replace(batch, systems=torch.tensor([5, 0, 2])[batch.systems])


def scale_one_atom(batch):
    return replace(batch, student=with_rows(batch.student, {2: 17 * batch.student[2]}))


def rotate_embedding_space(batch):
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    return replace(batch, student=batch.student @ rotation, teacher=batch.teacher @ rotation)


@pytest.mark.parametrize(
    "transform",
    [permute_atoms, permute_pairs, flip_pairs, relabel_systems, scale_one_atom, rotate_embedding_space],
    ids=lambda transform: transform.__name__,
)
@all_negatives
@all_anchors
def test_loss_is_invariant(transform, anchor, negatives):
    batch, options = make_batch(), {"anchor": anchor, "negatives": negatives, "false_negative_threshold": 0.5}
    torch.testing.assert_close(transform(batch).loss(**options), batch.loss(**options))


@all_negatives
@all_anchors
def test_mean_over_all_subsets_of_anchors_equals_the_full_mean(anchor, negatives):
    batch = without_pairs_of(make_batch(), (0, 1), (0, 2), (5, 6))  # P = 6, 15 subsets of two
    options = {"anchor": anchor, "negatives": negatives}
    of_subset = {}
    for seed in range(150):
        generator = torch.Generator().manual_seed(seed)
        loss, gradient = batch.loss_and_gradient(**options, max_pairs=2, generator=generator)
        of_subset[round(loss.item(), 9)] = loss, gradient
    assert len(of_subset) == math.comb(6, 2)
    losses, gradients = (torch.stack(values).mean(dim=0) for values in zip(*of_subset.values()))
    torch.testing.assert_close((losses, gradients), batch.loss_and_gradient(**options))


@all_negatives
@all_anchors
def test_max_pairs_draws_anchors_and_keeps_all_negatives(anchor, negatives, device):
    batch, options = make_batch(device=device), {"anchor": anchor, "negatives": negatives}
    of_all = batch.terms(**options).loss
    drawn = batch.terms(**options, max_pairs=4).loss
    assert drawn.shape == (4,)
    assert torch.isclose(drawn[:, None], of_all).any(dim=1).all()


def test_max_pairs_is_reproducible_with_a_seeded_generator():
    batch = make_batch()
    generators = (torch.Generator().manual_seed(seed) for seed in (1, 1, 2))
    first, again, other_seed = (batch.terms(max_pairs=4, generator=generator).loss for generator in generators)
    assert torch.equal(first, again) and not torch.equal(first, other_seed)


@pytest.mark.parametrize("max_pairs", [9, 100])
def test_max_pairs_beyond_the_pairs_takes_all(max_pairs):
    batch = make_batch()
    assert torch.equal(batch.terms(max_pairs=max_pairs).loss, batch.terms().loss)


@all_negatives
@all_anchors
def test_without_pairs_the_loss_is_0_and_its_gradient_zeros(anchor, negatives, device):
    batch = replace(make_batch(device=device), pairs=torch.zeros(2, 0, dtype=torch.long, device=device))
    loss, gradient = batch.loss_and_gradient(anchor=anchor, negatives=negatives)
    terms = batch.terms(anchor=anchor, negatives=negatives)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(batch.student))
    assert terms.num_pairs == terms.num_degenerate == terms.top1 == terms.cosine == terms.entropy == 0


@all_negatives
@all_anchors
def test_all_atoms_equal_is_a_batch_without_pairs(anchor, negatives, device):
    batch = make_batch(torch.float32, device=device)
    batch = replace(batch, student=batch.student[:1].expand(8, 4))
    loss, gradient = batch.loss_and_gradient(anchor=anchor, negatives=negatives)
    assert loss == 0 and torch.equal(gradient, torch.zeros(8, 4, device=device))
    assert batch.terms().num_pairs == 0 and batch.terms().num_degenerate == 9


@all_negatives
@all_anchors
def test_one_pair_is_contrasted_with_its_own_reverse(anchor, negatives):
    batch = replace(make_batch(), pairs=torch.tensor([[5], [7]]))
    cosine = np.dot(oracle.relation(batch.student.numpy(), 5, 7), oracle.relation(batch.teacher.numpy(), 5, 7))
    loss = batch.loss(anchor=anchor, negatives=negatives, temperature=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2 * cosine / 0.5)))


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    "case, without_direction",
    [("coincide", {(0, 1)}), ("zero", {(0, 1), (1, 2), (1, 3)}), ("tiny", {(0, 1), (1, 2), (1, 3)})],
)
@all_negatives
@all_anchors
def test_pairs_without_direction_are_left_out_and_counted(
    case, without_direction, side, dtype, tolerance, anchor, negatives
):
    batch = make_batch(dtype)
    embedding = getattr(batch, side)
    row = {"coincide": 0.3 * embedding[0], "zero": 0.0, "tiny": 1e-25}[case]
    batch = replace(batch, **{side: with_rows(embedding, {1: row})})
    options = {"anchor": anchor, "negatives": negatives}
    loss, gradient = batch.loss_and_gradient(**options)
    terms = batch.terms(**options)
    assert (terms.num_degenerate, terms.num_pairs) == (len(without_direction), 9 - len(without_direction))
    assert loss.item() == pytest.approx(without_pairs_of(batch, *without_direction).oracle(**options).loss, rel=tolerance)
    assert gradient.isfinite().all() and gradient.abs().max() < 100 and gradient[5:].all()


def gradient_of_a_pair_at(distance, dtype, anchor):
    """Of the one pair of two atoms whose unit embeddings differ by `distance`; and by finite differences in float64."""
    student = torch.tensor([[1.0, 0.0, 0.0], [math.cos(distance), math.sin(distance), 0.0]], dtype=torch.float64)
    teacher = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    batch = Batch(student.to(dtype), teacher.to(dtype), torch.tensor([[0], [1]]), torch.tensor([0, 0]))
    exact = replace(batch, student=student).oracle(oracle.crack_gradient, anchor=anchor, step=1e-4 * distance)
    return batch.loss_and_gradient(anchor=anchor)[1].double().numpy(), exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [3 * NEAR, 0.3 * NEAR, 0.03 * NEAR])
@all_anchors
def test_the_gradient_of_near_pairs_is_bounded(distance, dtype, anchor):
    gradient, exact = gradient_of_a_pair_at(distance, dtype, anchor)
    expected = min(distance / NEAR, 1) * exact
    rounding = max(64 * torch.finfo(dtype).eps / distance, 1e-4)  # of the difference of two nearly equal embeddings
    np.testing.assert_allclose(gradient, expected, atol=rounding * np.abs(expected).max())
    assert np.abs(gradient).max() < 2 / (0.15 * NEAR)


@all_anchors
def test_near_pairs_damp_no_other_pair(anchor):
    batch = make_batch()
    near = replace(batch, student=with_rows(batch.student, {1: batch.student[0] + 1e-4 * batch.student[3]}))
    loss, gradient = near.loss_and_gradient(anchor=anchor)
    exact = near.oracle(oracle.crack_gradient, anchor=anchor)
    assert loss.item() == pytest.approx(near.oracle(anchor=anchor).loss, rel=REPEATED)  # the value has no bound
    np.testing.assert_allclose(gradient[2:], exact[2:], **FLOAT32_SMALL)  # these have no near neighbor
    assert np.abs(exact[:2]).max() > 100 and gradient[:2].abs().max() < 0.3 * np.abs(exact[:2]).max()


class PrecisionOfProducts(TorchDispatchMode):
    """Records the permitted precision at each matrix product."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm"):
            self.seen.append(torch.get_float32_matmul_precision())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def reduced_precision():
    """What users permit for speed: TF32 on CUDA, bfloat16 on CPUs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@all_anchors
def test_matrix_products_stay_exact_under_tf32(reduced_precision, anchor):
    with PrecisionOfProducts() as products:
        make_batch(torch.float32).loss_and_gradient(anchor=anchor, false_negative_threshold=0.9)
    assert len(products.seen) >= 3 and set(products.seen) == {"highest"}  # H, its gradient, the teacher's cosines
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("norm", [1e-15, 1e30])
@all_anchors
def test_huge_and_tiny_embeddings_count_by_their_direction(norm, side, anchor):
    batch = make_batch(torch.float32)
    embedding = getattr(batch, side)
    scaled = replace(batch, **{side: with_rows(embedding, {2: norm * embedding[2], 6: norm * embedding[6]})})
    loss, gradient = scaled.loss_and_gradient(anchor=anchor)
    torch.testing.assert_close(loss, batch.loss(anchor=anchor))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@all_anchors
def test_half_precision_embeddings_are_computed_in_single(dtype, anchor):
    batch = make_batch(dtype)
    loss, gradient = batch.loss_and_gradient(anchor=anchor)
    expected, expected_gradient = replace(batch, student=batch.student.float()).loss_and_gradient(anchor=anchor)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    assert gradient.dtype == dtype and torch.equal(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("temperature", [0.017, 0.01, 0.002])  # the first is still single precision inside
@all_anchors
def test_small_temperatures_do_not_overflow(temperature, anchor):
    batch = make_batch(torch.float32)
    loss, gradient = batch.loss_and_gradient(anchor=anchor, temperature=temperature)
    _, exact = replace(batch, student=batch.student.double()).loss_and_gradient(anchor=anchor, temperature=temperature)
    assert loss.item() == pytest.approx(
        batch.oracle(anchor=anchor, temperature=temperature).loss,
        rel=1e-4,  # float32 over a temperature of 0.002
    )
    torch.testing.assert_close(gradient, exact.float(), **FLOAT32_STEEP)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["student", "teacher"])
@all_anchors
def test_a_non_finite_embedding_is_not_hidden(side, value, anchor):
    batch = make_batch(torch.float32)
    batch = replace(batch, **{side: with_rows(getattr(batch, side), {6: value})})
    assert batch.loss(anchor=anchor).isnan()


@all_thresholds
@all_negatives
@all_anchors
def test_diagnostics_equal_those_of_the_double_loop(anchor, negatives, threshold, device):
    batch = make_batch(device=device)
    batch = replace(batch, student=batch.teacher + 0.5 * batch.student)  # some anchors hit, some miss
    options = {"anchor": anchor, "negatives": negatives, "false_negative_threshold": threshold}
    terms, expected = batch.terms(**options), batch.oracle(**options)
    assert 0 < expected.top1 <= 1 and (threshold is not None or expected.top1 < 1)
    assert terms.num_pairs == 9 and terms.num_degenerate == 0
    for name in ("top1", "cosine", "entropy"):
        assert getattr(terms, name).item() == pytest.approx(getattr(expected, name), rel=ORACLE), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@all_anchors
def test_student_equal_to_the_teacher_hits_always(anchor, dtype):
    batch = make_batch(dtype)
    terms = replace(batch, student=batch.teacher).terms(anchor=anchor)
    assert terms.top1 == 1
    assert terms.cosine.item() == pytest.approx(1, abs=REPEATED)


@all_anchors
def test_the_teacher_gets_no_gradient(anchor):
    batch = make_batch()
    student, teacher = batch.student.requires_grad_(), batch.teacher.requires_grad_()
    batch.loss(anchor=anchor).backward()
    assert student.grad.any() and teacher.grad is None


@pytest.mark.parametrize("is_backward_inside", [False, True])
@all_anchors
def test_autocast_changes_nothing(anchor, is_backward_inside):
    batch = make_batch(torch.float32)
    expected = batch.loss_and_gradient(anchor=anchor)
    student = batch.student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = batch.loss(anchor=anchor)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_backward_inside):
        loss.backward()
    assert torch.equal(loss, expected[0]) and torch.equal(student.grad, expected[1])


@pytest.mark.parametrize(
    "argument, value",
    [
        ("student", torch.ones(8, 5)),
        ("student", torch.ones(7, 4)),
        ("teacher", torch.ones(8, 3)),
        ("student", torch.ones(8, 2, 2)),
        ("pairs", torch.zeros(9, 2, dtype=torch.long)),
        ("pairs", torch.zeros(2, 9)),
        ("pairs", torch.zeros(2, 9, dtype=torch.int32)),
        ("pairs", torch.zeros(4, dtype=torch.long)),
        ("temperature", 0.0),
        ("temperature", -0.15),
        ("temperature", math.nan),
        ("temperature", 0.001),
        ("anchor", "studnt"),
        ("negatives", "galaxy"),
        ("systems", None),
        ("systems", torch.zeros(3, dtype=torch.long)),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument, value):
    arguments = {**vars(make_batch()), "negatives": "system", argument: value}
    with pytest.raises(ValueError, match=argument):
        crack_loss(**arguments)
