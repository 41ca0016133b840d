"""What each distillation term compares, against values worked out independently."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import oracle
import pytest
import torch
from architectures import build
from fairchem.core.modules.normalization.normalizer import Normalizer
from scipy.spatial.transform import Rotation
from stub_teacher import distillation_of, plain_teacher
from tolerances import FLOAT32_SMALL, ORACLE
from torch import Tensor, distributed, multiprocessing, nn
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.adapters import attach_features
from fairchem_crack.adapters.outputs import ModelOutputs, predicted
from fairchem_crack.config import DistillConfig, RelationsConfig, ScheduleConfig, TeacherConfig, TermConfig
from fairchem_crack.teacher.channels import ChannelStatistics, channel_statistics
from fairchem_crack.teacher.force_jacobian import (
    DISPLACEMENT,
    JacobianRows,
    choose_rows,
    draw_coordinates,
    jacobian_columns,
    jacobian_rows,
    to_keep,
)
from fairchem_crack.teacher.frozen import EMBEDDINGS, TeacherOutputs
from fairchem_crack.teacher.responses import STEP, draw_displacement, kept
from fairchem_crack.testing import collate, slabs
from fairchem_crack.training import terms
from fairchem_crack.training.coefficients import WeightedTerm, active_terms
from fairchem_crack.training.losses import CrackLoss, LossContext, TermLoss, build_loss
from fairchem_crack.training.projection import ALL, build_equivariant_projection
from fairchem_crack.training.reduction import Part, reduce_parts, weighted_sum
from fairchem_crack.training.terms import TermContext, inputs_of

WIDTH, VECTORS, OF_STUDENT = 5, 4, 3
PER_DEGREE = "relations per degree"
SIZES = (4, 1, 6)
MEAN, SCALE = {"energy": 1.5, "forces": 0.0}, {"energy": 2.0, "forces": 0.5}  # of the student's normalizers
ELEMENTWISE = {
    keys.NODE_EMBEDDINGS: "mse",
    keys.VECTOR_EMBEDDINGS: "l2mae",
    keys.SYSTEM_EMBEDDING: "mse",
    keys.ATOM_ENERGIES: "mae",
    keys.TEACHER_ENERGY: "mae",
    keys.TEACHER_FORCES: "l2mae",
    keys.ENERGY_GRADIENT: "l2mae",
    keys.FORCE_JACOBIAN: "mse",
}
_sample = torch.randn(9, WIDTH + 3 * VECTORS, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
STATISTICS = channel_statistics(  # of one sample, whatever batch is compared
    TeacherOutputs(torch.zeros(2, 0).long(), _sample[:, :WIDTH], _sample[:, WIDTH:].view(9, 3, VECTORS))
)


def batch_of(sizes: tuple[int, ...], seed: int = 0, device="cpu") -> Batch:
    """Systems with harmonic forces between all atoms; the first atom of each is fixed, where it has several."""
    generator = torch.Generator().manual_seed(seed)
    systems = []
    for size in sizes:
        fixed = torch.zeros(size)
        fixed[0] = size > 1
        positions = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        systems.append(Data(pos=positions, natoms=size, fixed=fixed, springs=torch.rand(size, generator=generator).double()))
    return Batch.from_data_list(systems).to(device)


def strengths(batch: Batch) -> Tensor:
    """(N, N) k_i + k_j of two atoms of one system, else 0."""
    same = (batch.batch[:, None] == batch.batch) & ~torch.eye(batch.num_nodes, dtype=torch.bool, device=batch.batch.device)
    return (batch.springs[:, None] + batch.springs) * same


def harmonic_energy(batch: Batch) -> Tensor:
    """(B, 1) E = sum over pairs of one system of (k_i + k_j) |x_i - x_j|^2 / 2."""
    squares = (batch.pos[None] - batch.pos[:, None]).square().sum(dim=2)
    of_atoms = (strengths(batch) * squares).sum(dim=1) / 4  # each pair has a half at both of its atoms
    energies = torch.zeros(batch.num_graphs, dtype=of_atoms.dtype, device=of_atoms.device)
    return energies.index_add(0, batch.batch, of_atoms)[:, None]


def harmonic(batch: Batch) -> Tensor:
    """(N, 3) forces of the same energy, by hand."""
    strength = strengths(batch)
    return (strength[..., None] * (batch.pos[None] - batch.pos[:, None])).sum(1)


def hessian(batch: Batch) -> Tensor:
    """(3 N, 3 N) of the same energy, by hand."""
    strength = strengths(batch)
    return torch.kron(torch.diag(strength.sum(1)) - strength, torch.eye(3, dtype=torch.float64, device=strength.device))


def targets_on(device) -> ModelOutputs:
    normalizers = {name: Normalizer(torch.tensor(MEAN[name]), torch.tensor(SCALE[name])) for name in MEAN}
    return ModelOutputs("outputs", None, {name: normalizer.to(device) for name, normalizer in normalizers.items()})


def step_of(sizes: tuple[int, ...], seed: int = 0, device="cpu") -> TermContext:
    """A student and a teacher of random outputs; each system's are those that it has in a batch by itself."""
    parts = []
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        shapes = [
            (size, OF_STUDENT),
            (size, 3, OF_STUDENT),
            (size, 1),
            (size, WIDTH),
            (size, 3, VECTORS),
            (size, 3),
            (size,),
        ]
        parts.append([torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes])
    node, vectors, energies, teacher_node, teacher_vectors, forces, atom_energies = map(torch.cat, zip(*parts))
    batch = batch_of(sizes, seed, device)
    batch.pos.requires_grad_(True)
    sums = torch.zeros(len(sizes), dtype=torch.float64, device=device)
    coordinates = draw_coordinates(batch, seed)
    rows = jacobian_columns(lambda moved: harmonic(moved) * 1.1, batch, coordinates).detach()
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        projections = nn.Linear(OF_STUDENT, WIDTH).double(), nn.Linear(OF_STUDENT, VECTORS, bias=False).double()
    return TermContext(
        batch,
        SimpleNamespace(node_embedding=node, vector_embedding=vectors, atom_energies=energies),
        {"energy": harmonic_energy(batch), "forces": harmonic(batch)},
        TeacherOutputs(
            torch.zeros(2, 0, dtype=torch.long, device=device),
            teacher_node,
            teacher_vectors,
            atom_energies,
            sums.index_add(0, batch.batch, atom_energies),
            forces,
            JacobianRows(coordinates, rows),
        ),
        {name: projection.to(device) for name, projection in zip(EMBEDDINGS, projections)},
        ChannelStatistics.from_state(STATISTICS.state_dict(), device),
        targets_on(device),
    )


