"""What a round says of itself: how long its student's dynamics lasted, what was kept of them, the student's errors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Optional

from fairchem_crack.evaluation.tables import NO_NUMBER, digits, text_table
from fairchem_crack.explore.settings import Settings

EXPLORED, ROUND = "explored.json", "round.json"
EPSILON = 1e-9  # ps, of rounding


@dataclass(frozen=True)
class Explored:
    """What `explored.json` holds of a round.

    Attributes:
        round: its number, from 1; its student has been through one training less.
        student: fingerprint of its weights.
        starts: number of the parent in dataset.train, ps that its dynamics lasted, and why they ended.
        kept: frames by strategy.
        thrown_out: frames by strategy and reason.
        teacher_labels: frames that the teacher was run on.
        errors: of the student, compared with the teacher, on the frames that are kept.
    """

    round: int
    student: str
    starts: list[dict[str, Any]]
    kept: dict[str, int]
    thrown_out: dict[str, dict[str, int]]
    teacher_labels: int
    errors: dict[str, float]

    @property
    def ps(self) -> list[float]:
        """Of the starts from which something can move."""
        return [start["ps"] for start in self.starts if start["ps"] is not None]

    @property
    def endings(self) -> dict[str, int]:
        """How many dynamics ended early, by reason."""
        return dict(Counter(start["reason"] for start in self.starts if start["reason"] is not None))

    def stable(self, ps: float) -> int:
        """How many starts lasted so long."""
        return sum(each >= ps - EPSILON for each in self.ps)

    def is_good_enough(self, settings: Settings) -> bool:
        """Whether the student is what the settings ask for; False where they ask for nothing."""
        if not settings.ends_early:
            return False
        needed = len(self.ps) if settings.stable_starts is None else settings.stable_starts
        is_stable = settings.stable_ps is None or self.stable(settings.stable_ps) >= needed
        limit = math.inf if settings.max_forces_mae is None else settings.max_forces_mae
        return is_stable and self.errors.get("forces_mae", math.inf) <= limit


@dataclass(frozen=True)
class Trained:
    """What `round.json` adds.

    Attributes:
        systems: of the dataset, of dataset.train and of all rounds so far.
        steps: of the training.
        dataset: the options of fairchem that read it.
    """

    systems: int
    steps: int
    dataset: dict[str, Any]


def read_explored(place: Path) -> Optional[Explored]:
    """Of a round, None where its frames are not complete."""
    file = place / EXPLORED
    return Explored(**json.loads(file.read_text())) if file.is_file() else None


def read_trained(place: Path) -> Optional[Trained]:
    """Of a round, None where it is not complete."""
    file = place / ROUND
    return Trained(**json.loads(file.read_text())["training"]) if file.is_file() else None


def table(rounds: Sequence[Explored], settings: Settings) -> str:
    """A line for the student of each round."""
    headings = [
        *("student", "ps until failure", f"lasted {settings.ps:g} ps", "frames kept", "thrown out", "teacher labels"),
        *("energy MAE [eV]", "force MAE [eV/A]"),
    ]
    return text_table(headings, [_row(explored, settings) for explored in rounds])


def _row(explored: Explored, settings: Settings) -> list[str]:
    ps, student = explored.ps, f"after round {explored.round - 1}" if explored.round > 1 else "as given"
    survived = f"{median(ps):.3g} ({min(ps):.3g} to {max(ps):.3g})" if ps else NO_NUMBER
    thrown_out = sum(count for reasons in explored.thrown_out.values() for count in reasons.values())
    errors = [_digits(explored.errors, name) for name in ("energy_mae", "forces_mae")]
    counts = [sum(explored.kept.values()), thrown_out, explored.teacher_labels]
    return [student, survived, f"{explored.stable(settings.ps)} of {len(ps)}", *map(str, counts), *errors]


def _digits(errors: Mapping[str, float], name: str) -> str:
    return digits(errors[name]) if name in errors else NO_NUMBER
