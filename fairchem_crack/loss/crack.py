r"""The CRACK loss: InfoNCE over relations, exact, at linear memory. Pure torch.

With s_e, t_e the unit relations of student and teacher of pair e, both directions of every pair are candidates, and

    loss_e = - log [ exp(x_ee) / sum_f 2 cosh(x_ef) ],    x_ef = s_e . t_f / tau,

for the student as anchor; for the teacher as anchor the sum runs over the other index, 2 cosh(x_fe). Both directions of a
pair have the same loss, so P x P terms give the exact mean over 2P x 2P. The sums are in `partition`.
Source: Lim, Choung, Han 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, get_args

import torch
from torch import Tensor

from fairchem_crack.config import SMALLEST_TEMPERATURE, Anchor, Negatives, Targets
from fairchem_crack.loss.partition import Partition, partition_sums
from fairchem_crack.loss.precision import full_precision
from fairchem_crack.loss.relations import NEAR, pair_difference, unit_embedding
from fairchem_crack.loss.soft_targets import soft_targets
from fairchem_crack.loss.triton_sums import Sides, can_compute

# exp(1/tau), summed over many pairs, must stay in the range of the type: exp(88) for float32, exp(709) for float64. The
# kernels for GPUs subtract the largest logit first, and need no float64.
LARGEST_LOGIT = {torch.float32: 60.0, torch.float64: 1 / SMALLEST_TEMPERATURE}
# Two logits closer than this fraction of 1/tau are a tie; a tie counts as a hit of the top-1 accuracy.
TIE = 1e-5

ANCHORS = get_args(Anchor)
NEGATIVES = get_args(Negatives)
TARGETS = get_args(Targets)


@dataclass
class CrackTerms:
    """The loss of each anchor, and diagnostics from the same pass.

    Attributes:
        loss: (P',) loss of each anchor pair; its mean is the CRACK loss. P' = P without `max_pairs`.
        num_pairs: P, pairs with a direction in both models.
        num_degenerate: pairs left out because they have none.
        top1: () fraction of anchors nearest to their own counterpart among the 2P candidates.
        cosine: () mean s_e . t_e.
        entropy: () mean entropy of the softmax over the 2P candidates, nats.
    """

    loss: Tensor
    num_pairs: int
    num_degenerate: int
    top1: Tensor
    cosine: Tensor
    entropy: Tensor


def crack_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    pairs: Tensor,
    temperature: float = 0.15,
    anchor: str = "student",
    negatives: str = "batch",
    systems: Optional[Tensor] = None,
    anchors: Optional[Tensor] = None,
    max_pairs: Optional[int] = None,
    false_negative_threshold: Optional[float] = None,
    generator: Optional[torch.Generator] = None,
    targets: str = "own",
    groups: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
) -> Tensor:
    """Mean CRACK loss over the relations of a batch; arguments and errors are those of `crack_terms`.

    Returns:
        () loss; 0, still with a gradient graph, when no pair has a direction.
    """
    loss = crack_terms(
        student=student,
        teacher=teacher,
        pairs=pairs,
        temperature=temperature,
        anchor=anchor,
        negatives=negatives,
        systems=systems,
        anchors=anchors,
        max_pairs=max_pairs,
        false_negative_threshold=false_negative_threshold,
        generator=generator,
        targets=targets,
        groups=groups,
        weights=weights,
    ).loss
    return loss.sum() / max(loss.numel(), 1)


def crack_terms(
    *,
    student: Tensor,
    teacher: Tensor,
    pairs: Tensor,
    temperature: float = 0.15,
    anchor: str = "student",
    negatives: str = "batch",
    systems: Optional[Tensor] = None,
    anchors: Optional[Tensor] = None,
    max_pairs: Optional[int] = None,
    false_negative_threshold: Optional[float] = None,
    generator: Optional[torch.Generator] = None,
    targets: str = "own",
    groups: Optional[Tensor] = None,
    weights: Optional[Tensor] = None,
) -> CrackTerms:
    """The CRACK loss of each anchor, with diagnostics; the equation is in the module's docstring.

    A pair whose embeddings coincide in either model has no direction: it is left out and counted. The gradient of a pair
    closer than `relations.NEAR` in the student is bounded, see `relations.pair_difference`.

    Args:
        student: (N, D) projected student embedding; the gradient flows here. Computed in float32, or float64 if given so.
        teacher: (N, D) frozen teacher embedding.
        pairs: (2, P) long, i < j, no duplicates.
        temperature: tau.
        anchor: "student", "teacher", or "symmetric", the mean of both.
        negatives: "batch", or "system": only relations of the anchor's own system. "world" is "batch" here:
            `losses.CrackLoss` gathers the relations of all ranks; `anchors` are those of this rank.
        systems: (N,) long, the system of each atom; needed for negatives="system".
        anchors: (P,) bool, the pairs that are anchors; the others are only negatives. None for all.
        max_pairs: anchors to draw at random; every relation stays a negative, so the mean is unbiased.
        false_negative_threshold: leave out of the sum the pairs f != e with |t_e . t_f| above it.
        generator: CPU source of randomness for `max_pairs`.
        targets: "own", each relation's counterpart; or "soft", the teacher's own similarities, for the student as anchor:
            KL(p_e || q_e) of `soft_targets`.
        groups: (P,) long, the group of each pair; needed for negatives="alike": only relations of the anchor's own group.
        weights: (P,) by what the loss of each pair as anchor is multiplied; None for 1.

    Raises:
        ValueError: shapes do not fit or an option is out of its range.
    """
    _check_tensors(student, teacher, pairs, systems, negatives)
    groups = systems[pairs[0]] if negatives == "system" and systems is not None else groups
    if negatives in ("batch", "world"):
        groups = None
    elif groups is None or groups.shape != pairs.shape[1:]:
        raise ValueError('groups: negatives="alike" needs the group of each pair, (P,) long.')
    _check_options(temperature, anchor, negatives, max_pairs, false_negative_threshold, targets)
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    is_whole = max_pairs is None and anchors is None
    if 1 / temperature > LARGEST_LOGIT[dtype] and not all(
        can_compute(student.device, dtype, excludes=false_negative_threshold is not None, sides=sides)
        for sides in _sides(anchor, is_whole)
    ):
        dtype = torch.float64
    with full_precision(student.device.type):
        unit_student, unit_teacher = unit_embedding(student.to(dtype)), unit_embedding(teacher.detach().to(dtype))
        kept = pairs
        if groups is not None:  # those of a group one after the other
            kept, groups, anchors, weights = _at(torch.argsort(groups, stable=True), kept, groups, anchors, weights)
        difference, distance, valid = pair_difference(unit_student, kept)
        relations, teacher_distance, teacher_valid = pair_difference(unit_teacher, kept)
        valid = valid & teacher_valid
        if not bool(valid.all()):
            difference, relations = difference[valid], relations[valid]
            kept, distance, teacher_distance = _at(valid, kept, distance, teacher_distance)
            groups, anchors, weights = _at(valid, groups, anchors, weights)
        relations = relations / teacher_distance[:, None]  # (P, D)
        scale = 1 / (temperature * distance)  # (P,)
        positive = torch.linalg.vecdot(difference, relations) * scale  # (P,) x_ee

        candidates = kept.shape[1] if anchors is None else int(anchors.sum())
        chosen = _draw(candidates, max_pairs, generator, kept.device)
        if anchors is not None:
            chosen = anchors.nonzero()[:, 0] if chosen is None else anchors.nonzero()[chosen, 0]
        sums = _sums_of_anchors(
            partial(
                partition_sums,
                unit_student,
                scale,
                kept,
                relations,
                system_of_pair=groups,
                threshold=false_negative_threshold,
                steepest=1 / (temperature * NEAR),
                unit_teacher=unit_teacher,
            ),
            anchor,
            chosen,
        )
        own = _of(positive, chosen)
        loss = torch.stack([side.log_sum - own for side in sums]).mean(dim=0)  # (P',)
        if targets == "soft":
            soft = soft_targets(relations, temperature, chosen=chosen, systems=groups)
            towards = torch.linalg.vecdot(_of(difference, chosen), soft.mean) * _of(scale, chosen)
            loss = loss + own - towards - soft.entropy
        if weights is not None:
            loss = loss * _of(weights, chosen)
        hits = torch.stack([own >= side.largest - TIE / temperature for side in sums])
        entropy = torch.stack([side.entropy for side in sums])
    return CrackTerms(
        loss=loss,
        num_pairs=candidates,
        num_degenerate=pairs.shape[1] - kept.shape[1],
        top1=_mean(hits),
        cosine=_mean(positive * temperature),
        entropy=_mean(entropy),
    )


def _sides(anchor: str, is_whole: bool) -> list[Sides]:
    """Of each pass over the logits: are the rows (the student's relations) anchors, are the columns (the teacher's)."""
    if anchor == "symmetric":
        return [(True, True)] if is_whole else [(True, False), (False, True)]
    return [(anchor == "student", anchor == "teacher")]


def _sums_of_anchors(
    sums: Callable[..., tuple[Partition, Partition]], anchor: str, chosen: Optional[Tensor]
) -> list[Partition]:
    """The sums over negatives for the student's anchors (rows of x), the teacher's (columns), or both."""
    sides: list[Partition] = []
    for over_columns, over_rows in _sides(anchor, chosen is None):
        rows, columns = (chosen if is_anchor else None for is_anchor in (over_columns, over_rows))
        of_rows, of_columns = sums(rows=rows, columns=columns, over_columns=over_columns, over_rows=over_rows)
        sides += [of_rows] * over_columns + [of_columns] * over_rows
    return sides


def _draw(
    available: int, count: Optional[int], generator: Optional[torch.Generator], device: torch.device
) -> Optional[Tensor]:
    if count is None or count >= available:
        return None
    return torch.randperm(available, generator=generator)[:count].sort().values.to(device)


def _at(index: Tensor, *values: Optional[Tensor]) -> Any:
    """Each of (..., P) tensors at an index, or a mask, of pairs; None for None."""
    return tuple(None if value is None else value[..., index] for value in values)


def _of(values: Tensor, chosen: Optional[Tensor]) -> Tensor:
    return values if chosen is None else values[chosen]


def _mean(values: Tensor) -> Tensor:
    return values.detach().double().sum() / max(values.numel(), 1)


def _check_tensors(student: Tensor, teacher: Tensor, pairs: Tensor, systems: Optional[Tensor], negatives: str) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher: expected two embeddings of equal shape (N, D), found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. A projection brings the student to the teacher's width."
        )
    if pairs.dim() != 2 or pairs.shape[0] != 2 or pairs.dtype != torch.long:
        raise ValueError(f"pairs: expected (2, P) of dtype long, found {tuple(pairs.shape)} of {pairs.dtype}.")
    if negatives == "system" and (systems is None or systems.shape != student.shape[:1]):
        raise ValueError('systems: negatives="system" needs the system of each atom, (N,) long.')


def _check_options(
    temperature: float, anchor: str, negatives: str, max_pairs: Optional[int], threshold: Optional[float], targets: str
) -> None:
    if not SMALLEST_TEMPERATURE <= temperature < math.inf:
        raise ValueError(f"temperature: expected at least {SMALLEST_TEMPERATURE:.4f}, found {temperature}.")
    if anchor not in ANCHORS:
        raise ValueError(f"anchor: expected one of {', '.join(ANCHORS)}, found {anchor!r}.")
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives: expected one of {', '.join(NEGATIVES)}, found {negatives!r}.")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs: expected at least 1, or None, found {max_pairs}.")
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"false_negative_threshold: expected in (0, 1], or None, found {threshold}.")
    if targets not in TARGETS:
        raise ValueError(f"targets: expected one of {', '.join(TARGETS)}, found {targets!r}.")
    if targets == "soft" and (anchor != "student" or threshold is not None):
        raise ValueError('targets: "soft" is of the student as anchor, without false_negative_threshold.')
