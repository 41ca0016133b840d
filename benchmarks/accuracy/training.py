"""A run of the accuracy benchmark: its data, its YAML, its training by the stock command, its rows."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import ROOT
from benchmarks.accuracy.plan import KEPT, TEACHER, Plan, Run, of_student
from benchmarks.accuracy.table import Table, locked
from fairchem_crack.io.files import write_text

SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
METRICS = ("energy_mae", "forces_mae", "forces_cosine_similarity", "energy_forces_within_threshold")
# Of `CheckpointEvaluator.metrics_and_errors`, in a table's npz as RUN/SPLIT, (3, K).
ERRORS = ("energy", "forces", "components")
VALIDATIONS = 5  # in a training; the weights of the best one are evaluated
COMMANDS = Path(sys.executable).parent
FAIRCHEM = (sys.executable, "-m", "fairchem.core._cli")  # the stock command, also where its script is not installed


@dataclass(frozen=True)
class Workspace:
    """The directory of a benchmark: the rows of each table; data/, caches/, structures/, runs/NAME.{yml,log,lock}."""

    directory: Path

    @property
    def preparing(self) -> Path:
        """The lock of a process that writes what others need, too."""
        return self.directory / ".preparing.lock"

    def relative(self, path: Path) -> str:
        """A path from the directory."""
        return str(path.relative_to(self.directory))

    def table(self, name: str) -> Table:
        """The rows of a table of experiments.yml, or of what steps and labels cost."""
        return Table(self.directory / f"{name}.csv")

    def data(self, systems: int | None, split: str = "") -> Path:
        """A split of the demo's data, of so many systems to train on, or to validate on."""
        return self.directory / "data" / ("validation" if systems is None else f"train-{systems}") / split

    def structures(self, run: Run) -> Path:
        """What `fairchem-crack generate` makes of the systems of a run."""
        return self.directory / "structures" / f"{run.teacher}-{run.train_systems}-{run.structures}"

    def train_data(self, run: Run) -> Path:
        """What a run is trained on."""
        return self.structures(run) / "data" if run.structures else self.data(run.train_systems, "train")

    def systems(self, run: Run) -> int | None:
        """How many it is trained on."""
        if not run.structures:
            return run.train_systems
        return json.loads((self.structures(run) / "generate.json").read_text())["systems"]

    def cache(self, run: Run, kept: str) -> Path:
        """The teacher's cache of a run, see `Plan.kept`; one with rows of the Jacobian takes many times as long to write."""
        if run.structures:
            return self.structures(run) / "cache"
        return self.directory / "caches" / "-".join(part for part in (run.teacher, str(run.train_systems), kept) if part)

    def file(self, run: Run, suffix: str) -> Path:
        """A file of the run."""
        return self.directory / "runs" / f"{run.name}.{suffix}"

    def checkpoint(self, run: Run, name: str) -> Path:
        """A checkpoint of the run."""
        return self.directory / "runs/checkpoints" / run.name / name


@cache
def student_options(file: Path) -> dict[str, Any]:
    """The student's own YAML."""
    from fairchem.core.common.utils import load_config

    return load_config(str(file))[0]


