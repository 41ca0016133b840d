"""What `report` writes: figures from the rows, the page and the picture made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.accuracy import figure
from benchmarks.accuracy.page import (
    DIGITS,
    groups_of,
    markdown,
    publish_rows,
    show,
    table,
    title,
    tuning_table,
    write_page,
)
from benchmarks.accuracy.plan import TEACHER, UNDISTILLED, read_plan
from benchmarks.accuracy.summary import DECIMALS, GAPS, MEAN, Results, choices, hours
from benchmarks.accuracy.training import SPLITS, Workspace
from benchmarks.foundation import BEST, NAME, POTENTIALS, side_by_side
from benchmarks.foundation.data import LABELS
from benchmarks.foundation.systems import ADSORBATES, HELD_OUT_ADSORBATES, HELD_OUT_COMPOSITIONS, VOLUMES

SHOWN = ("val_id", MEAN)
ERROR = 1.2  # of the teacher's against DFT: the goal of a student
INTRO = """# Foundation: students of {title}

The teacher is {text}, in an environment of its own. It
labelled {trained} systems to train on and {validated} to validate on; nothing here has another label. The systems are
adsorbates on metals and ordered alloys of {metals}: {compositions} compositions in the prototypes A1, A2, L1_2, L1_0
and B2, of 16 metal atoms, facets 111, 100 and 211 or 110 and 100. They are not relaxed: each surface is strained, its
adsorbate put on a random place, and all free atoms are rattled. The adsorbates are {adsorbates}. Validation adds
{new_adsorbates} (`ood_ads`) and {held_out} compositions (`ood_cat`) that are never trained on. The metals are chosen so
that the elements of some relaxations of the table against DFT are among them; no such structure is trained on.

**These are small-budget numbers**: the systems were labelled in minutes of one CPU core, and a training takes minutes.
They compare methods; they are not the accuracy that a student of this teacher can reach.
`benchmarks/foundation/{experiments}` says what each method is. `undistilled` is trained on the teacher's energies and
forces only. All errors but those against DFT are against the teacher, whose own are 0: gap closed is the part of
the undistilled student's error that a method removes. What the brackets mean, how the best weights are chosen, and how
the data are split is as in the [accuracy benchmark](accuracy.md). Where a method has few seeds, differences as small as
those between the seeds of `undistilled` mean nothing.

Before they are compared, energies are divided by what the element references leave of them, {energy_stdev:.1f} eV, and
forces by their root mean square on free atoms, {force_size:.2f} eV/Å, as `fairchem-crack references` has it.
{coefficients}

