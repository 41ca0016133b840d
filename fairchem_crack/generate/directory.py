"""A directory that a command fills over several runs: its lock, its settings, and disks that refuse."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from fairchem_crack.io.files import write_json
from fairchem_crack.teacher.cache import differences

LOCK, STAGING, SETTINGS = "lock", "unfinished", "settings.json"


def begin(directory: Path, settings: Path, made_with: dict[str, Any]) -> None:
    """Keep the settings of a new outcome, or compare those of the one that was begun.

    Args:
        settings: where they are kept, in the directory or in a directory of it.
        made_with: all that decides the outcome, as JSON has it; two levels of names.

    Raises:
        ValueError: the directory was begun with others, or holds other files.
    """
    if settings.is_file():
        check_same(directory, json.loads(settings.read_text()), made_with)
        return
    others = sorted(path.name for path in directory.iterdir() if path.name not in (LOCK, STAGING))
    if others:
        raise ValueError(f"--output {directory}: holds {', '.join(others[:4])}; expected a new or an empty directory.")
    settings.parent.mkdir(exist_ok=True)
    write_json(settings, made_with)


def check_same(directory: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError, with the first few by name, where settings have changed."""
    changed = differences(before, now)
    if changed:
        named = "; ".join(f"{name.partition('.')[2]} {old}, now {new}" for name, old, new in changed[:4])
        raise ValueError(
            f"--output {directory} was made with other settings: {named}. Give another directory, or delete it."
        )


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Raise what the system refuses as a ValueError that says what to do."""
    try:
        yield
    except (lmdb.Error, sqlite3.Error, OSError) as error:
        raise ValueError(
            f"--output {directory}: cannot write ({error}). Put that right, a full disk for example, and run the same "
            "command again: what is written is kept and resumed."
        ) from error
