"""The pictures of the accuracy benchmark: the gap to the teacher that each method closes; errors by number of systems."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.accuracy.plan import TEACHER, UNDISTILLED
from benchmarks.accuracy.summary import MEAN
from fairchem_crack.io.files import whole

SPLITS = {"val_id": ("#1d3557", "o"), "val_ood_both": ("#d1495b", "s")}  # and their colour and marker
ERRORS = {"energy_mae": "energy MAE [eV]", "forces_mae": "force MAE [eV/Å]"}
QUANTITIES = {"gap_energy": "energy MAE", "gap_forces": "force MAE"}


def draw(groups: dict[str, list[dict]], file: Path) -> None:
    """A row of panels for each group, a panel for each error, a line for each method and split with its 95 % interval.

    Args:
        groups: their rows, by title, see `summary.figures`.
        file: the PNG.
    """
    pyplot = _pyplot()
    from matplotlib.ticker import PercentFormatter

    shown = {
        heading: {split: [row for row in rows if row["split"] == split and "gap_energy" in row] for split in SPLITS}
        for heading, rows in groups.items()
    }
    # One method is a point of a learning curve, unless there is nothing else.
    shown = {heading: splits for heading, splits in shown.items() if len(splits["val_id"]) > 1} or shown
    heights = [max(len(splits["val_id"]), 2) for splits in shown.values()]
    size = (10, 0.42 * sum(heights) + 1.1 * len(shown) + 0.5)
    panels = {"height_ratios": heights, "sharey": "row", "squeeze": False, "layout": "constrained"}
    figure, axes = pyplot.subplots(len(shown), len(QUANTITIES), figsize=size, **panels)
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
    _save(figure, file)


def draw_by_size(rows: list[dict], names: dict[str, str], file: Path) -> None:
    """PaiNN's errors against the number of systems labelled by the teacher, one panel for each error and split.

    Args:
        rows: of `generated.figures`; lines through the numbers of rattled copies, single points for all else.
        names: of the methods.
        file: the PNG.
    """
    pyplot = _pyplot()
    size = {"figsize": (10, 7.5), "layout": "constrained"}
    figure, axes = pyplot.subplots(2, 2, sharex=True, **size)
    for panel, split in zip(axes, ("val_id", MEAN)):
        own = [row for row in rows if row["split"] == split and row["student"] in ("painn", "")]
        for axis, (column, label) in zip(panel, ERRORS.items()):
            levels = [row for row in own if row["method"] in (TEACHER, UNDISTILLED) and row["budget"] in ("", "steps")]
            for row, style in zip(sorted(levels, key=lambda row: row["seeds"]), ("--", ":")):
                axis.axhline(row[column][0], color="#9aa5b1", linestyle=style, label=names[row["method"]])
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in own:
                if row["method"] not in (TEACHER, UNDISTILLED):
                    is_curve = row["structures"].removeprefix("rattle").isdigit() and row["budget"] == "steps"
                    parts = [names[row["method"]], *([] if is_curve else [row["structures"] or "parents"])]
                    parts += [row["budget"]] * (row["budget"] != "steps")
                    curves.setdefault(", ".join(parts), []).append((row["systems"], row[column][0]))
            for number, (name, points) in enumerate(curves.items()):
                style = {"marker": "osD^v<>phX*P"[number % 12], "color": f"C{number % 10}", "markersize": 5}
                axis.plot(*zip(*sorted(points)), label=name, **style)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(f"{split}, {label}", loc="left", fontsize=10)
            axis.grid(which="both", color="#e5e9ee", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("systems with the teacher's outputs")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _save(figure, file)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, file: Path) -> None:
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
    _pyplot().close(figure)
