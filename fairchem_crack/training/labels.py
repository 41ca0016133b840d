"""`task.distill.labels`: which systems of a batch are trained on the teacher's energy or forces."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import Labels
from fairchem_crack.io.labels import is_missing
from fairchem_crack.teacher.frozen import TeacherOutputs


def labelled_outputs(outputs: ModelOutputs) -> dict[str, str]:
    """By property, the names of the outputs for which a teacher gives labels.

    Raises:
        ValueError: the student has several outputs of a property.
    """
    return {property_: outputs[property_].name for property_ in (keys.ENERGY, keys.FORCES) if outputs.names(property_)}


def take_teachers_labels(batch: Batch, outputs: ModelOutputs, teacher: TeacherOutputs, labels: Labels) -> dict[str, Tensor]:
    """Replace labels of a batch by the teacher's: all of them, or those that are missing.

    Args:
        batch: B systems; for `fill` of `OptionalLabels`.
        labels: `data` replaces none, `teacher` all, `fill` those of the systems that `is_missing` names.

    Returns:
        (B,) bool by the name of each output: the systems whose label is the teacher's.
    """
    replaced: dict[str, Tensor] = {}
    if labels == "data":
        return replaced
    for property_, name in labelled_outputs(outputs).items():
        of_teacher = teacher[property_]  # (B,) or (N, 3)
        if labels == "teacher":
            replaced[name] = torch.ones_like(batch.natoms, dtype=torch.bool)
            batch[name] = of_teacher
        else:
            replaced[name] = missing = is_missing(batch, name, property_)
            rows = missing if property_ == keys.ENERGY else missing[batch.batch][:, None]
            batch[name] = torch.where(rows, of_teacher, batch[name].view_as(of_teacher))
    return replaced
