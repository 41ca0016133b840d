"""A submission to the OC20 S2EF leaderboard: fairchem's own predictions, joined by fairchem's own script."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np
from fairchem.core.scripts import make_submission_file

from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator

TEST_SPLITS = tuple(make_submission_file.SPLITS["OC20"])  # id, ood_ads, ood_cat, ood_both


def check_submission(test: dict[str, Path], file: Path) -> None:
    """Raise ValueError for other splits than the four of OC20, or another name than that of an .npz file."""
    if set(test) != set(TEST_SPLITS):
        raise ValueError(f"--test: expected the splits {', '.join(TEST_SPLITS)}, found {', '.join(test)}.")
    if file.suffix != ".npz":
        raise ValueError(f"--submission {file}: expected the name of an .npz file.")


def write_submission(evaluator: CheckpointEvaluator, test: dict[str, Path], file: Path) -> Path:
    """Predict the four test splits, which need no labels, and write the file that the leaderboard takes.

    Raises:
        ValueError: a prediction is not finite.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as directory, contextlib.redirect_stdout(None):
        predictions = {split: str(evaluator.predict(test[split], Path(directory) / split)) for split in TEST_SPLITS}
        for split, path in predictions.items():
            with np.load(path) as arrays:
                if not (np.isfinite(arrays["energy"]).all() and np.isfinite(arrays["forces"]).all()):
                    raise ValueError(f"--test {split}={test[split]}: predictions of energies or forces are not finite.")
        joined = Path(directory) / "submission.npz"
        make_submission_file.main(
            argparse.Namespace(**predictions, out_path=str(joined), dataset="OC20", is2re_relaxations=False, hybrid=False)
        )
        os.replace(joined, file)
    return file