def compared(step: TermContext, key: str, **options) -> tuple[Tensor, Tensor]:
    fn = {keys.RELATIONS: "crack", keys.NODE_CONTRAST: "info_nce"}.get(key, "mse")
    return inputs_of(TermConfig(key, fn, 1.0, **options), step)


def loss_function(term: TermConfig) -> TermLoss:
    return build_loss(term, DistillConfig(TeacherConfig("any")))


def part_of(step: TermContext, key: str, fn: str) -> Part:
    term = TermConfig(key, fn, 1.0)
    return loss_function(term).part(*inputs_of(term, step), LossContext(step.batch.natoms))


def loss_of(step: TermContext, key: str, fn: str) -> Tensor:
    return reduce_parts([part_of(step, key, fn)])[0]


@pytest.mark.parametrize("key", [keys.NODE_EMBEDDINGS, keys.RELATIONS, keys.NODE_CONTRAST])
@pytest.mark.parametrize("standardize", [True, False])
def test_nodes_are_compared_standardised_or_in_own_units(key, standardize, device):
    step, sample = step_of(SIZES, device=device), _sample.to(device)
    student, teacher = compared(step, key, standardize=standardize)
    mean, std = sample[:, :WIDTH].mean(dim=0), sample[:, :WIDTH].std(dim=0, correction=0)
    projected = (
        step.student.node_embedding @ step.projections[keys.NODE_EMBEDDING].weight.T
        + step.projections[keys.NODE_EMBEDDING].bias
    )
    expected = (projected, (step.teacher.node_embedding - mean) / std)
    if not standardize:
        expected = (projected * std + mean, step.teacher.node_embedding)
    torch.testing.assert_close((student, teacher), expected)
    torch.testing.assert_close(step.projected, projected * std + mean)


