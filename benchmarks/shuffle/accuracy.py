"""Errors of the demo's PaiNN by the order of its training data: OC20's recipe, the demo's without the Hessian."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import yaml

from benchmarks import ROOT

STUDENT = ROOT / "configs/oc20/demo/painn_crack.yml"
TEACHER = ROOT / "configs/oc20/demo/teacher_equiformer_v2.pt"
SPLITS = ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both")
METRICS = ("energy_mae", "forces_mae")
BLOCK = 16  # systems of the demo's 300, as many as a batch
ORDERS = {"uniform": 0, "buffer of 32": 32, "buffer of 64": 64}  # systems in the buffer; 0: fairchem's uniform shuffle
COMMANDS = Path(sys.executable).parent


def sort_systems(source: Path, directory: Path) -> None:
    """Write a copy of the training data in which systems of the same elements are neighbours, unless it is there."""
    if (directory / "data.0000.lmdb").exists():
        return
    with lmdb.open(str(source / "data.0000.lmdb"), subdir=False, lock=False, readonly=True) as data, data.begin() as file:
        count = pickle.loads(file.get(b"length"))
        systems = [pickle.loads(file.get(f"{number}".encode())) for number in range(count)]
    systems.sort(key=lambda system: sorted(system.atomic_numbers.tolist(), reverse=True))
    directory.mkdir(parents=True)
    with lmdb.open(str(directory / "partial"), subdir=False, map_size=1 << 30) as data, data.begin(write=True) as file:
        for number, system in enumerate(systems):
            file.put(f"{number}".encode(), pickle.dumps(system, protocol=-1))
        file.put(b"length", pickle.dumps(len(systems)))
    np.savez(directory / "metadata.npz", natoms=np.array([system.natoms for system in systems]))
    (directory / "partial").rename(directory / "data.0000.lmdb")


def config(order: str, data: Path, directory: Path) -> dict[str, Any]:
    """The YAML of a training: the demo's, with an order."""
    from fairchem.core.common.utils import load_config

    terms = [term for term in load_config(str(STUDENT))[0]["loss_functions"] if "force_jacobian" not in term]
    distill: dict[str, Any] = {"teacher": {"checkpoint": str(TEACHER), "cache": str(directory / "cache")}}
    if ORDERS[order]:
        distill["shuffle"] = {"buffer": ORDERS[order], "block": BLOCK}
    return {
        "includes": [str(STUDENT)],
        "dataset": {"train": {"src": str(directory / "sorted"), "no_shuffle": True}, "val": {"src": str(data / "val_id")}},
        "task": {"distill": distill},
        "loss_functions": terms,
    }


def run(order: str, seed: int, data: Path, directory: Path) -> list[dict[str, Any]]:
    """Train by the stock command, and evaluate the best checkpoint: a row for each split."""
    from fairchem_crack.evaluation.s2ef.data import FORMATS
    from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator

    sort_systems(data / "train", directory / "sorted")
    name = f"{order.replace(' ', '_')}-{seed}"
    file = directory / f"{name}.yml"
    file.write_text(yaml.safe_dump(config(order, data, directory), sort_keys=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    of_teacher = [COMMANDS / "fairchem-crack", "cache-teacher", "--config-yml", file, "--cpu"]
    training = [COMMANDS / "fairchem", "--mode", "train", "--config-yml", file, "--cpu", "--seed", f"{seed}"]
    training += ["--run-dir", directory, "--timestamp-id", name]
    with (directory / f"{name}.log").open("a") as log:
        for command in (of_teacher, training):  # a cache that is complete is left as it is
            subprocess.run(command, cwd=ROOT, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    checkpoint = directory / "checkpoints" / name / "best_checkpoint.pt"
    evaluator = CheckpointEvaluator(checkpoint, {"format": "lmdb", **FORMATS["lmdb"]}, cpu=True)
    rows = []
    for split in SPLITS:
        metrics, _ = evaluator.metrics_and_errors(data / split)
        rows.append({"order": order, "seed": seed, "split": split, **{metric: metrics[metric] for metric in METRICS}})
    return rows
