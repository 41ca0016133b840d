"""What `report` writes: the figures as JSON, the page and the picture made of them, and the rows they come from."""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.accuracy import figure
from benchmarks.accuracy.summary import GAPS, GROUP, MEAN, figures
from benchmarks.accuracy.training import METRICS, VALIDATIONS, Workspace
from fairchem_crack.io.files import write_text

SHOWN = ("val_id", "val_ood_both", MEAN)
HEADINGS = dict(zip(METRICS, ("energy MAE [eV]", "force MAE [eV/Å]", "force cosine", "EFwT [%]")))
DIGITS = dict(zip(METRICS, (3, 4, 3, 2)))


def write_report(workspace: Workspace, out: Path) -> None:
    """Write JSON, page and picture of the tables of which there are rows, and what they come from to `out`/accuracy.

    Raises:
        ValueError: there is nothing to compare yet.
    """
    from benchmarks.accuracy import generated, relations

    publish_rows(workspace, out / "accuracy")
    has_generated, has_relations = (workspace.table(made.TABLE).file.exists() for made in (generated, relations))
    if workspace.table("accuracy").file.exists() or not (has_generated or has_relations):
        content = figures(workspace)
        write_page(out / "accuracy", content, page(content))
        figure.draw({title(group[0]): group for group in groups_of(content["rows"])}, out / "accuracy.png")
    if has_generated:
        content = generated.figures(workspace)
        write_page(out / generated.TABLE, content, generated.page(content))
        figure.draw_by_size(content["rows"], out / f"{generated.TABLE}.png")
    if has_relations:
        content = relations.figures(workspace)
        write_page(out / relations.TABLE, content, relations.page(content))


def publish_rows(workspace: Workspace, published: Path) -> None:
    """Copy the rows, and the errors of single systems, to where a page's rows are kept."""
    published.mkdir(parents=True, exist_ok=True)
    for file in (*workspace.directory.glob("*.csv"), *workspace.directory.glob("*.npz")):
        if workspace.directory != published.resolve():
            shutil.copyfile(file, published / file.name)


def write_page(place: Path, content: dict[str, Any], text: str) -> None:
    """Write the figures as JSON, and the page made of them."""
    sections = (f'"{name}": {_lines(section)}' for name, section in content.items())
    write_text(place.with_suffix(".json"), "{\n" + ",\n".join(sections) + "\n}\n")
    write_text(place.with_suffix(".md"), text)
    print(f"Written: {place}.{{md,json}}")


def _lines(section: Any) -> str:
    """JSON with a row in each line."""
    return "[\n" + ",\n".join(map(json.dumps, section)) + "\n]" if isinstance(section, list) else json.dumps(section)


def groups_of(rows: list[dict]) -> list[list[dict]]:
    """The rows of each group, which stand together."""
    return [list(group) for _, group in groupby(rows, key=itemgetter(*GROUP))]


def title(row: dict) -> str:
    """The heading of a group."""
    return f"{row['student']} from {row['teacher']}, {row['train_systems']} systems, equal {row['budget']}"


def show(interval: list[float | None], digits: int = 3, *, factor: int = 1, end: str = "") -> str:
    """0.149 [0.141, 0.157], or without the ends where there are none; nothing without an estimate."""
    shown = [f"{round(factor * value, digits) + 0.0:.{digits}f}" for value in interval if value is not None]  # + 0.0: no -0
    ends = f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else ""
    return f"{shown[0]}{end}{ends}" if shown else ""


def gap(row: dict, quantity: str) -> str:
    """The gap closed, in percent; nothing where there is none to close."""
    return show(row[f"gap_{quantity}"], 0, factor=100, end="%") if f"gap_{quantity}" in row else ""


def markdown(heading: list[str], lines: list[list[str]]) -> list[str]:
    """A table."""
    return [f"| {' | '.join(cells)} |" if cells else "|---" * len(heading) + "|" for cells in (heading, [], *lines)]


def table(rows: list[dict], split: str) -> list[str]:
    """A line for each method on one split; what a step costs where that was measured."""
    has_costs = any("step_cost" in row for row in rows)
    lines = []
    for row in rows:
        if row["split"] == split:
            values = [show(row[name], DIGITS[name], factor=100 if "EFwT" in HEADINGS[name] else 1) for name in METRICS]
            cost = [show(row["step_cost"], 2) if "step_cost" in row else ""] * has_costs
            lines.append([row["method"], str(row["seeds"] or ""), *values, *(gap(row, name) for name in GAPS), *cost])
    gaps = [f"gap closed, {name}" for name in GAPS]
    return markdown(["method", "seeds", *HEADINGS.values(), *gaps, *["step"] * has_costs], lines)