def test_without_standardising_the_loss_is_the_raw_mean_square():
    step = step_of(SIZES)
    loss = loss_function(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0))
    student, teacher = compared(step, keys.NODE_EMBEDDINGS, standardize=False)
    projected = (
        step.student.node_embedding @ step.projections[keys.NODE_EMBEDDING].weight.T
        + step.projections[keys.NODE_EMBEDDING].bias
    )
    mean, std = _sample[:, :WIDTH].mean(dim=0), _sample[:, :WIDTH].std(dim=0, correction=0)
    expected = sum(float(x) ** 2 for x in (projected * std + mean - step.teacher.node_embedding).flatten()) / teacher.numel()
    assert float(loss(student, teacher, LossContext(step.batch.natoms))) == pytest.approx(expected)


@pytest.mark.parametrize("standardize", [True, False])
def test_vectors_are_compared_by_length_and_have_no_mean(standardize, device):
    step, sample = step_of(SIZES, device=device), _sample.to(device)
    student, teacher = compared(step, keys.VECTOR_EMBEDDINGS, standardize=standardize)
    rms = sample[:, WIDTH:].view(9, 3, VECTORS).square().sum(dim=1).mean(dim=0).sqrt()
    projected = step.student.vector_embedding @ step.projections[keys.VECTOR_EMBEDDING].weight.T
    expected = projected if standardize else projected * rms
    torch.testing.assert_close(student.view(-1, VECTORS, 3).transpose(1, 2), expected)
    expected = step.teacher.vector_embedding / (rms if standardize else 1)
    torch.testing.assert_close(teacher.view(-1, VECTORS, 3).transpose(1, 2), expected)


@pytest.mark.parametrize("key", [keys.VECTOR_EMBEDDINGS, keys.RELATIONS])
def test_turning_all_vectors_changes_no_loss(key):
    turn = torch.tensor(Rotation.random(random_state=1).as_matrix())
    values = []
    for matrix in (torch.eye(3, dtype=torch.float64), turn):
        step = step_of(SIZES)
        step.student.vector_embedding = torch.einsum("xy,nyc->nxc", matrix, step.student.vector_embedding)
        turned = torch.einsum("xy,nyc->nxc", matrix, step.teacher.vector_embedding)
        step.teacher.__dict__["vector_embedding"] = turned
        student, teacher = compared(step, key, **({"lmax": 1} if key == keys.RELATIONS else {}))
        if key == keys.RELATIONS:
            values.append(student.double() @ teacher.T)  # all that the loss sees of them
        else:
            values.append((student - teacher).norm(dim=1))  # (N D_v,)
    assert not torch.allclose(values[0], torch.zeros_like(values[0]))
    torch.testing.assert_close(values[0], values[1], **FLOAT32_SMALL)


def test_relations_with_vectors_give_both_parts_the_same_weight():
    step = step_of(SIZES)
    _, teacher = compared(step, keys.RELATIONS, lmax=1)
    assert teacher.shape == (sum(SIZES), WIDTH + 3 * VECTORS)
    torch.testing.assert_close(teacher[:, :WIDTH].norm(dim=1), torch.ones(sum(SIZES)).double())
    torch.testing.assert_close(teacher[:, WIDTH:].norm(dim=1), torch.ones(sum(SIZES)).double())


def test_a_systems_embedding_is_the_mean_of_its_atoms(device):
    step = step_of(SIZES, device=device)
    nodes = compared(step, keys.NODE_EMBEDDINGS)
    for of_systems, of_atoms in zip(compared(step, keys.SYSTEM_EMBEDDING), nodes):
        torch.testing.assert_close(of_systems, torch.stack([part.mean(dim=0) for part in of_atoms.split(SIZES)]))


