"""Files that are there whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a text begins with that a spreadsheet would compute


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside a file, with the same suffix; what is there when the block ends becomes the file."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and the directories that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write numbers for other programs: dictionaries, lists, texts and numbers; null for a number that does not exist."""
    write_text(path, json.dumps(with_null(content), indent=1) + "\n")


def with_null(content: Any) -> Any:
    """NaN and infinities, which JSON does not have, as None, in dictionaries and lists."""
    if isinstance(content, dict):
        return {key: with_null(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [with_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table for other programs; empty where a row lacks a column. No text of it is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(as_cell, columns))
    writer.writerows([as_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue().replace("\r\n", "\n")  # with another `lineterminator`, a writer would not quote a text with \r


def as_cell(value: Any) -> Any:
    """A value of a CSV: a text that a spreadsheet would compute gets the apostrophe that keeps it one. Numbers stay."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
