"""What each distillation term compares: of the student, of the teacher, in which unit.

A term is a function with the decorator `@register_term`; docs/development.md adds one of your own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Optional

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters import Features
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TermConfig, add_term_options, suggestion
from fairchem_crack.io.batches import free_rows, movable_rows
from fairchem_crack.loss.relations import unit_embedding
from fairchem_crack.shapes import SHAPES, Shape
from fairchem_crack.teacher.channels import ChannelStatistics
from fairchem_crack.teacher.force_jacobian import jacobian_rows
from fairchem_crack.teacher.frozen import TeacherOutputs

# Which of the student's outputs a term compares that requests one of these fields of the teacher.
COMPARED_AS = {keys.ENERGY: {keys.ENERGY, keys.ATOM_ENERGIES}, keys.FORCES: {keys.FORCES, keys.FORCE_JACOBIAN}}


@dataclass
class TermContext:
    """What the terms of a training step can read.

    Attributes:
        batch: B systems, after the student's forward.
        student: its features.
        outputs: its energy (B, 1) and forces (N, 3), normalised; by property, and by name where that is another.
        teacher: its outputs for the batch.
        projection: (N, D_s) -> (N, D), of the node embeddings, standardised as the teacher's.
        vector_projection: (N, 3, channels) -> (N, 3, D_v), linear in the channels, so that it rotates with the system.
        statistics: of the teacher's embeddings.
        targets: the conversion between eV and the student's normalised unit, by property.
    """

    batch: Batch
    student: Features
    outputs: dict[str, Tensor]
    teacher: TeacherOutputs
    projection: nn.Module
    vector_projection: nn.Module
    statistics: ChannelStatistics
    targets: ModelOutputs

    @cached_property
    def _projected(self) -> Tensor:
        """(N, D) the student's node embedding, projected; one call for all terms, as DDP requires."""
        return self.projection(self.student.node_embedding)

    @cached_property
    def _projected_vectors(self) -> Tensor:
        return self.vector_projection(self.student.vector_embedding)

    @property
    def projected(self) -> Tensor:
        """(N, D) the student's node embedding, projected, in the units of `teacher.node_embedding`."""
        return self.statistics.restore(self._projected)

    def nodes(self, standardize: bool = True) -> tuple[Tensor, Tensor]:
        """(N, D) node embeddings to compare, student's and teacher's.

        Args:
            standardize: each channel of the teacher has mean 0 and standard deviation 1; else both are in its own units.
        """
        if standardize:
            return self._projected, self.statistics.standardize(self.teacher.node_embedding)
        return self.projected, self.teacher.node_embedding

    def vectors(self, standardize: bool = True) -> tuple[Tensor, Tensor]:
        """(N, 3, D_v) vector embeddings to compare, student's and teacher's.

        Args:
            standardize: each channel of the teacher has a root mean square length of 1; else both are in its own units.
        """
        rms, teacher = self.statistics.vector_rms, self.teacher[keys.VECTOR_EMBEDDING]
        assert rms is not None
        return (self._projected_vectors, teacher / rms) if standardize else (self._projected_vectors * rms, teacher)

    def normalize(self, property_: str, values: Tensor, batch: Batch) -> Tensor:
        """Energies (B,) in eV or forces (N, 3) in eV/A, in the student's normalised unit."""
        return self.targets[property_].in_own_unit(values, batch)


TermInputs = tuple[Tensor, Tensor]  # of equal shape, student's and teacher's: what a term's loss compares
TermFunction = Callable[[TermContext, TermConfig], TermInputs]


@dataclass(frozen=True)
class Comparison:
    """A registered term.

    Attributes:
        fields: of `TeacherOutputs`, those that it requests; the embeddings among them are projected.
        inputs: the function that makes the inputs of the term's loss.
    """

    fields: tuple[str, ...]
    inputs: TermFunction


COMPARISONS: dict[str, Comparison] = {}
TEACHER_FIELDS = [field.name for field in dataclasses.fields(TeacherOutputs) if field.name != "edge_index"]


def register_term(
    key: str, *fields: str, options: Optional[type] = None, shape: Optional[Shape] = None
) -> Callable[[TermFunction], TermFunction]:
    """Function decorator: `loss_functions` may have a term `key`, which requests `fields` of the teacher.

    The function gets a `TermContext` and the term's options and returns what the term's `fn` compares, student's and
    teacher's.

    Args:
        key: in `loss_functions`.
        fields: of `TeacherOutputs`.
        options: a frozen dataclass, the term's further options in the YAML; the function reads them as `term.options`.
        shape: of what is compared, such as `("N", "3")`: a loss that does not take it is then refused before any data is
            read. Without, at the first step.

    Raises:
        ValueError: the key is taken, a field is unknown, or the options are not a frozen dataclass.
    """
    if key in (keys.ENERGY, keys.FORCES):
        raise ValueError(f"The term `{key}`: is the name of an output of the student; give another key.")
    for name in fields:
        if name not in TEACHER_FIELDS:
            raise ValueError(f"The term `{key}`: a teacher has no `{name}`. {suggestion(name, TEACHER_FIELDS)}")

    def register(function: TermFunction) -> TermFunction:
        known = COMPARISONS.get(key)
        if known is not None and _place(known.inputs) != _place(function):  # else its module is imported once more
            raise ValueError(f"The term `{key}` is registered twice: by {_place(known.inputs)} and {_place(function)}.")
        if options is not None:
            add_term_options(key, options)
        COMPARISONS[key] = Comparison(fields, function)
        if shape is not None:
            SHAPES[key] = shape
        if key not in keys.DISTILLATION_TERMS:
            keys.DISTILLATION_TERMS.append(key)
        return function

    return register


