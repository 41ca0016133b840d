"""The figures of a teacher from its caches: no model is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.evaluator import Evaluator
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.evaluation.s2ef.evaluator import METRICS, Atoms, SystemErrors, check_errors
from fairchem_crack.evaluation.s2ef.runs import Evaluation
from fairchem_crack.evaluation.teacher_caches import LABELS, LabelledByCaches, TeacherCaches
from fairchem_crack.io.datasets import close_unused, open_dataset
from fairchem_crack.io.named_records import NamedRecords, free_atoms

BATCH_SIZE = 64  # systems compared at once; it has no effect on the figures


def evaluate_caches(
    caches: TeacherCaches, data: Mapping[str, Path], dataset: Mapping[str, Any], *, atoms: Atoms, are_labels: bool = False
) -> Evaluation:
    """A teacher on every split, as `CheckpointEvaluator` evaluates a checkpoint.

    Args:
        data: the path of each split.
        dataset: fairchem's options of the splits, all but `src`.
        atoms: whose forces are compared.
        are_labels: the caches are what is compared with, too: all errors are 0.

    Raises:
        CacheError: a system of a split has no record.
        ValueError: an error is not finite, or all atoms of a system are fixed where those are left out.
    """
    metrics, errors = {}, {}
    for split, src in data.items():
        close_unused()
        options = {**copy.deepcopy(dict(dataset)), "src": str(src)}
        metrics[split], errors[split] = _on_split(caches, options, atoms, are_labels)
        check_errors(errors[split], f"{caches.checkpoint} on {src}")
    return Evaluation(caches.name, None, atoms, metrics, errors)


def _on_split(
    caches: TeacherCaches, options: dict[str, Any], atoms: Atoms, are_labels: bool
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """See `CheckpointEvaluator.metrics_and_errors`; the systems come in the same order."""
    src = options["src"]
    records: Any = NamedRecords(open_dataset(options), src)
    records = LabelledByCaches(records, caches, src) if are_labels else records
    evaluator, of_systems = Evaluator(eval_metrics=METRICS), SystemErrors()
    measured: dict[str, Any] = {}
    for start in range(0, len(records), BATCH_SIZE):
        chosen = range(start, min(start + BATCH_SIZE, len(records)))
        systems = [records[index] for index in chosen]
        held = [caches.record(system, index, src, records, LABELS).values for system, index in zip(systems, chosen)]
        batch = data_list_collater(systems, otf_graph=True)
        energy = torch.tensor([float(values[keys.ENERGY]) for values in held])
        forces = torch.cat([torch.tensor(values[keys.FORCES]) for values in held])
        predicted = _compared(batch, energy, forces, atoms)
        labels = _compared(batch, batch[keys.ENERGY], batch[keys.FORCES], atoms)
        if not (labels["natoms"] > 0).all():
            raise ValueError(
                f"{src}: all atoms of a system are fixed, and the forces of free atoms are compared. Leave such systems "
                "out, or compare the forces of all atoms (--atoms all)."
            )
        of_systems.eval(predicted, labels)
        measured = evaluator.eval(predicted, labels, prev_metrics=measured)
    return {name: float(value["metric"]) for name, value in measured.items()}, of_systems.arrays()


def _compared(batch: Batch, energy: Tensor, forces: Tensor, atoms: Atoms) -> dict[str, Tensor]:
    """What fairchem's evaluator takes: energy (B, 1), forces of the compared atoms, and the number of these, (B,)."""
    mask = free_atoms(batch) if atoms == "free" else torch.ones(batch.num_nodes, dtype=torch.bool)
    natoms = torch.zeros_like(batch.natoms).index_add(0, batch.batch, mask.to(batch.natoms.dtype))
    return {"energy": energy.float().view(-1, 1), "forces": forces.view(-1, 3)[mask], "natoms": natoms}
