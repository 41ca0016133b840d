"""Projections and the scale in which embeddings are compared: a term starts at order 1 for any teacher and student."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import build
from e3nn import o3
from stub_teacher import StubTeacher, distillation_of, plain_teacher, terms_of
from tolerances import FLOAT32, REORDERED
from torch import nn

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TeacherConfig, TermConfig
from fairchem_crack.teacher.channels import ChannelStatistics, channel_statistics
from fairchem_crack.teacher.frozen import TeacherOutputs
from fairchem_crack.testing import collate, slabs
from fairchem_crack.training.losses import LossContext, build_loss
from fairchem_crack.training.projection import (
    Projections,
    build_equivariant_projection,
    build_higher_projection,
    build_projection,
    build_vector_projection,
    projection_of,
)
from fairchem_crack.training.projection_state import FORMAT, upgraded
from fairchem_crack.training.projection_training import ProjectionTraining
from fairchem_crack.training.terms import TermContext, inputs_of

SAMPLES = Path(__file__).parent / "samples"
WIDTH, OF_STUDENT = 6, 4
EMBEDDINGS = (keys.RELATIONS, keys.NODE_EMBEDDINGS, keys.VECTOR_EMBEDDINGS, keys.NODE_CONTRAST)
# of a foundation potential, and with large means
WILD = StubTeacher(torch.linspace(-100, 100, 12), torch.logspace(-2.7, 0.75, 12))  # standard deviations of 0.002 to 5.6


def statistics_of(nodes: torch.Tensor, vectors: torch.Tensor | None = None) -> ChannelStatistics:
    return channel_statistics(TeacherOutputs(torch.zeros(2, 0).long(), nodes, vectors))


def slabs_on(device):
    batch = collate(slabs())
    batch.fixed = torch.zeros(batch.num_nodes)
    return batch.to(device)


@pytest.fixture
def slab_batch():
    return slabs_on("cpu")


@pytest.mark.parametrize("size, mean", [(1, 0), (1e-4, 0), (1e4, 0), (1, 100)], ids=["unit", "tiny", "huge", "shifted"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_term_starts_at_order_one(kind, size, mean, device):
    """A mean square of numbers of variance 1 and at most 1 is 1 to 2, an InfoNCE of N atoms about log N."""
    slab_batch = slabs_on(device)
    random, atoms = torch.Generator().manual_seed(2), slab_batch.num_nodes
    student = SimpleNamespace(
        width=OF_STUDENT,
        vector_width=OF_STUDENT,
        node_embedding=(mean + size * torch.randn(atoms, OF_STUDENT, generator=random)).to(device),
        vector_embedding=(size * torch.randn(atoms, 3, OF_STUDENT, generator=random)).to(device),
    )
    compared = (keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING)
    projections = Projections(kind, compared, student, WILD, seed=0, device=device)
    projections.observe(student)
    teacher = WILD(slab_batch)
    context = TermContext(
        slab_batch, student, {}, teacher, projections.modules, channel_statistics(teacher), ModelOutputs("outputs")
    )
    loss_context = LossContext(slab_batch.natoms, pairs=teacher.edge_index)
    values = {}
    for key, fn in zip(EMBEDDINGS, ("crack", "mse", "mse", "info_nce")):
        term = TermConfig(key, fn, 1.0)
        loss = build_loss(term, DistillConfig(TeacherConfig("any")))
        values[key] = loss(*inputs_of(term, context), loss_context)
    assert 0.8 < values[keys.NODE_EMBEDDINGS] < 2.5 and 0.25 < values[keys.VECTOR_EMBEDDINGS] < 1, values
    assert values[keys.RELATIONS] < 10 and values[keys.NODE_CONTRAST] < 10, values
    sum(values.values()).backward()
    gradients = [parameter.grad.flatten() for parameter in projections.parameters()]
    assert 1e-3 < torch.cat(gradients).norm() < 30


@pytest.mark.parametrize("name", ["painn", "gemnet_t", "schnet", "dimenetplusplus"])
def test_a_students_own_scale_does_not_reach_the_first_value(slab_batch, name):
    """As the models are, whose embeddings have standard deviations of 0.02 to 10."""
    student = build(name)
    distillation = distillation_of(student, WILD, [TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0)])
    distillation.preflight(slab_batch)
    step = distillation.run_teacher(slab_batch, 1)
    student.train()(slab_batch)
    assert 0.8 < distillation.loss(step, {}).log["loss_node_embeddings"] < 2.5


def test_the_statistics_are_those_of_the_channels():
    nodes = torch.tensor([[0.0, 10.0], [2.0, 30.0], [4.0, 20.0]])
    vectors = torch.zeros(3, 3, 1)
    vectors[:, 0, 0], vectors[:, 1, 0] = 3.0, 4.0
    statistics = statistics_of(nodes, vectors)
    torch.testing.assert_close(statistics.channel_mean, torch.tensor([2.0, 20.0]))
    torch.testing.assert_close(statistics.channel_std, torch.tensor([(8 / 3) ** 0.5, (200 / 3) ** 0.5]))
    torch.testing.assert_close(statistics.vector_rms, torch.tensor([5.0]))
    torch.testing.assert_close(statistics.standardize(nodes).std(dim=0, correction=0), torch.ones(2))
    torch.testing.assert_close(statistics.restore(statistics.standardize(nodes)), nodes)


def test_a_channel_that_hardly_varies_is_not_magnified():
    """Constant ones count as the median, also up to rounding; others are divided by at least 0.01 of it."""
    generator = torch.Generator().manual_seed(0)
    varying = torch.randn(50, 3, generator=generator) * torch.tensor([1.0, 2.0, 1e-5])
    rounding = 100 * (1 + 1e-7 * torch.randn(50, 1, generator=generator))
    nodes = torch.cat((varying, torch.full((50, 1), 7.0), rounding), dim=1)
    statistics = statistics_of(nodes)
    median = float(nodes[:, 0].std(correction=0))  # of 1e-5, 1 and 2
    expected = [1.0 * median, float(nodes[:, 1].std(correction=0)), 0.01 * median, median, median]
    torch.testing.assert_close(statistics.channel_std, torch.tensor(expected), rtol=REORDERED, atol=0)
    varied = nodes + torch.tensor([0.0, 0.0, 0.0, median, median])  # another atom, where the constant is not
    assert float(statistics.standardize(varied)[:, 3:].abs().max()) < 1.1


@pytest.mark.parametrize(
    "nodes",
    [torch.full((1, 3), 2.0), torch.full((5, 3), -0.3), torch.zeros(4, 3), torch.zeros(4, 0)],
    ids=["one atom", "all equal", "all zero", "no embedding"],
)
def test_a_sample_without_any_variation_is_divided_by_its_size(nodes):
    statistics = statistics_of(nodes, torch.zeros(len(nodes), 3, 2))
    size = float(nodes.abs().max()) if nodes.any() else 1.0
    torch.testing.assert_close(statistics.channel_std, torch.full((nodes.shape[1],), size))
    torch.testing.assert_close(statistics.vector_rms, torch.ones(2))
    assert not statistics.standardize(nodes).any()


def test_a_student_of_equal_embeddings_is_not_magnified():
    projection = build_projection("linear", OF_STUDENT, WIDTH, seed=0)
    projection.observe(torch.full((9, OF_STUDENT), 3.0))
    assert float(projection.scale) == pytest.approx(0.3)
    projection.observe(torch.zeros(9, OF_STUDENT))
    assert float(projection.scale) == pytest.approx(0.3)  # as it was
    projection.observe(torch.full((9, OF_STUDENT), torch.nan))
    assert projection(torch.full((1, OF_STUDENT), 3.0)).isfinite().all()


@pytest.mark.parametrize("lmax, error", [(1, 1e-5), (2, 1e-3), (6, 0.03)])
def test_projections_rotate_with_the_system(lmax, error):
    """Linear ones exactly; an equivariant one as the grid of its resolution does, its l = 0 exactly."""
    torch.manual_seed(0)
    coefficients, turn = torch.randn(20, (lmax + 1) ** 2, OF_STUDENT), o3.rand_matrix()
    wigner = [o3.Irrep(degree, 1).D_from_matrix(turn) for degree in range(lmax + 1)]

    def difference(projection, degrees: list[int]) -> list[float]:
        """Of each degree, of projecting what is turned and turning what is projected, relative to its size."""
        rows = [2 * degree + 1 for degree in degrees]
        turns = torch.block_diag(*(wigner[degree] for degree in degrees))
        given = coefficients[:, degrees[0] ** 2 :][:, : sum(rows)]
        turned, after = projection(turns @ given), turns @ projection(given)
        parts = zip(turned.split(rows, 1), after.split(rows, 1))
        return [float((first - second).norm() / second.norm()) for first, second in parts]

    assert max(difference(build_vector_projection(OF_STUDENT, WIDTH, seed=0), [1])) < 1e-5
    if lmax > 1:
        higher = build_higher_projection(lmax, OF_STUDENT, WIDTH, seed=0)
        assert max(difference(higher, list(range(2, lmax + 1)))) < 1e-5
    together = build_equivariant_projection(lmax, OF_STUDENT, WIDTH, seed=0)
    together.observe(coefficients)
    invariant, *others = difference(together, list(range(lmax + 1)))
    assert invariant < 1e-5 and max(others) < error


@pytest.mark.parametrize("max_norm, length", [(None, 20.0), (0.5, 0.5)])
def test_projections_step_at_the_students_rate_clipped_apart(max_norm, length):
    student = SimpleNamespace(width=OF_STUDENT, vector_width=OF_STUDENT)
    projections = Projections("linear", [keys.VECTOR_EMBEDDING], student, plain_teacher(), seed=0, device="cpu")
    training = ProjectionTraining(projections, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=7.0))
    (weight,) = projections.parameters()
    before, gradient = weight.detach().clone(), torch.zeros_like(weight)
    gradient[0, 0] = 20.0
    weight.grad = gradient.clone()
    training.drop_gradients()
    training.update(0.1, max_norm=max_norm)
    assert torch.equal(weight, before)
    weight.grad = gradient.clone()
    training.update(0.1, max_norm=max_norm)
    torch.testing.assert_close(before - weight.detach(), 0.1 * length / 20 * gradient)
    assert weight.grad is None
    with pytest.raises(RuntimeError, match="preflight has to measure the teacher's channels"):
        training.state_dict()


def test_a_projection_has_the_weight_decay_of_the_student():
    """That of fairchem's second group; the first has none. What a scheduler has changed before is not taken over."""
    groups = [{"params": [torch.zeros(1)], "weight_decay": 0}, {"params": [torch.zeros(1)], "weight_decay": 0.003}]
    student = SimpleNamespace(width=OF_STUDENT, vector_width=OF_STUDENT)
    projections = Projections("linear", [keys.NODE_EMBEDDING], student, plain_teacher(), seed=0, device="cpu")
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    assert optimizer.param_groups[-1]["betas"] == (0.95, 0.9)
    training = ProjectionTraining(projections, optimizer)
    (group,) = training.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["lr"]) == (0.003, (0.8, 0.9), 0.1)


