"""What the commands' options have in common."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Optional

from fairchem_crack.io.trust import TRUST_HELP

CACHE_HELP = "in place of --teacher: teacher caches of the data, one of each split for example"
LABELS_HELP = "errors are differences from the teacher's outputs in --teacher-cache, whatever labels the data have"
CALCULATOR = "a name that ASE knows (emt), or package.module:function that takes no argument and returns an ASE calculator"


def add_import_and_trust(parser: argparse.ArgumentParser) -> None:
    """What a command needs to read checkpoints from elsewhere, and of models of the user's own."""
    own_code = "modules of your own with models or adapters, as task.distill.imports in a YAML"
    parser.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=own_code)
    parser.add_argument("--trust", action="store_true", help=TRUST_HELP)


def named_values(
    entries: Iterable[str], option: str, form: str = "NAME=VALUE, for example student=runs/relax"
) -> dict[str, str]:
    """`name=value` entries as a mapping.

    Args:
        entries: as on the command line.
        option: for the error, for example `--data`.
        form: what is expected, and an example of it, for the error.

    Raises:
        ValueError: an entry of another form, or a name given twice.
    """
    named: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not (name and value):
            raise ValueError(f"{option} {entry}: expected {form}.")
        if name in named:
            raise ValueError(f"{option} {entry}: {name} is given twice.")
        named[name] = value
    return named


def check_at_least(values: object, smallest: Mapping[str, int]) -> None:
    """Raise ValueError for an attribute, or a member of it where it is a list, that is below its bound; None is not.

    Args:
        values: options that were parsed, or settings that bear their names.
        smallest: the bound of each.
    """
    for name, bound in smallest.items():
        for value in _numbers(values, name):
            if value < bound:
                raise ValueError(f"{_option(name)} {value}: expected at least {bound}.")


def check_labels(labels: Optional[str], caches: Collection[object]) -> None:
    """Raise ValueError where the labels are a teacher's, and there is no cache of them."""
    if labels == "teacher" and not caches:
        raise ValueError("--labels teacher: takes the teacher's outputs from caches of the data; expected --teacher-cache.")


def check_positive(values: object, names: Iterable[str], *, or_zero: bool = False) -> None:
    """Raise ValueError for an attribute, as in `check_at_least`, that is not above 0, or not finite; None may be.

    Args:
        or_zero: 0 may be, too.
    """
    for name in names:
        for value in _numbers(values, name):
            if not (0 < value < math.inf or (or_zero and value == 0)):
                expected = "0 or a positive number" if or_zero else "a positive number"
                raise ValueError(f"{_option(name)} {value:g}: expected {expected}.")


def check_range(values: object, name: str) -> None:
    """Raise ValueError for an attribute that is not two positive numbers, the smaller one first."""
    low, high = getattr(values, name)
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{_option(name)} {low:g} {high:g}: expected two positive numbers, the smaller one first.")


def _numbers(values: object, name: str) -> Iterator[float]:
    given = getattr(values, name)
    yield from given if isinstance(given, list) else [] if given is None else [given]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
