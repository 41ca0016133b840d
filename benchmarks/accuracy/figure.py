"""The pictures of the accuracy benchmark: the gap to the teacher that each method closes; errors by number of systems."""

from __future__ import annotations

import math
import re
from itertools import product
from pathlib import Path

from benchmarks.accuracy.plan import TEACHER, UNDISTILLED
from benchmarks.accuracy.summary import MEAN
from fairchem_crack.io.files import whole

SPLITS = {"val_id": ("#1d3557", "o"), "val_ood_both": ("#d1495b", "s")}  # and their colour and marker
ERRORS = {"energy_mae": "energy MAE [eV]", "forces_mae": "force MAE [eV/Å]"}
# Of PaiNN on structures that the teacher labelled, the lines: methods, structures as a regular expression, budgets
CURVES = {
    "recipe, on the 300 systems and on 1, 3, 9, 30 rattled copies": (
        ("crack_n2n_v2v_atoms", "labelled_crack_n2n_v2v_atoms"),
        r"(rattle\d+)?",
        ("steps",),
    ),
    "recipe with the Hessian": (("recipe_atoms_100",), "", ("steps",)),
    "rattled copies, the teacher's labels only": (("labelled",), r"rattle\d+", ("steps",)),
    "mixed structures, the teacher's labels only": (("labelled",), "mixed9", ("steps", "double", "triple")),
    "mixed structures, the demo's recipe": (("labelled_crack_n2n_v2v_atoms_300",), "mixed9", ("steps", "double", "triple")),
}
MARKER_SIZES = {"steps": 5, "double": 8, "triple": 11}
LEVELS = {TEACHER: ("teacher", "-"), UNDISTILLED: ("labels only, 300 systems", ":")}
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


def draw_by_size(rows: list[dict], file: Path) -> None:
    """PaiNN's errors against the number of systems with the teacher's outputs, a panel for each split and error.

    Args:
        rows: of `generated.figures`; the lines of `CURVES` are drawn, with larger markers for longer trainings.
        file: the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, len(ERRORS), sharex=True)
    shown = [row for row in rows if row["student"] in ("painn", "")]
    for axis, (split, column) in zip(axes.flat, product(("val_id", MEAN), ERRORS)):
        of_split = [row for row in shown if row["split"] == split]
        for row in of_split:
            if row["method"] in LEVELS and row["budget"] in ("", "steps"):
                label, style = LEVELS[row["method"]]
                axis.axhline(row[column][0], color="#9aa5b1", linestyle=style, label=label)
        for (name, (methods, structures, budgets)), marker in zip(CURVES.items(), "osD^v"):
            line = [
                row
                for row in of_split
                if row["method"] in methods and row["budget"] in budgets and re.fullmatch(structures, row["structures"])
            ]
            if not line:
                continue
            line.sort(key=lambda row: (row["systems"], row["steps"]))
            systems, errors = [row["systems"] for row in line], [row[column][0] for row in line]
            (drawn,) = axis.plot(systems, errors, label=name, marker=marker, markersize=5)
            sizes = [MARKER_SIZES[row["budget"]] ** 2 for row in line]
            axis.scatter(systems, errors, s=sizes, marker=marker, color=drawn.get_color())
        axis.set(xscale="log", yscale="log", xlabel="systems", ylabel=ERRORS[column])
        ticks = sorted({row["systems"] for row in rows if row["seeds"] and re.fullmatch(r"(rattle\d+)?", row["structures"])})
        axis.set_xticks(ticks, ticks)
        axis.tick_params(axis="x", which="minor", labelbottom=False)
        axis.set_title(split, loc="left", fontsize=10)
        axis.grid(color="#e5e9ee", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
