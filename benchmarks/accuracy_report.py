"""What `accuracy.py report` writes: the page, its figures as JSON, its pictures, and what they are made of."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from accuracy_figure import draw, draw_learning_curve
from accuracy_page import curve_file, page
from accuracy_runs import COSTS, SPLITS, TEACHER, Run, Workspace
from accuracy_summary import Results, choices, compared, curves, hours, in_order, summary

from fairchem_crack.files import write_text
from fairchem_crack.statistics import Interval

SOURCES = ("accuracy.csv", "tuning.csv", COSTS, "errors.npz")  # what the page is made of


def write_report(directory: Path, out: Path) -> None:
    """Write accuracy.md, accuracy.json and accuracy.png to `out`, and what they are made of to `out`/accuracy.

    Raises:
        ValueError: there is nothing to compare yet.
    """
    results = Results(Workspace(directory))
    content = in_order({group: summary(results, group) for group in results.groups()})
    if not content:
        raise ValueError(f"{directory}: no row of a distilled student in accuracy.csv.")
    teacher = Run(teacher=next(iter(content)).teacher)
    systems = {split: len(results.errors(teacher, split, "energy")) for split in SPLITS}
    rows = {name: Workspace(directory, name).rows() for name in SOURCES[:2]}
    tuning = choices(rows["tuning.csv"])
    published = out / "accuracy"
    published.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        if (directory / name).exists() and directory.resolve() != published.resolve():
            shutil.copyfile(directory / name, published / name)
    write_text(out / "accuracy.md", page(content, systems, tuning, {name: hours(found) for name, found in rows.items()}))
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
