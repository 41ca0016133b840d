"""`evaluate --require stable_ps=5`: how long molecular dynamics with each student last."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from tqdm import tqdm

from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.s2ef.evaluator import first_records
from fairchem_crack.evaluation.s2ef.gates import Gate, Outcome
from fairchem_crack.evaluation.s2ef.leaderboard import Group
from fairchem_crack.evaluation.speed.runs import Model
from fairchem_crack.evaluation.stability.dynamics import Survival
from fairchem_crack.evaluation.stability.measure import Settings, check_starts, langevin
from fairchem_crack.io.atoms import to_atoms


def stability_starts(data: Mapping[str, Path], dataset: dict[str, Any], count: int) -> list[Atoms]:
    """At most `count` systems, the first ones, of the first split.

    Raises:
        ValueError: no atom of one of them can move.
    """
    src = next(iter(data.values()))
    starts = [to_atoms(record) for record in first_records(src, dataset, count)]
    check_starts(starts, f"--require stable_ps: {src}")
    return starts


def stability_outcomes(
    gate: Gate, groups: Sequence[Group], starts: Sequence[Atoms], split: str, options: argparse.Namespace
) -> Iterator[Outcome]:
    """The gate of every student: each of its checkpoints stays within the limits from every start.

    Args:
        split: which the starts are of.
        options: of the command: `temperature` in K, `cpu`.
    """
    students = [group for group in groups if group.role == "student"]
    names = short_names([path for group in students for path in group.checkpoints])
    settings = Settings(ps=gate.required)
    with tqdm(total=settings.steps * len(starts) * len(names), desc="stable_ps", unit=" steps") as bar:
        for group in students:
            runs: list[tuple[str, Survival]] = []
            for path in group.checkpoints:
                calculator = Model(path, cpu=options.cpu).calculator
                for number, start in enumerate(starts):
                    run = f"start {number}" if len(group.checkpoints) == 1 else f"{names[path]}, start {number}"
                    how = {"temperature": options.temperature, "tick": bar.update}
                    runs.append((run, langevin(calculator, start, number, settings, **how)))
            yield outcome_of(gate, split, group.name, runs)


def outcome_of(gate: Gate, split: str, model: str, runs: Sequence[tuple[str, Survival]]) -> Outcome:
    """The gate of a student: the shortest of its runs, and of those that ended early which they are, when, and why."""
    shortest = min(survival.ps for _, survival in runs)
    reason = "; ".join(f"{run} {survival}" for run, survival in runs if not survival.survived)
    return Outcome(split, model, gate.metric, shortest, gate.bound, gate.required, is_met=not reason, reason=reason)
