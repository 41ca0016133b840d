"""Every YAML under configs/ loads, validates, has a student of the size in its name, and at toy size takes two steps."""

from __future__ import annotations

import copy
import gc
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from architectures import EQUIFORMER_V2_WIDTHS
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports
from tools.make_published_checkpoint import write_published_checkpoint

from fairchem_crack.commands.check.sections import check_config
from fairchem_crack.config import DistillConfig, parse, split_loss_functions

CONFIGS = Path(__file__).parents[2] / "configs"
S2EF = CONFIGS / "oc20/s2ef"
DISTILL_TRAINER = "fairchem_crack.CrackDistillTrainer"

SIZES = ("200k", "2M", "all")
PARAMETERS = {"painn": 20.1e6, "gemnet_dT": 31.7e6, "eqV2-22M": 22.0e6}  # host-facts and the paper; to 0.1M
TEACHERS = ("eqV2-31M", "eqV2-83M", "eqV2-153M", "escn")
COMBINATIONS = [(student, teacher) for student in ("painn", "gemnet_dT") for teacher in TEACHERS]
COMBINATIONS.append(("eqV2-22M", "eqV2-153M"))
SHIPPED = {f"{size}/{student}_from_{teacher}": "data.yml" for size in SIZES for student, teacher in COMBINATIONS}
SHIPPED |= {
    f"{size}/{student}_from_eqV2-31M_generated": "generated.yml"
    for size in ("200k", "2M")
    for student in ("painn", "gemnet_dT")
}

