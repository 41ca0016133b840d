"""What `pip install .` puts on a machine, used in a site directory that has fairchem and the wheel, and not the tree."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import fairchem.core
import pytest
from ase.build import bulk
from ase.io import write
from conftest import distill_config
from launcher import launch

from fairchem_crack.commands.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
HOMES = {  # folders of the tree, and where the wheel has them
    "fairchem_crack/host": "fairchem/experimental",
    "fairchem_crack": "fairchem_crack",
    "configs": "fairchem_crack/configs",
}
# Of a teacher's environment: a cache with embeddings, filled, checked and opened; what a student needs is not there.
LABEL = """
import importlib.util, sys
from fairchem_crack.teacher.label.command import main
here = ["--teacher", "stub_labeller:function", "--data", "train.extxyz"]
main([*here, "--check"])
main([*here, "--output", "cache", "--vectors"])
from pathlib import Path
from fairchem_crack.teacher.cache import TeacherCache
print(len(TeacherCache(Path("cache"))), [importlib.util.find_spec(name) for name in ("torch", "lmdb", "tqdm", "yaml")])
"""
# What a user does, in one process, which imports fairchem once: train by the stock command, on two ranks; read the help of
# every command; evaluate the student.
USE = """
import contextlib, io, json, os, sys
import fairchem.core._cli
fairchem.core._cli.main()
assert not any(name.startswith("fairchem_crack") for name in sys.modules)
from fairchem_crack.commands.cli import COMMANDS, main
helps = {}
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([name, "--help"])
    helps[name] = text.getvalue()
student = "checkpoints/run/best_checkpoint.pt"
main(["evaluate", "--checkpoint", student, "--data", os.environ["SPLIT"], "--cpu", "--batch-sizes", "--output", "wheel"])
files = [module.__file__ for name, module in sys.modules.items()
         if name.startswith("fairchem_crack") and getattr(module, "__file__", None)]
print(json.dumps({"helps": helps, "files": files}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fairchem_crack", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, source], check=True)
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel) -> Path:
    """Stands for the site-packages of an environment with fairchem and this wheel."""
    directory = wheel.parent / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--no-compile", "--target", directory, wheel], check=True)
    # fairchem looks for `experimental` beside the `core` that runs
    shutil.copytree(Path(fairchem.core.__file__).parent, directory / "fairchem/core")
    return directory


def home(file: Path) -> str:
    """Where the wheel has a file of the tree."""
    name = file.relative_to(ROOT).as_posix()
    folder = next(folder for folder in HOMES if name.startswith(f"{folder}/"))
    return HOMES[folder] + name.removeprefix(folder)


def test_the_wheel_is_the_tree_file_by_file(wheel):
    archive = zipfile.ZipFile(wheel)
    shipped = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    files = [file for name in ("fairchem_crack", "configs") for file in (ROOT / name).rglob("*") if file.is_file()]
    tree = {home(file): file.read_bytes() for file in files if "__pycache__" not in file.parts}
    assert shipped.keys() == tree.keys()
    assert [name for name, content in shipped.items() if content != tree[name]] == []
    expected = {"fairchem_crack/py.typed", "fairchem/experimental/.include", "fairchem_crack/configs/oc20/demo/painn.yml"}
    assert expected < tree.keys()


def test_the_script_runs_from_the_wheel(site, wheel, tmp_path):
    def output(*arguments: str) -> str:
        command = [sys.executable, site / "bin/fairchem-crack", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert output("--version") == f"fairchem-crack {wheel.name.split('-')[1]}\n"
    assert output("configs", "oc20/demo/optim.yml") == (ROOT / "configs/oc20/demo/optim.yml").read_text()


def interpreter(version: str) -> Path:
    """Of this version: the one that runs, one of pyenv's, or one on the PATH."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return Path(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    path = os.pathsep.join(part for part in os.get_exec_path() if "shims" not in part)  # which start what pyenv is set to
    on_path = shutil.which(f"python{version}", path=path)
    every = [*sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")), *([Path(on_path)] if on_path else [])]
    if not every:
        pytest.skip(f"no python{version} on this machine")
    return every[-1]


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_a_teachers_environment_needs_numpy_and_ase(wheel, tmp_path, version):
    """A bare environment of Python with the wheel, numpy, ASE, and SciPy, which ASE needs."""
    environment, packages, python = tmp_path / "environment", tmp_path / "packages", interpreter(version)
    subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
    zipfile.ZipFile(wheel).extractall(packages)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "wheel.pth").write_text(f"{packages}\n{ROOT / 'tests'}\n")
    if python == Path(sys.executable):
        for name in ("numpy", "ase", "scipy"):  # those that are here
            package = Path(importlib.util.find_spec(name).origin).parent
            for part in (package, package.with_name(f"{name}.libs")):
                if part.is_dir():
                    (packages / part.name).symlink_to(part)
    else:
        pip = [*PIP, "--python", environment / "bin/python", "install", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "numpy", "ase", "scipy"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"numpy, ase and scipy cannot be installed for python{version}: {done.stderr.strip()[-200:]}")
    write(tmp_path / "train.extxyz", [bulk("Cu", cubic=True) for _ in range(3)])
    command = [environment / "bin/python", "-I", "-c", LABEL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.endswith("3 [None, None, None, None]\n"), done.stderr


def test_the_wheel_trains_helps_and_evaluates(site, data, teacher_checkpoint, tmp_path):
    """On the way, the stock command knows `trainer: crack_distill` in ranks that import only fairchem."""
    config = {**distill_config(data, teacher_checkpoint), "trainer": "crack_distill", "logger": "tensorboard"}
    config["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    split = f"val_id={data / 'val_id'}"
    done = launch(config, tmp_path, entry=("-c", USE, "--mode", "train"), PYTHONPATH=str(site), SPLIT=split)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["helps"].keys() == COMMANDS.keys()
    assert [name for name, text in seen["helps"].items() if not text.startswith(f"usage: fairchem-crack {name} ")] == []
    assert len(seen["files"]) > 50 and [file for file in seen["files"] if not file.startswith(str(site))] == []
    checkpoint, output = tmp_path / "checkpoints/run/best_checkpoint.pt", tmp_path / "tree"
    main(["evaluate", "--checkpoint", str(checkpoint), "--data", split, "--cpu", "--batch-sizes", "--output", str(output)])
    from_wheel, from_tree = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("wheel", "tree"))
    assert from_wheel["rows"] == from_tree["rows"] != []
