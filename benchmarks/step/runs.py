"""Data, trainers and steps of `benchmarks/step`."""

from __future__ import annotations

import copy
import pickle
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.common.utils import load_config
from fairchem.core.trainers.ocp_trainer import OCPTrainer
from torch_geometric.data import Batch

from benchmarks import ROOT
from benchmarks.step.report import KINDS, TEACHER
from fairchem_crack.config import split_loss_functions
from fairchem_crack.demo.prepare import DATA_FILE, MAP_SIZE, METADATA_FILE, oc20_record
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.training.trainer import CrackDistillTrainer

CONFIG = str(ROOT / "configs/oc20/s2ef/200k/{}_from_eqV2-31M.yml")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CACHE = "cache"


class Clock:
    """Seconds since it was made, or last read, by each of `CLOCKS`; on a GPU, once its work is done."""

    def __init__(self) -> None:
        self._start: dict[str, float] = {}
        self.read()

    def read(self) -> dict[str, float]:
        """The seconds; from here on the next ones count."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = {name: clock() for name, clock in CLOCKS.items()}
        passed = {name: now[name] - self._start.get(name, 0.0) for name in now}
        self._start = now
        return passed


@contextmanager
def teacher_clock(method: str) -> Iterator[dict[str, float]]:
    """The seconds that this method of `Teacher` takes within a `with` block."""
    seconds: dict[str, float] = defaultdict(float)
    original = getattr(Teacher, method)

    def clocked(self: Teacher, batch: Batch, *options: Any) -> Any:
        clock = Clock()
        result = original(self, batch, *options)
        for name, passed in clock.read().items():
            seconds[name] += passed
        return result

    setattr(Teacher, method, clocked)
    try:
        yield seconds
    finally:
        setattr(Teacher, method, original)


def write_dataset(systems: list[Atoms], directory: Path) -> list[int]:
    """Write systems as OC20's LMDBs, energies (eV) and forces (eV/A) random; returns how many atoms they have."""
    random = np.random.default_rng(0)
    directory.mkdir(parents=True)
    environment = lmdb.open(str(directory / DATA_FILE), map_size=MAP_SIZE, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, system in enumerate(systems):
            labels = {"energy": random.normal(), "forces": random.normal(size=(len(system), 3))}
            system.calc = SinglePointCalculator(system, **labels)
            transaction.put(str(index).encode(), pickle.dumps(oc20_record(system, sid=index, fid=0), protocol=-1))
        transaction.put(b"length", pickle.dumps(len(systems)))
    environment.close()
    sizes = [len(system) for system in systems]
    np.savez(directory / METADATA_FILE, natoms=np.array(sizes))
    return sizes


def training_config(student: str, kind: str, directory: Path, batch_size: int) -> dict:
    """The shipped YAML of a student, on a data set of its own: a process opens an LMDB only once."""
    config = load_config(CONFIG.format(student))[0]
    source = directory / f"train-{kind}"
    if not source.exists():
        shutil.copytree(directory / "train", source)
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(source)}}
    config["optim"].update(batch_size=batch_size, eval_batch_size=batch_size, num_workers=0)
    teacher = {"checkpoint": str(directory / f"{TEACHER}.pt")} if kind == "online" else {"cache": str(directory / CACHE)}
    config["task"]["distill"]["teacher"] = teacher
    if kind == "undistilled":
        config["task"] = {}
        config["loss_functions"] = split_loss_functions(config["loss_functions"])[0]
    return config


def build_trainer(config: dict, device: str, *, amp: bool = False) -> OCPTrainer:
    """fairchem's own trainer, or ours where there is something to distil; it writes no files."""
    names = ("task", "model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
    return (CrackDistillTrainer if config["task"] else OCPTrainer)(
        **copy.deepcopy({name: config[name] for name in names}),
        optimizer=config["optim"],
        identifier="",
        local_rank=0,
        is_debug=True,
        seed=0,
        amp=amp,
        cpu=device == "cpu",
    )


def begin(trainer: OCPTrainer) -> None:
    """What `CrackDistillTrainer.train` does before its first step."""
    if isinstance(trainer, CrackDistillTrainer):
        trainer._distillation = trainer.build_distillation(trainer._distill_config)
        trainer._distillation.preflight(trainer._sample_of_training_data())  # measures the teacher's channels, too
        trainer.optimizer.register_step_pre_hook(trainer._drop_nonfinite_gradients)  # without it no projection is updated


def endless(trainer: OCPTrainer) -> Iterator[Batch]:
    """The batches of the trainer's loader, epoch after epoch; the same for all trainers."""
    for epoch in range(1 << 30):
        trainer.train_sampler.set_epoch_and_start_iteration(epoch, 0)
        yield from trainer.train_loader


def take_step(trainer: OCPTrainer, batches: Iterator[Batch]) -> tuple[Batch, dict[str, float]]:
    """One turn of the loop of fairchem's `OCPTrainer.train`, and the seconds its batch took to load."""
    trainer.step += 1
    trainer.model.train()
    clock = Clock()
    batch = next(batches)
    loading = clock.read()
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        out = trainer._forward(batch)
        loss = trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    trainer.metrics = trainer.evaluator.update("loss", loss.item(), metrics)
    trainer._backward(trainer.scaler.scale(loss) if trainer.scaler else loss)
    return batch, loading


def measure_steps(student: str, directory: Path, *, repeats: int, batch_size: int, device: str) -> dict:
    """Seconds of each kind of step, of the teacher alone and of loading, one for each round."""
    trainers = {kind: build_trainer(training_config(student, kind, directory, batch_size), device) for kind in KINDS}
    for trainer in trainers.values():
        trainer.metrics = {}
        take_step(trainer, endless(trainer))  # torch.jit, which PaiNN uses, compiles in its first two runs
        begin(trainer)
    batches = {kind: endless(trainer) for kind, trainer in trainers.items()}
    settling = {kind: endless(trainer) for kind, trainer in trainers.items()}
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(repeats + 1):
        first, second = ("undistilled", "cached") if number % 2 else ("cached", "undistilled")
        if number:  # after the teacher by itself a step takes longer; in a training it follows a step, so do the timed ones
            take_step(trainers[second], settling[second])
        seconds: dict[str, dict[str, float]] = {}
        for kind in (first, second, "online"):
            with teacher_clock("__call__") as within:
                clock = Clock()
                batch, loading = take_step(trainers[kind], batches[kind])
                seconds[kind], seconds[f"{kind} loading"] = clock.read(), loading
        if number == 0:
            continue
        seconds["teacher within online"] = dict(within)
        clock = Clock()
        trainers["online"]._distillation.teacher(batch)
        seconds["teacher"] = clock.read()
        rounds.append(seconds)
        shown = "  ".join(f"{kind} {seconds[kind]['wall']:.2f}" for kind in (*KINDS, "teacher"))
        print(f"{student}, round {number}: {shown} s", flush=True)
    model = trainers["undistilled"]._unwrapped_model
    return {
        "student": student,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pairs": int(trainers["cached"]._readout.numbers["pairs"]),
        "rounds": rounds,
    }
