"""Students, teacher and undistilled student on every split, on one device or several, and what follows from their errors."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Optional

import numpy as np
import torch

from fairchem_crack.evaluation.intervals import Errors, Interval, average_error_interval, gap_closed_interval
from fairchem_crack.evaluation.s2ef.evaluator import Atoms, CheckpointEvaluator
from fairchem_crack.evaluation.s2ef.leaderboard import AVERAGE, COLUMNS, ERRORS, Row
from fairchem_crack.io.processes import end_with_parent
from fairchem_crack.io.progress import Progress
from fairchem_crack.plugins import load_plugins

WEIGHTS = {"energy_mae": ("energy", None), "forces_mae": ("forces", "components")}  # in the errors of each system


@dataclass(frozen=True)
class Task:
    """A checkpoint to evaluate on some splits; sent to processes."""

    checkpoint: Path
    data: dict[str, Path]
    dataset: dict[str, Any]
    batch_size: int
    cpu: bool
    atoms: Optional[Atoms] = None


@dataclass(frozen=True)
class Found:
    """What `Task` gave.

    Attributes:
        metrics: of each split.
        errors: of each split, of each system, see `CheckpointEvaluator.metrics_and_errors`.
        progress: of the training that wrote the checkpoint.
        atoms: whose forces were compared.
    """

    architecture: str
    parameters: int
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
    imports: Sequence[str] = (),
) -> dict[Path, Found]:
    """Every model on every split; in several processes, each on a GPU of its own, every pair of them is a task.

    Args:
        data: the path of each split.
        dataset: fairchem's options of the splits, all but `src`.
        atoms: whose forces are compared; None for what each checkpoint says.
        imports: modules that every process imports.

    Raises:
        BrokenProcessPool: a process was killed.
    """
    parts = [data] if processes == 1 else [{split: path} for split, path in data.items()]
    tasks = [Task(model, part, dataset, batch_size, cpu, atoms) for model in models for part in parts]
    if processes == 1:
        done = [measure(task) for task in tasks]
    else:
        context = multiprocessing.get_context("spawn")
        devices = context.SimpleQueue()
        for number in range(processes):
            devices.put(number)
        with ProcessPoolExecutor(processes, context, _start_process, (devices, cpu, tuple(imports))) as pool:
            done = list(pool.map(measure, tasks))
    found: dict[Path, Found] = {}
    for task, one in zip(tasks, done):
        known = found.setdefault(task.checkpoint, one)
        known.metrics.update(one.metrics)
        known.errors.update(one.errors)
    return found


_device = 0  # of this process


def _start_process(devices: Any, cpu: bool, imports: Sequence[str]) -> None:
    """Take a device of one's own, know the plugins, and be as quiet as the parent."""
    global _device
    end_with_parent()
    _device = devices.get()
    if torch.cuda.is_available() and not cpu:
        torch.cuda.set_device(_device)  # of what names none, and of the context that it opens
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    logging.disable(logging.WARNING)
    load_plugins(imports, "--import")


def measure(task: Task) -> Found:
    """Evaluate a checkpoint on some splits."""
    evaluator = CheckpointEvaluator(
        task.checkpoint, task.dataset, batch_size=task.batch_size, cpu=task.cpu, device=_device, atoms=task.atoms
    )
    metrics, errors = {}, {}
    for split, src in task.data.items():
        start = time.monotonic()
        try:
            metrics[split], errors[split] = evaluator.metrics_and_errors(src)
        except ValueError as error:
            raise ValueError(f"{task.checkpoint} on {split}: {error}") from error
        print(f"{task.checkpoint} on {split}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Found(evaluator.architecture, evaluator.parameters, evaluator.atoms, metrics, errors, evaluator.progress)


def leaderboard(found: dict[Path, Found], roles: dict[Path, str]) -> list[Row]:
    """Every model on every split and, of several, on their average."""
    by_role = {role: found[path] for path, role in roles.items()}
    undistilled, teacher = by_role.get("undistilled"), by_role.get("teacher")
    splits = list(next(iter(found.values())).metrics)
    rows = []
    for title, chosen in [*((split, [split]) for split in splits), *([(AVERAGE, splits)] if len(splits) > 1 else [])]:
        for path, one in found.items():
            gaps: dict[str, Interval] = {}
            if roles[path] == "student" and undistilled and teacher:
                compared = (undistilled, one, teacher)
                gaps = {name: _gap(name, chosen, *compared) for name in ERRORS if _comparable(name, compared)}
            metrics = {name: fmean(one.metrics[split][name] for split in chosen) for name in COLUMNS}
            intervals = {
                name: average_error_interval([_sums(one.errors[split], name) for split in chosen]) for name in ERRORS
            }
            rows.append(Row(names(list(found))[path], roles[path], title, metrics, intervals, gaps))
    return rows


def _comparable(name: str, models: Iterable[Found]) -> bool:
    """Whether an error is of the same atoms for all of these models."""
    return name == "energy_mae" or len({model.atoms for model in models}) == 1


def _sums(of_systems: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """x and w of `statistics`: an error is sum x / sum w."""
    values, weights = WEIGHTS[name]
    return of_systems[values], np.ones(len(of_systems[values])) if weights is None else of_systems[weights]


def _gap(name: str, splits: Sequence[str], undistilled: Found, student: Found, teacher: Found) -> Interval:
    errors = []
    for split in splits:
        (u, weights), (d, _), (t, _) = (_sums(one.errors[split], name) for one in (undistilled, student, teacher))
        errors.append(Errors(u[None], d[None], t, weights))
    return gap_closed_interval(errors)


def names(paths: Sequence[Path]) -> dict[Path, str]:
    """A short name of each file: its own, behind as many of its directories as tell it from the others."""
    depth = 1
    while depth < max(len(path.parts) for path in paths) and len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {path: "/".join(path.with_suffix("").parts[-depth:]) for path in paths}
