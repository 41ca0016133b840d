"""The demo's distilled PaiNN with and without `--amp`, over seeds, side by side: one row for each training.

Fewer epochs than `make demo`. With `--ranks N` one training on N GPUs instead, on the data and the cache of this demo.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import json_lines

TEACHER = "configs/oc20/demo/teacher_equiformer_v2.pt"
DISTILLED = "painn_crack"
SYSTEMS, VALIDATION, BATCH = 300, 100, 16
VALIDATED = re.compile(r"(energy_mae: .*, epoch: [\d.]+)$", re.MULTILINE)
OURS = ("-m", "fairchem_crack.commands.cli")


@dataclass(frozen=True)
class Demo:
    """A demo of one size.

    Attributes:
        directory: where data, cache and runs go.
        device: "cpu" or "cuda".
        systems: to train on; a third of it in each validation split.
        epochs: of a training.
    """

    directory: Path
    device: str
    systems: int = SYSTEMS
    epochs: int = 10

    def flags(self, student: str = DISTILLED) -> list[str]:
        """What every command with a YAML takes."""
        overrides = {"dataset.train.src": self.directory / "data/train", "dataset.val.src": self.directory / "data/val_id"}
        if student == DISTILLED:
            overrides["task.distill.teacher.checkpoint"] = TEACHER
        cpu = ["--cpu"] if self.device == "cpu" else []
        yaml = f"configs/oc20/demo/{student}.yml"
        return ["--config-yml", yaml, *cpu, *(f"--{name}={value}" for name, value in overrides.items())]

    @property
    def schedule(self) -> list[str]:
        """The overrides of a training's length; it is validated half-way and at its end."""
        steps = self.epochs * -(-self.systems // BATCH)
        every = max(1, steps // 2)
        return [f"--optim.max_epochs={self.epochs}", f"--optim.total_steps={steps}", f"--optim.eval_every={every}"]

    @property
    def cache(self) -> str:
        """The override that names the teacher cache."""
        return f"--task.distill.teacher.cache={self.directory / 'cache'}"

    def data(self) -> list[str]:
        """The command that writes the data; it keeps those that are there."""
        sizes = ["--train", str(self.systems), "--val", str(self.systems // 3)]
        return [*OURS, "prepare-demo", str(self.directory / "data"), *sizes]

    def cached(self) -> list[str]:
        """The command that fills the teacher cache; it keeps a whole one."""
        return [*OURS, "cache-teacher", *self.flags(), self.cache, "--vectors", "--jacobian-rows", "8"]

    def train(self, name: str, *more: str) -> list[str]:
        """The command of one training; its steps are those of the schedule."""
        return [*OURS, "train", *self.flags(), self.cache, *self.place(name), *self.schedule, *more]

    def place(self, name: str) -> list[str]:
        """Where a training puts its checkpoints."""
        return ["--run-dir", str(self.directory / "runs"), "--timestamp-id", name]


def start(command: list[str], log: Path) -> subprocess.Popen:
    """Start this Python on a command, its output in a file of its own."""
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)


def validation(log: str) -> dict[str, float]:
    """The figures of the last validation that fairchem logged, by name; empty without one."""
    lines = VALIDATED.findall(log)
    pairs = (part.split(": ") for part in lines[-1].split(", ")) if lines else ()
    return {name: float(value) for name, value in pairs}


def train_all(demo: Demo, runs: dict[str, list[str]], rows: Path) -> bool:
    """Train side by side, and write a row for each validation and each failure; whether all of them did well."""
    begun = time.monotonic()
    logs = {name: demo.directory / f"{name}.log" for name in runs}
    processes = {name: start(demo.train(name, *flags), logs[name]) for name, flags in runs.items()}
    last: dict[str, dict[str, float]] = {name: {} for name in runs}
    failed = False
    while processes:
        time.sleep(0.5)
        ended = [name for name, process in processes.items() if process.poll() is not None]
        for name in processes:
            figures = validation(logs[name].read_text(errors="replace"))
            if figures != last[name]:
                last[name] = figures
                json_lines.append(rows, run=name, systems=demo.systems, seconds=time.monotonic() - begun, **figures)
                print(name, figures, flush=True)
        for name in ended:
            if processes.pop(name).returncode != 0 or not last[name]:
                failed = True
                json_lines.append(rows, run=name, error=logs[name].read_text(errors="replace")[-1000:])
    return not failed


def main() -> None:
    """Data and cache, then the trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of the demo's 60")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="few systems, one epoch: a dry run")
    options = parser.parse_args()
    demo = Demo(options.directory, options.device, epochs=options.epochs)
    if options.toy:
        demo = Demo(options.directory / "toy", options.device, systems=18, epochs=1)
        options.seeds = [0]
    demo.directory.mkdir(parents=True, exist_ok=True)
    for command in (demo.data(), demo.cached()):
        subprocess.run([sys.executable, *command], check=True)
    if options.ranks > 1:
        runs = {f"ranks-{options.ranks}": ["--num-gpus", str(options.ranks)]}
    else:
        precisions = {"fp32": [], "amp": ["--amp"]}
        runs = {
            f"{name}-{seed}": [*more, "--seed", str(seed)] for seed in options.seeds for name, more in precisions.items()
        }
    sys.exit(not train_all(demo, runs, options.rows))


if __name__ == "__main__":
    main()
