"""How every picture of an evaluation looks: colours, fonts, sizes; and the pictures of errors by split."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Optional

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fairchem_crack.evaluation.intervals import Interval

# One colour and marker for each model, in every picture; the colours differ in lightness too, for the colour-blind.
COLORS = {"undistilled": "#7d8794", "student": "#d1495b", "teacher": "#1d3557"}
MARKERS = {"undistilled": "o", "student": "s", "teacher": "D"}
# Of further models, in their order.
FURTHER = (("#2a9d8f", "^"), ("#b8860b", "v"), ("#7b4fa3", "P"), ("#3f7d20", "X"), ("#a0522d", "p"), ("#c2529a", "h"))
# Okabe and Ito's without the yellow that is hard to see on white, and five more as far from them and from each other.
PALETTE = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000"),
    *("#6a2fa0", "#9bc400", "#8b5a2b", "#b0003a", "#00d8c0"),
)
SHAPES = ("o", "^", "s", "D", "v", "P", "X")
FAINT, OTHER = "#d5dae0", "#b8bfc7"
DENSITY = LinearSegmentedColormap.from_list("density", ("#f8dfe2", "#d1495b", "#4a0f1a"))

SIZE = (4.8, 3.8)  # inches; a page shows two or three beside each other, a phone one
SMALL = (4.6, 3.2)
NARROW = (3.6, 3.4)  # four beside each other
DPI = 200
STYLE: Any = {  # of rcParams, whose type lists every key
    "text.parse_math": False,  # a user's `$` is a letter
    "font.size": 11,
    "axes.labelsize": 11.5,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6570",
    "axes.axisbelow": True,
    "xtick.color": "#3c444c",
    "ytick.color": "#3c444c",
    "grid.color": "#e5e9ee",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@dataclass(frozen=True)
class Picture:
    """One picture: its file's name without suffix, what it shows, for those who do not see it too, and its PNG."""

    name: str
    caption: str
    alt: str
    png: bytes = field(repr=False)


def look(roles: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model: those of its role, or its own where another model has that role, or it has none.

    Args:
        roles: of each model, by its name.
    """
    further, taken, looks = cycle(FURTHER), set(), {}
    for name, role in roles.items():
        looks[name] = next(further) if role in taken or role not in COLORS else (COLORS[role], MARKERS[role])
        taken.add(role)
    return looks


class Canvas:
    """A figure of one axis or several beside each other, and the PNG of it."""

    def __init__(self, size: tuple[float, float], panels: int = 1) -> None:
        self.figure = Figure(figsize=size, layout="constrained")
        self.axes: list[Axes] = list(self.figure.subplots(1, panels, squeeze=False)[0])
        self.axis = self.axes[0]

    def png(self) -> bytes:
        """The PNG, without the version of matplotlib in it: equal numbers give equal files."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def canvas(size: tuple[float, float] = SIZE, panels: int = 1) -> Iterator[Canvas]:
    """A figure in the common style."""
    with matplotlib.rc_context(STYLE):
        yield Canvas(size, panels)


def draw_bars(
    axis: Axes,
    splits: Sequence[str],
    errors: Mapping[str, Sequence[Interval]],
    colors: Mapping[str, str],
    gaps: Sequence[Optional[Interval]],
    note: str = "{:.0%}",
) -> None:
    """Bars of one error by split and model, with its interval where it has one; over each split, the gap closed if known.

    Args:
        errors: of each model, one for each split.
        gaps: one for each split; None or NaN where there is none.
        note: how a gap is written.
    """
    width = 0.8 / len(errors)
    for number, (model, intervals) in enumerate(errors.items()):
        places = np.arange(len(splits)) + (number - (len(errors) - 1) / 2) * width
        values = np.array([(interval.low, interval.estimate, interval.high) for interval in intervals])  # (B, 3)
        axis.bar(places, values[:, 1], 0.92 * width, color=colors[model], label=legend_label(model))
        if np.isfinite(values).all():
            axis.vlines(places, values[:, 0], values[:, 2], color="#1c2329", linewidth=0.9)
    for place, gap in enumerate(gaps):
        if gap is not None and math.isfinite(gap.estimate):
            ends = [end for intervals in errors.values() for end in (intervals[place].estimate, intervals[place].high)]
            above = (place, np.nanmax(ends))
            axis.annotate(note.format(gap.estimate), above, (0, 3), textcoords="offset points", ha="center", fontsize=9)
    labels = [split.replace("_ood_", "_ood\n") if len(splits) > 2 else split for split in splits]
    axis.set_xticks(range(len(splits)), labels, fontsize=9.5 if len(splits) > 3 else None)
    axis.tick_params(axis="x", length=0)
    axis.margins(y=0.1)


def legend_label(name: str) -> str:
    """A name as a legend shows it: matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def diagonal(axis: Axes, *values: np.ndarray) -> None:
    """Equal axes that hold all values, and the line on which both are equal."""
    low, high = min(map(np.min, values)), max(map(np.max, values))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color="#5b6570", linewidth=0.9, linestyle=(0, (4, 3)))
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))


def logarithmic(axis: Axes, name: str) -> None:
    """A logarithmic x or y axis whose numbers are written out, as many as its range leaves room for."""
    getattr(axis, f"set_{name}scale")("log")
    low, high = getattr(axis, f"get_{name}lim")()
    decades = np.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 6, 8) if decades < 0.9 else (1, 2, 5) if decades < 2.5 else (1,)
    side = getattr(axis, f"{name}axis")
    side.set_major_locator(LogLocator(subs=steps))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    side.set_minor_formatter(NullFormatter())
