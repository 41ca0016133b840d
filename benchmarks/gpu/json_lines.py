"""Rows of `benchmarks/gpu/day.py`: JSON lines, each written at once, so that a part that is cut off loses none."""

from __future__ import annotations

import json
import re
from pathlib import Path

LOSS_LINE = re.compile(r"^P = +(\d+) +(\w+) +([\d.e+-]+) s +([\d.e+-]+) MB", re.MULTILINE)


def append(file: Path, **row: object) -> None:
    """Add a row."""
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")


def read(file: Path) -> list[dict]:
    """The whole rows of a file that may be written to meanwhile; none where there is no file."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_loss(directory: Path, log: Path) -> list[dict]:
    """The rows of `benchmarks.crack_loss`: of its JSON, which it writes at its end; until then what it has printed."""
    for file in directory.glob("crack_loss*.json"):
        return json.loads(file.read_text())["results"]
    printed = LOSS_LINE.findall(log.read_text(errors="replace")) if log.exists() else []
    return [
        {"pairs": int(pairs), "method": method, "median": float(seconds), "peak_mb": float(memory)}
        for pairs, method, seconds, memory in printed
    ]
