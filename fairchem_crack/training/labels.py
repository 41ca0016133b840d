"""`task.distill.labels`: which systems of a batch are trained on the teacher's energy or forces."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import Labels
from fairchem_crack.io.labels import is_missing, is_of_teacher
from fairchem_crack.teacher.frozen import TeacherOutputs
from fairchem_crack.training.guard import Compared


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
        (B,) bool by the name of each output: the systems whose label is the teacher's, in the data already or now.
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
            missing = is_missing(batch, name, property_)
            replaced[name] = missing | is_of_teacher(batch, property_)
            rows = missing if property_ == keys.ENERGY else missing[batch.batch][:, None]
            batch[name] = torch.where(rows, of_teacher, batch[name].view_as(of_teacher))
    return replaced


def check_origins(batch: Batch, outputs: ModelOutputs) -> None:
    """Warn where a weight of the data's labels has nothing to weigh them against in a sample of the training data."""
    of_teacher = [
        (is_missing(batch, name, property_) | is_of_teacher(batch, property_)).any()
        for property_, name in labelled_outputs(outputs).items()
    ]
    if not any(of_teacher):
        logging.warning(
            f"task.distill.data_label_weight: every label of a sample of {len(batch.natoms)} systems of dataset.train is of "
            f"the data, and has this weight. A teacher's is known by {' and '.join(keys.OF_TEACHER.values())} of a system, "
            "which `fairchem-crack generate` writes; from an ASE database fairchem reads them where a2g_args.r_data_keys "
            "names them."
        )


class LabelWeights:
    """Weighs fairchem's own losses: w * loss(prediction, label) for a label of the data, 1 * loss for one of the teacher.

    A mean is still over the number of labels: a system of weight w counts as w systems do, in a batch of the same size.

    Args:
        losses: fairchem's, by the name of the output.
        data_label_weight: w.
    """

    def __init__(self, losses: Iterable[tuple[str, dict]], data_label_weight: float) -> None:
        self.data_label_weight = data_label_weight
        self._of_rows: Mapping[str, Tensor] = {}
        for name, loss in losses if data_label_weight != 1 else ():
            loss["fn"].loss_fn.register_forward_hook(partial(self._weigh, name))

    @contextmanager
    def of(self, rows: Mapping[str, Compared], replaced: Mapping[str, Tensor]) -> Iterator[None]:
        """Weigh the losses of these rows; outside, all labels count alike.

        Args:
            replaced: (B,) bool of each output, the systems whose label is the teacher's.
        """
        self._of_rows = {
            name: torch.where(replaced[name][of_output.systems], 1.0, self.data_label_weight)
            for name, of_output in rows.items()
            if name in replaced
        }
        try:
            yield
        finally:
            self._of_rows = {}

    def _weigh(self, name: str, loss: Module, _: Any, values: Tensor) -> Tensor | None:
        weights = self._of_rows.get(name)
        if weights is None:
            return None
        if values.dim() == 0 or len(values) != len(weights):
            raise ValueError(
                f"task.distill.data_label_weight: {type(loss).__name__} of `{name}` gives numbers of shape "
                f"{tuple(values.shape)} for {len(weights)} labels; expected one, or one row, for each. Choose another `fn`, "
                "or leave the weight out."
            )
        return values * weights.view(-1, *[1] * (values.dim() - 1))