![gap closed]({page}.png)
"""


def figures(workspace: Workspace) -> dict[str, Any]:
    """All figures of the page.

    Raises:
        ValueError: there are no rows of the teacher, none of a student, or none of the labels.
    """
    results, rows = Results(workspace, NAME), []
    teacher = [run for run in results.rows if run.method == TEACHER]
    if not teacher:
        raise ValueError(f"{workspace.directory}: no rows of the teacher in {NAME}.csv; run --only method=teacher.")
    plan = read_plan(POTENTIALS[teacher[0].teacher].experiments)
    for group in results.groups():
        names = {run.method for run in results.rows if run.student and group == replace(run, method="", seed=None)}
        for method in (name for name in plan.methods if name == UNDISTILLED or name in names):
            if results.seeds(group.of_method(method)):
                rows += [results.figures(group, method, split) for split in (*SPLITS, MEAN)]
    if not rows:
        raise ValueError(f"{workspace.directory}: no row of a distilled student in {NAME}.csv.")
    labels = workspace.table(LABELS).rows()
    if not labels:
        raise ValueError(f"{workspace.directory}: no {LABELS}.csv; run collect.")
    systems = {row["split"]: 0 for row in rows if row["split"] != MEAN}
    return {
        "teacher": teacher[0].teacher,
        "systems": {split: results.errors(teacher, split, "energy").size for split in systems},
        "cost": hours(workspace.table(NAME).rows()),
        "rows": rows,
        "tuning": choices(workspace.table("tuning").rows()),
        "speed": speeds(workspace.table("speed").rows()),
        "dft": against_dft(workspace.table("dft").rows()),
        "labels": labels[-1],  # of most systems
        **side_by_side.figures(workspace),
    }


def speeds(rows: list[dict]) -> list[dict]:
    """The median of the rounds of each model, in seconds of CPU a system."""
    models: dict[tuple, list[float]] = {}
    for row in rows:
        models.setdefault((row["model"], row["together"], row["atoms"]), []).append(row["seconds"])
    names = ("model", "together", "atoms")
    return [{**dict(zip(names, key)), "seconds": round(median(values), DECIMALS)} for key, values in models.items()]


def against_dft(rows: list[dict]) -> list[dict]:
    """The rows of a relaxation and a model, averaged over the seeds."""
    kinds: dict[tuple, list[dict]] = {}
    names = ("relaxation", "system", "frames", "student", "method")
    for row in rows:
        kinds.setdefault(itemgetter(*names)(row), []).append(row)
    errors = ("energy_mae", "energy_size", "forces_mae", "forces_size")
    return [
        {
            **dict(zip(names, kind)),
            "seeds": len(own),
            **{name: round(fmean(row[name] for row in own), DECIMALS) for name in errors},
        }
        for kind, own in kinds.items()
    ]


def learning_curve(rows: list[dict]) -> list[str]:
    """PaiNN's errors by the number of systems that the teacher labelled, and their exponents."""
    kinds: dict[str, dict[int, dict]] = {}
    for row in rows:
        if row["student"] == "painn" and row["split"] == MEAN and row["method"] in (UNDISTILLED, BEST):
            kinds.setdefault(row["method"], {})[row["train_systems"]] = row
    lines = []
    for method, by_size in kinds.items():
        first = min(by_size)
        for size, row in sorted(by_size.items()):
            values = [show(row[column], DIGITS[column]) for column in GAPS.values()]
            slopes = [f"{exponent(by_size[first], row, column):.2f}" if size > first else "" for column in GAPS.values()]
            lines.append([method, str(size), str(row["seeds"]), *values, *slopes])
    heading = ["method", "systems", "seeds", "energy MAE [eV]", "force MAE [eV/Å]", "exponent, energy", "exponent, forces"]
    return markdown(heading, lines) if any(len(by_size) > 1 for by_size in kinds.values()) else []


def exponent(first: dict, row: dict, column: str) -> float:
    """a of error ~ N^-a between two sizes of the data."""
    return -math.log(row[column][0] / first[column][0]) / math.log(row["train_systems"] / first["train_systems"])


def dft_section(rows: list[dict]) -> list[str]:
    """The tables against DFT, a line for each relaxation and one for their mean, and what of the goal is reached."""
    models = list(dict.fromkeys((row["student"], row["method"], row["seeds"]) for row in rows))
    heads = [f"{student} {method} ({seeds})" if student else method for student, method, seeds in models]
    lines = []
    for column, size, unit, digits in (("forces", "of DFT's forces", "eV/Å", 3), ("energy", "of DFT's energies", "eV", 2)):
        cells = []
        for system, own in groupby(sorted(rows, key=itemgetter("relaxation")), key=itemgetter("system", "frames")):
            by_model = {(row["student"], row["method"], row["seeds"]): row for row in own}
            first = next(iter(by_model.values()))
            values = [f"{by_model[model][f'{column}_mae']:.{digits}f}" for model in models]
            cells.append([system[0], str(system[1]), f"{first[f'{column}_size']:.{digits}f}", *values])
        means = [mean_of(rows, model, f"{column}_mae") for model in models]
        of_dft = mean_of(rows, models[0], f"{column}_size")
        cells.append(["mean", "", f"{of_dft:.{digits}f}", *(f"{value:.{digits}f}" for value in means)])
        cells.append(["of the teacher's", "", "", *(f"{value / means[0]:.1f}" for value in means)])
        lines += [f"MAE {size} [{unit}]:", "", *markdown(["system", "frames", "mean size", *heads], cells), ""]
        if means[0] > of_dft:
            lines += ["No prediction at all would be closer to DFT than the teacher: here the goal says nothing.", ""]
    return lines


def mean_of(rows: list[dict], model: tuple, column: str) -> float:
    """The mean over the relaxations."""
    return fmean(row[column] for row in rows if (row["student"], row["method"], row["seeds"]) == model)


