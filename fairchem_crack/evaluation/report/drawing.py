"""How every picture of a report looks: colours, fonts, sizes, and what is kept of it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

# One colour and marker for each model, in every picture; the colours differ in lightness too, for the colour-blind.
COLORS = {"undistilled": "#7d8794", "student": "#d1495b", "teacher": "#1d3557"}
MARKERS = {"undistilled": "o", "student": "s", "teacher": "D"}
# Of further models, in their order.
FURTHER = (("#2a9d8f", "^"), ("#b8860b", "v"), ("#7b4fa3", "P"), ("#3f7d20", "X"), ("#a0522d", "p"), ("#c2529a", "h"))
# Okabe and Ito's without the yellow that white paper swallows, and five more as far from them and from each other.
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


def look(models: Collection[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each model, by its role or, of a further one, its name."""
    further = [name for name in models if name not in COLORS]
    of_further = {name: FURTHER[number % len(FURTHER)] for number, name in enumerate(further)}
    return {name: (COLORS[name], MARKERS[name]) if name in COLORS else of_further[name] for name in models}


class Canvas:
    """A figure with one axis, and the PNG of it."""

    def __init__(self, size: tuple[float, float]) -> None:
        self.figure = Figure(figsize=size, layout="constrained")
        self.axis: Axes = self.figure.add_subplot()

    def png(self) -> bytes:
        """The PNG, without the version of matplotlib in it: equal numbers give equal files."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return buffer.getvalue()


@contextmanager
def canvas(size: tuple[float, float] = SIZE) -> Iterator[Canvas]:
    """A figure in the style of the report."""
    with matplotlib.rc_context(STYLE):
        yield Canvas(size)


def diagonal(axis: Axes, *values: np.ndarray) -> None:
    """Equal axes that hold all values, and the line on which both are equal."""
    low, high = min(map(np.min, values)), max(map(np.max, values))
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color="#5b6570", linewidth=0.9, linestyle=(0, (4, 3)))
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))


def logarithmic(axis: Axes, name: str) -> None:
    """A logarithmic x or y axis whose numbers are written out, as many as its range leaves room for."""
    getattr(axis, f"set_{name}scale")("log")
    low, high = getattr(axis, f"get_{name}lim")()
    decades = np.log10(high / low)
    steps = (1, 1.5, 2, 3, 4, 6, 8) if decades < 0.9 else (1, 2, 5) if decades < 2.5 else (1,)
    one = getattr(axis, f"{name}axis")
    one.set_major_locator(LogLocator(subs=steps))
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    one.set_minor_formatter(NullFormatter())


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits, never in scientific notation."""
    if not np.isfinite(value):
        return "–"  # noqa: RUF001
    decimals = 0 if value == 0 else max(significant - 1 - int(np.floor(np.log10(abs(value)))), 0)
    return f"{value:,.{decimals}f}"