def test_unscaled_relations_are_n2n_through_the_laplacian(device):
    """Their squared error is e^T L e, e that of the node embeddings: a shift common to a system's atoms is not seen."""
    step = step_of(SIZES, device=device)
    step.pairs = torch.tensor([[0, 0, 1, 5, 6, 5], [1, 3, 2, 6, 10, 7]], device=device)
    student, teacher = compared(step, keys.RELATION_VECTORS, normalize=False)
    ends = torch.eye(sum(SIZES), dtype=torch.float64, device=device)[step.pairs]
    laplacian = (ends[0] - ends[1]).T @ (ends[0] - ends[1])
    own, of_teacher = compared(step, keys.NODE_EMBEDDINGS)
    expected = torch.trace((own - of_teacher).T @ laplacian @ (own - of_teacher))
    torch.testing.assert_close((student - teacher).square().sum(), expected)
    student, teacher = compared(step, keys.RELATION_VECTORS)
    for relations, embedding in ((student, own), (teacher, of_teacher)):
        unit = embedding / embedding.norm(dim=1, keepdim=True)
        difference = unit[step.pairs[0]] - unit[step.pairs[1]]
        torch.testing.assert_close(relations, difference / difference.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("fn", ["mse", "mae", "l2mae"])
def test_pairs_without_a_direction_have_no_error_nor_gradient(fn):
    step = step_of(SIZES)
    step.pairs = torch.tensor([[0, 1, 5, 7], [1, 2, 6, 8]])
    step.teacher.node_embedding[1] = step.teacher.node_embedding[0]
    step.student.node_embedding[6] = step.student.node_embedding[5]
    step.student.node_embedding.requires_grad_()
    term = TermConfig(keys.RELATION_VECTORS, fn, 1.0)
    student, teacher = inputs_of(term, step)
    loss = loss_function(term)(student, teacher, LossContext(step.batch.natoms))
    loss.backward()
    assert not (step.student.node_embedding.grad[[0, 5, 6]]).any() and step.student.node_embedding.grad[[1, 7]].all()
    kept = TermLoss(loss_function(term).elements)(student[[1, 3]], teacher[[1, 3]], LossContext(step.batch.natoms))
    torch.testing.assert_close(loss, kept / 2)


def test_a_term_that_requests_no_field_is_trained(monkeypatch):
    monkeypatch.setattr(terms, "COMPARISONS", dict(terms.COMPARISONS))
    monkeypatch.setattr(keys, "DISTILLATION_TERMS", list(keys.DISTILLATION_TERMS))
    terms.register_term("size")(lambda context, _: (context.outputs["forces"], torch.zeros_like(context.outputs["forces"])))
    student, batch = build("painn"), collate(slabs())
    distillation = distillation_of(student, plain_teacher(), [TermConfig("size", "mse", 3.0)])
    distillation.preflight(batch)
    outputs = student(batch)
    losses = distillation.loss(distillation.run_teacher(batch, 1), outputs)
    torch.testing.assert_close(losses.total, 3 * outputs["forces"].square().mean())


@pytest.mark.parametrize("kind", ["linear", "equivariant"])
def test_a_response_is_the_change_of_the_embedding_per_length(kind):
    """Of a PaiNN: to first order the derivative along the displacement, projected. What was read before stays."""
    model, teacher = build("painn").eval(), plain_teacher(WIDTH)
    batch = collate(slabs())
    batch.fixed = torch.zeros(batch.num_nodes)
    batch.fixed[0] = 1
    displacement = draw_displacement(batch, 3)
    assert displacement[0].abs().max() == 0 and torch.equal(displacement, draw_displacement(batch, 3))
    assert displacement[1:].std() == pytest.approx(STEP, rel=0.2)  # of 3 N numbers
    features = attach_features(model, "student")

    if kind == "linear":
        projections = {keys.NODE_EMBEDDING: nn.Linear(features.width, WIDTH)}
    else:
        projections = {ALL: build_equivariant_projection(1, features.width, WIDTH, seed=0)}

    def embedding(position: Tensor) -> Tensor:
        moved = copy.copy(batch)
        moved.pos = position
        model(moved)
        if kind == "linear":
            return projections[keys.NODE_EMBEDDING](features.node_embedding).detach()
        both = torch.cat((features.node_embedding[:, None], features.vector_embedding), dim=1)
        return projections[ALL](both)[:, 0].detach()

    part = 0.25 * displacement
    expected = (embedding(batch.pos + part) - embedding(batch.pos - part)) / (0.5 * STEP)
    embedding(batch.pos)
    rest = features.node_embedding.detach()
    response = kept(torch.cat((displacement, torch.randn(len(rest), WIDTH)), dim=1))
    outputs = dataclasses.replace(teacher(batch), embedding_response=response)
    statistics = ChannelStatistics(torch.zeros(WIDTH), torch.full((WIDTH,), 2.0))
    step = TermContext(batch, features, {}, outputs, projections, statistics, targets_on("cpu"))
    student, target = compared(step, keys.EMBEDDING_RESPONSE)
    assert (student - expected).norm() < 0.2 * expected.norm()  # of first order in h
    torch.testing.assert_close(target, response.values / 2)
    own, raw = compared(step, keys.EMBEDDING_RESPONSE, standardize=False)
    torch.testing.assert_close((own, raw), (2 * student, response.values))
    torch.testing.assert_close(features.node_embedding.detach(), rest)


@pytest.mark.parametrize("name", ["painn", "painn hydra, gradient of its energy"])
def test_the_response_of_forces_is_that_of_a_second_run(name):
    """Of free atoms, in the unit of the student's forces; the response of the embedding is of the same run."""
    model, batch = build(name), collate(slabs())
    batch.fixed = torch.zeros(batch.num_nodes)
    batch.fixed[:2] = 1
    features, displacement = attach_features(model, "student"), draw_displacement(batch, 3)

    def forces(position: Tensor) -> Tensor:
        moved = copy.copy(batch)
        moved.pos = position
        with features.edges_at(batch.pos):
            return predicted(model(moved), keys.FORCES, keys.FORCES)

    def learned(response: Tensor) -> Tensor:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(response.square().sum(), weights, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])

    model.train()  # a gradient of the energy is differentiated again
    expected = (forces(batch.pos + displacement) - forces(batch.pos))[2:] / STEP
    gradients = learned(expected)
    rest = {keys.FORCES: forces(batch.pos)}
    responses = {
        name: kept(torch.cat((displacement, torch.randn(batch.num_nodes, width)), dim=1))
        for name, width in ((keys.EMBEDDING_RESPONSE, WIDTH), (keys.FORCE_RESPONSE, 3))
    }
    outputs = dataclasses.replace(plain_teacher(WIDTH)(batch), **responses)
    statistics = ChannelStatistics(torch.zeros(WIDTH), torch.ones(WIDTH))
    projections = {keys.NODE_EMBEDDING: nn.Linear(features.width, WIDTH)}
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    step = TermContext(batch, features, rest, outputs, projections, statistics, targets_on("cpu"))
    student, target = compared(step, keys.FORCE_RESPONSE)
    torch.testing.assert_close(student, expected)
    torch.testing.assert_close(learned(student), gradients)
    torch.testing.assert_close(target, responses[keys.FORCE_RESPONSE].values[2:] / SCALE["forces"])
    of_embedding, _ = compared(step, keys.EMBEDDING_RESPONSE)
    assert len(runs) == 1 and gradients.abs().max() > 0
    alone = dataclasses.replace(outputs, force_response=None)
    step = TermContext(batch, features, rest, alone, projections, statistics, targets_on("cpu"))
    torch.testing.assert_close(compared(step, keys.EMBEDDING_RESPONSE)[0], of_embedding)