def speed_section(rows: list[dict]) -> list[str]:
    """Time of a system, and how many times faster than the teacher."""
    teacher = next((row["seconds"] for row in rows if row["model"] == TEACHER and row["together"] == 1), None)
    lines = [
        [
            row["model"],
            str(row["together"]),
            f"{1000 * row['seconds']:.1f}",
            f"{teacher / row['seconds']:.1f}" if teacher else "",
        ]
        for row in rows
    ]
    return markdown(["model", "systems together", "CPU ms a system", "speed-up"], lines)


def page(content: dict[str, Any]) -> str:
    """The page of these `figures`, and of nothing else."""
    rows, validated = content["rows"], sum(content["systems"].values())
    largest = max(row["train_systems"] for row in rows)
    potential = POTENTIALS[content["teacher"]]
    compositions = len(VOLUMES) + 3 * len(VOLUMES) * (len(VOLUMES) - 1) // 2
    intro = INTRO.format(
        trained=largest,
        validated=validated,
        metals=", ".join(VOLUMES),
        compositions=compositions,
        adsorbates=", ".join(ADSORBATES),
        new_adsorbates=", ".join(HELD_OUT_ADSORBATES),
        held_out=HELD_OUT_COMPOSITIONS,
        **{**potential._asdict(), "experiments": potential.experiments.name},
        **content["labels"],
    )
    lines = [intro]
    for group in groups_of(rows):
        if group[0]["train_systems"] == largest:
            steps = ", ".join(f"{row['method']} {row['steps']}" for row in group if row["split"] == "val_id")
            lines += [f"## {title(group[0])}", "", f"Steps: {steps}."]
            for split in SHOWN:
                lines += ["", f"{split}:", "", *table(group, split)]
            lines.append("")
    if content["tuning"]:
        lines += ["## Coefficients", "", TUNING, "", *tuning_table(content["tuning"]), ""]
    if curve := learning_curve(rows):
        lines += ["## By the number of systems", "", CURVE, "", *curve, ""]
    if content["speed"]:
        atoms = content["speed"][0]["atoms"]
        lines += ["## Speed", "", SPEED.format(atoms=atoms), "", *speed_section(content["speed"]), ""]
    if content["relaxations"]:
        lines += side_by_side.section(content)
    if content["dft"]:
        lines += ["## Against DFT", "", DFT.format(error=ERROR), "", *dft_section(content["dft"])]
    runs, spent = content["cost"]
    commands = COMMANDS.format(runs=runs, hours=f"{spent:.1f}", page=potential.page, experiments=potential.experiments.name)
    return "\n".join([*lines, "## Commands", "", commands])


TUNING = """Mean of energy and force MAE on val_id relative to the undistilled student of the same seed, which no table above
has; a candidate is the coefficient of the method's first term."""
CURVE = """Mean of the four splits, PaiNN, as many steps for every number of systems. An exponent is a of error ~ N^-a,
from the smallest number of systems to this one."""
SPEED = """Energy and forces of the first systems of val_id, {atoms:.0f} atoms in the mean, on one thread, in seconds of
CPU; the teacher, in its own environment, and the students ran in the same minutes. Sixteen systems together is how the
teacher labels."""
DFT = """Frames of DFT relaxations of OC20 whose elements the students have seen, evenly spaced; none was trained on, nor
anything like them: relaxed bulks of other prototypes and larger cells. Energies are those of a frame less that of the
last frame; forces are the components on free atoms. DFT's mean sizes are the errors of a model that predicts no
change at all. Goal: {error} times the error of the teacher, the first model; other teachers that labelled the frames
stand beside it. In parentheses: of how many trainings the mean is."""
COMMANDS = """The docstring of `benchmarks/foundation/__main__.py` has the commands, from an empty directory. These {runs}
trainings ran on two CPU cores, several side by side, in {hours} hours of CPU time, those of the coefficients not counted;
the others of `{experiments}` are what `run` adds to the rows.

    cp -r docs/benchmarks/{page} runs/{page}
    python -m benchmarks.foundation report runs/{page}
"""


def write_report(workspace: Workspace, out: Path) -> None:
    """Write JSON, page, picture and rows to `out`."""
    content = figures(workspace)
    place = out / POTENTIALS[content["teacher"]].page
    publish_rows(workspace, place)
    write_page(place, content, page(content))
    largest = max(row["train_systems"] for row in content["rows"])
    groups = [group for group in groups_of(content["rows"]) if group[0]["train_systems"] == largest]
    figure.draw({title(group[0]): group for group in groups}, place.with_suffix(".png"))
