"""Steps that are not finite: detected before any update, named, skipped on all ranks alike, and counted."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from fairchem.core.common import distutils
from torch import Tensor
from torch import distributed as dist
from torch_geometric.data import Batch

from fairchem_crack.io.batches import free_rows
from fairchem_crack.io.named_records import listed

INPUTS = ("pos", "cell")  # of a batch: everything that follows from them is not finite either


@dataclass(frozen=True)
class Compared:
    """The rows of one output that a loss or a metric compares with their labels.

    Attributes:
        prediction: (R, ...) of the model, without gradient.
        label: (R, ...) of the data.
        systems: (R,) long, the system of each row in the batch.
    """

    prediction: Tensor
    label: Tensor
    systems: Tensor


def compared(outputs: dict[str, dict], names: Iterable[str], mask: str, out: dict, batch: Batch) -> dict[str, Compared]:
    """What fairchem's trainer compares of some outputs.

    Args:
        outputs: fairchem's options of each output (`level`, `train_on_free_atoms`, ...).
        names: of the outputs to look at; those without a label are left out.
        mask: the option that leaves the fixed atoms out.
        out: the model's outputs.
    """
    rows: dict[str, Compared] = {}
    systems = torch.arange(batch.natoms.numel(), device=batch.natoms.device)
    for name in names:
        if name not in batch:
            continue
        of_rows: Tensor = systems
        chosen: Any = slice(None)
        if outputs[name]["level"] == "atom":
            of_rows, chosen = batch.batch, free_rows(batch) if outputs[name].get(mask) else slice(None)
        label = batch[name].reshape(len(of_rows), -1)
        rows[name] = Compared(out[name].detach()[chosen], label[chosen], of_rows[chosen])
    return rows


def nonfinite_on_all_ranks(tensors: Iterable[Tensor]) -> Tensor:
    """() how many tensors of all ranks hold a number that is not finite; all ranks take part and get the same answer."""
    nonfinite = torch.stack([~tensor.isfinite().all() for tensor in tensors])
    return distutils.all_reduce(nonfinite.sum(dtype=torch.float32))


def drop_unless_finite(*optimizers: torch.optim.Optimizer) -> bool:
    """Whether all gradients are finite. If not, all are dropped: a parameter without gradient stays as it is.

    The gradients are those that DDP has averaged: all ranks decide alike.
    """
    parameters = [value for optimizer in optimizers for group in optimizer.param_groups for value in group["params"]]
    gradients = [value.grad for value in parameters if value.grad is not None]
    is_finite = not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
    if not is_finite:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
    return is_finite


def faults(rows: dict[str, Compared], batch: Batch, replaced: Mapping[str, Tensor] = MappingProxyType({})) -> list[str]:
    """What is not finite of the input, labels and predictions of a batch, and in which systems; empty where nothing is.

    Args:
        replaced: (B,) bool of each output, the systems whose label is the teacher's; none where it has no entry.
    """
    per_atom = {name: batch[name] for name in INPUTS if name in batch}
    values: list[tuple[str, Tensor, Tensor]] = [
        (name, value, batch.batch if name == "pos" else torch.arange(len(value), device=value.device))
        for name, value in per_atom.items()
    ]
    for name, row in rows.items():
        theirs = replaced.get(name, torch.zeros_like(batch.natoms, dtype=torch.bool))[row.systems]
        for whose, chosen in (("label", ~theirs), ("teacher's label", theirs)):
            values.append((f"{whose} `{name}`", row.label[chosen], row.systems[chosen]))
        values.append((f"student's `{name}`", row.prediction, row.systems))
    return [f"{name} of {ids}" for name, value, systems in values if (ids := _spoiled_systems(value, systems, batch))]


def teacher_faults(fields: Iterator[tuple[str, Any]], batch: Batch) -> list[str]:
    """Fields of a teacher's outputs that are not finite, and in which systems.

    Args:
        fields: names and tensors (N, ...) of atoms or (B, ...) of systems, or `force_jacobian.JacobianRows`.
    """
    faulty = []
    for name, value in fields:
        value = getattr(value, "values", value) if not isinstance(value, Tensor) else value
        systems = batch.batch if len(value) == len(batch.batch) else torch.arange(len(value), device=value.device)
        if ids := _spoiled_systems(value, systems, batch):
            faulty.append(f"teacher's `{name}` of {ids}")
    return faulty


def _spoiled_systems(values: Tensor, systems: Tensor, batch: Batch) -> str:
    spoiled = ~values.detach().view(len(values), -1).isfinite().all(dim=1) if len(values) else values.new_zeros(0).bool()
    return listed(batch, systems[spoiled].unique().tolist()) if bool(spoiled.any()) else ""


def from_all_ranks(text: str) -> str:
    """The text of every rank, each by the number of its rank; all ranks take part. Of one process, its own."""
    if distutils.get_world_size() == 1:
        return text
    texts: list[Any] = [None] * distutils.get_world_size()
    dist.all_gather_object(texts, text)
    return "; ".join(f"rank {rank}: {value}" for rank, value in enumerate(texts))


class SkippedSteps:
    """Counts the steps that were skipped, and ends a run that has no other ones.

    Attributes:
        limit: steps in a row before the run stops.
        in_a_row: since the last step that was taken.
        skipped, taken: steps since the start.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_a_row = self.skipped = self.taken = 0

    def count_taken(self) -> None:
        """A step has updated the weights."""
        self.in_a_row = 0
        self.taken += 1

    def count_skipped(self, message: str, *, loss_scale: float | None = None) -> None:
        """A step has not updated the weights.

        Args:
            message: which, and why.
            loss_scale: of mixed precision, after it was lowered. At 1 and above a further step may be finite for the lower
                scale, and this step does not count against the limit.

        Raises:
            FloatingPointError: too many steps in a row.
        """
        self.skipped += 1
        message = f"{message} The step is skipped"
        if loss_scale is not None and loss_scale >= 1:
            logging.warning(f"{message}, and the loss scale of --amp lowered to {loss_scale:g}.")
            return
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise FloatingPointError(
                f"{message}, number {self.in_a_row} in a row: the run stops. Resume from the last checkpoint with a lower "
                "learning rate, leave such systems out, or raise task.distill.max_skipped_steps."
            )
        logging.warning(f"{message}; {self.limit - self.in_a_row} more in a row stop the run.")

    def conclude(self, *, began_at: int) -> None:
        """At the end of a run, log how many were skipped.

        Args:
            began_at: the step at which this start began.

        Raises:
            FloatingPointError: a run from step 0 has trained nothing.
        """
        if not self.skipped:
            return
        counts = f"{self.skipped} of the {self.skipped + self.taken} steps since the start were skipped, not being finite"
        if began_at == 0 and self.taken == 0:
            raise FloatingPointError(f"{counts}: the student is untrained. The warnings above name systems and terms.")
        logging.warning(f"{counts}.")
