"""The losses of the distillation terms: functions of two tensors and of what is known of the step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Optional, Protocol, Union

import fairchem.core.modules.loss  # noqa: F401, which registers fairchem's losses
import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from torch import Tensor, nn

from fairchem_crack import keys
from fairchem_crack.config import CONTRASTIVE, DistillConfig, RelationsConfig, TermConfig, suggestion
from fairchem_crack.loss.crack import CrackTerms, crack_terms
from fairchem_crack.loss.gather import Gathering, gather_rows
from fairchem_crack.loss.precision import full_precision
from fairchem_crack.loss.relations import has_direction, pair_difference, unit_embedding
from fairchem_crack.shapes import loss_misfit
from fairchem_crack.training.reduction import Number, Part, reduce_parts


@registry.register_loss("huber")
class HuberLoss(nn.Module):
    """d^2 / 2 of a difference d below 1, |d| - 1 / 2 above: what Park et al. 2019 take for distances."""

    def forward(self, prediction: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """A value for each element."""
        return nn.functional.huber_loss(prediction, target, reduction="none")


@dataclass(frozen=True)
class LossContext:
    """What a loss reads of a step, besides the two tensors that it compares.

    Attributes:
        natoms: (B,) long, the atoms of each system.
        pairs: (2, P) long, the atom pairs of the relations; None where no term has relations.
        seed: of the random subset of `max_pairs`.
        gathering: the teacher's embeddings of all ranks, where they are already on their way.
        groups: (P,) long, of pairs that are alike, for `negatives: alike`.
        weights: (N,) or (P,), by what the loss of each atom or pair is multiplied; None for 1.
    """

    natoms: Tensor
    pairs: Optional[Tensor] = None
    seed: int = 0
    gathering: Optional[Gathering] = None
    groups: Optional[Tensor] = None
    weights: Optional[Tensor] = None

    def weigh(self, values: Tensor) -> Tensor:
        """Values of the loss, the first dimension of which is that of the weights, or as many for each."""
        if self.weights is None:
            return values
        rows = self.weights.repeat_interleave(len(values) // max(len(self.weights), 1), output_size=len(values))
        return values * rows.view(-1, *[1] * (values.dim() - 1))


class Elements(NamedTuple):
    """The elements of a loss on one rank.

    Attributes:
        values: one for each element; 0 for those that are left out.
        number: over how many the mean is.
        diagnostics: numbers that are logged with the term.
    """

    values: Tensor
    number: Union[Tensor, int]
    diagnostics: Mapping[str, Number] = {}


class ElementLoss(Protocol):
    """A loss before its reduction."""

    def __call__(self, student: Tensor, teacher: Tensor, context: LossContext) -> Elements:
        """The elements of the loss of two tensors of equal shape."""


@dataclass(frozen=True)
class CrackLoss:
    """The CRACK loss of node embeddings (N, D), one value for each anchor pair (`loss.crack`).

    Attributes:
        columns: of the embeddings' parts of which each has a loss of its own, whose sum is the loss; () for one of all.
        column_weights: of the parts in that sum.
    """

    temperature: float = 0.15
    relations: RelationsConfig = field(default_factory=RelationsConfig)
    columns: tuple[int, ...] = ()
    column_weights: tuple[float, ...] = ()

    def __call__(self, student: Tensor, teacher: Tensor, context: LossContext) -> Elements:
        """(P',) loss of anchors, and the diagnostics of the relations from the same pass; of several parts, the first's."""
        if not self.columns:
            return self._of(student, teacher, context)
        parts = [self._of(*part, context) for part in zip(student.split(self.columns, 1), teacher.split(self.columns, 1))]
        # where pairs have no direction, parts differ in their numbers: the mean of each is over its own, on all ranks
        own = torch.tensor([part.values.numel() for part in parts])
        counts: list[int] = distutils.all_reduce(own, device=student.device).tolist()
        largest = max(range(len(parts)), key=counts.__getitem__)
        scales = [weight * counts[largest] / max(count, 1) for weight, count in zip(self.column_weights, counts)]
        values = torch.cat([scale * part.values for scale, part in zip(scales, parts)])
        return Elements(values, parts[largest].number, parts[0].diagnostics)

    def _of(self, student: Tensor, teacher: Tensor, context: LossContext) -> Elements:
        if context.pairs is None:
            raise ValueError("The CRACK loss needs the atom pairs of the step.")
        compare = self._among_all_ranks if self.relations.negatives == "world" else self._on_this_rank
        terms = compare(student, teacher, context.pairs, context)
        diagnostics: dict[str, Number] = {
            keys.RELATION_TOP1: terms.top1,
            keys.RELATION_COSINE: terms.cosine,
            keys.RELATION_ENTROPY: terms.entropy,
            keys.NUM_PAIRS: terms.num_pairs,
            keys.NUM_DEGENERATE: terms.num_degenerate,
        }
        return Elements(terms.loss, terms.loss.numel(), diagnostics)

    def _on_this_rank(self, student: Tensor, teacher: Tensor, pairs: Tensor, context: LossContext) -> CrackTerms:
        numbers = torch.arange(context.natoms.numel(), device=student.device)
        systems = torch.repeat_interleave(numbers, context.natoms.to(student.device), output_size=len(student))
        weights = context.weights
        return self._terms(student, teacher, pairs, context.seed, systems=systems, groups=context.groups, weights=weights)

    def _among_all_ranks(self, student: Tensor, teacher: Tensor, pairs: Tensor, context: LossContext) -> CrackTerms:
        """This rank's pairs are the anchors, those of every rank the negatives.

        With the student as anchor only the teacher's embeddings are negatives, and no embedding of a student is sent.
        """
        valid = pair_difference(unit_embedding(student), pairs)[2]  # what other ranks cannot see
        gathering = context.gathering or Gathering(teacher.detach())
        own_pairs = (pairs[:, valid] + gathering.first).T.contiguous()
        all_pairs = Gathering(own_pairs)
        teachers, first, own = gathering.rows(), gathering.first, len(student)
        if self.relations.anchor == "student":
            students = torch.cat((teachers[:first], student, teachers[first + own :]))  # theirs are never looked at
        else:
            students = gather_rows(student)
        joined = all_pairs.rows().T.contiguous()
        anchors = torch.zeros(joined.shape[1], dtype=torch.bool, device=pairs.device)
        anchors[all_pairs.first : all_pairs.first + len(own_pairs)] = True
        weights = context.weights
        if weights is not None:
            of_others = weights.new_ones(joined.shape[1])  # no anchors
            weights = of_others.masked_scatter(anchors, weights[valid])
        terms = self._terms(students, teachers, joined, context.seed, anchors=anchors, weights=weights)
        return replace(terms, num_degenerate=pairs.shape[1] - terms.num_pairs)

    def _terms(
        self,
        student: Tensor,
        teacher: Tensor,
        pairs: Tensor,
        seed: int,
        *,
        systems: Optional[Tensor] = None,
        anchors: Optional[Tensor] = None,
        groups: Optional[Tensor] = None,
        weights: Optional[Tensor] = None,
    ) -> CrackTerms:
        return crack_terms(
            student=student,
            teacher=teacher,
            pairs=pairs,
            systems=systems,
            anchors=anchors,
            temperature=self.temperature,
            anchor=self.relations.anchor,
            negatives=self.relations.negatives,
            max_pairs=self.relations.max_pairs,
            false_negative_threshold=self.relations.false_negative_threshold,
            generator=torch.Generator().manual_seed(seed),
            targets=self.relations.targets,
            groups=groups,
            weights=weights,
        )


@dataclass(frozen=True)
class InfoNCELoss:
    r"""InfoNCE of node embeddings (N, D), one value for each atom.

    loss_i = - log [ exp(a_i . b_i / tau) / sum_k exp(a_i . b_k / tau) ], a and b the unit embeddings of student and teacher,
    k over the atoms of the batch. An atom without a direction in either model is left out. Source: van den Oord et al. 2018.

    Attributes:
        temperature: tau.
    """

    temperature: float = 0.15

    def __call__(self, student: Tensor, teacher: Tensor, context: LossContext) -> Elements:
        """(N,) loss of each atom, 0 of one left out."""
        valid = has_direction(student) & has_direction(teacher)  # (N,)
        with full_precision(student.device.type):
            logits = unit_embedding(student) @ unit_embedding(teacher).T / self.temperature  # (N, N)
            among_valid = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
            values = torch.where(valid, among_valid.logsumexp(dim=1) - logits.diagonal(), 0)
        return Elements(context.weigh(values), valid.sum())


@dataclass(frozen=True)
class HostLoss:
    """An elementwise loss from fairchem's registry, fairchem's or a user's.

    The mean is over all of its values, or over as many as its attribute `elements` gives, where it has one.
    """

    module: nn.Module

    def __call__(self, student: Tensor, teacher: Tensor, context: LossContext) -> Elements:
        """The module's values for prediction, target and natoms."""
        values = self.module(student, teacher, context.natoms)
        number = getattr(self.module, "elements", None)
        return Elements(context.weigh(values), values.numel() if number is None else number)


@dataclass(frozen=True)
class TermLoss:
    """The loss of one term, reduced over all ranks; the mean over nothing is 0.

    A value that is not finite enters the loss as it is; fairchem's `DDPLoss` turns NaN into 0, and the gradient with it.
    """

    elements: ElementLoss
    reduction: str = "mean"

    def __call__(self, student: Tensor, teacher: Tensor, context: LossContext) -> Tensor:
        """() the loss of two tensors of equal shape; raises as `part`."""
        return reduce_parts([self.part(student, teacher, context)])[0]

    def part(self, student: Tensor, teacher: Tensor, context: LossContext) -> Part:
        """What `reduce_parts` makes the loss of.

        Raises:
            ValueError: the shapes differ.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"A term compares two tensors of equal shape; found {tuple(student.shape)} and {tuple(teacher.shape)}."
            )
        elements = self.elements(student, teacher, context)
        number = None if self.reduction == "sum" else elements.number
        return Part(elements.values.sum(), number, elements.diagnostics)


def build_loss(term: TermConfig, config: DistillConfig, *, widths: tuple[int, int] = (0, 0)) -> TermLoss:
    """The loss of one term.

    Args:
        widths: D and D_v, of the teacher; for relations `per_degree`.

    Raises:
        ValueError: fairchem has no loss `fn`.
    """
    return TermLoss(_element_loss(term, config, widths), term.reduction or "mean")


def _element_loss(term: TermConfig, config: DistillConfig, widths: tuple[int, int]) -> ElementLoss:
    if term.fn == CONTRASTIVE[keys.RELATIONS]:
        columns: tuple[int, ...] = ()
        if term.per_degree:
            assert isinstance(term.lmax, int)  # see `terms.resolved`
            columns = (widths[0], *((2 * degree + 1) * widths[1] for degree in range(1, term.lmax + 1)))
        return CrackLoss(term.temperature, config.relations, columns, term.degree_weights or (1.0,) * len(columns))
    if term.fn == CONTRASTIVE[keys.NODE_CONTRAST]:
        return InfoNCELoss(term.temperature)
    if unknown := unknown_loss(term.fn):
        raise ValueError(f"loss_functions, {term.key}.fn: {unknown}")
    return HostLoss(registry.get_loss_class(term.fn)())


def unknown_loss(fn: str) -> Optional[str]:
    """The sentence that refuses a loss that fairchem does not have; None for one that it has, its own or a user's."""
    try:
        registry.get_loss_class(fn)
    except RuntimeError:  # which lists every name of the registry
        names = [name for name in registry.mapping["loss_name_mapping"] if name not in CONTRASTIVE.values()]
        return f"fairchem has no loss `{fn}`. {suggestion(fn, names)}"
    return None


def check_compared(term: TermConfig, student: Tensor, teacher: Tensor, *, systems: int) -> None:
    """Raise ValueError for the inputs of a user's own term that its loss cannot compare."""
    where = f"loss_functions, {term.key}"
    if student.shape != teacher.shape:
        raise ValueError(
            f"{where}: compares tensors of unequal shapes, {tuple(student.shape)} of the student and {tuple(teacher.shape)} "
            "of the teacher."
        )
    is_column = student.dim() == 1 or (student.dim() == 2 and student.shape[1] == 1)
    rows = "B" if len(student) == systems else "N"
    if student.numel() and term.key not in CONTRASTIVE:
        misfit = loss_misfit(term.fn, (rows, "1" if is_column else "D"), term.key)
        if misfit:
            raise ValueError(f"{where}.fn: {misfit}")
