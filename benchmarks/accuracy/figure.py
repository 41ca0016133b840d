"""The pictures of the accuracy benchmark: the gap to the teacher that each method closes; errors by number of systems."""

from __future__ import annotations

import math
import re
from itertools import cycle, product
from pathlib import Path

from benchmarks.accuracy.plan import TEACHER, UNDISTILLED
from benchmarks.accuracy.summary import MEAN
from fairchem_crack.io.files import whole

SPLITS = {"val_id": ("#1d3557", "o"), "val_ood_both": ("#d1495b", "s")}  # and their colour and marker
ERRORS = {"energy_mae": "energy MAE [eV]", "forces_mae": "force MAE [eV/Å]"}
RATTLED = re.compile(r"(rattle\d+)?")  # structures whose number is varied; none, too
QUANTITIES = {"gap_energy": "energy MAE", "gap_forces": "force MAE"}


def draw(groups: dict[str, list[dict]], file: Path) -> None:
    """A row of panels for each group, a panel for each error, a line for each method and split with its 95 % interval.

    Args:
        groups: their rows, by title, see `summary.figures`.
        file: the PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = {
        heading: {split: [row for row in rows if row["split"] == split and "gap_energy" in row] for split in SPLITS}
        for heading, rows in groups.items()
    }
    # One method is a point of a learning curve, unless there is nothing else.
    shown = {heading: splits for heading, splits in shown.items() if len(splits["val_id"]) > 1} or shown
    heights = [max(len(splits["val_id"]), 2) for splits in shown.values()]
    size = (10, 0.42 * sum(heights) + 1.1 * len(shown) + 0.5)
    panels = {"height_ratios": heights, "sharey": "row", "squeeze": False}
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(shown), len(QUANTITIES), **panels)
    for panel, (heading, splits) in zip(axes, shown.items()):
        for axis, (quantity, label) in zip(panel, QUANTITIES.items()):
            for offset, (split, (color, marker)) in zip((-0.14, 0.14), SPLITS.items()):
                gaps = [[math.nan if end is None else end for end in row[quantity]] for row in splits[split]]
                estimates = [estimate for estimate, _, _ in gaps]
                # A percentile interval need not hold its estimate.
                ends = [[max(estimate - low, 0) for estimate, low, _ in gaps], [max(high - at, 0) for at, _, high in gaps]]
                positions = [index + offset for index in range(len(gaps))]
                style = {"color": color, "marker": marker, "markersize": 5, "capsize": 2.5, "linestyle": "none"}
                axis.errorbar(estimates, positions, xerr=ends, label=split, **style)
            methods = [row["method"] for row in splits["val_id"]]
            axis.axvline(0, color="#9aa5b1", linewidth=1, zorder=0)
            axis.set_yticks(range(len(methods)), methods)
            axis.set_ylim(len(methods) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=6)
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            axis.set_xlabel(f"gap closed, {label}")
            axis.grid(axis="x", color="#e5e9ee", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
        panel[0].set_title(heading, loc="left", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(SPLITS), frameon=False)
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)


def draw_by_size(rows: list[dict], names: dict[str, str], file: Path) -> None:
    """PaiNN's errors against the number of systems with the teacher's outputs, a panel for each split and error.

    Args:
        rows: of `generated.figures`; lines through the numbers of rattled copies, single points for all else.
        names: of the methods.
        file: the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, len(ERRORS), sharex=True)
    for axis, (split, column) in zip(axes.flat, product(("val_id", MEAN), ERRORS)):
        curves: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row["split"] == split and row["student"] in ("painn", "")):
            name, error = names[row["method"]], row[column][0]
            if row["budget"] not in ("", "steps"):
                name += f", {row['steps']} steps"
            if row["method"] in (TEACHER, UNDISTILLED):
                axis.axhline(error, color="#9aa5b1", linestyle="-:"[row["method"] == UNDISTILLED], label=name)
                continue
            if not RATTLED.fullmatch(row["structures"]) or row["budget"] != "steps":
                name += f", {row['structures']}"
            curves.setdefault(name, []).append((row["systems"], error))
        for (name, points), marker in zip(curves.items(), cycle("osD^v<>phX*P")):
            axis.plot(*zip(*sorted(points)), label=name, marker=marker, markersize=5)
        axis.set(xscale="log", yscale="log", xlabel="systems", ylabel=ERRORS[column])
        sizes = sorted({row["systems"] for row in rows if row["seeds"] and RATTLED.fullmatch(row["structures"])})
        axis.set_xticks(sizes, sizes)
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.set_title(split, loc="left", fontsize=10)
        axis.grid(color="#e5e9ee", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
