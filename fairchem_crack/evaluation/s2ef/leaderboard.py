"""The S2EF leaderboard of some checkpoints: rows of figures, as text, CSV and picture. No model is run here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Optional

from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.io.files import csv_text, whole

COLUMNS = {  # heading, format; as fairchem's Evaluator calls them
    "energy_mae": ("energy MAE [eV]", "{:.4f}"),
    "forces_mae": ("force MAE [eV/A]", "{:.4f}"),
    "forces_cosine_similarity": ("force cosine", "{:.3f}"),
    "energy_forces_within_threshold": ("EFwT", "{:.2%}"),
}
ERRORS = ("energy_mae", "forces_mae")
Throughput = dict[str, dict[str, dict[str, Any]]]  # see `bench.command.measure_throughput`
AVERAGE = "average"  # over the splits; each counts the same
COLORS = {"undistilled": "#9aa5b1", "student": "#d1495b", "teacher": "#1d3557"}


@dataclass
class Row:
    """A model on a split.

    Attributes:
        model: its name in print.
        role: student, undistilled or teacher.
        split: its name, or `AVERAGE`.
        metrics: by the names of `COLUMNS`.
        intervals: 95 % of each error, over the systems.
        gaps: gap closed of each error, with its interval; empty without an undistilled student and a teacher, and without
            the error that is not of the same atoms for all three.
    """

    model: str
    role: str
    split: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    gaps: dict[str, Interval]


def table(rows: Sequence[Row]) -> str:
    """The leaderboard, one block for each split."""
    name_width = max(len(row.model) for row in rows) + 4
    width = max(len(heading) for heading, _ in COLUMNS.values()) + 2
    lines: list[str] = []
    for split in dict.fromkeys(row.split for row in rows):
        headings = "".join(f"{heading:>{width}}" for heading, _ in COLUMNS.values())
        lines += ["", f"{split:<{name_width}}{headings}   95 % of the energy, of the forces"]
        for row in (row for row in rows if row.split == split):
            cells = "".join(f"{form.format(row.metrics[name]):>{width}}" for name, (_, form) in COLUMNS.items())
            spans = ", ".join(_span(row.intervals.get(name), COLUMNS[name][1]) for name in ERRORS if row.intervals)
            lines.append(f"  {row.model:<{name_width - 2}}{cells}   {spans}".rstrip())
            if row.gaps:
                closed = "".join(f"{_closed(row.gaps.get(name)):>{width}}" for name in ERRORS)
                spans = ", ".join(_span(row.gaps.get(name), "{:.0%}") for name in ERRORS)
                lines.append(f"  {'  gap closed':<{name_width - 2}}{closed}{'':>{2 * width}}   {spans}")
    return "\n".join(lines[1:])


def _closed(gap: Optional[Interval]) -> str:
    if gap is None:
        return "-"
    return "no gap" if math.isnan(gap.estimate) else f"{gap.estimate:.0%}"


def _span(interval: Optional[Interval], form: str) -> str:
    if interval is None or math.isnan(interval.low):
        return "-"
    return f"{form.format(interval.low)} to {form.format(interval.high)}"


def as_csv(rows: Sequence[Row], throughput: Throughput) -> str:
    """One line for each model and split, with the ends of every interval, and the model's speed and memory."""
    spans = [f"{name}_{end}" for name in ERRORS for end in ("low", "high")]
    gaps = [f"{name}_gap_closed{end}" for name in ERRORS for end in ("", "_low", "_high")]
    sizes = [size for cells in throughput.values() for size in cells]
    speeds = [f"{name}_{size}" for size in dict.fromkeys(sizes) for name in ("atoms_per_second", "peak_bytes")]
    columns = ["model", "role", "split", *COLUMNS, *spans, *gaps, *speeds]
    lines = []
    for row in rows:
        line: dict[str, Any] = {"model": row.model, "role": row.role, "split": row.split, **row.metrics}
        for name, interval in row.intervals.items():
            line.update({f"{name}_low": interval.low, f"{name}_high": interval.high})
        for name, gap in row.gaps.items():
            known = {end: value for end, value in _named(gap).items() if not math.isnan(value)}
            line.update({f"{name}_gap_closed{'_' * bool(end)}{end}": value for end, value in known.items()})
        for size, cell in throughput.get(row.model, {}).items():
            if cell:  # it fits
                line[f"atoms_per_second_{size}"] = median(cell["atoms_per_second"])
                line[f"peak_bytes_{size}"] = cell["peak_bytes"]
        lines.append(line)
    return csv_text(columns, lines)


def _named(gap: Interval) -> dict[str, float]:
    return {"": gap.estimate, **{end: value for end, value in asdict(gap).items() if end != "estimate"}}


def draw(rows: Sequence[Row], throughput: Throughput, file: Path) -> None:
    """Bars of energy and force MAE of each model and split, with the intervals over the systems; and the speeds, if any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.split != AVERAGE]
    splits, models = ([*dict.fromkeys(getattr(row, name) for row in rows)] for name in ("split", "model"))
    shades = _shades({row.model: row.role for row in rows})
    width, panels = max(8.0, 1.2 * len(splits) * len(models)), 2 + bool(throughput)
    figure, axes = pyplot.subplots(1, panels, figsize=(width * panels / 2, 4), layout="constrained")
    for axis, error in zip(axes, ERRORS):
        for number, model in enumerate(models):
            for row in (row for row in rows if row.model == model):
                at = splits.index(row.split) + 0.8 * ((number + 0.5) / len(models) - 0.5)
                interval, value = row.intervals[error], row.metrics[error]
                spread = [[max(value - interval.low, 0)], [max(interval.high - value, 0)]]
                label = literal(model) if row.split == splits[0] else None
                axis.bar(at, value, width=0.72 / len(models), color=shades[model], label=label)
                axis.errorbar(at, value, yerr=spread, color="black", linewidth=0.8, capsize=2)
        axis.set_xticks(range(len(splits)), [literal(split) for split in splits])
        axis.set_ylabel(COLUMNS[error][0].replace("/A]", "/Å]"))
        axis.spines[["top", "right"]].set_visible(False)
    if throughput:
        _draw_speeds(axes[-1], throughput, shades)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(models), 4), frameon=False)
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
    pyplot.close(figure)


def literal(name: str) -> str:
    """A name as matplotlib writes it as it is: `$` begins no formula, a leading underscore hides it from no legend."""
    return f"{' ' * name.startswith('_')}{name}".replace("$", r"\$")


def _draw_speeds(axis: Any, throughput: Throughput, shades: dict[str, tuple]) -> None:
    for model, cells in throughput.items():
        at = [int(size) for size, cell in cells.items() if cell]
        rates = [cell["atoms_per_second"] for cell in cells.values() if cell]
        axis.plot(at, [median(rate) for rate in rates], color=shades[model], marker="o")
        axis.fill_between(at, [min(rate) for rate in rates], [max(rate) for rate in rates], color=shades[model], alpha=0.2)
    sizes = dict.fromkeys(int(size) for cells in throughput.values() for size in cells)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(list(sizes), [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_xlabel("systems in a batch")
    axis.set_ylabel("atoms/s")
    axis.spines[["top", "right"]].set_visible(False)


def _shades(roles: dict[str, str]) -> dict[str, tuple]:
    """The color of each model: that of its role, lighter for each further one of it."""
    from matplotlib.colors import to_rgb

    found, seen = {}, dict.fromkeys(COLORS, 0)
    for model, role in roles.items():
        share = 0.6 ** seen[role]
        seen[role] += 1
        found[model] = tuple(1 - share * (1 - part) for part in to_rgb(COLORS[role]))
    return found
