"""The figures of the accuracy benchmark: flat rows again, of the seeds together, with intervals as [estimate, low, high]."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, replace
from operator import itemgetter
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.accuracy.plan import EXPERIMENTS, TEACHER, UNDISTILLED, Run, read_plan
from benchmarks.accuracy.training import ERRORS, METRICS, SPLITS, Workspace
from fairchem_crack.evaluation.intervals import Errors, Interval, gap_closed_interval, t_interval

MEAN = "mean of the four"
GAPS = {"energy": "energy_mae", "forces": "forces_mae"}
GROUP = tuple(name for name in asdict(Run()) if name not in ("method", "seed"))  # equal in what is compared
DECIMALS = 6  # an error below 1 ueV is none, and the last digits of a sum depend on the processor


class Results:
    """The rows of a table by run and split, the errors of each run's systems, and the cost of a step.

    A run without a seed stands for those of all seeds; one without a method, too, for a group.
    """

    def __init__(self, workspace: Workspace, name: str = "accuracy") -> None:
        table = workspace.table(name)
        self.rows: dict[Run, dict[str, dict]] = {}
        for row in table.rows():
            self.rows.setdefault(Run.of(row), {})[row["split"]] = row
        self._errors = dict(np.load(table.errors)) if table.errors.exists() else {}
        self._costs = step_costs(workspace.table("costs").rows())

    def groups(self) -> list[Run]:
        """All with a distilled student, student by student."""
        groups = dict.fromkeys(replace(run, method="", seed=None) for run in self.rows if run.student and run.teacher)
        students = list(dict.fromkeys(group.student for group in groups))
        return sorted(groups, key=lambda group: students.index(group.student))

    def seeds(self, run: Run) -> list[int]:
        """Of the runs that are equal but for the seed."""
        return sorted(row.seed for row in self.rows if row.seed is not None and replace(row, seed=None) == run)

    def value(self, run: Run, split: str, column: str) -> float:
        """A column of a run on one split, or averaged over the four."""
        return fmean(self.rows[run][name][column] for name in _splits(split))

    def paired(self, run: Run, other: Run, split: str, column: str) -> Interval:
        """A column of a run less that of another: the mean over the seeds that both have, and its t-interval."""
        shared = [seed for seed in self.seeds(run) if seed in self.seeds(other)]
        values = ([self.value(replace(of, seed=seed), split, column) for seed in shared] for of in (run, other))
        return t_interval([of_run - of_other for of_run, of_other in zip(*values)])

    def errors(self, runs: Iterable[Run], split: str, name: str) -> np.ndarray:
        """(S, K) of the seeds' runs one of `ERRORS` of the systems of a split."""
        return np.stack([self._errors[f"{run.name}/{split}"][ERRORS.index(name)].astype(float) for run in runs])

    def gap(self, run: Run, split: str, quantity: str) -> Interval:
        """The gap closed by a method, on the seeds that it shares with the undistilled student; NaN without any."""
        return self.less(run, run.of_method(UNDISTILLED), split, quantity, down_to=Run(teacher=run.teacher, method=TEACHER))

    def less(self, run: Run, other: Run, split: str, quantity: str, *, down_to: Run | None = None) -> Interval:
        """(other - own) / (other - least) of an error, on the seeds that both have; NaN without any.

        A bootstrap over seeds and systems; over the seeds only, where the errors of single systems were not kept.

        Args:
            down_to: whose error is the least; 0 without.
        """
        seeds = [seed for seed in self.seeds(run) if replace(other, seed=seed) in self.rows]
        if not seeds:
            return Interval(math.nan)
        others, own = ([replace(of, seed=seed) for seed in seeds] for of in (other, run))
        least = [down_to] if down_to else []
        names = _splits(split)
        if any(f"{of.name}/{name}" not in self._errors for of in (*others, *own, *least) for name in names):
            errors = ([self.value(of, split, GAPS[quantity]) for of in runs] for runs in (others, own))
            end = self.value(down_to, split, GAPS[quantity]) if down_to else 0.0
            return t_interval([(before - after) / (before - end) for before, after in zip(*errors)])
        parts = []
        for name in names:
            pairs = (self.errors(runs, name, quantity) for runs in (others, own))
            components = self.errors(least or own[:1], name, "components")[0]
            weights = components if quantity == "forces" else np.ones_like(components)
            end = self.errors(least, name, quantity)[0] if least else np.zeros_like(weights)
            parts.append(Errors(*pairs, end, weights))
        return gap_closed_interval(parts)

    def figures(self, group: Run, method: str, split: str) -> dict[str, Any]:
        """The row of a method of a group on a split."""
        run = group.of_method(method)
        runs = [replace(run, seed=seed) for seed in self.seeds(run)] or [Run(teacher=group.teacher, method=TEACHER)]
        row: dict[str, Any] = {**{name: getattr(group, name) for name in GROUP}, "method": method, "split": split}
        row |= {"seeds": len(self.seeds(run)), "steps": self.rows[runs[0]]["val_id"]["steps"]}
        row |= {name: plain(t_interval([self.value(run, split, name) for run in runs])) for name in METRICS}
        if method not in (UNDISTILLED, TEACHER):
            row |= {f"gap_{name}": plain(self.gap(run, split, name)) for name in GAPS}
        if cost := self._costs.get((group.student, group.teacher, method)):
            row["step_cost"] = plain(cost)
        return row