def former(kind: str, optimizer: type[torch.optim.Optimizer], **options) -> tuple[dict, nn.Module, nn.Module, list]:
    """A state of format 1 after three steps, its projections, and the gradients of these steps."""
    torch.manual_seed(4)
    node: nn.Module = nn.Linear(OF_STUDENT, WIDTH)
    if kind == "mlp":
        node = nn.Sequential(node, nn.SiLU(), nn.Linear(WIDTH, WIDTH))
    vector = nn.Linear(OF_STUDENT, WIDTH, bias=False)
    parameters = [*node.parameters(), *vector.parameters()]
    stepped, history = optimizer(parameters, lr=1e-3, **options), []
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        history.append([parameter.grad for parameter in parameters])
        stepped.step()
    state = {
        keys.PROJECTION: node.state_dict(),
        keys.VECTOR_PROJECTION: vector.state_dict(),
        keys.PROJECTION_OPTIMIZER: stepped.state_dict(),
        keys.TEACHER_FINGERPRINT: "stub",
    }
    return copy.deepcopy(state), node, vector, history


STATISTICS = ChannelStatistics(
    channel_mean=torch.linspace(-90, 80, WIDTH),
    channel_std=torch.logspace(-2.7, 0.7, WIDTH),
    vector_rms=torch.logspace(-1, 1, WIDTH),
)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_former_projection_is_converted_to_the_same_function(kind):
    state, node, vector, _ = former(kind, torch.optim.AdamW)
    new = upgraded(state, STATISTICS)
    assert new[keys.STATE_FORMAT] == FORMAT and upgraded(new, None) == new
    nodes, vectors = torch.randn(20, OF_STUDENT), torch.randn(20, 3, OF_STUDENT)
    converted = projection_of(new[keys.PROJECTION])
    torch.testing.assert_close(STATISTICS.restore(converted(nodes)), node(nodes), **FLOAT32)
    weights = new[keys.VECTOR_PROJECTION]["trainable.weight"]
    torch.testing.assert_close(vectors @ weights.T * STATISTICS.vector_rms, vector(vectors), **FLOAT32)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_adams_averages_are_those_of_the_converted_gradients(kind):
    """Of gradients that were multiplied by the standard deviations of the rows from the first step on."""
    state, node, vector, history = former(kind, torch.optim.AdamW, amsgrad=True)
    converted = upgraded(state, STATISTICS)[keys.PROJECTION_OPTIMIZER]
    std, rms = STATISTICS.channel_std, STATISTICS.vector_rms
    factors = [std[:, None], std, rms[:, None]]
    factors = [torch.ones(()), torch.ones(()), *factors] if kind == "mlp" else factors
    parameters = [torch.zeros_like(parameter) for parameter in (*node.parameters(), *vector.parameters())]
    again = torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True)
    for gradients in history:
        for parameter, gradient, factor in zip(parameters, gradients, factors):
            parameter.grad = gradient * factor
        again.step()
    expected = again.state_dict()["state"]
    assert converted["state"].keys() == expected.keys()
    for number, averages in expected.items():
        for name, value in averages.items():
            torch.testing.assert_close(
                converted["state"][number][name], value, rtol=1e-4, atol=1e-13
            )  # squares of small gradients, in float32


