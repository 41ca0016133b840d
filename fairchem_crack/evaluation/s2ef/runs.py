"""Checkpoints on every split, on one device or several."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from fairchem_crack.evaluation.s2ef.evaluator import Atoms, CheckpointEvaluator
from fairchem_crack.evaluation.teacher_caches import TeacherCaches
from fairchem_crack.io.denormals import without_denormals
from fairchem_crack.io.processes import end_with_parent
from fairchem_crack.io.progress import Progress
from fairchem_crack.plugins import load_plugins


@dataclass(frozen=True)
class Task:
    """A checkpoint to evaluate on some splits; sent to processes."""

    checkpoint: Path
    data: dict[str, Path]
    dataset: dict[str, Any]
    batch_size: int
    cpu: bool
    atoms: Optional[Atoms] = None
    label_caches: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint on some splits, or a teacher by its caches.

    Attributes:
        parameters: how many numbers the model has; None for a teacher that is not run.
        metrics: of each split.
        errors: of each split, of each system, see `CheckpointEvaluator.metrics_and_errors`.
        progress: of the training that wrote the checkpoint.
        atoms: whose forces were compared.
    """

    architecture: str
    parameters: Optional[int]
    atoms: Atoms
    metrics: dict[str, dict[str, float]]
    errors: dict[str, dict[str, np.ndarray]]
    progress: Progress = field(default_factory=Progress)


def evaluate_all(
    models: Sequence[Path],
    data: dict[str, Path],
    dataset: dict,
    *,
    batch_size: int,
    cpu: bool,
    processes: int,
    atoms: Optional[Atoms] = None,
    label_caches: Sequence[Path] = (),
    imports: Sequence[str] = (),
) -> dict[Path, Evaluation]:
    """Every model on every split; in several processes, each on a GPU of its own, every pair of them is a task.

    Args:
        data: the path of each split.
        dataset: fairchem's options of the splits, all but `src`.
        atoms: whose forces are compared; None for what each checkpoint says.
        label_caches: of a teacher, whose outputs are the labels; none for those of the data.
        imports: modules that every process imports.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    shares = [data] if processes == 1 else [{split: path} for split, path in data.items()]
    tasks = [
        Task(model, share, dataset, batch_size, cpu, atoms, tuple(label_caches)) for model in models for share in shares
    ]
    if processes == 1:
        done = [measure(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()
        for number in range(processes):
            devices.put(number)
        with ProcessPoolExecutor(processes, context, _start_process, (devices, cpu, tuple(imports))) as pool:
            done = list(pool.map(measure, tasks))
    evaluations: dict[Path, Evaluation] = {}
    for task, part in zip(tasks, done):
        whole = evaluations.setdefault(task.checkpoint, part)
        whole.metrics.update(part.metrics)
        whole.errors.update(part.errors)
    return evaluations


_device = 0  # of this process


def _start_process(devices: Any, cpu: bool, imports: Sequence[str]) -> None:
    """Take a device of its own, import the plugins, and log as little as the parent."""
    global _device
    end_with_parent()
    _device = devices.get()
    if torch.cuda.is_available() and not cpu:
        torch.cuda.set_device(_device)  # of what names none, and of the context that it opens
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    logging.disable(logging.WARNING)
    load_plugins(imports, "--import")


@without_denormals()
def measure(task: Task) -> Evaluation:
    """Evaluate a checkpoint on some splits."""
    evaluator = CheckpointEvaluator(
        task.checkpoint,
        task.dataset,
        batch_size=task.batch_size,
        cpu=task.cpu,
        device=_device,
        atoms=task.atoms,
        labels=TeacherCaches(task.label_caches) if task.label_caches else None,
    )
    metrics, errors = {}, {}
    for split, src in task.data.items():
        start = time.monotonic()
        try:
            metrics[split], errors[split] = evaluator.metrics_and_errors(src)
        except ValueError as error:
            raise ValueError(f"{task.checkpoint} on {split}: {error}") from error
        print(f"{task.checkpoint} on {split}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Evaluation(evaluator.architecture, evaluator.parameters, evaluator.atoms, metrics, errors, evaluator.progress)
