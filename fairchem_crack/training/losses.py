"""The losses registered with fairchem, and the reduction that keeps a term's weight with any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Optional, Union

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.modules.loss import DDPLoss
from torch import Tensor, nn

from fairchem_crack import keys
from fairchem_crack.config import CONTRASTIVE, DistillConfig, TermConfig
from fairchem_crack.loss.crack import CrackTerms, crack_terms
from fairchem_crack.loss.gather import Gathering, gather_rows
from fairchem_crack.loss.precision import full_precision
from fairchem_crack.loss.relations import has_direction, pair_difference, unit_embedding
from fairchem_crack.shapes import loss_misfit


@registry.register_loss("crack")
class CrackLoss(nn.Module):
    """Elementwise CRACK loss, one value per anchor pair, to be reduced by fairchem's `DDPLoss`.

    fairchem constructs losses without arguments and calls them with prediction, target and natoms alone; so the pairs of
    the batch are set before the call, as `pairs`, and read after it, as `terms`. Without pairs, all pairs of each system
    are taken.

    Attributes:
        options: keyword arguments of `fairchem_crack.loss.crack.crack_terms`.
        pairs: (2, P) long, of the next call; None for all pairs of each system.
        gathering: the teacher's embeddings of all ranks, of the next call, if they are already on their way.
        terms: loss and diagnostics of the last call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.options: dict = {}
        self.generator: Optional[torch.Generator] = None
        self.pairs: Optional[Tensor] = None
        self.gathering: Optional[Gathering] = None
        self.terms: Optional[CrackTerms] = None

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """(P',) loss per anchor from the embeddings of student, pred (N, D), and teacher, target (N, D)."""
        numbers = torch.arange(natoms.numel(), device=pred.device)
        systems = torch.repeat_interleave(numbers, natoms.to(pred.device), output_size=len(pred))
        pairs = _all_pairs(systems) if self.pairs is None else self.pairs
        if self.options.get("negatives") == "world":
            terms = self._among_all_ranks(pred, target.detach(), pairs)
        else:
            given: dict[str, Any] = {"student": pred, "teacher": target, "pairs": pairs, "systems": systems}
            terms = crack_terms(**given, generator=self.generator, **self.options)
        self.terms = replace(terms, loss=terms.loss.detach())  # its graph would be kept until the next call
        return terms.loss

    def diagnostics(self) -> dict[str, Union[Tensor, float]]:
        """() numbers of the last call, by the names under which a step is logged."""
        assert self.terms is not None
        return {
            keys.RELATION_TOP1: self.terms.top1,
            keys.RELATION_COSINE: self.terms.cosine,
            keys.RELATION_ENTROPY: self.terms.entropy,
            keys.NUM_PAIRS: self.terms.num_pairs,
            keys.NUM_DEGENERATE: self.terms.num_degenerate,
        }

    def _among_all_ranks(self, student: Tensor, teacher: Tensor, pairs: Tensor) -> CrackTerms:
        """This rank's pairs are the anchors, those of every rank the negatives.

        With the student as anchor the negatives are the teacher's alone, and no embedding of a student travels.
        """
        valid = pair_difference(unit_embedding(student), pairs)[2]  # what other ranks cannot see
        gathering, self.gathering = self.gathering or Gathering(teacher), None
        own_pairs = (pairs[:, valid] + gathering.first).T.contiguous()
        all_pairs = Gathering(own_pairs)
        teachers, first, own = gathering.rows(), gathering.first, len(student)
        if self.options.get("anchor", "student") == "student":
            students = torch.cat((teachers[:first], student, teachers[first + own :]))  # theirs are never looked at
        else:
            students = gather_rows(student)
        joined = all_pairs.rows().T.contiguous()
        anchors = torch.zeros(joined.shape[1], dtype=torch.bool, device=pairs.device)
        anchors[all_pairs.first : all_pairs.first + len(own_pairs)] = True
        terms = crack_terms(
            student=students, teacher=teachers, pairs=joined, anchors=anchors, generator=self.generator, **self.options
        )
        terms.num_degenerate = pairs.shape[1] - terms.num_pairs
        return terms


