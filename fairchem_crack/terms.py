"""What each distillation term compares: of the student, of the teacher, in which unit.

A term is a function behind `@register_term`; docs/development.md adds one of your own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.config import TermConfig
from fairchem_crack.features import Features
from fairchem_crack.jacobian import jacobian_rows
from fairchem_crack.named_records import free_atoms
from fairchem_crack.relations import unit_embedding
from fairchem_crack.teacher import TeacherOutputs, share

SMALLEST_SPREAD = 0.01  # of the median channel's: a channel that is constant in the teacher does not count without bound


@dataclass(frozen=True)
class Spread:
    """By how much the teacher's embeddings differ between atoms; the unit in which two embeddings are compared.

    Attributes:
        node: (D,) standard deviation of each channel.
        vector: (D_v,) root mean square length of each channel; None for a teacher without.
    """

    node: Tensor
    vector: Optional[Tensor]


def spread_of(teacher: TeacherOutputs) -> Spread:
    """The spread over the atoms of a batch."""
    vectors = teacher.vector_embedding
    return Spread(
        _bounded(teacher.node_embedding.std(dim=0, correction=0)),
        None if vectors is None else _bounded(vectors.square().sum(dim=1).mean(dim=0).sqrt()),
    )


def _bounded(spread: Tensor) -> Tensor:
    if not spread.numel():
        return spread
    floor = SMALLEST_SPREAD * spread.median()
    return spread.clamp(min=float(floor) if floor > 0 else 1.0)


@dataclass
class Step:
    """A training step as the terms see it.

    Attributes:
        batch: B systems, behind the student's forward.
        student: its features.
        outputs: its energy (B, 1) and forces (N, 3), normalised.
        teacher: what it says of the batch.
        projection: (N, D_s) -> (N, D), of the node embeddings.
        vector_projection: (N, 3, channels) -> (N, 3, D_v), linear in the channels, so that it turns with the system.
        spread: of the teacher's embeddings.
        normalize: (name of an output, values in eV or eV/A, batch) -> values in the student's normalised unit.
    """

    batch: Batch
    student: Features
    outputs: dict[str, Tensor]
    teacher: TeacherOutputs
    projection: nn.Module
    vector_projection: nn.Module
    spread: Optional[Spread]
    normalize: Callable[[str, Tensor, Batch], Tensor]

    @cached_property
    def projected(self) -> Tensor:
        """(N, D) the student's node embedding, projected; one call for all terms, as DDP wants it."""
        return self.projection(self.student.node_embedding).float()

    @cached_property
    def projected_vectors(self) -> Tensor:
        """(N, 3, D_v) the student's l=1 embedding, projected."""
        return self.vector_projection(self.student.vector_embedding).float()


Pair = Callable[[Step, TermConfig], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Comparison:
    """What a term reads.

    Attributes:
        wanted: fields of `TeacherOutputs`; the embeddings among them are projected.
        pair: the two tensors of equal shape that the term's loss compares, student's and teacher's.
    """

    wanted: tuple[str, ...]
    pair: Pair


COMPARISONS: dict[str, Comparison] = {}


def register_term(key: str, *fields: str) -> Callable[[Pair], Pair]:
    """Function decorator: `loss_functions` may have a term `key`, which asks the teacher for `fields`.

    The function gets the step and the term's options and returns what the term's `fn` compares, student's and teacher's.
    """

    def register(pair: Pair) -> Pair:
        COMPARISONS[key] = Comparison(fields, pair)
        if key not in keys.DISTILLATION_TERMS:
            keys.DISTILLATION_TERMS.append(key)
        return pair

    return register


@register_term(keys.RELATIONS, keys.NODE_EMBEDDING)
def _relations(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    """With lmax 1 the embedding is (unit invariant part, unit vector part): both weigh the same."""
    teacher = step.teacher
    if term.lmax == 0:
        return step.projected, teacher.node_embedding
    student = torch.cat((unit_embedding(step.projected), unit_embedding(step.projected_vectors.flatten(1))), dim=1)
    return student, torch.cat(
        (unit_embedding(teacher.node_embedding), unit_embedding(teacher[keys.VECTOR_EMBEDDING].flatten(1))), dim=1
    )


@register_term(keys.NODE_EMBEDDINGS, keys.NODE_EMBEDDING)
def _node_embeddings(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    unit = step.spread.node if term.standardize and step.spread is not None else 1.0
    return step.projected / unit, step.teacher.node_embedding / unit


@register_term(keys.VECTOR_EMBEDDINGS, keys.VECTOR_EMBEDDING)
def _vector_embeddings(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    unit = step.spread.vector if term.standardize and step.spread is not None else 1.0
    student, teacher = step.projected_vectors / unit, step.teacher[keys.VECTOR_EMBEDDING] / unit
    return student.transpose(1, 2).reshape(-1, 3), teacher.transpose(1, 2).reshape(-1, 3)  # (N D_v, 3), for l2mae too


@register_term(keys.NODE_CONTRAST, keys.NODE_EMBEDDING)
def _node_contrast(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    return step.projected, step.teacher.node_embedding


@register_term(keys.ATOM_ENERGIES, keys.ATOM_ENERGIES, keys.ENERGY)
def _atom_energies(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    """The teacher's in the student's unit: scaled, and shifted so that they sum to its normalised energy."""
    energies, energy = step.teacher[keys.ATOM_ENERGIES], step.teacher[keys.ENERGY]
    zero = torch.zeros_like(energy)
    scale = step.normalize("energy", zero + 1, step.batch) - step.normalize("energy", zero, step.batch)  # (B,)
    scaled = energies * scale[step.batch.batch]
    target = share(scaled, step.normalize("energy", energy, step.batch), step.batch)
    return step.student.atom_energies.float(), target[:, None]


@register_term(keys.TEACHER_ENERGY, keys.ENERGY)
def _teacher_energy(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    target = step.normalize("energy", step.teacher[keys.ENERGY], step.batch)
    return step.outputs[keys.ENERGY].float(), target.view_as(step.outputs[keys.ENERGY])


@register_term(keys.TEACHER_FORCES, keys.FORCES)
def _teacher_forces(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    free = free_atoms(step.batch)
    target = step.normalize("forces", step.teacher[keys.FORCES], step.batch)
    return step.outputs[keys.FORCES][free].float(), target[free]


@register_term(keys.FORCE_JACOBIAN, keys.FORCE_JACOBIAN)
def _force_jacobian(step: Step, term: TermConfig) -> tuple[Tensor, Tensor]:
    """In the unit of the student's forces, per A; the atoms of the systems that have a free atom."""
    said = step.teacher[keys.FORCE_JACOBIAN]
    rows = jacobian_rows(step.outputs[keys.FORCES].float(), step.batch.pos, said.coordinates)
    zero = torch.zeros_like(said.values)
    target = step.normalize("forces", said.values, step.batch) - step.normalize("forces", zero, step.batch)
    counted = (said.coordinates >= 0)[step.batch.batch]
    return rows[counted], target[counted]


def wanted(term: TermConfig) -> set[str]:
    """Fields of `TeacherOutputs` that a term needs."""
    return {*COMPARISONS[term.key].wanted, *([keys.VECTOR_EMBEDDING] if term.lmax else [])}