# What makes a model small. The kinds of norm, activation, basis and the like stay as the YAML has them.
TOY = {
    "equiformer_v2": {
        **EQUIFORMER_V2_WIDTHS,
        "num_layers": 2,
        "lmax_list": [2],
        "mmax_list": [2],
        "grid_resolution": 8,
        "max_radius": 6.0,
        "max_neighbors": 8,
    },
    "escn": {
        "num_layers": 2,
        "sphere_channels": 16,
        "hidden_channels": 16,
        "num_sphere_samples": 16,
        "lmax_list": [2],
        "mmax_list": [2],
        "cutoff": 6.0,
        "max_neighbors": 8,
    },
    "painn": {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff": 6.0, "max_neighbors": 12},
    "gemnet_t": {
        "num_spherical": 3,
        "num_radial": 8,
        "num_blocks": 1,
        "emb_size_atom": 16,
        "emb_size_edge": 16,
        "emb_size_trip": 8,
        "emb_size_bil_trip": 8,
        "max_neighbors": 8,
    },
}


def load(file: Path) -> dict:
    config, _, duplicates = load_config(str(file))
    assert duplicates == [], f"{file} includes two files that both set {duplicates}"
    return config


def name_of(file: Path) -> str:
    return str(file.relative_to(CONFIGS).with_suffix(""))


def trainings() -> dict[str, dict]:
    """The config of every YAML one can train with, by its name; the others are parts of these."""
    configs = {name_of(file): load(file) for file in sorted(CONFIGS.rglob("*.yml"))}
    return {name: config for name, config in configs.items() if "trainer" in config and "model" in config}


def shrink(config: dict, data: Path, teacher: Path) -> dict:
    """The config at toy size: the model's widths, the data, the teacher and what depends on their size; the rest stays."""
    config = copy.deepcopy(config)
    model = config["model"].get("backbone", config["model"])
    model.update(TOY[model["model"].removesuffix("_backbone") if "model" in model else model["name"]])
    model.pop("scale_file", None)  # fitted for the model as it was
    config["dataset"]["train"]["src"], config["dataset"]["val"]["src"] = str(data / "train"), str(data / "val_id")
    config["optim"].update(batch_size=2, eval_batch_size=2, num_workers=0, max_epochs=1)
    if "scheduler_params" in config["optim"]:
        config["optim"]["scheduler_params"]["warmup_epochs"] = 0.5  # of 6 steps; fairchem divides by their number
    if "distill" in config.get("task", {}):
        options = config["task"]["distill"]
        options["teacher"]["checkpoint"] = str(teacher)
        options["teacher"].pop("cache", None)  # of another teacher
        options.pop("labels", None)  # `fill` is `data` here: all systems have labels
    config["logger"] = "recorder"
    return config


def toy_runs() -> dict[str, dict]:
    """The config of one training for each that differs at toy size, by the name of its first file."""
    runs: dict[str, tuple[str, dict]] = {}
    for name, config in TRAININGS.items():
        shrunk = shrink(config, data=Path("data"), teacher=Path(teacher_of(config)))
        runs.setdefault(json.dumps(shrunk, sort_keys=True), (name, config))
    return dict(runs.values())


def teacher_of(config: dict) -> str:
    """The published model whose toy form stands in for the config's teacher: one of the same architecture."""
    teacher = config.get("task", {}).get("distill", {}).get("teacher", {})
    return "escn_L6_M3_Lay20" if "escn" in teacher.get("checkpoint", "") else "eqV2_153M"


TRAININGS = trainings()
TOY_RUNS = toy_runs()


@pytest.fixture(scope="session")
def toy_teacher(tmp_path_factory):
    """Callable: the path of a toy checkpoint of a published model, written once."""
    directory = tmp_path_factory.mktemp("teachers")

    def write(name: str) -> Path:
        path = directory / f"{name}.pt"
        if not path.exists():
            write_published_checkpoint(name, path, **TOY["escn" if name.startswith("escn") else "equiformer_v2"])
        return path

    return write


def test_every_student_has_every_teacher_at_every_size():
    assert {name for name in TRAININGS if name.startswith("oc20/s2ef/")} == {f"oc20/s2ef/{name}" for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_is_composed_of_what_its_name_says(name):
    size, student, teacher = re.match(r"(\w+)/(.+)_from_([^_]+)", name).groups()
    includes = yaml.safe_load((S2EF / f"{name}.yml").read_text())["includes"]
    assert includes == [SHIPPED[name], "../recipe.yml", f"../teachers/{teacher}.yml", f"../students/{student}.yml"]
    config = load(S2EF / f"{name}.yml")
    sources = {"data.yml": f"data/s2ef/{size}/train/", "generated.yml": f"generated/s2ef-{size}-{teacher}/data"}
    assert config["dataset"]["train"]["src"] == sources[SHIPPED[name]]
    cache = config["task"]["distill"]["teacher"].get("cache")
    assert cache == (f"generated/s2ef-{size}-{teacher}/cache" if "generated" in name else None)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_validates(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # includes are found from anywhere
    config = load(CONFIGS / f"{name}.yml")
    assert config["evaluation_metrics"]["primary_metric"] == "forces_mae"
    own, terms = split_loss_functions(config["loss_functions"])
    assert [name for entry in own for name in entry] == ["energy", "forces"]
    if config["trainer"] == DISTILL_TRAINER:
        parse(DistillConfig, config["task"]["distill"], "task.distill")
        assert terms and all(term.coefficient > 0 for term in terms)
    else:
        assert not terms and "distill" not in config.get("task", {})


@pytest.mark.parametrize("file", sorted(S2EF.rglob("*_from_*.yml")), ids=name_of)
def test_nothing_is_given_twice(file):
    _, overridden, _ = load_config(str(file))
    assert overridden == []


@pytest.mark.parametrize("student", PARAMETERS)
def test_a_student_has_the_size_it_says(student):
    setup_imports()
    attributes = load(S2EF / f"students/{student}.yml")["model"]
    model = registry.get_model_class(attributes.pop("name"))(**attributes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(PARAMETERS[student], abs=0.05e6)  # published in tenths of a million


@pytest.mark.parametrize("name", TOY_RUNS)
def test_two_steps_at_toy_size(run, data, toy_teacher, name):
    config = TOY_RUNS[name]
    steps = run(shrink(config, data, toy_teacher(teacher_of(config))), stop_at=2).steps
    assert [record["step"] for record in steps] == [1, 2]
    losses = ["loss"]
    if config["trainer"] == DISTILL_TRAINER:
        losses += [f"loss_{term}" for entry in config["loss_functions"] for term in entry]
    for record in steps:
        assert all(math.isfinite(record[loss]) for loss in losses)


@pytest.mark.parametrize("name", [name for name, config in TOY_RUNS.items() if config["trainer"] == DISTILL_TRAINER])
def test_check_finds_no_problem_at_toy_size(data, toy_teacher, tmp_path, capsys, name):
    config = shrink(TOY_RUNS[name], data, toy_teacher(teacher_of(TOY_RUNS[name])))
    gc.collect()  # a former data set closes its LMDB when collected; one process opens it only once
    assert check_config({**config, "cpu": True, "run_dir": str(tmp_path)}, name) == []
    assert "left out" not in capsys.readouterr().out
