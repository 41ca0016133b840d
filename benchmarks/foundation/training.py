"""A run of the benchmark: its YAML, its training by the stock command, its errors against the teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.accuracy.plan import TEACHER, Plan, Run
from benchmarks.accuracy.training import METRICS, Workspace, evaluate, train, training_config, write_config
from benchmarks.foundation.data import TRANSFORMS


@dataclass(frozen=True)
class Foundation(Workspace):
    """The directory of the benchmark: candidates/, and what the accuracy benchmark's has."""

    def cache(self, run: Run, kept: str) -> Path:
        """The teacher's cache of all systems to train on."""
        return self.directory / "caches" / run.teacher


def config_of(run: Run, plan: Plan, workspace: Workspace, *, steps: int) -> dict[str, Any]:
    """The YAML of a run: the accuracy benchmark's, with references and without a teacher's checkpoint."""
    config = training_config(run, plan, workspace, steps=steps)
    transforms = workspace.train_data(run) / TRANSFORMS
    config["dataset"]["train"]["transforms"] = yaml.safe_load(transforms.read_text())
    if run.teacher:
        del config["task"]["distill"]["teacher"]["checkpoint"]
    return config


def work(run: Run, plan: Plan, workspace: Workspace, table: str, *, device: str, lock: int) -> dict[str, Any]:
    """Train, evaluate against the teacher's labels, and append the rows; the first of them."""
    splits = plan.tables[table]["splits"]
    if run.method == TEACHER:
        rows, errors = zip(*(of_the_teacher(run, workspace, split) for split in splits))
        workspace.table(table).append(list(rows), dict(errors))
        return rows[0]
    write_config(run, config_of(run, plan, workspace, steps=plan.steps(table, run)), workspace)
    cost = train(run, workspace, device=device, lock=lock)
    checkpoint = workspace.checkpoint(run, "best_checkpoint.pt")
    return evaluate(run, checkpoint, workspace, table, splits, cost, device=device)


def of_the_teacher(run: Run, workspace: Workspace, split: str) -> tuple[dict[str, Any], tuple[str, np.ndarray]]:
    """The row of the teacher, which makes no errors on its own labels, and (3, K) those of the systems."""
    from fairchem_crack.evaluation.s2ef.data import FORMATS
    from fairchem_crack.io.datasets import Records

    with Records({"format": "lmdb", **FORMATS["lmdb"], "src": str(workspace.data(None, split))}) as records:
        components = [3 * int((system.fixed == 0).sum()) for system in records.first(1_000_000)]
    row = {**asdict(run), "split": split, **dict(zip(METRICS, (0.0, 0.0, 1.0, 1.0)))}
    zeros = np.zeros(len(components))
    return row, (f"{run.name}/{split}", np.stack([zeros, zeros, np.array(components)]))
