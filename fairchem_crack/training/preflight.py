"""What is looked at before the first step: whether student, teacher and data can do what the terms need.

Each check raises a ValueError that names the option or the systems; those of data take a sample of the training data.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional, Union

from fairchem.core.common import distutils
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters import Features
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import ProjectionConfig, TagWeights, TermConfig
from fairchem_crack.io.boundaries import count_edges
from fairchem_crack.io.named_records import check_cells, listed
from fairchem_crack.teacher.cached import CachedTeacher
from fairchem_crack.teacher.frozen import EMBEDDINGS, Teacher, TeacherOutputs
from fairchem_crack.training.agreement import energy_agreement, explanation
from fairchem_crack.training.guard import teacher_faults
from fairchem_crack.training.terms import COMPARED_AS, is_of_positions, teacher_fields

AnyTeacher = Union[Teacher, CachedTeacher]
# What of the student a term differentiates with respect to the positions.
DIFFERENTIATED = {
    keys.ENERGY_GRADIENT: "energy",
    keys.FORCE_JACOBIAN: "forces",
    keys.EMBEDDING_RESPONSE: "embeddings",
    keys.FORCE_RESPONSE: "forces",
}


def check_term(term: TermConfig, student: Features, name: str, teacher: AnyTeacher, outputs: ModelOutputs) -> None:
    """Raise ValueError for a term that needs what the student or the teacher does not have.

    Args:
        name: of the student's architecture.
        outputs: the student's.
    """
    fields = teacher_fields(term)
    for property_, compared in COMPARED_AS.items():
        if not fields.isdisjoint(compared):
            _ = outputs[property_]  # the student has one such output
    if isinstance(term.lmax, int) and term.lmax > min(student.lmax, teacher.lmax):
        roles = {f"student, `{name}`,": student.lmax, f"teacher, `{teacher.name}`,": teacher.lmax}
        model = min(roles, key=lambda role: roles[role])
        raise ValueError(
            f"loss_functions: `{term.key}` compares the degrees up to {term.lmax}, and the {model} has those up to "
            f"{roles[model]}. Set its `lmax` to {roles[model]}, or take another model."
        )
    if keys.VECTOR_EMBEDDING in fields:
        _check_vectors(term, f"student, `{name}`,", student.vector_width)
        cache = " in its cache; write one with --vectors" if isinstance(teacher, CachedTeacher) else ""
        _check_vectors(term, f"teacher, `{teacher.name}`,", teacher.vector_width, cache)
    if not term.projected and term.key == keys.NODE_EMBEDDINGS:
        _check_widths(term, student, teacher, keys.VECTOR_EMBEDDING in fields)
    if (is_of_positions(term) or term.key in DIFFERENTIATED) and not student.has_position_gradients:
        what = DIFFERENTIATED.get(term.key, "outputs")
        raise ValueError(
            f"loss_functions: `{term.key}` needs a student whose {what} can be differentiated; `{name}` detaches the "
            "rotations of its edges from the positions. Leave the term out, or take another student."
        )


def _check_vectors(term: TermConfig, model: str, width: int, where: str = "") -> None:
    if not width:
        raise ValueError(
            f"loss_functions: `{term.key}` needs an l=1 embedding, which the {model} does not provide{where}. Leave the "
            "term out."
        )


def _check_widths(term: TermConfig, student: Features, teacher: AnyTeacher, has_vectors: bool) -> None:
    own, of_teacher = (f"{model.width}" + f" and {model.vector_width}" * has_vectors for model in (student, teacher))
    if own != of_teacher:
        raise ValueError(
            f"loss_functions: `{term.key}` with `projected: False` needs a student of the teacher's width, {of_teacher}; it "
            f"has {own}. Leave the option out."
        )


def check_projection(
    projection: ProjectionConfig, compared: set[str], student: Features, name: str, teacher: AnyTeacher
) -> None:
    """Raise ValueError for an equivariant projection of models that it cannot project.

    Args:
        compared: fields of `TeacherOutputs` that are projected.
        name: of the student's architecture.
    """
    if projection.kind != "equivariant" or compared.isdisjoint(EMBEDDINGS):
        return
    where = "task.distill.projection.kind: `equivariant`"
    if not student.lmax:
        raise ValueError(
            f"{where} projects all degrees l of a student together, and the student, `{name}`, has l = 0 only. Take `mlp`, "
            "which is what it is for l = 0."
        )
    above = compared & {*EMBEDDINGS[1:]}
    for model, role in ((student, f"student, `{name}`,"), (teacher, f"teacher, `{teacher.name}`,")):
        if model.vector_width != model.width and (above or model is student):
            raise ValueError(
                f"{where} needs as many channels of every degree l; the {role} has {model.width} of l = 0 and "
                f"{model.vector_width} of l > 0. Take `linear` or `mlp`."
            )


def check_elements(atomic_numbers: Tensor, student: Features, teacher: AnyTeacher, where: str) -> None:
    """Raise ValueError when the teacher or the student has no embedding for an element."""
    largest = int(atomic_numbers.max())
    for role, limit in {"teacher": teacher.max_atomic_number, "student": student.max_atomic_number}.items():
        if largest > limit:
            raise ValueError(
                f"{where} holds an atom of atomic number {largest}; the {role} knows elements up to "
                f"{limit}. Leave such systems out"
                + (", or raise the model's `num_elements`." if role == "student" else ", or take another teacher.")
            )


def check_tags(terms: Iterable[TermConfig], batch: Batch, where: str) -> None:
    """Raise ValueError for atoms whose tag has no weight in a term with `tag_weights`.

    Args:
        where: the batch is from, for the message.
    """
    for option, weights in _tag_weights(terms):
        if "tags" not in batch:
            raise ValueError(f"{option}: dataset.train has no tags. Leave the option out.")
        if unknown := [tag for tag in batch.tags.unique().tolist() if tag not in range(len(weights))]:
            raise ValueError(
                f"{option}: {where} holds an atom of tag {unknown[0]:g}; expected 0 (subsurface), 1 (surface) or 2 "
                "(adsorbate), as OC20's data have. Leave the option out."
            )


def check_tag_weights(terms: Iterable[TermConfig], batch: Batch) -> None:
    """Raise ValueError for `tag_weights` that are 0 for every atom of a sample; warn where they are the same for all."""
    for option, weights in _tag_weights(terms):
        tags = batch.tags.unique().long().tolist()
        found = {weights[tag] for tag in tags}
        named = ", ".join(map(str, tags))
        if not any(found):
            raise ValueError(
                f"{option}: the weights of all atoms of a sample of dataset.train are 0; their tags are "
                f"{named}. Give one of these a weight above 0."
            )
        if len(found) == 1 and distutils.is_master():
            logging.warning(
                f"{option}: the weights of all atoms of a sample of dataset.train are {found.pop():g}; their tags are "
                f"{named}. So the option only multiplies the coefficient. Data without tags, such as most ASE databases, "
                "have 0 for every atom: set them with atoms.set_tags, or leave the option out."
            )


def _tag_weights(terms: Iterable[TermConfig]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Of the terms with `tag_weights`, the option's place and its weights by tag."""
    for term in terms:
        if term.tag_weights != TagWeights():
            yield f"loss_functions, {term.key}.tag_weights", dataclasses.astuple(term.tag_weights)


