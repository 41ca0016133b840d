"""The picture of the accuracy benchmark: the gap to the teacher that each method closes."""

from __future__ import annotations

import math
from pathlib import Path

from fairchem_crack.io.files import whole

SPLITS = {"val_id": ("#1d3557", "o"), "val_ood_both": ("#d1495b", "s")}  # and their colour and marker
QUANTITIES = {"gap_energy": "energy MAE", "gap_forces": "force MAE"}


def draw(groups: dict[str, list[dict]], file: Path) -> None:
    """A row of panels for each group, a panel for each error, a line for each method and split with its 95 % interval.

    Args:
        groups: their rows, by title, see `summary.figures`.
        file: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
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
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
    pyplot.close(figure)
