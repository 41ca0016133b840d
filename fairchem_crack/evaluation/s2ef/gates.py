"""`fairchem-crack evaluate --require`: the thresholds that every student has to meet, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from fairchem_crack.config import nearest_of
from fairchem_crack.evaluation.s2ef.leaderboard import AVERAGE, Row
from fairchem_crack.evaluation.tables import ENERGY_MAE, ERRORS, FORCE_MAE, METRICS
from fairchem_crack.io.arguments import named_values

GAPS = {"gap_closed.energy": ENERGY_MAE, "gap_closed.forces": FORCE_MAE}  # of which error
STABLE_PS = "stable_ps"  # measured apart, by molecular dynamics; of no split
NAMES = (*METRICS, *GAPS)
FORM = "NAME=NUMBER, for example forces_mae=0.05 or val_id.gap_closed.energy=0.8"


@dataclass(frozen=True)
class Gate:
    """A threshold: an error is at most, anything else at least `required`.

    Attributes:
        split: its name, or `AVERAGE`; None for each split.
        metric: of `NAMES`, or `STABLE_PS`.
        required: eV, eV/A, a fraction, or ps.
    """

    split: Optional[str]
    metric: str
    required: float

    @property
    def bound(self) -> str:
        """Which side of the threshold is met."""
        return "at most" if self.metric in ERRORS else "at least"

    def is_met_by(self, value: float) -> bool:
        """False for NaN: a gap that does not exist is not closed."""
        return value <= self.required if self.metric in ERRORS else value >= self.required


@dataclass(frozen=True)
class Outcome:
    """A gate of one student on one split.

    Attributes:
        value: the estimate; NaN where it was not measured.
        reason: why it is missed, where there is more to say.
    """

    split: str
    model: str
    metric: str
    value: float
    bound: str
    required: float
    is_met: bool
    reason: str = ""

    def __str__(self) -> str:
        value = "no number" if math.isnan(self.value) else f"{self.value:.4g}"
        if value == f"{self.required:.4g}":  # missed by less than these digits show
            value = repr(self.value)
        reason = self.reason and f"; {self.reason}"
        return f"{self.split}, {self.model}: {self.metric} is {value}, required {self.bound} {self.required:g}{reason}"


def gates_of(entries: Sequence[str], splits: Collection[str], *, has_gap: bool) -> list[Gate]:
    """The gates of `--require`.

    Args:
        entries: `NAME=NUMBER` or `SPLIT.NAME=NUMBER`.
        splits: those that are evaluated.
        has_gap: whether there are an undistilled student and a teacher.

    Raises:
        ValueError: with a line for each unknown name, each value that is no finite number, and each gate on a gap closed
            that is not measured.
    """
    places, gates, faults = [*splits, *([AVERAGE] if len(splits) > 1 else [])], [], []
    known: dict[str, tuple[Optional[str], str]] = {name: (None, name) for name in (*NAMES, STABLE_PS)}
    known.update({f"{place}.{name}": (place, name) for place in places for name in NAMES})
    for name, text in named_values(entries, "--require", FORM).items():
        if name not in known:
            advice = (
                nearest_of(name, known)
                or f"Known are {', '.join(NAMES)}, each also after a split: {', '.join(places)}; and {STABLE_PS}."
            )
            faults.append(f"--require {name}: unknown. {advice}")
            continue
        gate = Gate(*known[name], _number(text))
        if not math.isfinite(gate.required):
            faults.append(f"--require {name}={text}: expected a finite number.")
        if gate.metric == STABLE_PS and gate.required <= 0:
            faults.append(f"--require {name}={text}: expected a positive number of ps.")
        if gate.metric in GAPS and not has_gap:
            faults.append(f"--require {name}: is measured only with --undistilled and --teacher.")
        gates.append(gate)
    if faults:
        raise ValueError("\n".join(faults))
    return gates


def outcomes(gates: Sequence[Gate], rows: Sequence[Row]) -> list[Outcome]:
    """Every gate of every student, on each split that the gate names; but for `STABLE_PS`."""
    return [outcome for gate in gates if gate.metric != STABLE_PS for outcome in _outcomes(gate, rows)]


def stable_gate(gates: Sequence[Gate]) -> Optional[Gate]:
    """The one on `STABLE_PS`, if there is one."""
    return next((gate for gate in gates if gate.metric == STABLE_PS), None)


def _outcomes(gate: Gate, rows: Sequence[Row]) -> Iterator[Outcome]:
    for row in rows:
        if row.role == "student" and (row.split == gate.split or (gate.split is None and row.split != AVERAGE)):
            value = _value(gate.metric, row)
            shown = (row.split, row.model, gate.metric, value, gate.bound, gate.required)
            yield Outcome(*shown, is_met=gate.is_met_by(value))


def _value(metric: str, row: Row) -> float:
    if metric not in GAPS:
        return row.metrics[metric]
    gap = row.gaps.get(GAPS[metric])  # none where the forces of the models are not of the same atoms
    return math.nan if gap is None else gap.estimate


def verdict(of_gates: Sequence[Outcome]) -> str:
    """How many gates are met, and a line for each that is missed."""
    missed = [outcome for outcome in of_gates if not outcome.is_met]
    line = f"Requirements met: {len(of_gates) - len(missed)} of {len(of_gates)}{'; missed:' if missed else '.'}"
    return "\n".join([line, *(f"- {outcome}" for outcome in missed)])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
