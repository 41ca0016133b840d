"""What each distillation term compares: of the student, of the teacher, in which unit.

A term is a function with the decorator `@register_term`; docs/development.md adds one of your own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Optional

import torch
from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, TagWeights, TermConfig, add_term_options, suggestion
from fairchem_crack.io.batches import free_rows, movable_rows
from fairchem_crack.loss.relations import relation_lengths, relation_vectors, unit_embedding
from fairchem_crack.shapes import SHAPES, Shape
from fairchem_crack.teacher.channels import degrees
from fairchem_crack.teacher.force_jacobian import jacobian_rows
from fairchem_crack.teacher.frozen import EMBEDDINGS, TeacherOutputs
from fairchem_crack.teacher.responses import STEP
from fairchem_crack.training.term_context import TermContext

# Which of the student's outputs a term compares that requests one of these fields of the teacher.
COMPARED_AS = {
    keys.ENERGY: {keys.ENERGY, keys.ATOM_ENERGIES},
    keys.FORCES: {keys.FORCES, keys.FORCE_JACOBIAN, keys.FORCE_RESPONSE},
}


TermInputs = tuple[Tensor, Tensor]  # of equal shape, student's and teacher's: what a term's loss compares
TermFunction = Callable[[TermContext, TermConfig], TermInputs]


@dataclass(frozen=True)
class Comparison:
    """A registered term.

    Attributes:
        fields: of `TeacherOutputs`, those that it requests; the embeddings among them are projected.
        inputs: the function that makes the inputs of the term's loss.
        of_positions: it differentiates outputs of the student with respect to `batch.pos`.
    """

    fields: tuple[str, ...]
    inputs: TermFunction
    of_positions: bool = False


COMPARISONS: dict[str, Comparison] = {}
TEACHER_FIELDS = [option.name for option in dataclasses.fields(TeacherOutputs) if option.name != "edge_index"]


def register_term(
    key: str, *fields: str, options: Optional[type] = None, shape: Optional[Shape] = None, of_positions: bool = False
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
        of_positions: the function differentiates outputs of the student with respect to `batch.pos`, which then requires a
            gradient. Students that detach their outputs from the positions are refused.

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
        COMPARISONS[key] = Comparison(fields, function, of_positions)
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
    """Of several degrees, the parts of each degree scaled to unit length, so that all have the same weight."""
    student, teacher = _by_degree(context, term)
    if term.per_degree:  # `losses.CrackLoss` weighs them
        return torch.cat(student, dim=1), torch.cat(teacher, dim=1)
    if len(student) > 1:
        student, teacher = [unit_embedding(part) for part in student], [unit_embedding(part) for part in teacher]
    return _joined(student, term), _joined(teacher, term)


@register_term(keys.NODE_EMBEDDINGS, keys.NODE_EMBEDDING)
def _node_embeddings(context: TermContext, term: TermConfig) -> TermInputs:
    student, teacher = _by_degree(context, term)
    return _joined(student, term), _joined(teacher, term)


def _joined(parts: list[Tensor], term: TermConfig) -> Tensor:
    """Of each degree l, sqrt(w_l) times as long: squared differences have the weight w_l."""
    if term.degree_weights is not None:
        parts = [weight**0.5 * part for weight, part in zip(term.degree_weights, parts)]
    return torch.cat(parts, dim=1)


def _by_degree(context: TermContext, term: TermConfig) -> tuple[list[Tensor], list[Tensor]]:
    """(N, (2 l + 1) width) embeddings of each degree l = 0 to lmax, student's and teacher's."""
    assert isinstance(term.lmax, int)  # see `resolved`
    names = EMBEDDINGS[: term.lmax + 1]
    both = [context.embeddings(name, standardize=term.standardize, projected=term.projected) for name in names]
    student, teacher = ([part.flatten(1) for part in degrees(of_model)][: term.lmax + 1] for of_model in zip(*both))
    return student, teacher


@register_term(keys.RELATION_VECTORS, keys.NODE_EMBEDDING)
def _relation_vectors(context: TermContext, term: TermConfig) -> TermInputs:
    """(P, D) unit(â_i - â_j), 0 where a pair has no direction in either model.

    Or a_i - a_j, whose squared error is that of the embeddings through the graph's Laplacian.
    """
    assert context.pairs is not None
    student, teacher = context.embeddings(keys.NODE_EMBEDDING, standardize=term.standardize)
    if not term.normalize:
        first, second = context.pairs
        return student[first] - student[second], teacher[first] - teacher[second]
    student, teacher = relation_vectors(student, context.pairs), relation_vectors(teacher, context.pairs)
    have_direction = (student.any(dim=1) & teacher.any(dim=1))[:, None]
    return torch.where(have_direction, student, 0), torch.where(have_direction, teacher, 0)


@register_term(keys.RELATION_LENGTHS, keys.NODE_EMBEDDING)
def _relation_lengths(context: TermContext, term: TermConfig) -> TermInputs:
    """(P, 1) |z_i - z_j|, divided by its mean over the pairs, of embeddings of whatever widths (Park et al. 2019)."""
    assert context.pairs is not None
    teacher = context.teacher.node_embedding
    if term.projected:
        student, teacher = context.embeddings(keys.NODE_EMBEDDING, standardize=term.standardize)
    else:
        student = context.student.node_embedding.to(teacher.dtype)
        teacher = context.statistics.standardize(teacher) if term.standardize else teacher
    return relation_lengths(student, context.pairs), relation_lengths(teacher, context.pairs)


@register_term(keys.SYSTEM_EMBEDDING, keys.NODE_EMBEDDING)
def _system_embedding(context: TermContext, term: TermConfig) -> TermInputs:
    """(B, D) means over the atoms of each system, which no relation sees."""
    batch, embeddings = context.batch, context.embeddings(keys.NODE_EMBEDDING, standardize=term.standardize)
    student, teacher = (
        embedding.new_zeros(len(batch.natoms), embedding.shape[1]).index_add(0, batch.batch, embedding)
        / batch.natoms[:, None]
        for embedding in embeddings
    )
    return student, teacher


@register_term(keys.VECTOR_EMBEDDINGS, keys.VECTOR_EMBEDDING)
def _vector_embeddings(context: TermContext, term: TermConfig) -> TermInputs:
    student, teacher = context.embeddings(keys.VECTOR_EMBEDDING, standardize=term.standardize)
    return student.transpose(1, 2).reshape(-1, 3), teacher.transpose(1, 2).reshape(-1, 3)  # (N D_v, 3), for l2mae too


@register_term(keys.NODE_CONTRAST, keys.NODE_EMBEDDING)
def _node_contrast(context: TermContext, term: TermConfig) -> TermInputs:
    return context.embeddings(keys.NODE_EMBEDDING, standardize=term.standardize)


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


@register_term(keys.ENERGY_GRADIENT, keys.ENERGY, keys.FORCES, of_positions=True)
def _energy_gradient(context: TermContext, term: TermConfig) -> TermInputs:
    """(N_free, 3) -dE/dx of the student's energy and the teacher's forces: three numbers an atom for the energy to learn."""
    batch, free = context.batch, free_rows(context.batch)
    energy = context.targets[keys.ENERGY].in_ev(context.outputs[keys.ENERGY].float(), batch)
    (gradient,) = torch.autograd.grad(energy.sum(), batch.pos, create_graph=True)  # systems do not interact
    student, teacher = (context.normalize(keys.FORCES, each, batch) for each in (-gradient, context.teacher[keys.FORCES]))
    return student[free], teacher[free]


@register_term(keys.FORCE_JACOBIAN, keys.FORCE_JACOBIAN, of_positions=True)
def _force_jacobian(context: TermContext, term: TermConfig) -> TermInputs:
    """In the unit of the student's forces, per A; the atoms of the systems that have a free atom."""
    kept = context.teacher[keys.FORCE_JACOBIAN]
    rows = jacobian_rows(context.outputs[keys.FORCES].float(), context.batch.pos, kept.coordinates)
    target = context.targets[keys.FORCES].differences_in_own_unit(kept.values)
    movable = movable_rows(context.batch)
    return rows[movable], target[movable]


