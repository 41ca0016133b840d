"""The figures of the accuracy benchmark, from accuracy.csv, the errors of each system and costs.csv beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from benchmarks.accuracy.runs import (
    COMPARISON,
    COSTS,
    ERRORS,
    METRICS,
    SPLITS,
    TEACHER,
    UNDISTILLED,
    Run,
    Workspace,
    load_comparison,
    run_of,
)
from fairchem_crack.evaluation.intervals import Errors, Interval, gap_closed_interval, t_interval

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
        self._costs = step_costs(Workspace(workspace.directory, COSTS).rows())

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

    def cost(self, group: Group, method: str) -> Optional[Interval]:
        """See `step_costs`; None where it was not measured."""
        return self._costs.get((group.student, group.teacher, method))

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
        steps = results.rows[group.run(method, seeds[0])]["val_id"]["steps"]
        found[method] = {"seeds": seeds, "steps": steps, "step_cost": results.cost(group, method), "splits": splits}
    found[TEACHER] = {
        "seeds": [],
        "splits": {
            split: {name: Interval(results.value(teacher, split, name)) for name in METRICS} for split in (*SPLITS, MEAN)
        },
    }
    return found


def step_costs(rows: list[dict]) -> dict[tuple[str, str, str], Interval]:
    """Of student, teacher and method: the time of a step over the undistilled one's of the same round.

    The median over the rounds, and the quartiles.
    """
    rounds: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        rounds.setdefault((row["student"], row["teacher"], row["method"]), {})[row["round"]] = row["seconds"]
    found = {}
    for (student, teacher, method), seconds in rounds.items():
        undistilled = rounds[student, teacher, UNDISTILLED]
        low, middle, high = np.quantile([seconds[one] / undistilled[one] for one in seconds], [0.25, 0.5, 0.75]).tolist()
        found[student, teacher, method] = Interval(middle, low, high)
    return found


def time_ratio(costs: dict[tuple[str, str, str], Interval], run: Run) -> float:
    """The part of the undistilled student's steps that takes this method as long as those take it.

    A distilled step does all that an undistilled one does: where it is measured to be faster, that is noise.

    Args:
        costs: see `step_costs`.

    Raises:
        ValueError: the method is not among them.
    """
    if run.budget != "time":
        return 1.0
    cost = costs.get((run.student, run.teacher, run.method))
    if cost is None:
        raise ValueError(f"{run.name}: no row of {COSTS} says what a step costs. Measure it by `accuracy.py cost` first.")
    return min(1.0, 1 / cost.estimate)


def in_order(content: dict[Group, dict]) -> dict[Group, dict]:
    """The methods of each group as accuracy.yml orders them, then the teacher, then others."""
    order = {name: index for index, name in enumerate((*load_comparison(COMPARISON).methods, TEACHER))}
    return {
        group: dict(sorted(methods.items(), key=lambda one: order.get(one[0], len(order))))
        for group, methods in content.items()
    }


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
