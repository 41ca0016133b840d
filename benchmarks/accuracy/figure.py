"""The figures of the accuracy benchmark: the gap to the teacher that each method closes, and errors against data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SPLITS = {"val_id": ("#1d3557", "o"), "val_ood_both": ("#d1495b", "s")}  # and their colour and marker
QUANTITIES = {"gap_energy": "energy MAE", "gap_forces": "force MAE"}
METRICS = {"energy_mae": "energy MAE [eV]", "forces_mae": "force MAE [eV/Å]"}
COLORS = ("#9aa5b1", "#d1495b", "#7a9e7e", "#e9a03b", "#6a4c93", "#4f8fba", "#8d5b4c")


def draw(groups: dict[str, dict], file: Path) -> None:
    """A row of panels for each group, a panel for each error, a line for each method and split with its 95 % interval.

    Args:
        groups: by title; of each its methods, as `accuracy_report.summary` makes them.
        file: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    shown = {
        title: {name: found["splits"] for name, found in methods.items() if "gap_energy" in found["splits"]["val_id"]}
        for title, methods in groups.items()
    }
    heights = [max(len(methods), 2) for methods in shown.values()]
    figure, axes = pyplot.subplots(
        len(shown),
        len(QUANTITIES),
        figsize=(10, 0.42 * sum(heights) + 1.1 * len(shown) + 0.5),
        height_ratios=heights,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for row, (title, methods) in zip(axes, shown.items()):
        for axis, (quantity, label) in zip(row, QUANTITIES.items()):
            for offset, (split, (color, marker)) in zip((-0.14, 0.14), SPLITS.items()):
                gaps = [splits[split][quantity] for splits in methods.values()]
                estimates = [one.estimate for one in gaps]
                # A percentile interval need not hold its estimate.
                below = [max(one.estimate - one.low, 0) for one in gaps]
                above = [max(one.high - one.estimate, 0) for one in gaps]
                positions = [index + offset for index in range(len(gaps))]
                style = {"color": color, "marker": marker, "markersize": 5, "capsize": 2.5, "linestyle": "none"}
                axis.errorbar(estimates, positions, xerr=[below, above], label=split, **style)
            axis.axvline(0, color="#9aa5b1", linewidth=1, zorder=0)
            axis.set_yticks(range(len(methods)), list(methods))
            axis.set_ylim(len(methods) - 0.5, -0.5)
            axis.locator_params(axis="x", nbins=6)
            axis.xaxis.set_major_formatter(PercentFormatter(1))
            axis.set_xlabel(f"gap closed, {label}")
            axis.grid(axis="x", color="#e5e9ee", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_title(title, loc="left", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(SPLITS), frameon=False)
    _save(figure, file)


def draw_learning_curve(title: str, sizes: dict[int, dict[str, dict]], teacher: dict, file: Path) -> None:
    """Errors on val_id against the number of training systems, a line for each method that has several, and the teacher's.

    Args:
        title: of the figure.
        sizes: of each number of systems its methods, as `accuracy_report.summary` makes them.
        teacher: the teacher's metrics on val_id.
        file: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    counts = {name: sum(name in methods for methods in sizes.values()) for methods in sizes.values() for name in methods}
    names = [name for name, count in counts.items() if count > 1]
    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(10, 3.6), layout="constrained")
    for axis, (metric, label) in zip(axes, METRICS.items()):
        for name, color in zip(names, COLORS):
            at = [size for size, methods in sizes.items() if name in methods]
            found = [sizes[size][name]["splits"]["val_id"][metric] for size in at]
            axis.plot(at, [one.estimate for one in found], color=color, marker="o", markersize=5, label=name)
        axis.axhline(teacher[metric].estimate, color="#1d3557", linewidth=1, linestyle="--", label="teacher")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(list(sizes), [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("training systems")
        axis.set_ylabel(label)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.grid(color="#e5e9ee", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(names) + 1, frameon=False)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    partial = file.with_suffix(".partial.png")
    figure.savefig(partial, dpi=150)
    pyplot.close(figure)
    os.replace(partial, file)
