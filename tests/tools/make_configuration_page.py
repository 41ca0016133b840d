"""docs/configuration.md, from the dataclasses of fairchem_crack.config.options and the comments after their fields.

python tests/tools/make_configuration_page.py     # writes it; tests/test_docs_configuration.py compares
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from fairchem_crack import config
from fairchem_crack.config.words import options_of, takes, without_null

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
HEAD = """# Configuration
The options that this package adds to a YAML; all others are fairchem's. A misspelt option is refused before any data are
read, with its dotted path and the nearest valid name. `fairchem-crack check --config-yml ...` lists all problems at once.
This page is generated from `fairchem_crack/config/options.py`.

Set `trainer: fairchem_crack.CrackDistillTrainer`, and `evaluation_metrics.primary_metric`, for which the OCP trainer has no
default.
"""
SECTIONS = {
    "task.distill": config.DistillConfig,
    "loss_functions[].<term>": config.TermConfig,
}
TERMS = "A distillation term. [Terms](terms.md) has a table of all terms and what they compare.\n"


def options(cls: type, path: str) -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default and meaning of each option, those of inner blocks in its place."""
    hints, comments = typing.get_type_hints(cls, include_extras=True), _comments(cls)
    for option in (option for option in fields(cls) if option.name in options_of(cls)):
        hint = hints[option.name]
        if is_dataclass(without_null(hint)):
            yield from options(without_null(hint), f"{path}.{option.name}")
            continue
        value = list(option.default) if isinstance(option.default, tuple) else option.default
        default = "" if value is MISSING else f"`{'null' if value is None else value}`"
        yield f"{path}.{option.name}", takes(hint), default, comments.get(option.name, "")


def _comments(cls: type) -> dict[str, str]:
    """The comment after each field, in the source."""
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(cls), flags=re.MULTILINE))


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
