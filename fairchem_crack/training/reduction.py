"""From the values of the terms on each rank to one loss, in which a term's weight does not depend on the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Union

import torch
from fairchem.core.common import distutils
from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.training.coefficients import WeightedTerm

Number = Union[Tensor, float]  # () tensor on the device, or known to the host


class Part(NamedTuple):
    """What one rank has of a term.

    Attributes:
        total: () sum of the loss over the elements.
        elements: their number, for the mean; None for a term that is a sum.
        diagnostics: numbers that are logged with the term, by the names of `keys`.
    """

    total: Tensor
    elements: Union[Tensor, int, None]
    diagnostics: Mapping[str, Number] = {}


class StepLosses(NamedTuple):
    """The distillation terms of a step.

    Attributes:
        total: () their weighted sum.
        log: the unweighted value of each and the diagnostics, by the names of `keys`.
    """

    total: Tensor
    log: dict[str, Number]


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


def weighted_sum(terms: Sequence[WeightedTerm], parts: Sequence[Part], device: torch.device) -> StepLosses:
    """Add up the terms of a step and note what is logged; all ranks take part.

    Args:
        parts: of the terms, in their order.
        device: of the sum, where there is no term.
    """
    total = torch.zeros((), device=device)
    log: dict[str, Number] = {}
    for (term, coefficient), part, value in zip(terms, parts, reduce_parts(parts)):
        total = total + coefficient * value
        log[keys.LOSS_PREFIX + term.key] = value.detach()
        log.update(part.diagnostics)
    return StepLosses(total, log)
