"""Metrics in print: headings, digits, values with their intervals, and tables of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from tabulate import SEPARATING_LINE, tabulate

from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.io.files import write_json

ERRORS = ENERGY_MAE, FORCE_MAE = ("energy_mae", "forces_mae")  # as fairchem's Evaluator calls them, like all metrics
NO_NUMBER = "-"
LINE = SEPARATING_LINE  # a row of `text_table` that is a line


def digits(value: float, significant: int = 3) -> str:
    """A number to so many significant digits, without exponent: 12,300, 1.23, 0.00123."""
    if not math.isfinite(value):
        return NO_NUMBER
    rounded = float(f"{value:.{significant}g}")
    exponent = int(f"{rounded:e}".partition("e")[2])
    return f"{rounded:,.{max(0, significant - 1 - exponent) if rounded else 0}f}"


def span(values: Sequence[int]) -> str:
    """Of whole numbers: the only one there is, or the min and max, `13 to 40`."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


METRICS: dict[str, tuple[str, Callable[[float], str]]] = {  # heading, and how a value is written
    ENERGY_MAE: ("energy MAE [eV]", digits),
    FORCE_MAE: ("force MAE [eV/Å]", digits),
    "forces_cosine_similarity": ("force cosine", "{:.3f}".format),
    "energy_forces_within_threshold": ("EFwT", "{:.2%}".format),
}


@dataclass(frozen=True)
class Cell:
    """A value as it is written, and its interval, empty where there is none."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


def cell(interval: Interval, form: Callable[[float], str] = digits) -> Cell:
    """A value and its interval: `0.123 [0.101, 0.145]`."""
    if not math.isfinite(interval.low + interval.high):
        return Cell(form(interval.estimate))
    return Cell(form(interval.estimate), f"[{form(interval.low)}, {form(interval.high)}]")


def gap_cell(gap: Interval) -> Cell:
    """The gap closed in percent; `no gap` where the teacher's error is not below the undistilled student's."""
    return cell(gap, "{:.0%}".format) if math.isfinite(gap.estimate) else Cell("no gap")


def text_table(headings: Sequence[str], rows: Sequence[Any]) -> str:
    """A table of text, its columns aligned; in ASCII.

    Args:
        rows: as many cells as headings each, or `LINE`.
    """
    texts = [row if row == LINE else [str(value) for value in row] for row in rows]
    return tabulate(texts, headings, tablefmt="simple", disable_numparse=True).replace("Å", "A")


def print_and_write(tables: str, content: dict[str, Any], output: Optional[Path]) -> None:
    """Print what a command has measured, and write all figures as JSON where it has an `--output`."""
    if output is not None:
        write_json(output, content)
    print(tables if output is None else f"{tables}\n\nWritten: {output}")
