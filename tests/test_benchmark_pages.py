"""The pages of the benchmarks are what the figures beside them make, with nothing changed by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from tolerances import REORDERED

from benchmarks.accuracy.training import Workspace

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/benchmarks"


def module_of(name: str):
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize(
    "name, module",
    [
        ("cache", "cache.report"),
        ("crack_loss", "crack_loss"),
        ("crack_loss_gpu", "crack_loss"),
        ("engines", "engines.report"),
        ("gpu", "gpu.report"),
        ("gradient_forces", "gradient_forces"),
        ("read_ahead", "read_ahead"),
        ("respa", "respa"),
        ("scaling", "scaling"),
        ("screening", "screening.report"),
        ("shuffle", "shuffle.report"),
        ("step", "step.report"),
        ("teacher", "teacher.report"),
    ],
)
def test_the_page_is_made_of_its_figures(name, module):
    content = json.loads((PAGES / f"{name}.json").read_text())
    assert module_of(module).report(content) == (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_the_page_of_all_of_oc20_is_made_of_the_benchmarks():
    module = module_of("internet_scale")
    page = module.report(module.figures(*map(module.load, ("gpu", "true_size", "cache"))))
    assert page == (ROOT / module.PAGE_FILE).read_text(encoding="utf-8")


def test_the_page_of_the_true_size_is_made_of_its_results():
    content = json.loads((PAGES / "true_size.json").read_text())
    page = module_of("true_size").report(content["results"], content["machine"])
    assert page == (PAGES / "true_size.md").read_text(encoding="utf-8")


def test_ratios_and_medians_are_those_of_the_rounds():
    step, scaling = (json.loads((PAGES / f"{name}.json").read_text()) for name in ("step", "scaling"))
    report = module_of("step.report")
    students = {name: report.summary(step["raw"][name]) for name in step["students"]}
    assert same(students, step["students"])
    assert same(report.cache_ratios(step["raw"]["cache"]), step["cache"])
    assert same(module_of("scaling").summary(scaling["raw"]), scaling["kinds"])


# page, directory of its rows, module of the page, module of its figures, how many there are at least
OF_ROWS = [
    ("accuracy", "accuracy", "accuracy.page", "accuracy.summary", 5000),
    ("generated", "accuracy", "accuracy.generated", "accuracy.generated", 500),
    ("relations", "accuracy", "accuracy.relations", "accuracy.relations", 500),
    ("foundation", "foundation", "foundation.page", "foundation.page", 500),
]


@pytest.mark.parametrize("name, _, module, __, ___", OF_ROWS)
def test_the_accuracy_pages_are_made_of_their_figures(name, _, module, __, ___):
    content = json.loads((PAGES / f"{name}.json").read_text())
    assert module_of(module).page(content) == (PAGES / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name, directory, _, module, least", OF_ROWS)
def test_the_accuracy_figures_are_those_of_their_rows(name, directory, _, module, least):
    figures = module_of(module).figures(Workspace(PAGES / directory))
    assert len(leaves(figures)) > least
    assert same(figures, json.loads((PAGES / f"{name}.json").read_text()))


def same(made, kept) -> bool:
    """Whether nested figures agree as numbers: the last digits of a sum depend on the processor."""
    made, kept = leaves(made), leaves(kept)
    floats = [place for place, leaf in kept.items() if isinstance(leaf, float)]
    assert {place: made.pop(place) for place in floats} == pytest.approx(
        {place: kept.pop(place) for place in floats},
        rel=REORDERED,
        abs=2e-6,  # they are kept with 6 decimals
    )
    return made == kept


def leaves(content, path: str = "") -> dict[str, object]:
    """What nested lists and dicts hold, by where it stands."""
    if not isinstance(content, (dict, list)):
        return {path: content}
    parts = content.items() if isinstance(content, dict) else enumerate(content)
    return {place: leaf for key, part in parts for place, leaf in leaves(part, f"{path}/{key}").items()}
