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
        ("crack_loss", "crack_loss.report"),
        ("crack_loss_gpu", "crack_loss.report"),
        ("denormals", "denormals"),
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


def test_gradient_forces_are_compared_seed_by_seed():
    """Three seeds of direct forces, and two of gradients, of which the first one drifts less and has a larger error."""
    module = module_of("gradient_forces")
    rows = [
        {"student": "painn", "forces": forces, "training": "distilled", "seed": seed, "energy_mae": 0.2, "forces_mae": error}
        | {"drift": [drift, None], "ps": [0.5, ps]}
        for forces, seed, error, drift, ps in (
            *(("direct", 0, 0.1, -4.0, 0.3), ("direct", 1, 0.1, 2.0, 0.2), ("direct", 2, 0.1, None, 0.1)),
            *(("gradient", 0, 0.13, 1.0, 0.4), ("gradient", 1, 0.11, 3.0, 0.1)),
        )
    ]
    page = module.report({"drift_ps": 0.5, "temperatures": [300.0], "starts": 2, "rows": rows})
    assert (
        "| PaiNN | direct | distilled | 3 | 0.200 [0.200, 0.200] | 0.100 [0.100, 0.100] | 2 of 6 [10%, 70%] "
        "| 0.400 [0.100, 0.500] | 3.00 [2.00, 4.00] |"
    ) in page
    assert (  # t of one degree of freedom: 0.02 -+ 12.7 x 0.01
        "| PaiNN, gradient, distilled | PaiNN, direct, distilled | 2 | 0 [0, 0] | 0.0200 [-0.107, 0.147] "
        "| 1, 1 of 4 | -1.00 [-3.00, 1.00] |"
    ) in page


def test_the_commands_of_gradient_forces_take_configs_that_exist():
    module = module_of("gradient_forces")
    commands = [dict(zip(command, command[1:])) for command in module.commands("runs", "data", seeds=2)]
    configs = [command["--config-yml"] for command in commands if "--config-yml" in command]
    assert len(configs) == 16 and len(set(configs)) == 8 and all((ROOT / config).is_file() for config in configs)
    assert [command["--seed"] for command in commands if "stability" in command] == ["0", "1"]


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
    ("foundation_nequix", "foundation_nequix", "foundation.page", "foundation.page", 200),
    ("foundation_chgnet", "foundation_chgnet", "foundation.page", "foundation.page", 100),
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
