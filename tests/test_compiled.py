"""torch-scatter and torch-sparse, as pip compiles them on a machine without nvcc."""

from __future__ import annotations

import pytest
import torch

from fairchem_crack.commands import cli
from fairchem_crack.training.compiled import PACKAGES, check_built_for_cuda, check_installed
from fairchem_crack.training.trainer import CrackDistillTrainer


@pytest.fixture
def cuda(monkeypatch):
    """Callable: a machine with a GPU, whose packages were compiled with this version of CUDA, or -1."""

    def pretend(**versions: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", "12.1")
        for name in PACKAGES:
            monkeypatch.setattr(getattr(torch.ops, name), "cuda_version", lambda name=name: versions.get(name, 12010))

    return pretend


@pytest.mark.parametrize(
    "versions, names",
    [
        ({"torch_scatter": -1}, "torch-scatter"),
        ({"torch_sparse": -1}, "torch-sparse"),
        ({"torch_scatter": -1, "torch_sparse": -1}, "torch-scatter torch-sparse"),
    ],
)
def test_packages_without_cuda_are_refused_with_the_way_out(cuda, versions, names):
    cuda(**versions)
    with pytest.raises(RuntimeError) as error:
        check_built_for_cuda()
    assert f"Compiled without CUDA: {names}. " in str(error.value)
    assert f"FORCE_CUDA=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall {names}\n" in str(
        error.value
    )
    assert f"torch {torch.__version__}" in str(error.value) and "--cpu" in str(error.value)


def test_packages_with_cuda_or_on_the_cpu_are_taken(cuda, monkeypatch):
    cuda()
    check_built_for_cuda()
    cuda(torch_scatter=-1)
    check_built_for_cuda(cpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_built_for_cuda()


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name not in cli.WITHOUT_MODEL])
def test_every_command_that_runs_a_model_names_it(cuda, command):
    cuda(torch_sparse=-1)
    with pytest.raises(SystemExit, match=rf"fairchem-crack {command}: Compiled without CUDA: torch-sparse\."):
        cli.main([command])


def test_with_cpu_a_command_runs(cuda, tmp_path):
    cuda(torch_scatter=-1)
    with pytest.raises(SystemExit, match=r"nowhere\.yml"):
        cli.main(["fit-scales", "--cpu", "--config-yml", str(tmp_path / "nowhere.yml"), "--output", "a.json"])


def test_the_trainer_names_it_under_the_stock_command(cuda, distilled):
    cuda(torch_scatter=-1)
    with pytest.raises(RuntimeError, match=r"Compiled without CUDA: torch-scatter\."):
        CrackDistillTrainer(task={}, loss_functions=[], outputs={}, model={}, dataset={}, evaluation_metrics={})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch_sparse" else name)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-build-isolation torch-sparse$"):
        check_installed()
