"""A YAML's values as dataclasses of options, by pydantic: strict types, every fault at once, in our own words."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Union

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fairchem_crack.config.faults import Fault, refuse, suggestion
from fairchem_crack.config.words import advice, hint_at, options_of, takes, without_null

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
UNKNOWN = "unknown option."

Location = tuple[Union[str, int], ...]  # names of mappings and indices of lists


def parse(hint: Any, values: Any, path: str) -> Any:
    """Values of a YAML as a dataclass of options, or as another type.

    Raises:
        ValueError: with every fault, one a line: unknown or missing options, wrong types or values.
    """
    built, faults = read(hint, values, path)
    refuse(faults)
    return built


def read(hint: Any, values: Any, path: str) -> tuple[Any, list[Fault]]:
    """As `parse`, but the faults are returned, in the order of their paths; with any, nothing is built.

    pydantic calls a `__post_init__` only if each option of the block is sound. So what has a fault is taken out, and the
    rest is read again until nothing new comes up.
    """
    given, sound = {path: values}, _plain({path: values})
    faults: dict[Location, str] = {}
    while True:
        try:
            # as JSON, of which strict mode takes mappings for dataclasses and lists for tuples, as a YAML has them
            built = _reader(hint).validate_json(json.dumps(sound))
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (None if faults else built[path]), [Fault(_dotted(where), faults[where]) for where in sorted(faults)]
        for detail in details:
            where, sentence = _explained(detail, hint, given)
            if detail["type"] != "missing" or _there(given, where) != where:  # else it was taken out
                faults.setdefault(where, sentence)
        places = [_there(sound, detail["loc"]) for detail in details]
        unsound = {tuple(itertools.takewhile(lambda name: isinstance(name, str), where)) for where in places}  # whole lists
        for *block, name in sorted(unsound, reverse=True):  # what is inside of a block before the block
            functools.reduce(operator.getitem, block, sound).pop(name)


def unknown_options(hint: Any, values: Any, path: str) -> list[Fault]:
    """The faults of `read` that are names of no option."""
    return [fault for fault in read(hint, values, path)[1] if fault.sentence.startswith(UNKNOWN)]


@functools.cache
def _reader(hint: Any) -> TypeAdapter:
    return TypeAdapter(dict[str, hint], config=STRICT)


def _explained(error: Mapping[str, Any], hint: Any, given: dict[str, Any]) -> tuple[Location, str]:
    """Where an error of pydantic's is, and what to say of it.

    Args:
        error: one of `ValidationError.errors()`.
        hint: the type that was expected.
        given: the values, by their path.
    """
    kind, where = error["type"], error["loc"]
    *block, option = where
    if kind in ("unexpected_keyword_argument", "invalid_key"):
        return where, f"{UNKNOWN} {suggestion(option, options_of(without_null(hint_at(hint, block[1:]))))}"
    if kind == "missing":
        return where, f"missing; expected {takes(hint_at(hint, where[1:]))}."
    where = _there(given, where)  # without what pydantic adds for the members of a union
    expected = hint_at(hint, where[1:])
    if kind in ("value_error", "assertion_error"):  # of a `__post_init__`: "sentence", or "option: sentence"
        whole = str(error["ctx"]["error"])
        option, _, sentence = whole.partition(": ")
        return ((*where, option), sentence) if option in options_of(without_null(expected)) else (where, whole)
    value = functools.reduce(operator.getitem, where, given)  # type: ignore[arg-type]
    return where, f"expected {takes(expected)}, found {value!r}. {advice(expected, value)}".rstrip()


def _plain(value: Any) -> Any:
    """Mappings, lists and scalars of JSON; what a YAML has beyond them, such as dates, as NaN, which no option takes."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else math.nan


def _there(values: Any, where: Location) -> Location:
    """The part of a location that leads to a value."""
    for depth, name in enumerate(where):
        try:
            values = values[name]
        except (KeyError, IndexError, TypeError):
            return where[:depth]
    return where


def _dotted(where: Iterable[Union[str, int]]) -> str:
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in where)[1:]
