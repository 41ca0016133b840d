"""The training of a round: an ordinary run of fairchem, by its YAML and its command line."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.files import write_text
from fairchem_crack.io.processes import end_with_caller
from fairchem_crack.io.progress import progress_of
from fairchem_crack.training.spelling import BLOCKS

YAML, LOG, RUN, NAME = "train.yml", "train.log", "run", "student"
SHOWN = 12  # lines of a log that has ended with an error
LENGTHS = {"OneCycleLR": "total_steps", "CosineAnnealingLR": "T_max"}  # options of schedules: their whole length in steps


@dataclass(frozen=True)
class Training:
    """How a round trains.

    Attributes:
        flags: of fairchem, `--cpu` for example.
        ranks: its `--num-gpus`.
    """

    flags: tuple[str, ...] = ()
    ranks: int = 1

    def __call__(self, place: Path, steps: int) -> None:
        """Train in the directory of a round, or resume there, up to that step.

        Raises:
            ValueError: the training ended with an error, or before that step.
        """
        log = place / LOG
        print(f"{place.name}: training to step {steps}; its log is {log}", flush=True)
        with log.open("ab") as file:
            status = subprocess.run(
                command(place, self), stdout=file, stderr=subprocess.STDOUT, preexec_fn=end_with_caller
            ).returncode
        last = checkpoint_of(place)
        done = progress_of(read_checkpoint(last, trust=True)).step if last.is_file() else None  # written just now
        if status or done != steps:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
            end = f"ended with status {status}" if status else f"ended at step {done} of {steps}"
            raise ValueError(
                "\n".join([f"the training of {place} {end}. Its log, {log}, ends with:", *lines])
                + "\nPut that right, and run the same command again: it resumes."
            )


def command(place: Path, training: Training) -> list[str]:
    """The command line of a round's training: `fairchem --mode train` on a free port.

    It begins at the round's student; once there is a checkpoint of the run, it resumes from that.
    """
    start = [] if checkpoint_of(place).is_file() else ["--checkpoint", str(place / "student.pt")]
    run = ["--config-yml", str(place / YAML), "--run-dir", str(place / RUN), "--timestamp-id", NAME]
    ranks = ["--num-gpus", str(training.ranks)]
    return [sys.executable, "-m", "fairchem_crack.commands.cli", "train", *run, *ranks, *training.flags, *start]


def checkpoint_of(place: Path) -> Path:
    """The last checkpoint of a round's training."""
    return place / RUN / "checkpoints" / NAME / "checkpoint.pt"


def write_yaml(
    place: Path, config: dict[str, Any], dataset: dict[str, Any], cache: Path, *, systems: int, steps: int, ranks: int
) -> int:
    """Write the YAML of a round's training: the given one, on the data of the round, for as many steps.

    Epochs are whole, and a schedule whose length is in steps ends with them.

    Args:
        dataset: options of fairchem that read the systems of the round.
        systems: how many there are.

    Returns:
        The number of steps, at least those that were asked for.
    """
    config = copy.deepcopy({name: config[name] for name in BLOCKS if name in config})
    config["dataset"] = _datasets(config["dataset"], dataset)
    config["task"]["distill"]["teacher"]["cache"] = str(cache)
    optim = config["optim"]
    of_epoch = math.ceil(math.ceil(systems / ranks) / optim.get("batch_size", 1))
    optim["max_epochs"] = math.ceil(steps / of_epoch)
    steps = optim["max_epochs"] * of_epoch
    if optim.get("scheduler") in LENGTHS:
        optim[LENGTHS[optim["scheduler"]]] = steps
    write_text(place / YAML, yaml.safe_dump(config, sort_keys=False))
    return steps


def _datasets(before: dict[str, Any], train: dict[str, Any]) -> dict[str, Any]:
    """The options of all splits, where the training's are others: the other splits keep what they take from the former.

    fairchem reads a split by the options of the training's, and its own over them, unless `use_train_settings` is False.
    """
    splits: dict[str, Any] = {"train": train}
    for name, options in before.items():
        if name == "train":
            continue
        if isinstance(options, dict) and options.get("src") and options.get("use_train_settings", True):
            options = {**before["train"], **options, "use_train_settings": False}
        splits[name] = options
    return splits
