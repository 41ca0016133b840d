"""What the commands' options have in common."""

from __future__ import annotations

from collections.abc import Iterable

IMPORT_HELP = "modules of your own with models or adapters, as task.distill.imports in a YAML"
CACHE_HELP = "in place of --teacher: teacher caches of the data, one of each split for example"
CALCULATOR = "a name that ASE knows (emt), or package.module:function that takes no argument and returns an ASE calculator"


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