def schedule(*, steps: int, systems: int, batch_size: int) -> dict[str, int]:
    """The options of `optim` for so many steps, in whole epochs, at least one."""
    batches = math.ceil(systems / batch_size)
    epochs = max(1, round(steps / batches))
    # The last validation is at most four steps before the end, where the learning rate has come down.
    return {"max_epochs": epochs, "total_steps": epochs * batches, "eval_every": max(1, epochs * batches // VALIDATIONS)}


def training_config(run: Run, plan: Plan, workspace: Workspace, *, steps: int) -> dict[str, Any]:
    """The YAML of a run: the student's own, included, and what its data, method and budget change.

    Paths are relative to the workspace, which may be moved.
    """
    from fairchem.core.common.utils import merge_dicts

    systems = workspace.systems(run)
    assert systems is not None
    base_file = ROOT / plan.students[run.student]
    base, terms = student_options(base_file), plan.terms(run)
    config: dict[str, Any] = {
        "includes": [str(base_file)],
        "trainer": "fairchem_crack.CrackDistillTrainer" if run.teacher else "ocp",
        "dataset": {
            "train": {"src": workspace.relative(workspace.train_data(run))},
            "val": {"src": workspace.relative(workspace.data(None, "val_id"))},
        },
        "loss_functions": [*base["loss_functions"], *terms],
        "optim": schedule(steps=steps, systems=systems, batch_size=base["optim"]["batch_size"]),
        "logger": "tensorboard",
    }
    if run.teacher:
        teacher_cache = workspace.cache(run, plan.kept(run))
        teacher = {"checkpoint": str(ROOT / plan.teachers[run.teacher]), "cache": workspace.relative(teacher_cache)}
        own = of_student(plan.methods[run.method.partition("@")[0]].get("distill", {}), run.student)
        config["task"] = {"distill": merge_dicts({"teacher": teacher}, own)[0]}
    return config


def write_config(run: Run, config: dict[str, Any], workspace: Workspace) -> None:
    """Write the YAML of a run.

    Raises:
        ValueError: its training began with another YAML.
    """
    file, text = workspace.file(run, "yml"), yaml.safe_dump(config, sort_keys=False)
    checkpoint = workspace.checkpoint(run, "checkpoint.pt")
    if checkpoint.exists() and file.exists() and file.read_text() != text:
        raise ValueError(
            f"{run.name} began with other settings than those of experiments.yml today: compare {file}. Choose another "
            f"directory; or remove {file}, {checkpoint.parent} and, if there are any, its rows from the CSV."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def prepare(run: Run, plan: Plan, workspace: Workspace, *, device: str) -> None:
    """Write the data and the teacher's cache that a run needs, unless they are there; others who need them wait."""
    from fairchem_crack.demo.prepare import prepare_demo

    sizes: dict[int | None, dict[str, int]] = {None: dict.fromkeys(SPLITS, plan.validation_systems)}
    if run.train_systems is not None:
        sizes[run.train_systems] = {"train": run.train_systems}
    with locked(workspace.preparing):
        for systems, splits in sizes.items():
            prepare_demo(workspace.data(systems), sizes=splits, seed=0, workers=1)
    if run.student and run.teacher:
        run_teacher(run, plan, workspace, device=device)


def run_teacher(run: Run, plan: Plan, workspace: Workspace, *, device: str) -> None:
    """Make the structures of a run and the teacher's cache, and append what they took to the table `labels`."""
    kept = "" if run.structures else plan.kept(run)  # what structures keep is among their own arguments
    flags = [str(plan.jacobian_rows) if flag == "N" else flag for flag in KEPT[kept]]
    made, written_last = workspace.cache(run, kept), "header.json"
    if run.structures:
        made, written_last = workspace.structures(run), "generate.json"
    with locked(made.with_suffix(".lock")):
        if (made / written_last).exists():
            return
        was_interrupted, start = made.exists(), _cpu_seconds()
        command = [COMMANDS / "fairchem-crack", "generate" if run.structures else "cache-teacher", "--output", made]
        command += ["--config-yml", ROOT / plan.students[run.student], *["--cpu"] * (device == "cpu"), "--all-degrees"]
        command += [*flags, *plan.structures.get(run.structures, "").split()]
        command += [f"--dataset.train.src={workspace.data(run.train_systems, 'train')}"]
        command += [f"--task.distill.teacher.checkpoint={ROOT / plan.teachers[run.teacher]}"]
        subprocess.run(command, cwd=workspace.directory, check=True)
        row = {name: getattr(run, name) for name in ("teacher", "train_systems", "structures")}
        rows = plan.jacobian_rows if "N" in KEPT[kept] else 0
        row |= {"jacobian_rows": rows, "systems": workspace.systems(run), "device": device}
        on_cpu = device == "cpu" and not was_interrupted
        workspace.table("labels").append([{**row, "cpu_seconds": _cpu_seconds() - start if on_cpu else ""}])


def train(run: Run, workspace: Workspace, *, device: str, lock: int) -> dict[str, Any]:
    """Train by the stock command, or resume at the last checkpoint.

    Returns:
        The columns of a row that say what it took: `cpu_seconds` and `seconds` of the whole process, start and validations
        included. They are empty for a training that was interrupted, or on a GPU, which other trainings share.
    """
    is_timed = device == "cpu" and not workspace.checkpoint(run, "checkpoint.pt").exists()
    command = [*FAIRCHEM, "--mode", "train", "--config-yml", workspace.file(run, "yml"), "--seed", str(run.seed)]
    command += ["--run-dir", workspace.directory / "runs", "--timestamp-id", run.name]
    command += ["--cpu"] * (device == "cpu")
    start, cpu_start = time.perf_counter(), _cpu_seconds()
    with workspace.file(run, "log").open("a") as log:
        # It inherits the lock: when this process is killed, no other begins the run while the training lives.
        files = {"stdout": log, "stderr": subprocess.STDOUT, "pass_fds": [lock]}
        subprocess.run(command, cwd=workspace.directory, check=True, **files)
    return {
        "steps": yaml.safe_load(workspace.file(run, "yml").read_text())["optim"]["total_steps"],
        "device": device,
        "cpu_seconds": _cpu_seconds() - cpu_start if is_timed else "",
        "seconds": time.perf_counter() - start if is_timed else "",
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def work(run: Run, plan: Plan, workspace: Workspace, table: str, *, device: str, lock: int) -> dict[str, Any]:
    """Train, unless it is a teacher, evaluate, and append the rows; the first of them."""
    prepare(run, plan, workspace, device=device)
    cost: dict[str, Any] = {"steps": "", "device": device, "cpu_seconds": "", "seconds": ""}
    if run.method == TEACHER:
        checkpoint = ROOT / plan.teachers[run.teacher]
    else:
        write_config(run, training_config(run, plan, workspace, steps=plan.steps(table, run)), workspace)
        cost = train(run, workspace, device=device, lock=lock)
        checkpoint = workspace.checkpoint(run, "best_checkpoint.pt")
    return evaluate(run, checkpoint, workspace, table, plan.tables[table]["splits"], cost, device=device)


def evaluate(
    run: Run, checkpoint: Path, workspace: Workspace, table: str, splits: list[str], cost: dict[str, Any], *, device: str
) -> dict[str, Any]:
    """Evaluate a checkpoint on the splits, and append the rows; the first of them.

    Args:
        cost: of the training, columns of every row.
    """
    from fairchem_crack.evaluation.s2ef.data import FORMATS
    from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator

    evaluator = CheckpointEvaluator(checkpoint, {"format": "lmdb", **FORMATS["lmdb"]}, cpu=device == "cpu")
    rows, errors = [], {}
    for split in splits:
        metrics, of_systems = evaluator.metrics_and_errors(workspace.data(None, split))
        errors[f"{run.name}/{split}"] = np.stack([of_systems[name] for name in ERRORS])  # (3, K)
        rows.append({**asdict(run), "split": split, **{name: metrics[name] for name in METRICS}, **cost})
    workspace.table(table).append(rows, errors if table != "tuning" else {})  # which has no intervals
    return rows[0]