def tuning_table(tuning: list[dict]) -> list[str]:
    """The criterion of every candidate, the min of each method in bold."""
    kinds: dict[tuple, list[dict]] = {}
    for candidate in tuning:
        kinds.setdefault(itemgetter("student", "teacher", "method", "steps")(candidate), []).append(candidate)
    lines = []
    for kind, candidates in kinds.items():
        cells = []
        for candidate in sorted(candidates, key=itemgetter("coefficient")):
            bold = "**" * (candidate is min(candidates, key=itemgetter("criterion")))
            cells.append(f"{bold}{candidate['coefficient']:g}: {candidate['criterion']:.3f}{bold}")
        lines.append([*map(str, kind), ", ".join(cells)])
    return markdown(["student", "teacher", "method", "steps", "coefficient: criterion"], lines)


def page(content: dict[str, Any]) -> str:
    """The page of these `figures`, and of nothing else."""
    sizes = ", ".join(f"{name} {count}" for name, count in content["systems"].items())
    lines = [
        "# Accuracy: methods, students, seeds",
        "",
        "Adsorbates on metal slabs labelled with EMT (`fairchem-crack prepare-demo`). Systems to validate on: "
        f"{sizes}. `benchmarks/accuracy/experiments.yml` says what was run and what each method is. Every student is "
        "trained by the stock `fairchem` command; the weights with the lowest force MAE in "
        f"{VALIDATIONS} validations on val_id are evaluated. So the figures on val_id are a little too good, for all "
        "methods alike.",
        "",
        "Metrics: mean over the seeds, in brackets the 95 % t-interval of that mean over seeds. Gap closed: (undistilled - "
        "distilled) / (undistilled - teacher) of an MAE, undistilled and distilled of the same seeds, in brackets a 95 % "
        "paired bootstrap interval over seeds and systems; with few seeds it is too narrow where the scatter over seeds "
        "dominates, with one it is of the systems only (`fairchem_crack/evaluation/intervals.py`). Mean of the four: of "
        "the errors on the four splits. Step: CPU time of a training step, with the teacher's cache, over the undistilled "
        "one's; the methods are interleaved on the same batches in one process, median over the rounds and quartiles. Equal "
        "time: each method takes as many steps as fit into the time of the undistilled student's.",
        "",
        "![gap closed](accuracy.png)",
        "",
    ]
    for student, rows in groupby(content["rows"], key=itemgetter("student")):
        lines.append(f"## {student}")
        for group in groups_of(list(rows)):
            steps = ", ".join(
                f"{row['method']} {row['steps']}" for row in group if row["split"] == "val_id" and row["steps"]
            )
            lines += ["", f"### {title(group[0])}", "", f"Steps: {steps}."]
            for split in SHOWN:
                lines += ["", f"{split}:", "", *table(group, split)]
        lines.append("")
    if content["tuning"]:
        seeds = ", ".join(sorted({str(candidate["seed"]) for candidate in content["tuning"]}))
        lines += [
            "## Coefficients",
            "",
            "Mean of energy and force MAE on val_id relative to the undistilled student of the same seed "
            f"({seeds}, which no table above has); bold is the lowest of a method. A candidate is the coefficient of the "
            "method's first term.",
            "",
            *tuning_table(content["tuning"]),
            "",
        ]
    took = ", ".join(f"{hours:.1f} hours for the {runs} runs of {name}" for name, (runs, hours) in content["cost"].items())
    return "\n".join(
        [
            *lines,
            "## Commands",
            "",
            "`python -m benchmarks.accuracy report docs/benchmarks/accuracy` makes this page from its rows. CPU time of the "
            f"trainings, one thread each: {took}; the teacher's caches come on top.",
            "",
            "    cp -r docs/benchmarks/accuracy runs/accuracy  # to add to these rows; without it all runs are done anew",
            "    python -m benchmarks.accuracy run runs/accuracy",
            "    python -m benchmarks.accuracy run runs/accuracy --table tuning",
            "    python -m benchmarks.accuracy cost runs/accuracy",
            "    python -m benchmarks.accuracy report runs/accuracy",
            "",
        ]
    )
