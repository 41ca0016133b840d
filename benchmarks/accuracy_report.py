"""The page of the accuracy benchmark, from accuracy.csv and the errors of each system beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_figure import draw, draw_learning_curve
from accuracy_runs import (
    METRICS,
    SPLITS,
    TEACHER,
    UNDISTILLED,
    VALIDATIONS,
    Run,
    Workspace,
    run_of,
    schedule,
    student_options,
)

from fairchem_crack.files import write_text
from fairchem_crack.statistics import Errors, Interval, gap_closed_interval, t_interval

MEAN = "mean of the four"
SHOWN = ("val_id", "val_ood_both", MEAN)
GAPS = {"energy": "energy_mae", "forces": "forces_mae"}
HEADINGS = ("energy MAE [eV]", "force MAE [eV/Å]", "force cosine", "EFwT [%]")
DIGITS = (3, 4, 3, 2)


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
        self._workspace = workspace
        self.rows: dict[Run, dict[str, dict]] = {}
        for row in workspace.rows():
            self.rows.setdefault(run_of(row), {})[row["split"]] = row
        self._errors: dict[Run, Any] = {}

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

    def errors(self, run: Run) -> Any:
        """`SPLIT/energy`, `SPLIT/forces`, `SPLIT/components`, each (systems,)."""
        if run not in self._errors:
            self._errors[run] = dict(np.load(self._workspace.errors(run)))
        return self._errors[run]

    def value(self, run: Run, split: str, column: str) -> float:
        """A column of a run on one split, or averaged over the four."""
        return statistics.fmean(self.rows[run][one][column] for one in _splits(split))


def _splits(split: str) -> Sequence[str]:
    return SPLITS if split == MEAN else (split,)


def gap(results: Results, group: Group, method: str, seeds: list[int], split: str, quantity: str) -> Interval:
    """The gap closed by a method, on the seeds that it shares with the undistilled student."""

    def sums(runs: Iterable[Run], one: str) -> np.ndarray:
        return np.stack([results.errors(run)[f"{one}/{quantity}"] for run in runs])

    splits = []
    for one in _splits(split):
        teacher = sums([Run(teacher=group.teacher)], one)[0]
        components = results.errors(Run(teacher=group.teacher))[f"{one}/components"]
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


def show(interval: Interval, digits: int = 3, *, is_percentage: bool = False) -> str:
    """0.149 [0.141, 0.157], or without the ends where there are none."""
    factor, end = (100, "%") if is_percentage else (1, "")
    values = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (f"{round(factor * value, digits) + 0.0:.{digits}f}" for value in values)  # + 0.0: no -0
    return f"{estimate}{end}" if np.isnan(interval.low) else f"{estimate}{end} [{low}, {high}]"


def table(methods: dict[str, dict], split: str) -> list[str]:
    """A row for each method on one split."""
    lines = [
        "| method | seeds | " + " | ".join(HEADINGS) + " | gap closed, energy | gap closed, forces | step | step, CPU |",
        "|---" * (len(HEADINGS) + 6) + "|",
    ]
    for method, found in methods.items():
        of_split = found["splits"][split]
        cells = [method, str(len(found["seeds"])) if found["seeds"] else ""]
        for name, digits in zip(METRICS, DIGITS):
            is_fraction = name == "energy_forces_within_threshold"
            cells.append(show(of_split[name], digits, is_percentage=is_fraction).replace("%", ""))
        for name in GAPS:
            cells.append(show(of_split[f"gap_{name}"], 0, is_percentage=True) if f"gap_{name}" in of_split else "")
        costs = (found.get("step_cost"), found.get("step_cpu_cost"))
        cells += ["" if cost is None else f"{cost:.2f}" for cost in costs]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


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


def learning_curve(content: dict[Group, dict]) -> list[str]:
    """Errors against the number of systems."""
    lines: list[str] = []
    for group, sizes in curves(content).items():
        title = f"{group.student} from {group.teacher}, equal {group.budget}"
        lines += ["", f"### {title}", "", f"![{title}]({curve_file(group)})", ""]
        lines += ["Energy MAE [eV] / force MAE [eV/Å], and the gap closed of both, on val_id.", ""]
        lines += ["| method | " + " | ".join(f"{size} systems" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
        for method in dict.fromkeys(method for methods in sizes.values() for method in methods):
            cells = [_point(methods.get(method)) for methods in sizes.values()]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return ["", "## Learning curve", *lines] if lines else []


def curve_file(group: Group) -> str:
    """Of its picture."""
    return f"accuracy_systems-{group.student}-{group.teacher}-{group.budget}.png"


def _point(found: dict | None) -> str:
    if found is None:
        return ""
    of_split = found["splits"]["val_id"]
    text = " / ".join((show(of_split["energy_mae"], 3), show(of_split["forces_mae"], 4)))
    if "gap_energy" in of_split:
        text += "; " + " / ".join(show(of_split[f"gap_{name}"], 0, is_percentage=True) for name in GAPS)
    return text


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


def tuning_table(found: list[dict]) -> str:
    """The criterion of every candidate, the least of each method in bold."""
    lines = ["| student | teacher | method | steps | coefficient: criterion |", "|---|---|---|---|---|"]
    names = ("student", "teacher", "method", "steps")
    keys = dict.fromkeys(tuple(str(one[name]) for name in names) for one in found)
    for key in keys:
        candidates = [one for one in found if tuple(str(one[name]) for name in names) == key]
        least = min(one["criterion"] for one in candidates)
        cells = []
        for one in sorted(candidates, key=lambda one: one["coefficient"]):
            text = f"{one['coefficient']:g}: {one['criterion']:.3f}"
            cells.append(f"**{text}**" if one["criterion"] == least else text)
        lines.append(f"| {' | '.join(key)} | {', '.join(cells)} |")
    return "\n".join(lines)


def commands(content: dict[Group, dict], directory: Path) -> list[str]:
    """Commands that make these runs; those of the undistilled student first, which equal time is measured by."""
    lines = []
    for group, methods in content.items():
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for name, found in methods.items():
            if name != TEACHER:
                by_seeds.setdefault(tuple(found["seeds"]), []).append(name)
        epochs = _given_epochs(group, methods[UNDISTILLED]["steps"])
        lines += [
            f"    python benchmarks/accuracy.py run --students {group.student} --methods {' '.join(names)} "
            f"--seeds {' '.join(map(str, seeds))} --teacher {group.teacher} --train-systems {group.train_systems} "
            f"--budget {group.budget} {epochs}--output {directory}"
            for seeds, names in by_seeds.items()
        ]
    return [*lines, f"    python benchmarks/accuracy.py report {directory}"]


def _given_epochs(group: Group, steps: int) -> str:
    """The option that gave the undistilled student, whose steps are those of every method, another number than its own."""
    optim = student_options(group.student)["optim"]
    if steps == schedule(optim, {}, systems=group.train_systems, ratio=1)["total_steps"]:
        return ""
    return f"--set optim.max_epochs={steps // math.ceil(group.train_systems / optim['batch_size'])} "


def page(content: dict[Group, dict], systems: dict[str, int], tuning: list[dict], directory: Path) -> str:
    """The whole page."""
    sizes = ", ".join(f"{name} {count}" for name, count in systems.items())
    lines = [
        "# Accuracy: methods, students, seeds",
        "",
        "Adsorbates on metal slabs labelled with EMT (`fairchem-crack prepare-demo`). Systems to validate on: "
        f"{sizes}. `benchmarks/accuracy.yml` says what each method is. Every student is trained by the stock `fairchem` "
        f"command; the weights that had the least force MAE in {VALIDATIONS} validations on val_id are evaluated. So the "
        "figures on val_id are a little too good, for all methods alike.",
        "",
        "Metrics: mean over the seeds, in brackets the 95 % t-interval of that mean over seeds. Gap closed: (undistilled - "
        "distilled) / (undistilled - teacher) of an MAE, undistilled and distilled of the same seeds, in brackets a 95 % "
        "paired bootstrap interval over seeds and systems; with few seeds it is too narrow where the scatter over seeds "
        "dominates, with one it is of the systems alone (`fairchem_crack/statistics.py`). Mean of the four: of the errors "
        "on the four splits. Step: time of a training step over the undistilled one's of the same seed, medians over steps "
        "and seeds; the wall clock suffers from trainings side by side, CPU time hardly.",
        "",
        "![gap closed](accuracy.png)",
        "",
    ]
    for student in dict.fromkeys(group.student for group in content):
        lines.append(f"## {student}")
        for group, methods in content.items():
            if group.student == student:
                steps = ", ".join(f"{name} {found['steps']}" for name, found in methods.items() if "steps" in found)
                lines += ["", f"### {group.title}", "", f"Steps: {steps}."]
                for split in SHOWN:
                    lines += ["", f"{split}:", "", *table(methods, split)]
        lines.append("")
    lines = lines[:-1] + learning_curve(content)
    if tuning:
        seeds = ", ".join(sorted({str(one["seed"]) for one in tuning}))
        lines += [
            "",
            "## Coefficients",
            "",
            "Mean of energy and force MAE on val_id relative to the undistilled student of the same seed "
            f"({seeds}, which no table above has); bold is the least of a method. A candidate is the coefficient of the "
            "method's first term.",
            "",
            tuning_table(tuning),
        ]
    lines += ["", "## Commands", "", *commands(content, directory)]
    return "\n".join(lines) + "\n"


def write_report(directory: Path, out: Path) -> None:
    """Write accuracy.md, accuracy.json and accuracy.png to `out`.

    Raises:
        ValueError: there is nothing to compare yet.
    """
    results = Results(Workspace(directory))
    content = {group: summary(results, group) for group in results.groups()}
    if not content:
        raise ValueError(f"{directory}: no row of a distilled student in accuracy.csv.")
    errors = results.errors(Run(teacher=next(iter(content)).teacher))
    systems = {split: len(errors[f"{split}/energy"]) for split in SPLITS}
    tuning = choices(Workspace(directory, "tuning.csv").rows())
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "accuracy.md", page(content, systems, tuning, directory))
    groups = [{**asdict(group), "methods": methods} for group, methods in content.items()]
    described = {"systems": systems, "groups": groups, "tuning": tuning}
    write_text(out / "accuracy.json", json.dumps(described, indent=1, default=_plain) + "\n")
    draw({group.title: methods for group, methods in compared(content).items()}, out / "accuracy.png")
    for group, sizes in curves(content).items():
        teacher = next(iter(sizes.values()))[TEACHER]["splits"]["val_id"]
        students = {size: {name: one for name, one in methods.items() if name != TEACHER} for size, methods in sizes.items()}
        draw_learning_curve(f"{group.student} from {group.teacher}", students, teacher, out / curve_file(group))
    print(f"Written: {', '.join(str(out / f'accuracy.{kind}') for kind in ('md', 'json', 'png'))}")


def _plain(interval: Interval) -> list[float | None]:
    return [None if np.isnan(value) else value for value in asdict(interval).values()]