@register_term(keys.EMBEDDING_RESPONSE, keys.NODE_EMBEDDING, keys.EMBEDDING_RESPONSE)
def _embedding_response(context: TermContext, term: TermConfig) -> TermInputs:
    """(N, D) by a second run of the student; the same difference as the teacher's."""
    response, rest = context.teacher[keys.EMBEDDING_RESPONSE], context.embeddings(keys.NODE_EMBEDDING)[0]
    student = (context.moved(term.key)[keys.NODE_EMBEDDING] - rest) / STEP
    std = context.statistics.channel_std
    return (student, response.values / std) if term.standardize else (student * std, response.values)


@register_term(keys.FORCE_RESPONSE, keys.FORCE_RESPONSE)
def _force_response(context: TermContext, term: TermConfig) -> TermInputs:
    """(N_free, 3) by the same run, in the unit of the student's forces, per A."""
    response, free = context.teacher[keys.FORCE_RESPONSE], free_rows(context.batch)
    student = (context.moved(term.key)[keys.FORCES] - context.outputs[keys.FORCES]) / STEP
    return student[free].float(), context.targets[keys.FORCES].differences_in_own_unit(response.values)[free]


def inputs_of(term: TermConfig, context: TermContext) -> TermInputs:
    """What the loss of a term compares in a step."""
    return COMPARISONS[term.key].inputs(context, term)


def teacher_fields(term: TermConfig) -> set[str]:
    """Fields of `TeacherOutputs` that a term requests."""
    largest = len(EMBEDDINGS) - 1 if term.lmax == "all" else term.lmax
    return {*COMPARISONS[term.key].fields, *EMBEDDINGS[1 : largest + 1]}


def is_of_positions(term: TermConfig) -> bool:
    """Whether a term differentiates outputs of the student with respect to the positions."""
    return COMPARISONS[term.key].of_positions


def resolved(term: TermConfig, lmax: int) -> TermConfig:
    """A term whose `lmax` is a number: `all` is that of the teacher.

    Raises:
        ValueError: it has not a weight for each of these degrees.
    """
    if term.lmax != "all":
        return term
    try:
        return replace(term, lmax=lmax)
    except ValueError as error:
        raise ValueError(f"loss_functions, {term.key}.{error} The teacher has degrees up to {lmax}.") from error


def element_weights(term: TermConfig, context: TermContext) -> Optional[Tensor]:
    """(N,) or, of a term of pairs, (P,): by what the loss of each is multiplied; None where all weights are 1."""
    if term.tag_weights == TagWeights():
        return None
    tags, by_tag = context.batch.tags, dataclasses.astuple(term.tag_weights)
    of_atoms = torch.stack([weight * (tags == tag) for tag, weight in enumerate(by_tag)]).sum(dim=0)
    return of_atoms[context.pairs].mean(dim=0) if term.key in keys.OF_PAIRS else of_atoms


def requested_fields(config: DistillConfig, terms: Iterable[TermConfig]) -> set[str]:
    """Fields of `TeacherOutputs` that some terms of a training request, and its labels where the teacher gives them."""
    labels = {keys.ENERGY, keys.FORCES} if config.labels != "data" else set()
    return labels.union(*(teacher_fields(term) for term in terms))
