"""Two ranks started by the stock command: `--num-gpus 2 --cpu`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fairchem_crack import keys

TESTS = Path(__file__).parents[1]


def spawn(config: dict, directory: Path, command: str = "fairchem") -> str:
    file = directory / "ranks.yml"
    file.write_text(yaml.safe_dump(config))
    entry = {
        "fairchem": ["-c", "from fairchem.core._cli import main; main()", "--mode", "train"],
        "fairchem-crack train": ["-m", "fairchem_crack.cli", "train"],
    }[command]
    flags = ["--config-yml", str(file), "--cpu", "--num-gpus", "2", "--run-dir", str(directory), "--timestamp-id", "run"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *entry, *flags], capture_output=True, text=True, env=environment, cwd=directory)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_both_ranks_end_with_the_same_student_and_projection(distilled, tmp_path):
    distilled["trainer"] = "digest_trainer.DigestTrainer"  # ours, and writes what each rank ended with
    distilled["logger"] = "tensorboard"
    spawn(distilled, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["steps"] == other["steps"] == 3
    assert one["first_sids"] != other["first_sids"]
    assert one["weights"].keys() == other["weights"].keys()
    assert any(key.startswith("projection") for key in one["weights"])
    for key, value in one["weights"].items():
        assert torch.equal(value, other["weights"][key]), key
    assert not torch.equal(one["weights"]["projection.weight"], one["initial_projection"])


@pytest.mark.slow
def test_fairchem_crack_train_makes_the_short_name_known_to_spawned_ranks(distilled, tmp_path):
    distilled["trainer"] = "crack_distill"
    distilled["logger"] = "tensorboard"
    spawn(distilled, tmp_path, "fairchem-crack train")
    state = torch.load(tmp_path / "checkpoints/run/checkpoint.pt", map_location="cpu", weights_only=False)
    assert state["step"] == 3 and keys.CHECKPOINT_KEY in state


@pytest.mark.slow
def test_a_submitit_job_trains(distilled, tmp_path):
    import submitit
    from fairchem.core._cli import Runner
    from fairchem.core.common import distutils
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config

    distilled["logger"] = "tensorboard"
    file = tmp_path / "job.yml"
    file.write_text(yaml.safe_dump(distilled))
    arguments = ["--mode", "train", "--config-yml", str(file), "--cpu", "--run-dir", str(tmp_path), "--timestamp-id", "run"]
    config = build_config(*flags.get_parser().parse_known_args(arguments))
    distutils.setup_env_local()  # as the stock command does before it runs on one node
    submitit.LocalExecutor(folder=tmp_path / "jobs").submit(Runner(), config).result()
    assert (tmp_path / "checkpoints/run/best_checkpoint.pt").is_file()
