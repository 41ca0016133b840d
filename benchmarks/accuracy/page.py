"""The accuracy benchmark's page, as markdown."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from benchmarks.accuracy.runs import METRICS, TEACHER, UNDISTILLED, VALIDATIONS, schedule, student_options
from benchmarks.accuracy.summary import GAPS, MEAN, Group, curves
from fairchem_crack.evaluation.intervals import Interval

WORKING = "runs/accuracy"  # where the commands of the page work
SHOWN = ("val_id", "val_ood_both", MEAN)
HEADINGS = ("energy MAE [eV]", "force MAE [eV/Å]", "force cosine", "EFwT [%]")
DIGITS = (3, 4, 3, 2)


def show(interval: Interval, digits: int = 3, *, is_percentage: bool = False) -> str:
    """0.149 [0.141, 0.157], or without the ends where there are none."""
    factor, end = (100, "%") if is_percentage else (1, "")
    values = (interval.estimate, interval.low, interval.high)
    estimate, low, high = (f"{round(factor * value, digits) + 0.0:.{digits}f}" for value in values)  # + 0.0: no -0
    return f"{estimate}{end}" if np.isnan(interval.low) else f"{estimate}{end} [{low}, {high}]"


def table(methods: dict[str, dict], split: str) -> list[str]:
    """A row for each method on one split."""
    lines = [
        "| method | seeds | " + " | ".join(HEADINGS) + " | gap closed, energy | gap closed, forces | step |",
        "|---" * (len(HEADINGS) + 5) + "|",
    ]
    for method, found in methods.items():
        of_split = found["splits"][split]
        cells = [method, str(len(found["seeds"])) if found["seeds"] else ""]
        for name, digits in zip(METRICS, DIGITS):
            is_fraction = name == "energy_forces_within_threshold"
            cells.append(show(of_split[name], digits, is_percentage=is_fraction).replace("%", ""))
        for name in GAPS:
            cells.append(show(of_split[f"gap_{name}"], 0, is_percentage=True) if f"gap_{name}" in of_split else "")
        cells.append("" if found.get("step_cost") is None else show(found["step_cost"], 2))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def learning_curve(content: dict[Group, dict]) -> list[str]:
    """Errors against the number of systems, of the methods that were trained on several."""
    lines: list[str] = []
    for group, sizes in curves(content).items():
        title = f"{group.student} from {group.teacher}, equal {group.budget}"
        lines += ["", f"### {title}", "", f"![{title}]({curve_file(group)})", ""]
        lines += ["Energy MAE [eV] / force MAE [eV/Å], and the gap closed of both, on val_id.", ""]
        lines += ["| method | " + " | ".join(f"{size} systems" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
        counts = Counter(method for methods in sizes.values() for method in methods)
        for method in [method for method, count in counts.items() if count > 1]:
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


def commands(content: dict[Group, dict]) -> list[str]:
    """Commands that make these runs; those of equal time last, which ask for the costs."""
    runs: dict[str, list[str]] = {"steps": [], "time": []}
    for group, methods in content.items():
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for name, found in methods.items():
            if name != TEACHER:
                by_seeds.setdefault(tuple(found["seeds"]), []).append(name)
        epochs = _given_epochs(group, methods[UNDISTILLED]["steps"])
        runs[group.budget] += [
            f"    python -m benchmarks.accuracy run --students {group.student} --methods {' '.join(names)} "
            f"--seeds {' '.join(map(str, seeds))} --teacher {group.teacher} --train-systems {group.train_systems} "
            f"--budget {group.budget} {epochs}--output {WORKING}"
            for seeds, names in by_seeds.items()
        ]
    costs = [
        f"    python -m benchmarks.accuracy cost --students {student} --teacher {teacher} --methods {' '.join(methods)} "
        f"--output {WORKING}"
        for (student, teacher), methods in _costed(content).items()
    ]
    return [
        f"    cp -r docs/benchmarks/accuracy {WORKING}  # to go on from these runs; without it all are made anew",
        *[*runs["steps"], *costs, *runs["time"]],
        f"    python -m benchmarks.accuracy report {WORKING}",
    ]


def _costed(content: dict[Group, dict]) -> dict[tuple[str, str], list[str]]:
    """The methods of each student and teacher of which it is known what a step costs."""
    found: dict[tuple[str, str], list[str]] = {}
    for group, methods in content.items():
        known = [name for name, one in methods.items() if one.get("step_cost") is not None]
        own = found.setdefault((group.student, group.teacher), [])
        own += [name for name in known if name not in own]
    return {key: methods for key, methods in found.items() if methods}


def _given_epochs(group: Group, steps: int) -> str:
    """The option that gave the undistilled student, whose steps are those of every method, another number than its own."""
    optim = student_options(group.student)["optim"]
    if steps == schedule(optim, {}, systems=group.train_systems, ratio=1)["total_steps"]:
        return ""
    return f"--set optim.max_epochs={steps // math.ceil(group.train_systems / optim['batch_size'])} "


def page(content: dict[Group, dict], systems: dict[str, int], tuning: list[dict], cost: dict[str, list]) -> str:
    """The whole page.

    Args:
        systems: of each split.
        cost: of the comparison and of the tuning, see `accuracy_summary.hours`.
    """
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
        "dominates, with one it is of the systems alone (`fairchem_crack/evaluation/intervals.py`). Mean of the four: of "
        "the errors on the four splits. Step: CPU time of a training step, with the teacher's cache, over the undistilled "
        "one's; the "
        "methods are interleaved on the same batches in one process (`accuracy.py cost`), median over the rounds and "
        "quartiles.",
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
    source = "`python -m benchmarks.accuracy report docs/benchmarks/accuracy` makes this page from its CSV."
    took = ", ".join(f"{hours:.1f} hours for the {runs} runs of {table}" for table, (runs, hours) in cost.items())
    source += f" CPU time of the trainings, one thread each: {took}; the teacher's caches come on top."
    lines += ["", "## Commands", "", source, "", *commands(content)]
    return "\n".join(lines) + "\n"
