"""What a training step of each method costs: all methods in one process, interleaved on the same batches."""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from benchmarks.accuracy.plan import UNDISTILLED, Plan, Run
from benchmarks.accuracy.summary import costs_of
from benchmarks.accuracy.training import Workspace, prepare, training_config, write_config
from benchmarks.step.runs import Clock, begin, build_trainer, endless, take_step

WARM_UP = 3  # rounds; torch.jit, which PaiNN uses, compiles in its first two runs


def measure_costs(plan: Plan, workspace: Workspace, options: argparse.Namespace) -> None:
    """Append the seconds of a step of each method, one for each round, for the students and teachers without rows.

    Of the process's CPU time; on a GPU, by the wall clock. Rounds are training steps: of a term that counts in every
    k-th, a multiple of k shows what it costs.
    """
    setup_imports()
    torch.set_num_threads(1)
    table = workspace.table(costs_of(options.table))
    done = {(row["student"], row["teacher"]) for row in table.rows()}
    pairs: dict[tuple[str, str], dict[str, Run]] = {}
    for run in plan.runs(options.table, options.only):
        if run.student and run.teacher and (run.student, run.teacher) not in done:
            methods = pairs.setdefault((run.student, run.teacher), {UNDISTILLED: run.of_method(UNDISTILLED)})
            methods.setdefault(run.method, run)
    for (student, teacher), methods in pairs.items():
        with tempfile.TemporaryDirectory() as directory:
            trainers = {}
            for method, run in methods.items():
                prepare(run, plan, workspace, device=options.device)
                write_config(run, training_config(run, plan, workspace, steps=plan.steps(options.table, run)), workspace)
                trainers[method] = _trainer(run, workspace, Path(directory), options.device)
            rounds = _rounds(trainers, options.rounds, clock="wall" if options.device == "cuda" else "cpu")
        common = {"student": student, "teacher": teacher}
        table.append(
            [
                {**common, "method": method, "round": number, "seconds": seconds[method]}
                for number, seconds in enumerate(rounds)
                for method in trainers
            ]
        )
        print(f"{student} from {teacher}: {len(trainers)} methods, {len(rounds)} rounds are in {table.file}.", flush=True)


def _trainer(run: Run, workspace: Workspace, directory: Path, device: str) -> OCPTrainer:
    """A trainer ready for its first step, on data and a cache of its own: a process opens an LMDB only once."""
    config = {"task": {}, **load_config(str(workspace.file(run, "yml")))[0]}
    train = {**config["dataset"]["train"], "src": str(directory / run.name / "train")}
    shutil.copytree(workspace.directory / config["dataset"]["train"]["src"], train["src"])
    config["dataset"] = {"train": train}
    if config["task"]:
        teacher = config["task"]["distill"]["teacher"]
        teacher["cache"] = str(shutil.copytree(workspace.directory / teacher["cache"], directory / run.name / "cache"))
    config["optim"] = {**copy.deepcopy(config["optim"]), "num_workers": 0}
    trainer = build_trainer(config, device)
    trainer.metrics = {}
    begin(trainer)
    return trainer


def _rounds(trainers: dict[str, OCPTrainer], count: int, *, clock: str) -> list[dict[str, float]]:
    """The seconds of a step of each method, in an order that changes from round to round."""
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