def check_neighbors(batch: Batch, student: Features, teacher: AnyTeacher) -> None:
    """Raise ValueError for a system without any edge, or without images, on which fairchem's models fail obscurely."""
    backbone = student.backbone
    graphs = {
        "teacher": (teacher.cutoff, teacher.use_pbc),
        "student": (getattr(backbone, "cutoff", None), getattr(backbone, "use_pbc", True)),
    }
    for role, (cutoff, use_pbc) in graphs.items():
        if cutoff is None:
            continue
        if use_pbc:
            check_cells(batch, "dataset.train")
        edges = count_edges(batch, cutoff, use_pbc=use_pbc)  # (B,)
        if (edges == 0).any():
            isolated = (edges == 0).nonzero()[:, 0].tolist()
            raise ValueError(
                f"dataset.train: in {len(isolated)} of a sample of {len(edges)} systems ({listed(batch, isolated)}) no atom "
                f"has a neighbor within the {role}'s cutoff, {cutoff} A. Leave such systems out; check the cells."
            )


def check_embeddings(outputs: TeacherOutputs, batch: Batch, teacher: AnyTeacher) -> None:
    """Raise ValueError where the scale of the channels would not be finite, and with it no step."""
    embeddings = {name: getattr(outputs, name) for name in EMBEDDINGS}
    if faults := teacher_faults(((name, value) for name, value in embeddings.items() if value is not None), batch):
        raise ValueError(
            f"Teacher {teacher.checkpoint}: in a sample of dataset.train, not finite are the {'; '.join(faults)}. "
            "Leave such systems out, or try task.distill.teacher.precision: float32."
        )


def warn_of_another_zero(
    terms: Iterable[TermConfig], label: Optional[Tensor], outputs: TeacherOutputs, batch: Batch, *, mixes: bool
) -> None:
    """Warn where a term and the label of the same energy, or the labels of two systems, would pull the student apart.

    Args:
        label: (B,) eV, energies of the data on which the student trains, NaN where there are none; None where all are the
            teacher's, or none.
        mixes: whether the student trains on the teacher's energies of other systems.
    """
    compared = [term.key for term in terms if keys.ENERGY in teacher_fields(term)]
    if label is None or not (compared or mixes):
        return
    agreement = energy_agreement(label, outputs[keys.ENERGY], batch)
    if not agreement.is_plausible and distutils.is_master():
        logging.warning(f"dataset.train: in a sample {explanation(agreement, compared)}")


def check_pairs(pairs: int, batch: Batch, graph: str, terms: Sequence[str]) -> None:
    """Raise ValueError where no two atoms of the sample are a pair: there is no relation to learn.

    Args:
        pairs: P, of the sample.
        graph: whose, "teacher" or "student".
        terms: that need pairs.
    """
    if pairs:
        return
    atoms = "each has one atom" if batch.natoms.max() == 1 else "no two atoms are within the model's cutoff"
    raise ValueError(
        f"task.distill.relations: the {graph}'s graph joins no pair of atoms in a sample of "
        f"{len(batch.natoms)} systems of dataset.train: {atoms}. Relations need systems of several bonded atoms; "
        f"check dataset.train.src, or distil without {' and '.join(f'`{key}`' for key in terms)}."
    )
