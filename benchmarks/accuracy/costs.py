"""What a training step of each method costs: all methods in one process, in turn, on the same batches."""

from __future__ import annotations

import argparse
import copy
import csv
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from benchmarks.accuracy.runs import Comparison, Run, Workspace, training_config
from benchmarks.step.runs import Clock, begin, build_trainer, endless, take_step
from fairchem_crack.io.files import write_text
from fairchem_crack.training.trainer import CrackDistillTrainer

COLUMNS = ("student", "teacher", "method", "round", "seconds")
WARM_UP = 3  # rounds; torch.jit, which PaiNN uses, compiles in its first two runs


def measure_costs(runs: list[Run], comparison: Comparison, workspace: Workspace, options: argparse.Namespace) -> None:
    """Write `costs.csv`: the seconds of a step of each run's method, one for each round, of each student.

    Of the process's CPU time; on a GPU, by the wall clock. What the file has of other students and teachers is kept.
    """
    setup_imports()
    torch.set_num_threads(1)
    students = dict.fromkeys(run.student for run in runs)
    for student in students:
        own = [run for run in runs if run.student == student]
        with tempfile.TemporaryDirectory() as directory:
            trainers = {run.method: _trainer(run, comparison, workspace, Path(directory), options.device) for run in own}
            rounds = _rounds(trainers, options.rounds, clock="wall" if options.device == "cuda" else "cpu")
        rows = [
            {"student": student, "teacher": options.teacher, "method": method, "round": number, "seconds": one[method]}
            for number, one in enumerate(rounds)
            for method in trainers
        ]
        kept = [row for row in workspace.rows() if (row["student"], row["teacher"]) != (student, options.teacher)]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows([*kept, *rows])
        write_text(workspace.table, text.getvalue())
        print(f"{student}: {len(trainers)} methods, {len(rounds)} rounds are in {workspace.table}.", flush=True)


def _trainer(run: Run, comparison: Comparison, workspace: Workspace, directory: Path, device: str) -> OCPTrainer:
    """Ready for its first step, on data and a cache of its own: a process opens an LMDB only once."""
    directory = directory / run.name
    settings = training_config(run, comparison, workspace, given={}, ratio=1)
    source = shutil.copytree(settings["dataset"]["train"]["src"], directory / "train")
    settings["dataset"] = {"train": {"src": str(source)}}
    if "task" in settings:
        teacher = settings["task"]["distill"]["teacher"]
        teacher["cache"] = str(shutil.copytree(teacher["cache"], directory / "cache"))
    file = directory / "run.yml"
    file.write_text(yaml.safe_dump(settings))
    config = load_config(str(file))[0]
    config["dataset"] = {"train": config["dataset"]["train"]}
    config["optim"] = {**copy.deepcopy(config["optim"]), "num_workers": 0}
    config.setdefault("task", {})
    trainer = build_trainer(config, device)
    trainer.metrics = {}
    begin(trainer)
    if isinstance(trainer, CrackDistillTrainer):
        trainer._distillation.preflight(trainer._sample_of_training_data())
    return trainer


def _rounds(trainers: dict[str, OCPTrainer], count: int, *, clock: str) -> list[dict[str, float]]:
    """The seconds of a step of each, in an order that changes from round to round."""
    batches = {method: endless(trainer) for method, trainer in trainers.items()}
    random = np.random.default_rng(0)
    rounds = []
    for _ in range(WARM_UP + count):
        seconds = {}
        for method in random.permutation(list(trainers)).tolist():
            watch = Clock()
            take_step(trainers[method], batches[method])
            seconds[method] = watch.read()[clock]
        rounds.append(seconds)
    return rounds[WARM_UP:]
