"""What is wrong with a config: a fault has a place and a sentence; all of them are gathered, then raised once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        path: its dotted path in the YAML, or a flag.
        sentence: what was expected, what is there, what to do.
    """

    path: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}"


def refuse(*faults: Iterable[Fault]) -> None:
    """Raise ValueError with a line for each fault; do nothing where there is none."""
    lines = dict.fromkeys(str(fault) for several in faults for fault in several)
    if lines:
        raise ValueError("\n".join(lines))


def suggestion(name: Any, known: Iterable[Any]) -> str:
    """The nearest of the known names, or all of them."""
    known = list(known)
    return nearest_of(name, known) or f"Known are {listed(known)}."


def nearest_of(name: Any, known: Iterable[Any]) -> str:
    """The nearest of the known names, or nothing where none is near."""
    nearest = difflib.get_close_matches(str(name), map(str, known), n=1, cutoff=0.5)
    return f"Did you mean `{nearest[0]}`?" if nearest else ""


def listed(names: Iterable[Any]) -> str:
    """Names as they are written in a sentence."""
    return ", ".join(f"`{name}`" for name in names)
