"""The pages of the benchmarks are what the figures beside them make, with nothing changed by hand."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/benchmarks"
sys.path.append(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(
    "name, module", [("scaling", "scaling"), ("screening", "screening_report"), ("step", "step_report")]
)
def test_the_page_is_made_of_its_figures(name, module):
    content = json.loads((PAGES / f"{name}.json").read_text())
    assert importlib.import_module(module).report(content) == (PAGES / f"{name}.md").read_text()


@pytest.mark.parametrize("name", ["crack_loss", "true_size"])
def test_the_page_is_made_of_its_results(name):
    content = json.loads((PAGES / f"{name}.json").read_text())
    page = importlib.import_module(name).report(content["results"], content["machine"])
    assert page == (PAGES / f"{name}.md").read_text()


def test_the_accuracy_page_is_made_of_its_figures():
    content = json.loads((PAGES / "accuracy.json").read_text())
    assert importlib.import_module("accuracy_report").page_of(content) == (PAGES / "accuracy.md").read_text()


@pytest.mark.slow
def test_the_accuracy_figures_are_those_of_its_rows():
    """As numbers: the last digits of a sum depend on the processor."""
    made = leaves(importlib.import_module("accuracy_report").figures(PAGES / "accuracy"))
    kept = leaves(json.loads((PAGES / "accuracy.json").read_text()))
    floats = [place for place, leaf in kept.items() if isinstance(leaf, float)]
    assert len(floats) > 5000
    expected = pytest.approx({place: kept.pop(place) for place in floats}, rel=1e-5, abs=2e-6)
    assert {place: made.pop(place) for place in floats} == expected
    assert made == kept


def leaves(content, path: str = "") -> dict[str, object]:
    """What nested lists and dicts hold, by where it stands."""
    if not isinstance(content, (dict, list)):
        return {path: content}
    parts = content.items() if isinstance(content, dict) else enumerate(content)
    return {place: leaf for key, part in parts for place, leaf in leaves(part, f"{path}/{key}").items()}


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|").split("|")]


def methods_of(page: str) -> list[dict[str, str]]:
    """For each method of each comparison its line of each split."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    heading = split = ""
    for line in page.splitlines():
        if line.startswith("### "):
            heading = line
        elif line.endswith(":"):
            split = line[:-1]
        elif line.startswith("| ") and heading:
            found.setdefault((heading, cells(line)[0]), {})[split] = line
    return list(found.values())


def test_the_figures_that_users_are_shown_are_those_of_the_benchmark():
    methods = methods_of((PAGES / "accuracy.md").read_text())
    checked = 0
    for line in (ROOT / "docs/accuracy.md").read_text().splitlines():
        if len(cells(line)) < 5:
            continue
        terms, val_id, gap, ood, ood_gap, *step = cells(line)
        has_errors_and_gaps = " / " in val_id and "%" not in val_id and ("%" in gap or not gap)
        if not has_errors_and_gaps:  # a heading, or the learning curve
            continue
        wanted = {
            "val_id": [*val_id.split(" / "), *gap.split(" / "), *step],
            "val_ood_both": ood.split(" / ") + ood_gap.split(" / "),
        }
        assert any(
            all(f"| {part} " in lines.get(split, "") for split, parts in wanted.items() for part in parts if part)
            for lines in methods
        ), terms
        checked += 1
    assert checked > 20
