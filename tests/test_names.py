"""A test's name says what holds, in a line of a report."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 60


def test_no_name_of_a_test_is_longer_than_60_characters():
    files = [*(ROOT / "tests").rglob("*.py"), ROOT / "fairchem_crack/testing.py"]
    names = [
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 700 and [name for name in names if len(name) > LONGEST] == []
