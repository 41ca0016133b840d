"""Trainings on two ranks, one after the other, by fairchem's launcher with ranks forked from one process.

A launch by the stock command imports torch and fairchem three times and compiles the sampler of each rank, which takes ten
times as long as a toy's training. Here that is done once, however many trainings follow. Called as `python forked_ranks.py
RUNS`: RUNS is JSON, for each training its directory, with its ranks.yml, and what is set in its environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

CONFIG = "ranks.yml"
LOG = "ranks.log"  # what the launcher and its ranks printed
MARK = "== launch "


class Launch(NamedTuple):
    """A training, and what is set in its environment; a directory that another launch had is resumed."""

    config: dict
    directory: Path
    environment: dict[str, str]


def launch_forked(launches: list[Launch]) -> list[bool]:
    """Train on two ranks, as `launcher.launch` does; whether each training came to its end."""
    for launch in launches:
        launch.directory.mkdir(exist_ok=True)
        (launch.directory / CONFIG).write_text(yaml.safe_dump(launch.config))
    runs = [(str(launch.directory), launch.environment) for launch in launches]
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    for launch, log in zip(launches, done.stdout.split(MARK)[1:]):
        (launch.directory / LOG).write_text(log)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import numpy as np
    from fairchem.core._cli import runner_wrapper
    from fairchem.core.common.data_parallel import _balanced_partition
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config, setup_imports, setup_logging
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    setup_logging()
    setup_imports()
    _balanced_partition(np.arange(4), num_parts=2)  # compiles it
    way = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, start_method="fork")
    ended = []
    for directory, environment in json.loads(sys.argv[1]):
        print(MARK, directory, flush=True)
        os.environ.update(environment)
        arguments = ["--mode", "train", "--config-yml", f"{directory}/{CONFIG}", "--cpu", "--num-gpus", "2"]
        arguments += ["--run-dir", directory, "--timestamp-id", "run"]
        config = build_config(*flags.get_parser().parse_known_args(arguments))
        try:
            elastic_launch(way, runner_wrapper)(config)
        except ChildFailedError:
            ended.append(False)
        else:
            ended.append(True)
    print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
