"""Which distillation terms count in a step of the training, and how much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fairchem_crack.config import TermConfig


class WeightedTerm(NamedTuple):
    """A term and its coefficient in one step."""

    term: TermConfig
    coefficient: float


def active_terms(terms: Iterable[TermConfig], global_step: int, total_steps: int) -> list[WeightedTerm]:
    """The terms of a step, without those whose schedule is at 0.

    coefficient = term.coefficient * schedule(progress), progress = (global_step - 1) / total_steps, in each `every`-th step.

    Args:
        global_step: counted from 1.
        total_steps: of the whole training.
    """
    progress = (global_step - 1) / max(total_steps, 1)
    weighted = [WeightedTerm(term, term.coefficient * term.schedule.factor(progress)) for term in terms]
    return [active for active in weighted if active.coefficient > 0 and (global_step - 1) % active.term.every == 0]
