"""The figures of the accuracy benchmark, from accuracy.csv and the errors of each system beside it.

`earlier.json` in the same directory, if there is one, has the figures of runs whose rows were not kept, in the form of
accuracy.json. They fill in for methods of which the CSV has fewer seeds, and are marked.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_runs import COMPARISON, ERRORS, METRICS, SPLITS, TEACHER, UNDISTILLED, Run, Workspace, load_comparison, run_of

from fairchem_crack.statistics import Errors, Interval, gap_closed_interval, t_interval

MEAN = "mean of the four"
GAPS = {"energy": "energy_mae", "forces": "forces_mae"}


@dataclass(frozen=True)
class Group:
    """What is compared with each other: one table and one row of the figure."""

    student: str
    teacher: str
    train_systems: int
    budget: str

    @property
    def title(self) -> str:
        """In print."""
        return f"{self.student} from {self.teacher}, {self.train_systems} systems, equal {self.budget}"

    def run(self, method: str, seed: int) -> Run:
        """The run of a method; the undistilled has no teacher and one budget."""
        if method == UNDISTILLED:
            return Run(self.student, "", method, seed, self.train_systems, "steps")
        return Run(self.student, self.teacher, method, seed, self.train_systems, self.budget)


class Results:
    """The rows of the CSV by run and split, and the errors of each run's systems."""

    def __init__(self, workspace: Workspace) -> None:
        self.rows: dict[Run, dict[str, dict]] = {}
        for row in workspace.rows():
            self.rows.setdefault(run_of(row), {})[row["split"]] = row
        self._errors = dict(np.load(workspace.errors)) if workspace.errors.exists() else {}

    def groups(self) -> list[Group]:
        """All with a distilled student, in the order of the CSV."""
        runs = (run for run in self.rows if run.student and run.teacher)
        return list(dict.fromkeys(Group(run.student, run.teacher, run.train_systems, run.budget) for run in runs))

    def methods(self, group: Group) -> list[str]:
        """The undistilled first, then in the order of the CSV."""
        found = (run.method for run in self.rows if run.student and run == group.run(run.method, run.seed))
        return list(dict.fromkeys([UNDISTILLED, *found]))

    def seeds(self, group: Group, method: str) -> list[int]:
        """Of the method's runs."""
        return sorted(run.seed for run in self.rows if run.method == method and run == group.run(method, run.seed))

    def errors(self, run: Run, split: str, name: str) -> np.ndarray:
        """(K,) one of `ERRORS` of the systems of a split."""
        return self._errors[f"{run.name}/{split}"][ERRORS.index(name)].astype(float)

    def value(self, run: Run, split: str, column: str) -> float:
        """A column of a run on one split, or averaged over the four."""
        return statistics.fmean(self.rows[run][one][column] for one in _splits(split))


def _splits(split: str) -> Sequence[str]:
    return SPLITS if split == MEAN else (split,)


def gap(results: Results, group: Group, method: str, seeds: list[int], split: str, quantity: str) -> Interval:
    """The gap closed by a method, on the seeds that it shares with the undistilled student."""

    def sums(runs: Iterable[Run], one: str) -> np.ndarray:
        return np.stack([results.errors(run, one, quantity) for run in runs])

    splits = []
    for one in _splits(split):
        teacher = sums([Run(teacher=group.teacher)], one)[0]
        components = results.errors(Run(teacher=group.teacher), one, "components")
        undistilled = sums((group.run(UNDISTILLED, seed) for seed in seeds), one)
        distilled = sums((group.run(method, seed) for seed in seeds), one)
        splits.append(Errors(undistilled, distilled, teacher, components if quantity == "forces" else np.ones_like(teacher)))
    return gap_closed_interval(splits)


