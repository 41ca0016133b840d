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


@pytest.mark.slow
def test_the_accuracy_page_is_made_of_its_rows(tmp_path):
    importlib.import_module("accuracy_report").write_report(PAGES / "accuracy", tmp_path)
    for name in ("accuracy.md", "accuracy.json"):
        assert (tmp_path / name).read_text() == (PAGES / name).read_text()
