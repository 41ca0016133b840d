"""The rows of a benchmark, in a CSV: each is a flat record of what was varied and what was measured."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from fairchem_crack.io.files import whole, write_text


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[Optional[int]]:
    """The descriptor of a lock, which a child that inherits it holds, too; None where another process has it.

    Args:
        wait: for the other process.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield lock.fileno()


class Table:
    """A CSV that several processes may append to; a row that has no value of a column has an empty one.

    Errors of single systems are too many for it. They are beside it, in an npz of its name.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.errors = file, file.with_suffix(".npz")

    def rows(self) -> list[dict[str, Any]]:
        """All rows, numbers as numbers."""
        if not self.file.exists():
            return []
        with self.file.open(newline="") as file:
            return [{name: _parsed(text) for name, text in row.items()} for row in csv.DictReader(file)]

    def append(self, rows: list[dict[str, Any]], errors: Optional[dict[str, np.ndarray]] = None) -> None:
        """Add rows and their arrays: all of them or, if killed, no row."""
        with locked(self.file.with_suffix(".lock")):
            if errors:
                arrays = dict(np.load(self.errors)) if self.errors.exists() else {}
                arrays.update({name: array.astype(np.float32) for name, array in errors.items()})
                with whole(self.errors) as partial:
                    np.savez_compressed(partial, **arrays)
            rows = [*self.rows(), *rows]
            text = io.StringIO()
            writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row), restval="")
            writer.writeheader()
            writer.writerows(rows)
            write_text(self.file, text.getvalue())


def _parsed(text: str) -> Union[int, float, str]:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text