def test_a_difference_of_half_precision_is_refused():
    step = step_of(SIZES)
    step.student.node_embedding = step.student.node_embedding.bfloat16()
    step.teacher = dataclasses.replace(step.teacher, force_response=kept(torch.zeros(len(step.batch.pos), 6)))
    with pytest.raises(ValueError, match=r"`force_response` takes .* for which torch\.bfloat16 has too few digits"):
        compared(step, keys.FORCE_RESPONSE)


def test_the_gradient_of_the_energy_is_compared_with_forces(device):
    """Of free atoms, both in the unit of the student's forces, and the energy learns from it."""
    step = step_of(SIZES, device=device)
    strength = torch.tensor(2.0, dtype=torch.float64, requires_grad=True, device=device)
    step.outputs["energy"] = strength * step.outputs["energy"]
    student, teacher = compared(step, keys.ENERGY_GRADIENT)
    free = step.batch.fixed == 0
    expected = 2 * SCALE["energy"] * harmonic(step.batch)[free] / SCALE["forces"]
    torch.testing.assert_close(student.double(), expected, **FLOAT32_SMALL)
    torch.testing.assert_close(teacher, step.teacher.forces[free] / SCALE["forces"])
    student.double().square().sum().backward()
    assert float(strength.grad) == pytest.approx(float(2 * (expected**2).sum() / 2), rel=1e-5)


def test_a_term_counts_in_every_nth_step():
    term = TermConfig(keys.FORCE_JACOBIAN, "mse", 3.0, every=4)
    assert [step for step in range(1, 11) if active_terms([term], step, 10)] == [1, 5, 9]
    assert active_terms([term], 5, 10) == [WeightedTerm(term, 3.0)]


