"""docs/configuration.md, from the dataclasses of fairchem_crack.config and the comments behind their fields.

python tests/tools/make_configuration_page.py     # writes it; tests/test_docs_configuration.py compares
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union

from fairchem_crack import config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD = """# Configuration
What this package reads of a YAML; everything else is fairchem's. A misspelt option is refused by its dotted path, with the
nearest valid name, before any data is read. `fairchem-crack check --config-yml ...` lists every problem at once. This page
is generated from `fairchem_crack/config.py`.

The trainer is `trainer: fairchem_crack.CrackDistillTrainer`. `evaluation_metrics.primary_metric` must be given: the OCP
trainer has no default for it.
"""
SECTIONS = {
    "task.distill": config.DistillConfig,
    "loss_functions[].<term>": config.TermConfig,
}
TERMS = "A distillation term; what the terms compare is in [terms](terms.md).\n"
LEFT_OUT = set(config.NOT_IN_YAML)


def options(cls: type, path: str) -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of each option, those of inner blocks behind their own."""
    hints, comments = typing.get_type_hints(cls), _comments(cls)
    for one in fields(cls):
        if one.name in LEFT_OUT:
            continue
        hint = _without_none(hints[one.name])
        if is_dataclass(hint):
            yield from options(hint, f"{path}.{one.name}")  # type: ignore[arg-type]
            continue
        value = list(one.default) if isinstance(one.default, tuple) else one.default
        default = "" if value is MISSING else f"`{'null' if value is None else value}`"
        yield f"{path}.{one.name}", _type_name(hint), default, comments.get(one.name, "")


def _comments(cls: type) -> dict[str, str]:
    """The comment behind each field, in the source."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), flags=re.MULTILINE))


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) is Union:
        return next(one for one in typing.get_args(hint) if one is not type(None))
    return hint


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    return {"str": "text", "int": "integer", "float": "number", "bool": "`True`, `False`"}[hint.__name__]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for path, cls in SECTIONS.items():
        parts.append(f"\n## {path}\n" + (f"{TERMS}\n" if cls is config.TermConfig else ""))
        parts.append("| option | takes | default | meaning |\n|---|---|---|---|\n")
        for name, kind, default, meaning in options(cls, path):
            parts.append(f"| `{name.removeprefix(path + '.')}` | {kind} | {default} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
