"""What `pip install .` puts on a machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fairchem.core
import pytest
from conftest import distill_config
from launcher import launch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "data", "runs", "build", "*.egg-info", "tests"))
    shutil.copytree(ROOT / "fairchem_crack", source / "fairchem_crack", dirs_exist_ok=True)  # with its .include
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(directory),
        str(source),
    ]
    subprocess.run(command, check=True)
    return next(directory.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_registration_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {"fairchem/experimental/.include", "fairchem/experimental/crack_distill/register.py"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fairchem_crack").rglob("*.py")}
    assert {name for name in modules if not name.startswith("fairchem_crack/host/")} | {"fairchem_crack/py.typed"} <= set(
        names
    )
    assert all(name.startswith(("fairchem_crack/", "fairchem/experimental/")) for name in names)
    assert not any(name.startswith("fairchem_crack/host/") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_stock_command_knows_the_short_name(wheel, data, teacher_checkpoint, tmp_path, ranks):
    site = tmp_path / "site"  # stands for the site-packages of an environment with fairchem and this wheel
    core = Path(fairchem.core.__file__).parent
    shutil.copytree(core, site / "fairchem" / "core", ignore=shutil.ignore_patterns("__pycache__"))
    zipfile.ZipFile(wheel).extractall(site)
    config = {**distill_config(data, teacher_checkpoint), "trainer": "crack_distill", "logger": "tensorboard"}
    config["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    done = launch(config, tmp_path, ranks=ranks, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "checkpoints/run/best_checkpoint.pt").is_file()
