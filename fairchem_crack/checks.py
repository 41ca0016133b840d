"""Checks of an OCP config that fairchem leaves to a traceback further down."""

from __future__ import annotations

import os
from pathlib import Path


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
    """Raise FileNotFoundError when a dataset's `src` is a plain path that does not exist, ValueError when it is empty.

    Args:
        datasets: the `dataset` options of each split; the training split's name is "".
    """
    for name, options in datasets.items():
        sources = options.get("src", [])
        if sources is None:
            raise ValueError(f"dataset.{name or 'train'}.src: is empty; give a path, or leave the whole split out.")
        for source in [sources] if isinstance(sources, (str, Path)) else sources:
            is_pattern = any(mark in str(source) for mark in "*?[:")  # ase_db and ase_read also take globs and addresses
            if not is_pattern and not Path(source).exists():
                raise FileNotFoundError(f"dataset.{name or 'train'}.src: {source} does not exist (looked in {Path.cwd()}).")
            data_format = options.get("format", datasets[""].get("format", "lmdb"))  # fairchem's default: the training's
            if data_format == "lmdb" and Path(source).is_dir() and not any(Path(source).glob("*.lmdb")):
                raise FileNotFoundError(f"dataset.{name or 'train'}.src: no *.lmdb file in the directory {source}.")


def check_metrics(evaluation_metrics: dict) -> None:
    """Raise ValueError when no primary metric is given: the trainer has no default for it."""
    if not evaluation_metrics.get("primary_metric"):
        raise ValueError(
            "evaluation_metrics.primary_metric: missing. It decides which checkpoint is the best; "
            "OC20's is `energy_forces_within_threshold`, `forces_mae` is usual too."
        )
