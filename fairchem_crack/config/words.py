"""What an option takes, in words: for the messages that refuse a value, and for docs/configuration.md."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Union

from fairchem_crack.config.faults import listed, nearest_of

HIDDEN = {"hidden": True}  # metadata of a dataclass's field that is no option of a YAML
NOUNS = {bool: "True or False", int: "an integer", float: "a number", str: "text", type(None): "null"}
BOUNDS = {"gt": " > {:.4g}", "ge": " >= {:.4g}", "lt": " < {:.4g}", "le": " <= {:.4g}", "min_length": ", at least {}"}
UNIONS = (Union, getattr(types, "UnionType", Union))
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NUMBER = re.compile(r"([-+]?\d+\.?\d*|[-+]?\.\d+)(?:[eE]([-+]?\d+))?")


def options_of(cls: Any) -> list[str]:
    """The names of a dataclass's options."""
    return [option.name for option in fields(cls) if option.metadata != HIDDEN]


def without_null(hint: Any) -> Any:
    """The type inside of Optional[...] and Annotated[...]."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return without_null(next(member for member in inner if member is not type(None)))
    return without_null(inner[0]) if origin is Annotated else hint


def hint_at(hint: Any, location: Iterable[Union[str, int]]) -> Any:
    """The type of an option of a dataclass, of one inside of it, or of an item; Any where there is none."""
    for name in location:
        hint = without_null(hint)
        if is_dataclass(hint):
            hint = typing.get_type_hints(hint, include_extras=True).get(str(name), Any)
        else:
            inner = [member for member in typing.get_args(hint) if member is not ...] or [Any]
            hint = inner[name] if isinstance(name, int) and name < len(inner) else inner[-1]
    return hint


def takes(hint: Any) -> str:
    """A type with its bounds: `an integer >= 1 or null`."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return takes(inner[0]) + _bounds(inner[1:])
    if origin in UNIONS:
        return " or ".join(map(takes, inner))
    if origin is Literal:
        return f"one of {listed(inner)}"
    if origin in (tuple, list):
        return f"a list of {' and '.join(_several(item) for item in inner if item is not ...)}"
    if origin is dict:
        return f"a mapping of names to {_several(inner[1])}"
    if is_dataclass(hint):
        return f"a mapping with the options {listed(options_of(hint))}"
    return NOUNS.get(hint) or f"a value of the type {getattr(hint, '__name__', hint)}"


def _several(hint: Any) -> str:
    """`takes`, of items of the type: `integers >= 1`."""
    return re.sub("^an? ([a-z]+)", r"\1s", takes(hint))


def advice(hint: Any, value: Any) -> str:
    """What may be meant by text that is none of the choices, no number, or not True or False."""
    if typing.get_origin(hint) in UNIONS:
        return next(filter(None, (advice(member, value) for member in typing.get_args(hint))), "")
    kind = without_null(hint)
    if typing.get_origin(kind) is Literal:
        return _advice_on_choices(typing.get_args(kind), value)
    if not isinstance(value, str):
        return ""
    if kind is bool and value.lower() in BOOLEANS:
        return f"Write {BOOLEANS[value.lower()]} without quotes."
    number = NUMBER.fullmatch(value)
    if number is None or kind not in (int, float):
        return ""
    if number[2] is None:
        return f"Write {value} without quotes."
    written = f"{float(value):.0f}" if kind is int else f"{float(number[1])}e{int(number[2]):+d}"
    return f"In YAML a number with an exponent has a point and a sign; write {written}."


def _advice_on_choices(choices: tuple[Any, ...], value: Any) -> str:
    if isinstance(value, str):
        return nearest_of(value, choices)
    read = [choice for choice in choices if isinstance(value, bool) and BOOLEANS.get(str(choice)) is value]
    return f'YAML takes {read[0]} for {value}; write "{read[0]}", in quotes.' if read else ""


def _bounds(metadata: tuple[Any, ...]) -> str:
    """Of a type annotated with `pydantic.Field(ge=..., le=...)`: ` >= 1`, ` in (0, 1]`."""
    parts = [part for field in metadata for part in getattr(field, "metadata", [field])]
    bounds = {name: getattr(part, name) for part in parts for name in BOUNDS if hasattr(part, name)}
    low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
    if low is not None and high is not None:
        return f" in {'(' if 'gt' in bounds else '['}{low:.4g}, {high:.4g}{')' if 'lt' in bounds else ']'}"
    return "".join(BOUNDS[name].format(bound) for name, bound in bounds.items())
