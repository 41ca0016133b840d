"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    """Write a file."""
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