def test_atom_energies_sum_to_the_energy_in_the_students_unit(device):
    step = step_of(SIZES, device=device)
    student, teacher = compared(step, keys.ATOM_ENERGIES)
    torch.testing.assert_close(student, step.student.atom_energies.float())
    first = 0
    for size, energy in zip(SIZES, step.teacher.energy):
        own, in_ev = teacher[first : first + size, 0], step.teacher.atom_energies[first : first + size]
        torch.testing.assert_close(own.sum(), (energy - MEAN["energy"]) / SCALE["energy"])
        torch.testing.assert_close(own - own[0], (in_ev - in_ev[0]) / SCALE["energy"])
        first += size


def test_energy_and_forces_are_compared_as_labels_would_be(device):
    step = step_of(SIZES, device=device)
    student, teacher = compared(step, keys.TEACHER_ENERGY)
    torch.testing.assert_close(student, step.outputs["energy"].float())
    torch.testing.assert_close(teacher, (step.teacher.energy[:, None] - 1.5) / 2.0)
    free = [1, 2, 3, 4, 6, 7, 8, 9, 10]  # all but the first atom of a system of several
    student, teacher = compared(step, keys.TEACHER_FORCES)
    torch.testing.assert_close(student, step.outputs["forces"][free].float())
    torch.testing.assert_close(teacher, step.teacher.forces[free] / 0.5)


def test_rows_and_columns_of_the_jacobian_are_the_hessians(device):
    batch = batch_of(SIZES, device=device)
    coordinates = draw_coordinates(batch, 3)
    expected = -hessian(batch)[coordinates].view(len(SIZES), -1, 3)[
        batch.batch, torch.arange(batch.num_nodes, device=device)
    ]
    columns = jacobian_columns(harmonic, batch, coordinates)
    batch.pos.requires_grad_(True)
    rows = jacobian_rows(harmonic(batch), batch.pos, coordinates)
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(columns, expected, rtol=1e-8, atol=1e-10)  # of finite differences


def test_a_row_of_the_jacobian_is_differentiable():
    batch = batch_of((3,))
    batch.pos.requires_grad_(True)
    strength = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    jacobian_rows(strength * harmonic(batch), batch.pos, torch.tensor([4])).square().sum().backward()
    assert strength.grad == pytest.approx(2 * 2.0 * float(hessian(batch)[4].square().sum()))


def test_the_error_of_a_column_is_of_second_order():
    batch = batch_of((2,))
    cubic = jacobian_columns(lambda moved: moved.pos**3, batch, torch.tensor([3]))
    x = batch.pos.view(-1)[3]
    assert float(cubic.view(-1)[3]) == pytest.approx(float(3 * x**2 + DISPLACEMENT**2), rel=ORACLE)
    assert cubic.count_nonzero() == 1


def test_coordinates_are_drawn_among_each_systems_free_atoms(device):
    batch = batch_of((4, 1, 2, 3), device=device)
    batch.fixed[7:] = 1  # of the last system none is free
    drawn = torch.stack([draw_coordinates(batch, seed) for seed in range(400)])
    free = [{3, 4, 5, 6, 7, 8, 9, 10, 11}, {12, 13, 14}, {18, 19, 20}, {-1}]
    assert [set(column.tolist()) for column in drawn.T] == free
    assert torch.equal(draw_coordinates(batch, 5), draw_coordinates(batch, 5))


