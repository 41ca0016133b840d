"""What `accuracy.py report` writes: its figures as JSON, the page and the pictures made of them, and what they come from."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accuracy.figure import draw, draw_learning_curve
from benchmarks.accuracy.page import curve_file, page
from benchmarks.accuracy.runs import COSTS, SPLITS, TEACHER, Run, Workspace
from benchmarks.accuracy.summary import Group, Results, choices, compared, curves, hours, in_order, summary
from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.io.files import write_text

SOURCES = ("accuracy.csv", "tuning.csv", COSTS, "errors.npz")  # what the figures come from
DECIMALS = 6  # of the JSON: an error below 1 ueV is none, and the last digits of a sum depend on the processor


def write_report(directory: Path, out: Path) -> None:
    """Write accuracy.json, accuracy.md and accuracy.png to `out`, and what they come from to `out`/accuracy.

    Raises:
        ValueError: there is nothing to compare yet.
    """
    described = figures(directory)
    published = out / "accuracy"
    published.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        if (directory / name).exists() and directory.resolve() != published.resolve():
            shutil.copyfile(directory / name, published / name)
    write_text(out / "accuracy.json", json.dumps(described, indent=1) + "\n")
    write_text(out / "accuracy.md", page_of(described))
    content = groups_of(described)
    draw({group.title: methods for group, methods in compared(content).items()}, out / "accuracy.png")
    for group, sizes in curves(content).items():
        teacher = next(iter(sizes.values()))[TEACHER]["splits"]["val_id"]
        students = {size: {name: one for name, one in methods.items() if name != TEACHER} for size, methods in sizes.items()}
        draw_learning_curve(f"{group.student} from {group.teacher}", students, teacher, out / curve_file(group))
    print(f"Written: {', '.join(str(out / f'accuracy.{kind}') for kind in ('md', 'json', 'png'))}")


def figures(directory: Path) -> dict[str, Any]:
    """All figures of the benchmark, of the rows in `directory`, as JSON has them.

    Raises:
        ValueError: there is nothing to compare yet.
    """
    results = Results(Workspace(directory))
    content = in_order({group: summary(results, group) for group in results.groups()})
    if not content:
        raise ValueError(f"{directory}: no row of a distilled student in accuracy.csv.")
    teacher = Run(teacher=next(iter(content)).teacher)
    rows = {name: Workspace(directory, name).rows() for name in SOURCES[:2]}
    described = {
        "systems": {split: len(results.errors(teacher, split, "energy")) for split in SPLITS},
        "groups": [{**asdict(group), "methods": methods} for group, methods in content.items()],
        "tuning": choices(rows["tuning.csv"]),
        "cost": {name: hours(found) for name, found in rows.items()},
    }
    return _plain(described)


def page_of(described: dict[str, Any]) -> str:
    """The page of these `figures`, and of nothing else."""
    return page(groups_of(described), described["systems"], described["tuning"], described["cost"])


def groups_of(described: dict[str, Any]) -> dict[Group, dict]:
    """What `accuracy_summary.summary` made of each group, of `figures`."""
    content = {}
    for described_group in described["groups"]:
        own = dict(described_group)
        methods = own.pop("methods")
        content[Group(**own)] = {method: _with_intervals(values) for method, values in methods.items()}
    return content


def _with_intervals(values: dict[str, Any]) -> dict[str, Any]:
    splits = {
        split: {name: _interval(ends) for name, ends in metrics.items()} for split, metrics in values["splits"].items()
    }
    cost = values.get("step_cost")
    return {**values, "splits": splits, **({} if cost is None else {"step_cost": _interval(cost)})}


def _interval(ends: list[float | None]) -> Interval:
    return Interval(*(math.nan if end is None else end for end in ends))


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain(list(asdict(value).values()))
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, DECIMALS) + 0.0  # + 0.0: no -0
    return value
