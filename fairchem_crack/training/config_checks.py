"""Checks of what a config names: directories, data, GPUs; fairchem leaves them to a traceback further down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

ASE_SUFFIXES = (".db", ".aselmdb")  # of files that are no LMDB of fairchem's


def check_run_dir(run_dir: str | None) -> None:
    """Raise PermissionError or NotADirectoryError when nothing can be written to `--run-dir`."""
    path = Path(run_dir or ".").absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    advice = "Give a directory you can write to with `--run-dir`."
    if not existing.is_dir():
        raise NotADirectoryError(f"--run-dir {path}: {existing} is a file. {advice}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"--run-dir {path}: no permission to write to {existing}. {advice}")


def check_datasets(datasets: dict[str, dict]) -> None:
    """`check_dataset` for each split.

    Args:
        datasets: the `dataset` options of each split; the training split's name is "".
    """
    for name, options in datasets.items():
        # fairchem's default is the training's format
        check_dataset(name or "train", options, options.get("format", datasets[""].get("format", "lmdb")))


def check_dataset(split: str, options: dict, data_format: str) -> None:
    """Raise FileNotFoundError when a dataset's `src` is a plain path that does not exist, ValueError when it is empty.

    Args:
        split: its name under `dataset`.
        options: fairchem's, of this split.
        data_format: the split's own, or the training's.
    """
    sources = options.get("src", [])
    if sources is None:
        raise ValueError(f"dataset.{split}.src: is empty; give a path, or leave the whole split out.")
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        is_pattern = any(mark in str(source) for mark in "*?[:")  # ase_db and ase_read also take globs and addresses
        if not is_pattern and not Path(source).exists():
            raise FileNotFoundError(f"dataset.{split}.src: {source} does not exist (looked in {Path.cwd()}).")
        if data_format == "lmdb" and Path(source).suffix in ASE_SUFFIXES:
            raise ValueError(
                f"dataset.{split}: {source} is read as an LMDB of fairchem; for an ASE database give "
                f"dataset.{split}.format: ase_db."
            )
        if data_format == "lmdb" and Path(source).is_dir() and not any(Path(source).glob("*.lmdb")):
            raise FileNotFoundError(f"dataset.{split}.src: no *.lmdb file in the directory {source}.")


def check_normalizers(normalizers: dict[str, Any], references: dict[str, Any]) -> None:
    """Raise ValueError for a normaliser or reference that makes every target something that is not finite.

    Args:
        normalizers: fairchem's `Normalizer` of each output.
        references: its `LinearReferences`.
    """
    where, advice = "dataset.train.transforms", "Are the labels of dataset.train finite, and do they differ?"
    for name, normalizer in normalizers.items():
        mean, stdev = normalizer.mean, normalizer.rmsd
        if not (mean.isfinite().all() and stdev.isfinite().all() and (stdev > 0).all()):
            raise ValueError(
                f"{where}.normalizer.{name}: mean {mean.tolist()}, stdev {stdev.tolist()}; expected finite numbers, and a "
                f"stdev above 0. {advice}"
            )
    for name, reference in references.items():
        if not reference.element_references.isfinite().all():
            raise ValueError(f"{where}.element_references.{name}: holds numbers that are not finite. {advice}")


def check_warmup(scheduler_params: dict, steps_per_epoch: int) -> None:
    """Raise ValueError when `warmup_epochs` comes to no whole step, by which fairchem's schedules divide."""
    warmup = scheduler_params.get("warmup_epochs", 0)
    if int(warmup * steps_per_epoch) < 1:
        raise ValueError(
            f"optim.scheduler_params.warmup_epochs: {warmup} of an epoch of {steps_per_epoch} steps is less than one step; "
            f"give at least {1 / steps_per_epoch:.2g}."
        )


def check_gpus(number: int, *, cpu: bool) -> None:
    """Raise ValueError for `--num-gpus` beyond the GPUs of this machine; on the CPU it is a number of processes.

    A machine without GPU runs one process on its CPU.
    """
    there = torch.cuda.device_count()
    if not cpu and number > max(there, 1):
        raise ValueError(f"--num-gpus {number}: this machine has {there}. Give --cpu for as many processes on the CPU.")


def check_no_graph_parallelism(gp_gpus: int | None) -> None:
    """Raise ValueError for `--gp-gpus`, which spreads a system's atoms over ranks: relations join atoms of one rank."""
    if gp_gpus:
        raise ValueError(
            f"--gp-gpus {gp_gpus}: distillation needs all atoms of a system on one rank. Leave the flag out; students are "
            "small, and a large teacher can be cached on another machine (fairchem-crack cache-teacher)."
        )
