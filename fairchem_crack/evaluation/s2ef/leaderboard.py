"""The S2EF leaderboard of some checkpoints: what follows from their errors, as text and CSV. No model is run here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from fairchem_crack.evaluation.intervals import Errors, Interval, average_error_interval, gap_closed_interval
from fairchem_crack.evaluation.s2ef.runs import Evaluation
from fairchem_crack.evaluation.tables import ERRORS, LINE, METRICS, NO_NUMBER, cell, gap_cell, text_table
from fairchem_crack.evaluation.time_and_memory import Throughput
from fairchem_crack.io.files import csv_text

WEIGHTS = {"energy_mae": ("energy", None), "forces_mae": ("forces", "components")}  # in the errors of each system
AVERAGE = "average"  # over the splits; each counts the same
Throughputs = Mapping[str, Mapping[str, Throughput]]  # by model and batch size


@dataclass(frozen=True)
class Group:
    """Checkpoints that are compared as one: a single one, or one training with several seeds.

    Attributes:
        name: in print.
        role: student, undistilled or teacher.
    """

    name: str
    role: str
    checkpoints: tuple[Path, ...]


@dataclass(frozen=True)
class Row:
    """A group on a split.

    Attributes:
        model: name of the group.
        role: student, undistilled or teacher.
        split: its name, or `AVERAGE`.
        metrics: by the names of `METRICS`, means over the seeds.
        intervals: 95 % of each error, over the systems.
        gaps: gap closed of each error, with its interval over seeds and systems; empty without an undistilled student and a
            teacher, and without the error that is not of the same atoms for all three.
        seeds: the metrics of each seed.
    """

    model: str
    role: str
    split: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    gaps: dict[str, Interval]
    seeds: list[dict[str, float]] = field(default_factory=list)


def leaderboard(evaluations: Mapping[Path, Evaluation], groups: Sequence[Group]) -> list[Row]:
    """Every group on every split and, of several, on their average."""
    splits = list(next(iter(evaluations.values())).metrics)
    averaged = [(AVERAGE, splits)] if len(splits) > 1 else []
    return [
        _row(group, title, chosen, evaluations, groups)
        for title, chosen in [*((split, [split]) for split in splits), *averaged]
        for group in groups
    ]


def _row(
    group: Group, title: str, splits: Sequence[str], evaluations: Mapping[Path, Evaluation], groups: Sequence[Group]
) -> Row:
    seeds = [
        {name: fmean(evaluations[path].metrics[split][name] for split in splits) for name in METRICS}
        for path in group.checkpoints
    ]
    intervals = {}
    for error in ERRORS:
        sums, weights = zip(*(_errors(group, split, error, evaluations) for split in splits))
        intervals[error] = average_error_interval([(x.mean(axis=0), w) for x, w in zip(sums, weights)])
    by_role = {member.role: member for member in groups}
    gaps = {}
    if group.role == "student" and {"undistilled", "teacher"} <= by_role.keys():
        compared = (by_role["undistilled"], group, by_role["teacher"])
        gaps = {
            error: _gap(error, splits, compared, evaluations)
            for error in ERRORS
            if _comparable(error, compared, evaluations)
        }
    return Row(
        group.name,
        group.role,
        title,
        {name: fmean(seed[name] for seed in seeds) for name in METRICS},
        intervals,
        gaps,
        seeds,
    )


def _errors(group: Group, split: str, error: str, evaluations: Mapping[Path, Evaluation]) -> tuple[np.ndarray, np.ndarray]:
    """(S, K) x of each seed and system and (K,) w of `intervals`: an error is sum x / sum w."""
    values, weights = WEIGHTS[error]
    of_seeds = [evaluations[path].errors[split] for path in group.checkpoints]
    x = np.stack([errors[values] for errors in of_seeds])
    return x, np.ones(x.shape[1]) if weights is None else of_seeds[0][weights]


def _comparable(error: str, groups: Iterable[Group], evaluations: Mapping[Path, Evaluation]) -> bool:
    """Whether an error is of the same atoms for all of these groups."""
    return error == "energy_mae" or len({evaluations[path].atoms for group in groups for path in group.checkpoints}) == 1


def _gap(
    error: str, splits: Sequence[str], groups: tuple[Group, Group, Group], evaluations: Mapping[Path, Evaluation]
) -> Interval:
    """Gap closed by the second group, from the first to the third."""
    errors = []
    for split in splits:
        (undistilled, weights), (distilled, _), (teacher, _) = (
            _errors(group, split, error, evaluations) for group in groups
        )
        errors.append(Errors(undistilled, distilled, teacher[0], weights))
    return gap_closed_interval(errors)


def table(rows: Sequence[Row]) -> str:
    """The leaderboard, splits one below the other."""
    lines: list = []
    for split in dict.fromkeys(row.split for row in rows):
        lines += [LINE] if lines else []
        for number, row in enumerate(row for row in rows if row.split == split):
            values = [METRICS[name][1](value) for name, value in row.metrics.items() if name not in ERRORS]
            errors = [cell(row.intervals[error], METRICS[error][1]) for error in ERRORS]
            lines.append(["" if number else split, row.model, *errors, *values])
            if row.gaps:
                closed = [gap_cell(row.gaps[error]) if error in row.gaps else NO_NUMBER for error in ERRORS]
                lines.append(["", "gap closed", *closed, *[""] * len(values)])
    return text_table(["split", "model", *(heading for heading, _ in METRICS.values())], lines)


def as_csv(rows: Sequence[Row], throughput: Throughputs) -> str:
    """One line for each model and split, with the ends of every interval, and the model's speed and memory."""
    spans = [f"{name}_{end}" for name in ERRORS for end in ("low", "high")]
    gaps = [f"{name}_gap_closed{end}" for name in ERRORS for end in ("", "_low", "_high")]
    sizes = [size for cells in throughput.values() for size in cells]
    speeds = [f"{name}_{size}" for size in dict.fromkeys(sizes) for name in ("atoms_per_second", "peak_bytes")]
    columns = ["model", "role", "split", *METRICS, *spans, *gaps, *speeds]
    lines = []
    for row in rows:
        line: dict[str, Any] = {"model": row.model, "role": row.role, "split": row.split, **row.metrics}
        for name, interval in row.intervals.items():
            line.update({f"{name}_low": interval.low, f"{name}_high": interval.high})
        for name, gap in row.gaps.items():
            known = {end: value for end, value in _named(gap).items() if not math.isnan(value)}
            line.update({f"{name}_gap_closed{'_' * bool(end)}{end}": value for end, value in known.items()})
        for size, measured in throughput.get(row.model, {}).items():
            if measured:  # it fits
                line[f"atoms_per_second_{size}"] = median(measured["atoms_per_second"])
                line[f"peak_bytes_{size}"] = measured["peak_bytes"]
        lines.append(line)
    return csv_text(columns, lines)


def _named(gap: Interval) -> dict[str, float]:
    return {"": gap.estimate, **{end: value for end, value in asdict(gap).items() if end != "estimate"}}