def test_a_kept_row_is_the_row_that_was_kept(device):
    batch = batch_of((4, 1, 2, 3), device=device)
    batch.fixed[7:] = 1
    rows = [JacobianRows(at := draw_coordinates(batch, seed), jacobian_columns(harmonic, batch, at)) for seed in range(3)]
    kept = torch.stack([to_keep(row, batch) for row in rows], dim=1)
    seen = set()
    for seed in range(20):
        chosen = choose_rows(batch, kept, seed)
        for system in range(3):
            atoms = batch.batch == system
            matches = [
                number
                for number, row in enumerate(rows)
                if row.coordinates[system] == chosen.coordinates[system]
                and torch.equal(row.values[atoms], chosen.values[atoms])
            ]
            assert matches
            seen.update(matches)
        assert chosen.coordinates[3] == -1
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("key, fn", ELEMENTWISE.items())
def test_a_terms_weight_is_the_same_at_any_batch_size(key, fn):
    """The mean over a batch of equal systems is that of one of them."""
    single, together = step_of((5,)), step_of((5,))
    loss = loss_of(single, key, fn)
    together.batch = Batch.from_data_list(single.batch.to_data_list() * 3)
    raise_to = {name: torch.cat([getattr(single.student, name)] * 3) for name in vars(single.student)}
    together.student = SimpleNamespace(**raise_to)
    coordinates = torch.cat([single.teacher.force_jacobian.coordinates + 15 * number for number in range(3)])
    together.batch.pos = together.batch.pos.detach().requires_grad_(True)
    together.outputs = {"energy": harmonic_energy(together.batch), "forces": harmonic(together.batch)}
    fields = ("node_embedding", "vector_embedding", "atom_energies", "energy", "forces")
    together.teacher = TeacherOutputs(
        single.teacher.edge_index,
        **{name: torch.cat([getattr(single.teacher, name)] * 3) for name in fields},
        force_jacobian=JacobianRows(coordinates, torch.cat([single.teacher.force_jacobian.values] * 3)),
    )
    torch.testing.assert_close(loss_of(together, key, fn), loss)
    assert loss > 0


