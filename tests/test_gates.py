"""`evaluate --require`: what is asked for, which end counts, and what misses."""

from __future__ import annotations

import math
import re

import pytest

from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.s2ef.gates import Gate, gates_of, outcomes, stable_gate, verdict
from fairchem_crack.evaluation.s2ef.leaderboard import AVERAGE, Row
from fairchem_crack.evaluation.s2ef.stability_gate import outcome_of
from fairchem_crack.evaluation.stability.dynamics import Survival
from fairchem_crack.evaluation.tables import METRICS

SPLITS = ("val_id", "val_ood")


def row(role: str, split: str, forces: float, gap: float | None = None) -> Row:
    metrics = {**dict.fromkeys(METRICS, 0.5), "forces_mae": forces}
    gaps = {} if gap is None else {"forces_mae": Interval(gap, gap - 0.2, gap + 0.2)}
    return Row(role, role, split, metrics, {}, gaps)


ROWS = [
    row("undistilled", "val_id", 9.0),
    row("student", "val_id", 0.04, 0.8),
    row("student", "val_ood", 0.06, math.nan),
    row("student", AVERAGE, 0.05),
]


@pytest.mark.parametrize(
    "entry, met",
    [
        ("forces_mae=0.05", {"val_id": True, "val_ood": False}),
        ("forces_mae=0.06", {"val_id": True, "val_ood": True}),  # at most
        ("val_id.forces_mae=0.03999", {"val_id": False}),
        ("average.forces_mae=0.05", {"average": True}),
        ("forces_cosine_similarity=0.5", {"val_id": True, "val_ood": True}),  # at least
        ("val_ood.energy_forces_within_threshold=0.51", {"val_ood": False}),
        ("val_id.gap_closed.forces=0.8", {"val_id": True}),  # the estimate, not the lower end
        ("gap_closed.forces=-9", {"val_id": True, "val_ood": False}),  # NaN where there is no gap
        ("average.gap_closed.forces=0", {"average": False}),  # nor where it was not measured
    ],
)
def test_each_student_is_compared_on_each_split(entry, met):
    of_gates = outcomes(gates_of([entry], SPLITS, has_gap=True), ROWS)
    assert {outcome.split: outcome.is_met for outcome in of_gates} == met
    assert {outcome.model for outcome in of_gates} == {"student"}


def test_a_missed_requirement_is_one_line():
    of_gates = outcomes(gates_of(["forces_mae=0.05", "gap_closed.forces=0.9"], SPLITS, has_gap=True), ROWS)
    assert verdict(of_gates).splitlines() == [
        "Requirements met: 1 of 4; missed:",
        "- val_ood, student: forces_mae is 0.06, required at most 0.05",
        "- val_id, student: gap_closed.forces is 0.8, required at least 0.9",
        "- val_ood, student: gap_closed.forces is no number, required at least 0.9",
    ]
    assert "is 0.05000001, required at most 0.05" in str(
        outcomes(gates_of(["forces_mae=0.05"], ["a"], has_gap=False), [row("student", "a", 0.05000001)])[0]
    )
    assert verdict(of_gates[:1]) == "Requirements met: 1 of 1."


@pytest.mark.parametrize(
    "entry, message",
    [
        ("force_mae=1", "--require force_mae: unknown. Did you mean `forces_mae`?"),
        ("val_di.energy_mae=1", "--require val_di.energy_mae: unknown. Did you mean `val_id.energy_mae`?"),
        ("zzz=1", "--require zzz: unknown. Known are energy_mae, forces_mae,"),
        ("val_id.stable_ps=5", "--require val_id.stable_ps: unknown."),
        ("stable_ps=0", "--require stable_ps=0: expected a positive number of ps."),
        ("forces_mae=5%", "--require forces_mae=5%: expected a finite number."),
        ("forces_mae", "--require forces_mae: expected NAME=NUMBER"),
        ("val_id.gap_closed.energy=1", "--require val_id.gap_closed.energy: is measured only with --undistilled and"),
    ],
)
def test_what_cannot_be_required_is_refused(entry, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        gates_of(["energy_mae=1", entry], SPLITS, has_gap=False)


def test_a_single_split_has_no_average():
    assert gates_of(["val_id.energy_mae=1"], ["val_id"], has_gap=False) == [Gate("val_id", "energy_mae", 1.0)]
    with pytest.raises(ValueError, match=r"average\.energy_mae: unknown"):
        gates_of(["average.energy_mae=1"], ["val_id"], has_gap=False)


def test_a_student_is_stable_if_all_of_its_runs_are():
    (gate,) = gates_of(["stable_ps=5"], SPLITS, has_gap=False)
    assert stable_gate([gate]) == gate and outcomes([gate], ROWS) == []
    whole, ended = (
        ("start 0", Survival(5.0)),
        ("start 1", Survival(1.234, "a force above the limit", "83 eV/A on atom 12 (O)")),
    )
    assert outcome_of(gate, "val_id", "student", [whole]).is_met
    missed = outcome_of(gate, "val_id", "student", [whole, ended])
    assert verdict([missed]).splitlines()[1] == (
        "- val_id, student: stable_ps is 1.234, required at least 5; start 1 ended after 1.234 ps: a force above the limit "
        "(83 eV/A on atom 12 (O))"
    )
