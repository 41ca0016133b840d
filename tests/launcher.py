"""Trainings on several ranks, started as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from filelock import FileLock

# fairchem has the ranks of all trainings on a machine meet on one port: a training dies when the one before it ends.
PORT = 29400
ALONE = FileLock(Path(tempfile.gettempdir()) / f"fairchem_port_{PORT}_{os.getuid()}.lock")
TREE = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))  # what the processes import
STOCK = ("-c", "from fairchem.core._cli import main; main()", "--mode", "train")
SCRIPT = (str(Path(sys.executable).with_name("fairchem-crack")), "train")


def launch(
    config: dict, directory: Path, *, entry: tuple[str, ...] = STOCK, ranks: int = 2, name: str = "run", **environment: str
) -> subprocess.CompletedProcess:
    """Train in `directory` to the end, or to a death."""
    file = directory / "ranks.yml"
    file.write_text(yaml.safe_dump(config))
    flags = ["--config-yml", file, "--cpu", "--num-gpus", str(ranks), "--run-dir", directory, "--timestamp-id", name]
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with ALONE:
        return subprocess.run(
            [sys.executable, *entry, *flags],
            env={**os.environ, "PYTHONPATH": TREE, **threads, **environment},
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=600,
        )