def test_another_optimizer_starts_over_with_a_warning(caplog):
    state, *_ = former("linear", torch.optim.SGD, momentum=0.9)
    with caplog.at_level(logging.WARNING):
        converted = upgraded(state, STATISTICS)
    assert converted[keys.PROJECTION_OPTIMIZER]["state"] == {} and "which is not Adam's, begins anew" in caplog.text
    assert converted[keys.PROJECTION_OPTIMIZER]["param_groups"][0]["momentum"] == 0.9


def test_a_state_of_a_later_format_is_refused():
    with pytest.raises(ValueError, match=r"has a `crack_distill` of format 3; this version of fairchem-crack reads up to 2"):
        upgraded({keys.STATE_FORMAT: 3}, STATISTICS)


def test_the_checkpoint_of_version_0_1_0_is_converted():
    state = torch.load(SAMPLES / "checkpoint_format_1.pt", map_location="cpu", weights_only=False)[keys.CHECKPOINT_KEY]
    weight, bias = (state[keys.PROJECTION][name] for name in ("weight", "bias"))
    width = len(bias)
    statistics = ChannelStatistics(torch.linspace(-3, 3, width), torch.logspace(-2, 1, width), None)
    nodes = torch.randn(20, weight.shape[1])
    converted = upgraded(state, statistics)
    restored = statistics.restore(projection_of(converted[keys.PROJECTION])(nodes))
    torch.testing.assert_close(restored, nodes @ weight.T + bias, **FLOAT32)
    before, after = (entry[keys.PROJECTION_OPTIMIZER]["state"][1] for entry in (state, converted))
    torch.testing.assert_close(after["exp_avg"], before["exp_avg"] * statistics.channel_std)
    torch.testing.assert_close(after["exp_avg_sq"], before["exp_avg_sq"] * statistics.channel_std**2)


def test_a_resumed_run_keeps_the_scale_it_began_with(device):
    slab_batch, student = slabs_on(device), build("painn").to(device)
    terms = terms_of(SimpleNamespace(vector_width=1, has_position_gradients=False))
    first = distillation_of(student, WILD, terms, device=device)
    first.preflight(slab_batch)
    state = copy.deepcopy(first.state_dict())
    assert state[keys.STATE_FORMAT] == FORMAT
    resumed = distillation_of(student, plain_teacher(12), terms, device=device)  # of other statistics in the sample
    resumed.preflight(slab_batch)
    for parameter in student.parameters():
        parameter.data.mul_(2)  # the student has learned meanwhile
    resumed.load_state_dict(state)
    again = resumed.state_dict()
    for entry in (keys.PROJECTION, keys.VECTOR_PROJECTION, keys.CHANNEL_STATISTICS):
        assert state[entry].keys() == again[entry].keys()
        assert all(torch.equal(value, again[entry][name]) for name, value in state[entry].items())
    expected = statistics_of(WILD(slab_batch).node_embedding)
    assert torch.equal(again[keys.CHANNEL_STATISTICS]["channel_std"], expected.channel_std)