def _place(function: TermFunction) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@register_term(keys.RELATIONS, keys.NODE_EMBEDDING)
def _relations(context: TermContext, term: TermConfig) -> TermInputs:
    """With lmax 1 the embedding is (unit invariant part, unit vector part), in which both have the same weight."""
    nodes = context.nodes(term.standardize)
    if term.lmax == 0:
        return nodes
    student, teacher = (
        torch.cat((unit_embedding(node), unit_embedding(vector.flatten(1))), dim=1)
        for node, vector in zip(nodes, context.vectors(term.standardize))
    )
    return student, teacher


@register_term(keys.NODE_EMBEDDINGS, keys.NODE_EMBEDDING)
def _node_embeddings(context: TermContext, term: TermConfig) -> TermInputs:
    return context.nodes(term.standardize)


@register_term(keys.VECTOR_EMBEDDINGS, keys.VECTOR_EMBEDDING)
def _vector_embeddings(context: TermContext, term: TermConfig) -> TermInputs:
    student, teacher = context.vectors(term.standardize)
    return student.transpose(1, 2).reshape(-1, 3), teacher.transpose(1, 2).reshape(-1, 3)  # (N D_v, 3), for l2mae too


@register_term(keys.NODE_CONTRAST, keys.NODE_EMBEDDING)
def _node_contrast(context: TermContext, term: TermConfig) -> TermInputs:
    return context.nodes(term.standardize)


@register_term(keys.ATOM_ENERGIES, keys.ATOM_ENERGIES, keys.ENERGY)
def _atom_energies(context: TermContext, term: TermConfig) -> TermInputs:
    """The teacher's in the student's unit, where they sum to its normalised energy."""
    energies, energy = context.teacher[keys.ATOM_ENERGIES], context.teacher[keys.ENERGY]
    output = context.targets[keys.ENERGY]
    target = output.atoms_in_own_unit(energies, output.in_own_unit(energy, context.batch), context.batch)
    return context.student.atom_energies.float(), target[:, None]


@register_term(keys.TEACHER_ENERGY, keys.ENERGY)
def _teacher_energy(context: TermContext, term: TermConfig) -> TermInputs:
    target = context.normalize(keys.ENERGY, context.teacher[keys.ENERGY], context.batch)
    return context.outputs[keys.ENERGY].float(), target.view_as(context.outputs[keys.ENERGY])


@register_term(keys.TEACHER_FORCES, keys.FORCES)
def _teacher_forces(context: TermContext, term: TermConfig) -> TermInputs:
    free = free_rows(context.batch)
    target = context.normalize(keys.FORCES, context.teacher[keys.FORCES], context.batch)
    return context.outputs[keys.FORCES][free].float(), target[free]


@register_term(keys.FORCE_JACOBIAN, keys.FORCE_JACOBIAN)
def _force_jacobian(context: TermContext, term: TermConfig) -> TermInputs:
    """In the unit of the student's forces, per A; the atoms of the systems that have a free atom."""
    kept = context.teacher[keys.FORCE_JACOBIAN]
    rows = jacobian_rows(context.outputs[keys.FORCES].float(), context.batch.pos, kept.coordinates)
    target = context.targets[keys.FORCES].differences_in_own_unit(kept.values)
    movable = movable_rows(context.batch)
    return rows[movable], target[movable]


def inputs_of(term: TermConfig, context: TermContext) -> TermInputs:
    """What the loss of a term compares in a step."""
    return COMPARISONS[term.key].inputs(context, term)


def teacher_fields(term: TermConfig) -> set[str]:
    """Fields of `TeacherOutputs` that a term requests."""
    return {*COMPARISONS[term.key].fields, *([keys.VECTOR_EMBEDDING] if term.lmax else [])}


def requested_fields(config: DistillConfig, terms: Iterable[TermConfig]) -> set[str]:
    """Fields of `TeacherOutputs` that some terms of a training request, and its labels where the teacher gives them."""
    labels = {keys.ENERGY, keys.FORCES} if config.labels != "data" else set()
    return labels.union(*(teacher_fields(term) for term in terms))
