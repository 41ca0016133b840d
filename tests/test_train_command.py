"""`fairchem-crack train` runs fairchem's own functions, and replaces none of them."""

from __future__ import annotations

import ast
from pathlib import Path

import fairchem.core._cli
import pytest
import yaml
from torch.distributed.launcher import api

import fairchem_crack
from fairchem_crack.commands import launch
from fairchem_crack.commands.cli import main

PACKAGE = Path(fairchem_crack.__file__).parent


@pytest.fixture
def arguments(distilled, tmp_path) -> list[str]:
    distilled["trainer"] = "crack_distill"
    (tmp_path / "student.yml").write_text(yaml.safe_dump(distilled))
    return ["train", "--config-yml", str(tmp_path / "student.yml"), "--cpu", "--optim.num_workers=3"]


def test_several_ranks_are_launched_on_a_free_port(arguments, monkeypatch):
    launched = []

    def elastic_launch(way, function):
        return lambda config: launched.append((way, function, config))

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    main([*arguments, "--num-gpus", "2", "--optim.batch_size=1"])
    ((way, function, config),) = launched
    assert (way.nproc_per_node, way.min_nodes, way.max_nodes, way.max_restarts) == (2, 1, 1, 0)
    assert (way.rdzv_backend, way.rdzv_endpoint) == ("c10d", "localhost:0")
    assert function is fairchem.core._cli.runner_wrapper
    assert config["trainer"] == "fairchem_crack.training.trainer.CrackDistillTrainer" and config["world_size"] == 2
    assert config["optim"]["num_workers"] == 0 and config["optim"]["batch_size"] == 1
    assert fairchem.core._cli.LaunchConfig is api.LaunchConfig


@pytest.mark.parametrize("flags", [[], ["--num-gpus", "4", "--submit"]])
def test_a_rank_and_a_job_are_fairchems_to_start(arguments, monkeypatch, flags):
    started = []
    monkeypatch.setattr(fairchem.core._cli, "main", lambda *given: started.append(given))
    main([*arguments, *flags])
    ((options, overrides),) = started
    assert options.mode == "train" and options.submit is bool(flags)
    assert overrides == ["--optim.num_workers=3", "--trainer=fairchem_crack.training.trainer.CrackDistillTrainer"]


def test_no_rank_is_refused(arguments):
    with pytest.raises(SystemExit, match="fairchem-crack train: --num-gpus 0: expected at least 1"):
        main([*arguments, "--num-gpus", "0"])


def imported(tree: ast.AST) -> set[str]:
    """Names that a module has from fairchem or torch."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                alias.asname or alias.name for alias in node.names if not (node.module or "").startswith("fairchem_crack")
            }
    return names


def root(node: ast.AST) -> str:
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_of_another_package_is_replaced(file):
    tree = ast.parse(file.read_text())
    theirs = imported(tree)
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else []:
            if isinstance(target, ast.Attribute):
                assert root(target) not in theirs, f"{file.name}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
            assert root(node.args[0]) not in theirs, f"{file.name}:{node.lineno}"
