"""`fairchem-crack cache-finish`: the index and header of a cache whose records another program wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_crack.teacher.cache import PLAN, TeacherCache, finish


def parser() -> argparse.ArgumentParser:
    """The option of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack cache-finish", description="Finish a cache whose plan, records and rows are written."
    )
    own.add_argument("directory", type=Path, help="of the cache")
    return own


def cache_finish(arguments: list[str]) -> None:
    """Finish a cache, and open it."""
    directory = parser().parse_args(arguments).directory
    if not (directory / PLAN).is_file():
        raise ValueError(f"{directory} holds no teacher cache: there is no {PLAN}.")
    finish(directory)
    print(f"{directory} is complete: {len(TeacherCache(directory))} systems.")
