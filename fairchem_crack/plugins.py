"""Code of your own: terms, losses, adapters, models and trainers that register themselves when their module is imported.

Two ways in, the same for every command and for the stock `fairchem` command: an installed package has an entry point in the
group `fairchem_crack.plugins`; a YAML has `task.distill.imports: [my_module]`. Commands without a YAML have `--import`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fairchem_crack.config import parse

GROUP = "fairchem_crack.plugins"
OPTION = "task.distill.imports"
ADDED_TO_PATH: set[str] = set()  # directories, which the stock `fairchem` command does not look into by itself


def load_plugins(imports: Iterable[str] = (), option: str = OPTION) -> None:
    """Import every installed plugin, then these modules; one that is imported already is left as it is.

    A module is looked for where Python looks, and last in the current directory, which the console scripts leave out.

    Args:
        imports: names of modules, `my_terms` or `my_package.terms`.
        option: where they come from, for the error.

    Raises:
        ValueError: an entry point or a module cannot be imported.
    """
    for plugin in _installed():
        try:
            plugin.load()
        except Exception as error:
            raise ValueError(
                f"The plugin `{plugin.name}` (entry point {plugin.value} of the group {GROUP}) cannot be loaded: "
                f"{type(error).__name__}: {error}. Repair or uninstall the package that has it."
            ) from error
    names, here = list(imports), os.getcwd()
    if names and not {"", here} & set(sys.path):
        sys.path.append(here)  # last: a file of the user's hides no installed module; processes inherit it
        ADDED_TO_PATH.add(here)
    importlib.invalidate_caches()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            hint = " Give the name of the module, without `.py`." if name.endswith(".py") or os.sep in name else ""
            raise ValueError(
                f"{option}: the module `{name}` cannot be imported: {type(error).__name__}: {error}. It was looked for on "
                f"Python's path and in {here}.{hint}"
            ) from error


def imports_of(task: Any) -> tuple[str, ...]:
    """The modules that a YAML's `task` block names; they are imported before anything else of it is understood.

    Raises:
        ValueError: `task.distill.imports` is not a list of names.
    """
    distill = task.get("distill") if isinstance(task, dict) else None
    imports = distill.get("imports") if isinstance(distill, dict) else None
    return () if imports is None else parse(tuple[str, ...], imports, OPTION)


def _installed() -> Iterable[EntryPoint]:
    plugins: Any = entry_points()
    return plugins.select(group=GROUP) if hasattr(plugins, "select") else plugins.get(GROUP, ())  # Python 3.9 has a dict
