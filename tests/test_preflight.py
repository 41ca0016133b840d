"""What is refused before the first step, each by its own message."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from stub_teacher import plain_teacher

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import ProjectionConfig, TermConfig
from fairchem_crack.testing import collate, slabs
from fairchem_crack.training import preflight

OUTPUTS = ModelOutputs("outputs")
STUDENT = SimpleNamespace(
    **{"width": 4, "vector_width": 0, "lmax": 0, "has_position_gradients": False, "max_atomic_number": 30},
    backbone=SimpleNamespace(cutoff=2.0, use_pbc=True),
)


@pytest.mark.parametrize(
    "key, options, part",
    [
        (keys.VECTOR_EMBEDDINGS, {}, "needs an l=1 embedding, which the student, `toy`, does not provide"),
        (
            keys.NODE_EMBEDDINGS,
            {"lmax": 1},
            "degrees up to 1, and the student, `toy`, has those up to 0. Set its `lmax` to 0",
        ),
        (keys.FORCE_JACOBIAN, {}, "whose forces can be differentiated; `toy` detaches the rotations of its edges"),
        (keys.ENERGY_GRADIENT, {}, "whose energy can be differentiated; `toy` detaches the rotations of its edges"),
        (keys.FORCE_RESPONSE, {}, "whose forces can be differentiated; `toy` detaches the rotations of its edges"),
        (keys.NODE_EMBEDDINGS, {}, None),
    ],
)
def test_a_term_that_a_student_cannot_have_is_refused(key, options, part):
    term = TermConfig(key, "mse", 1.0, **options)
    if part is None:
        preflight.check_term(term, STUDENT, "toy", plain_teacher(), OUTPUTS)
        return
    with pytest.raises(ValueError, match=part):
        preflight.check_term(term, STUDENT, "toy", plain_teacher(), OUTPUTS)


@pytest.mark.parametrize(
    "student, teacher, part",
    [
        ({"vector_width": 0, "lmax": 0}, {}, "the student, `toy`, has l = 0 only. Take `mlp`"),
        ({"vector_width": 3, "lmax": 1}, {}, "the student, `toy`, has 4 of l = 0 and 3 of l > 0. Take `linear` or `mlp`"),
        ({"vector_width": 4, "lmax": 1}, {"vector_width": 3}, "the teacher, `stub`, has 8 of l = 0 and 3 of l > 0"),
        ({"vector_width": 4, "lmax": 1}, {}, None),
    ],
)
def test_an_equivariant_projection_needs_channels_of_all_l(student, teacher, part):
    compared = {keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING}
    models = [SimpleNamespace(**{"width": 4, **student}), plain_teacher()]
    vars(models[1]).update(teacher)
    for kind in ("linear", "mlp", "equivariant"):
        refused = pytest.raises(ValueError, match=part) if part and kind == "equivariant" else nullcontext()
        with refused:
            preflight.check_projection(ProjectionConfig(kind), compared, models[0], "toy", models[1])
    preflight.check_projection(ProjectionConfig("equivariant"), {keys.ENERGY}, models[0], "toy", models[1])


def test_a_term_of_an_output_that_is_not_there_is_refused():
    outputs = ModelOutputs("outputs", {"forces": {"level": "atom"}})
    with pytest.raises(ValueError, match="outputs: expected one output of property `energy`, found `forces`"):
        preflight.check_term(TermConfig(keys.TEACHER_ENERGY, "mae", 1.0), STUDENT, "toy", plain_teacher(), outputs)


def test_an_element_beyond_a_model_is_named_with_the_model():
    numbers = torch.tensor([1.0, 31.0])
    with pytest.raises(
        ValueError, match=r"here holds an atom of atomic number 31; the student knows elements up to 30.*num_e"
    ):
        preflight.check_elements(numbers, STUDENT, plain_teacher(), "here")
    heavy = SimpleNamespace(max_atomic_number=20)
    with pytest.raises(ValueError, match=r"the teacher knows elements up to 20\..*another teacher"):
        preflight.check_elements(numbers, STUDENT, heavy, "here")


def test_systems_without_neighbors_are_named():
    batch = collate(slabs())
    batch.pos[:, 2] += 5 * torch.arange(batch.num_nodes)  # far apart, within one image
    batch.cell[:, 2, 2], batch.cell[:, 0, 0], batch.cell[:, 1, 1] = 500, 50, 50
    with pytest.raises(
        ValueError, match=r"in 2 of a sample of 2 systems \(sid 0, 1\) no atom has a neighbor within the student"
    ):
        preflight.check_neighbors(batch, STUDENT, plain_teacher())
    far_sighted = SimpleNamespace(backbone=SimpleNamespace(cutoff=600.0, use_pbc=False))
    preflight.check_neighbors(batch, far_sighted, plain_teacher())


def test_embeddings_that_are_not_finite_are_refused_by_system():
    batch, teacher = collate(slabs()), plain_teacher()
    outputs = teacher(batch)
    preflight.check_embeddings(outputs, batch, teacher)
    outputs.vector_embedding[-1, 0, 0] = torch.nan
    with pytest.raises(
        ValueError, match=r"Teacher stub.pt: in a sample of .* are the teacher's `vector_embedding` of sid 1\. "
    ):
        preflight.check_embeddings(outputs, batch, teacher)


@pytest.mark.parametrize(
    "atoms, reason", [([1, 1], "each has one atom"), ([2, 1], "no two atoms are within the model's cut")]
)
def test_a_graph_without_pairs_is_refused_with_the_reason(atoms, reason):
    batch = SimpleNamespace(natoms=torch.tensor(atoms))
    terms = [keys.RELATION_VECTORS, keys.RELATION_LENGTHS]
    preflight.check_pairs(1, batch, "teacher", terms)
    without = "distil without `relation_vectors` and `relation_lengths`"
    with pytest.raises(
        ValueError, match=f"the teacher's graph joins no pair of atoms in a sample of 2 systems .*{reason}.*{without}"
    ):
        preflight.check_pairs(0, batch, "teacher", terms)