@registry.register_loss("info_nce")
class InfoNCELoss(nn.Module):
    r"""Elementwise InfoNCE of node embeddings, one value per atom, to be reduced by fairchem's `DDPLoss`.

    loss_i = - log [ exp(a_i . b_i / tau) / sum_k exp(a_i . b_k / tau) ], a and b the unit embeddings of student and teacher,
    k over the atoms of the batch. An atom without a direction in either model is left out. Source: van den Oord et al. 2018.

    Attributes:
        temperature: tau.
        elements: () long, the atoms of the last call that were not left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temperature = 0.15
        self.elements: Optional[Tensor] = None

    def forward(self, pred: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """(N,) loss per atom, 0 of one left out, from the embeddings of student, pred (N, D), and teacher, target (N, D)."""
        valid = has_direction(pred) & has_direction(target)  # (N,)
        self.elements = valid.sum()
        with full_precision(pred.device.type):
            logits = unit_embedding(pred) @ unit_embedding(target).T / self.temperature  # (N, N)
            among_valid = logits.masked_fill(~valid, torch.finfo(logits.dtype).min)
            return torch.where(valid, among_valid.logsumexp(dim=1) - logits.diagonal(), 0)


class Part(NamedTuple):
    """What one rank has of a term.

    Attributes:
        total: () sum of the loss over the elements.
        elements: their number, for the mean; None for a term that is a sum.
    """

    total: Tensor
    elements: Union[Tensor, int, None]


def reduce_parts(parts: Sequence[Part]) -> list[Tensor]:
    """() each term, of all ranks' elements: this rank's share, whose average over the ranks is the term.

    A mean is world_size * total / sum of all ranks' counts; 0 where there is no element. One all_reduce serves all terms.
    """
    world = distutils.get_world_size()
    counts = [1 if part.elements is None else part.elements for part in parts]
    if world > 1 and parts:
        device = parts[0].total.device
        filled = [
            count.long() if isinstance(count, Tensor) else torch.full((), count, dtype=torch.long, device=device)
            for count in counts
        ]
        counts = list(distutils.all_reduce(torch.stack(filled)))
    counts = [count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1) for count in counts]
    return [part.total if part.elements is None else part.total * world / count for part, count in zip(parts, counts)]


class DistillationLoss(DDPLoss):
    """fairchem's `DDPLoss`, for terms that can be empty on one rank or on all: the mean over nothing is 0.

    A value that is not finite enters the loss as it is; fairchem's own turns NaN into 0, and the gradient with it. The mean
    is over all values of the loss, or over as many as its `elements` says, where it has that: those left out are 0.
    """

    def forward(self, input: Tensor, target: Tensor, natoms: Tensor) -> Tensor:
        """() the reduced loss of two tensors of equal shape.

        Raises:
            ValueError: the shapes differ.
        """
        return reduce_parts([self.part(input, target, natoms)])[0]

    def part(self, input: Tensor, target: Tensor, natoms: Tensor) -> Part:
        """What `reduce_parts` makes the loss of; raises as `forward`."""
        if input.shape != target.shape:
            raise ValueError(f"A term compares two tensors of equal shape; found {input.shape} and {target.shape}.")
        loss = self.loss_fn(input, target, natoms)
        if self.reduction == "sum":
            return Part(loss.sum(), None)
        elements = getattr(self.loss_fn, "elements", None)
        return Part(loss.sum(), loss.numel() if elements is None else elements)


def build_loss(term: TermConfig, config: DistillConfig) -> DistillationLoss:
    """The loss of one term.

    Raises:
        ValueError: fairchem has no loss `fn`.
    """
    try:
        loss = DistillationLoss(term.fn, reduction=term.reduction)
    except RuntimeError as error:  # fairchem's registry, which lists losses that take no embeddings too
        raise ValueError(
            f"loss_functions, {term.key}.fn: fairchem has no loss `{term.fn}`; expected `{CONTRASTIVE.get(term.key, 'mse')}`"
            + ("." if term.key in CONTRASTIVE else ", `mae` or `l2mae`.")
        ) from error
    if isinstance(loss.loss_fn, CrackLoss):
        relations = config.relations
        loss.loss_fn.options = {
            "temperature": term.temperature,
            "anchor": relations.anchor,
            "negatives": relations.negatives,
            "max_pairs": relations.max_pairs,
            "false_negative_threshold": relations.false_negative_threshold,
        }
    elif isinstance(loss.loss_fn, InfoNCELoss):
        loss.loss_fn.temperature = term.temperature
    return loss


def check_compared(term: TermConfig, student: Tensor, teacher: Tensor, *, systems: int) -> None:
    """Raise ValueError for two tensors of a term of one's own that its loss cannot compare."""
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


def _all_pairs(systems: Tensor) -> Tensor:
    same = systems[:, None] == systems  # (N, N), of the fallback only
    return torch.triu(same, diagonal=1).nonzero().T.contiguous()
