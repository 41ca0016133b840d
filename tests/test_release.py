"""What a release consists of: its version, its files, and what it says of itself."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
from pathlib import Path

import fairchem.core._cli
import yaml
from fairchem.core.common.flags import flags
from packaging.version import Version
from submitit.helpers import DelayedSubmission

import fairchem_crack
from fairchem_crack.commands.cache_teacher.command import job_of, parser
from fairchem_crack.commands.flags import read_or_refuse

ROOT = Path(__file__).parents[1]


def test_changelog_citation_and_fallback_name_one_release():
    released = re.search(
        r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )[1]
    fallback = Version(re.search(r'fallback_version = "(.*)"', (ROOT / "pyproject.toml").read_text())[1])
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == released
    assert fallback.dev == 0 and Version(fallback.base_version) >= Version(released)


def test_the_version_is_that_of_the_installation(monkeypatch):
    assert Version(fairchem_crack.__version__) == Version(importlib.metadata.version("fairchem-crack"))

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert fairchem_crack.__version__ == "0+unknown"


STUBS = {  # of a cluster: arguments and job scripts are kept
    "srun": "",
    "sbatch": """case $1 in
--parsable) echo 41; shift; printf '%s\n' "$@" > cache_job ;;
*) cp "$1" train_job; echo Submitted batch job 42 ;;
esac""",
    "fairchem": """printf '%s\n' "$@" > train_arguments""",
    "fairchem-crack": """shift; printf '%s\n' "$@" > cache_arguments""",
}


def test_the_slurm_example_submits_a_cache_and_a_training(tmp_path, monkeypatch):
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["bash", "examples/slurm/train.sh"], check=True)
    subprocess.run(["bash", *Path("cache_job").read_text().splitlines()], check=True)
    fairchem.core._cli.main(*flags.get_parser().parse_known_args(Path("train_arguments").read_text().splitlines()))
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", Path("train_job").read_text(), re.MULTILINE))
    asked = {name: directives[name] for name in ("nodes", "gpus-per-node", "ntasks-per-node", "time", "dependency")}
    assert asked == {"nodes": "2", "gpus-per-node": "4", "ntasks-per-node": "4", "time": "1440", "dependency": "afterok:41"}
    job = job_of(read_or_refuse(parser(), Path("cache_arguments").read_text().splitlines()))
    (config,) = DelayedSubmission.load("logs/42/42_submitted.pkl").args
    assert Path(config["task"]["distill"]["teacher"]["cache"]) == job.directory
    assert config["dataset"]["train"] == job.config["dataset"]["train"]