def _splits(split: str) -> tuple[str, ...]:
    return SPLITS if split == MEAN else (split,)


def figures(workspace: Workspace) -> dict[str, Any]:
    """All figures of the benchmark, as JSON has them.

    Raises:
        ValueError: there is nothing to compare yet, or no row of a teacher.
    """
    results, rows = Results(workspace), []
    order = (UNDISTILLED, *read_plan(EXPERIMENTS).methods)
    for group in results.groups():
        teacher = Run(teacher=group.teacher, method=TEACHER)
        if teacher not in results.rows:
            raise ValueError(f"{workspace.directory}: no rows of the teacher {group.teacher}; run --only method=teacher.")
        baseline = set(results.seeds(group.of_method(UNDISTILLED)))
        names = {run.method for run in results.rows if replace(run, method="", seed=None) == group and run.seed in baseline}
        methods = sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))
        methods = [*[UNDISTILLED] * bool(methods), *methods, TEACHER]
        rows += [results.figures(group, method, split) for method in methods for split in (*SPLITS, MEAN)]
    if not rows:
        raise ValueError(f"{workspace.directory}: no row of a distilled student in accuracy.csv.")
    tables = {f"{name}.csv": workspace.table(name).rows() for name in ("accuracy", "tuning")}
    systems = {split: results.errors([teacher], split, "energy").size for split in SPLITS}
    cost = {name: hours(own) for name, own in tables.items()}
    return {"systems": systems, "cost": cost, "rows": rows, "tuning": choices(tables["tuning.csv"])}


def plain(interval: Interval) -> list[float | None]:
    """[estimate, low, high], rounded; None where there is none."""
    return [None if math.isnan(end) else round(end, DECIMALS) + 0.0 for end in astuple(interval)]  # + 0.0: no -0


def costs_of(table: str) -> str:
    """The table of what the steps of a table's methods cost."""
    return "costs" if table == "accuracy" else f"{table}_costs"


def step_costs(rows: list[dict]) -> dict[tuple[str, str, str], Interval]:
    """Of student, teacher and method: the time of a step over the undistilled one's of the same round.

    The median over the rounds, and the quartiles.
    """
    rounds: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        rounds.setdefault((row["student"], row["teacher"], row["method"]), {})[row["round"]] = row["seconds"]
    costs = {}
    for (student, teacher, method), seconds in rounds.items():
        undistilled = rounds[student, teacher, UNDISTILLED]
        low, median, high = np.quantile([seconds[key] / undistilled[key] for key in seconds], [0.25, 0.5, 0.75]).tolist()
        costs[student, teacher, method] = Interval(median, low, high)
    return costs


def mean_costs(rows: list[dict]) -> dict[tuple[str, str, str], list[float]]:
    """Of student, teacher and method: the time of all rounds over the undistilled one's, and of either half, in order.

    The mean, unlike the median, has the steps of a term that counts in every k-th.
    """
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for row in sorted(rows, key=itemgetter("round")):
        seconds.setdefault((row["student"], row["teacher"], row["method"]), []).append(row["seconds"])
    costs = {}
    for (student, teacher, method), own in seconds.items():
        undistilled, half = seconds[student, teacher, UNDISTILLED], len(own) // 2
        parts = (slice(None), slice(half), slice(half, None))
        mean, *halves = (round(sum(own[part]) / sum(undistilled[part]), DECIMALS) for part in parts)
        costs[student, teacher, method] = [mean, *sorted(halves)]
    return costs


def choices(rows: list[dict]) -> list[dict]:
    """The criterion of each candidate of a tuning: mean of energy and force MAE on val_id over the undistilled student's."""
    by_run = {Run.of(row): row for row in rows}
    candidates = []
    for run, row in by_run.items():
        method, _, coefficient = run.method.partition("@")
        undistilled = by_run.get(run.of_method(UNDISTILLED))
        if coefficient and undistilled:
            criterion = fmean(row[column] / undistilled[column] for column in GAPS.values())
            own = {"method": method, "coefficient": float(coefficient), "criterion": round(criterion, DECIMALS)}
            candidates.append({**{name: row[name] for name in ("student", "teacher", "seed", "steps")}, **own})
    return candidates


def hours(rows: list[dict]) -> list[float]:
    """Runs of which it is known, and the CPU hours of their trainings together: start and validations included."""
    seconds = {Run.of(row): row["cpu_seconds"] for row in rows if row["cpu_seconds"] != ""}
    return [len(seconds), round(sum(seconds.values()) / 3600, DECIMALS)]