def summary(results: Results, group: Group) -> dict:
    """The figures of a group: for each method, on each split, every metric and both gaps, as [estimate, low, high]."""
    teacher = Run(teacher=group.teacher)
    if teacher not in results.rows:
        raise ValueError(f"The CSV has no rows of the teacher {group.teacher}; `accuracy.py run` makes them.")
    baseline = results.seeds(group, UNDISTILLED)
    found: dict[str, dict] = {}
    for method in results.methods(group):
        seeds = results.seeds(group, method)
        paired = [seed for seed in seeds if seed in baseline]
        if not paired:
            continue
        splits: dict[str, dict[str, Interval]] = {}
        for split in (*SPLITS, MEAN):
            splits[split] = {
                name: t_interval([results.value(group.run(method, seed), split, name) for seed in seeds]) for name in METRICS
            }
            if method != UNDISTILLED:
                splits[split].update({f"gap_{name}": gap(results, group, method, paired, split, name) for name in GAPS})
        found[method] = {"seeds": seeds, **_costs(results, group, method, paired), "splits": splits}
    found[TEACHER] = {
        "seeds": [],
        "splits": {
            split: {name: Interval(results.value(teacher, split, name)) for name in METRICS} for split in (*SPLITS, MEAN)
        },
    }
    return found


def _costs(results: Results, group: Group, method: str, seeds: list[int]) -> dict[str, Any]:
    """Steps of a run; and the time of one over the undistilled run's of the same seed, median over the seeds."""

    def ratio(column: str) -> float:
        runs = [[group.run(one, seed) for one in (method, UNDISTILLED)] for seed in seeds]
        return statistics.median(
            results.value(one, "val_id", column) / results.value(other, "val_id", column) for one, other in runs
        )

    steps = results.rows[group.run(method, seeds[0])]["val_id"]["steps"]
    return {"steps": steps, "step_cost": ratio("step_seconds"), "step_cpu_cost": ratio("step_cpu_seconds")}


def with_earlier(content: dict[Group, dict], file: Path) -> dict[Group, dict]:
    """The figures of the CSV and, of methods of which it has fewer seeds, of `file`; methods as accuracy.yml orders them."""
    found = {group: dict(methods) for group, methods in content.items()}
    for described in json.loads(file.read_text()) if file.exists() else []:
        methods = found.setdefault(Group(**{name: described[name] for name in Group.__annotations__}), {})
        for name, figures in described["methods"].items():
            if name not in methods or len(methods[name]["seeds"]) < len(figures["seeds"]):
                methods[name] = {**figures, "splits": _intervals(figures["splits"]), "is_earlier": True}
    order = [*load_comparison(COMPARISON).methods]
    return {
        group: dict(sorted(methods.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order)))
        for group, methods in found.items()
    }


def _intervals(splits: dict[str, dict[str, list]]) -> dict[str, dict[str, Interval]]:
    def interval(ends: list) -> Interval:
        return Interval(*(math.nan if end is None else end for end in ends))

    return {split: {name: interval(ends) for name, ends in found.items()} for split, found in splits.items()}


def curves(content: dict[Group, dict]) -> dict[Group, dict[int, dict]]:
    """The methods of each number of training systems, for every student, teacher and budget that has several numbers."""
    found: dict[Group, dict[int, dict]] = {}
    for group in sorted(content, key=lambda one: one.train_systems):
        found.setdefault(replace(group, train_systems=0), {})[group.train_systems] = content[group]
    return {group: sizes for group, sizes in found.items() if len(sizes) > 1}


def compared(content: dict[Group, dict]) -> dict[Group, dict]:
    """The groups but for the points of a learning curve: of each, the number of systems with most methods."""
    most: dict[Group, Group] = {}
    for group, methods in content.items():
        best = most.setdefault(replace(group, train_systems=0), group)
        if len(methods) > len(content[best]):
            most[replace(group, train_systems=0)] = group
    return {group: content[group] for group in most.values()}


def choices(rows: list[dict]) -> list[dict]:
    """The criterion of each candidate of a tuning: mean of energy and force MAE on val_id over the undistilled student's."""
    found = []
    for row in rows:
        name, _, coefficient = row["method"].partition("@")
        if not coefficient:
            continue
        same = (row["student"], row["seed"], row["train_systems"])
        baselines = (one for one in rows if one["method"] == UNDISTILLED)
        undistilled = next((one for one in baselines if (one["student"], one["seed"], one["train_systems"]) == same), None)
        if undistilled is not None:
            relative = statistics.fmean(row[column] / undistilled[column] for column in GAPS.values())
            found.append({**row, "method": name, "coefficient": float(coefficient), "criterion": relative})
    return found


def hours(rows: list[dict]) -> tuple[int, float]:
    """Runs of which it is known, and the CPU hours of their trainings together: start and validations included."""
    found = {run_of(row): row["cpu_seconds"] for row in rows if row["cpu_seconds"] != ""}
    return len(found), sum(found.values()) / 3600