def two_degrees(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of two columns l = 0 and of three l = 1, which on rank 1 is 0 for most atoms, as by symmetry; and pairs."""
    student, teacher = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)
    teacher[2:, 2:] *= rank == 0
    return student, teacher, torch.tensor([[0, 0, 0, 1, 2], [1, 2, 3, 2, 4]])


def part_of_degrees(rank: int) -> Part:
    *embeddings, pairs = two_degrees(rank)
    loss = TermLoss(CrackLoss(columns=(2, 3), column_weights=(1.0, 0.5)))
    return loss.part(*embeddings, LossContext(torch.tensor([5]), pairs))


def rank_main(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    step = step_of(SIZES[:1] if rank == 0 else SIZES[1:], seed=rank)
    sent: list[int] = []
    all_reduce = distributed.all_reduce
    distributed.all_reduce = lambda tensor, **options: sent.append(tensor.numel()) or all_reduce(tensor, **options)
    losses = reduce_parts([part_of(step, key, fn) for key, fn in ELEMENTWISE.items()])
    assert sent == [len(ELEMENTWISE)]  # the counts of all terms, at once
    found = {key: loss.detach() for key, loss in zip(ELEMENTWISE, losses)}
    torch.save({**found, PER_DEGREE: reduce_parts([part_of_degrees(rank)])[0]}, Path(directory) / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads, torn down while another rank still ends, abort a process now and then


@pytest.mark.slow
def test_a_terms_weight_is_the_same_on_any_number_of_ranks(tmp_path):
    """Ranks of unequal size: the average over the ranks is the mean over the elements of both."""
    multiprocessing.start_processes(rank_main, (str(tmp_path),), 2, start_method="forkserver")
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    steps = [step_of(SIZES[:1], seed=0), step_of(SIZES[1:], seed=1)]
    for key, fn in ELEMENTWISE.items():
        loss = loss_function(TermConfig(key, fn, 1.0)).elements
        values = [loss(*compared(step, key), LossContext(step.batch.natoms)).values.flatten() for step in steps]
        assert (of_ranks[0][key] + of_ranks[1][key]) / 2 == pytest.approx(float(torch.cat(values).mean())), key
        assert len(values[0]) != len(values[1])
    expected = 0.0
    for weight, columns in ((1.0, slice(2)), (0.5, slice(2, 5))):
        losses = []
        for rank in (0, 1):
            *embeddings, pairs = two_degrees(rank)
            pairs = pairs[:, :1] if rank and columns.start else pairs  # those with a direction
            losses += [oracle.crack(*(part[:, columns] for part in embeddings), pairs).loss] * pairs.shape[1]
        expected += weight * sum(losses) / len(losses)
    assert float(of_ranks[0][PER_DEGREE] + of_ranks[1][PER_DEGREE]) / 2 == pytest.approx(expected)


def test_info_nce_is_the_cross_entropy_of_cosines(device):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, 5, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    term = TermConfig(keys.NODE_CONTRAST, "info_nce", 1.0, temperature=0.3)
    loss = loss_function(term)
    cosines = torch.nn.functional.cosine_similarity(student[:, None], teacher[None], dim=-1)
    expected = torch.nn.functional.cross_entropy(cosines / 0.3, torch.arange(7, device=device))
    torch.testing.assert_close(loss(student, teacher, LossContext(torch.tensor([7], device=device))), expected)


def test_info_nce_leaves_out_atoms_without_a_direction(device):
    student, teacher = (torch.eye(4, dtype=torch.float64, device=device) for _ in range(2))
    student[1], teacher[2] = 0, 0
    student.requires_grad_(True)
    loss_fn = loss_function(TermConfig(keys.NODE_CONTRAST, "info_nce", 1.0))
    loss = loss_fn(student, teacher, LossContext(torch.tensor([4])))
    own = torch.exp(torch.tensor(1 / 0.15, device=device)).double()
    torch.testing.assert_close(loss, torch.log((own + 1) / own), rtol=1e-5, atol=1e-9)  # `own` is of float32
    loss.backward()
    assert student.grad.isfinite().all()
    nothing = loss_fn(student[:0], teacher[:0], LossContext(torch.tensor([0])))
    assert float(nothing) == 0


def test_parts_are_means_or_sums_and_nothing_is_zero(device):
    six, none = torch.tensor(6.0, device=device), torch.tensor(0, device=device)
    parts = [
        Part(six, 4),
        Part(six, torch.tensor(3, device=device)),
        Part(six, None),
        Part(none.float(), none),
        Part(six, 0),
    ]
    assert [value.item() for value in reduce_parts(parts)] == [1.5, 2.0, 6.0, 0.0, 6.0]
    assert reduce_parts([]) == []
    terms = [WeightedTerm(TermConfig(key, "mse", 9.0), weight) for key, weight in (("one", 2.0), ("two", 0.5))]
    total, log = weighted_sum(terms, [Part(six, 4, {"pairs": 7}), Part(six, 3)], device)
    assert total == 4.0 and log == {"loss_one": 1.5, "pairs": 7, "loss_two": 2.0}
    assert weighted_sum([], [], device) == (torch.zeros((), device=device), {})


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ({}, [1, 1, 1, 1]),
        ({"kind": "linear"}, [1, 0.75, 0.5, 0]),
        ({"kind": "linear", "until": 0.5, "final": 0.2}, [1, 0.6, 0.2, 0.2]),
        ({"kind": "cosine"}, [1, (1 + 0.5**0.5) / 2, 0.5, 0]),
        ({"kind": "off", "until": 0.5}, [1, 1, 0, 0]),
        ({"kind": "linear", "until": 1.0, "final": 3.0}, [1, 1.5, 2, 3]),
    ],
)
def test_a_schedule_goes_from_one_to_its_final_factor(schedule, expected):
    config = ScheduleConfig(**schedule)
    assert [config.factor(progress) for progress in (0, 0.25, 0.5, 1.0)] == pytest.approx(expected)
    terms = [TermConfig("scheduled", "mse", 8.0, schedule=config), TermConfig("constant", "mse", 3.0)]
    for step, factor in zip((1, 26, 51, 101), expected):  # of 100; a term at 0 is left out
        weights = {term.key: coefficient for term, coefficient in active_terms(terms, step, 100)}
        assert weights == pytest.approx({**({"scheduled": 8 * factor} if factor else {}), "constant": 3.0})


def test_a_crack_loss_keeps_nothing_between_two_calls():
    loss, pairs = CrackLoss(), torch.tensor([[0, 0, 1, 3], [1, 2, 2, 4]])
    student, teacher = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    before = dict(vars(loss))
    first, again = (loss(student.requires_grad_(), teacher, LossContext(torch.tensor([3, 3]), pairs)) for _ in range(2))
    assert vars(loss) == before and torch.equal(first.values, again.values)
    assert first.values.requires_grad and first.number == 4 and first.diagnostics["pairs"] == 4
    assert not any(value.requires_grad for value in first.diagnostics.values() if isinstance(value, Tensor))
    drawn = CrackLoss(relations=RelationsConfig(max_pairs=2))  # by the seed of the step
    three, again, four = (drawn(student, teacher, LossContext(torch.tensor([3, 3]), pairs, seed)) for seed in (3, 3, 4))
    assert torch.equal(three.values, again.values) and not torch.equal(three.values, four.values)
    with pytest.raises(ValueError, match="The CRACK loss needs the atom pairs of the step"):
        loss(student, teacher, LossContext(torch.tensor([3, 3])))
