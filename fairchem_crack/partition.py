r"""log sum_f 2 cosh(x_ef) of each anchor e, of the logits x_ef = s_e . t_f / tau between relations of student and teacher.

On a CPU in tiles of torch operations or numba kernels (`tiles`), on a GPU in Triton kernels (`triton_sums`).
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from fairchem_crack import triton_sums
from fairchem_crack.tiles import Problem, TiledSums, fused_kernels


class Partition(NamedTuple):
    """Of each anchor: log of its sum, the largest |x| in it, and the entropy of its softmax; (P',) each."""

    log_sum: Tensor
    largest: Tensor
    entropy: Tensor


def partition_sums(
    unit_student: Tensor,
    scale: Tensor,
    pairs: Tensor,
    relations: Tensor,
    *,
    rows: Optional[Tensor],
    columns: Optional[Tensor],
    over_columns: bool,
    over_rows: bool,
    system_of_pair: Optional[Tensor] = None,
    threshold: Optional[float] = None,
    steepest: float = math.inf,
    unit_teacher: Optional[Tensor] = None,
) -> tuple[Partition, Partition]:
    """log sum_f 2 cosh(x_ef) for each row e, and log sum_e 2 cosh(x_ef) for each column f.

    Args:
        unit_student: (N, D), differentiable.
        scale: (P,) 1 / (|a_i - a_j| tau), differentiable.
        pairs: (2, P) long; with `system_of_pair`, sorted by it.
        relations: (P, D) the teacher's unit relations.
        rows: (R,) sorted, the pairs that are rows of x; None for all.
        columns: (C,) sorted, the pairs that are columns; None for all.
        over_columns: sum the rows; else their Partition has no meaning.
        over_rows: sum the columns; else their Partition has no meaning.
        system_of_pair: (P,) long; where given, only entries with both pairs of one system count.
        threshold: leave out entries e != f with |t_e . t_f| above it.
        steepest: in the gradient with respect to `unit_student`, a larger scale counts as this one; `relations.NEAR`.
        unit_teacher: (N, D) unit embeddings of the teacher; on a GPU the threshold is fast with them.

    Returns:
        Partition of the rows, Partition of the columns.
    """
    ids = torch.arange(pairs.shape[1], device=pairs.device)
    problem = Problem(
        pairs=pairs if rows is None else pairs.index_select(1, rows),
        relations=_of(relations, columns),
        row_relations=_of(relations, rows),
        row_ids=_of(ids, rows),
        column_ids=_of(ids, columns),
        row_systems=None if system_of_pair is None else _of(system_of_pair, rows),
        column_systems=None if system_of_pair is None else _of(system_of_pair, columns),
        threshold=threshold,
        over_columns=over_columns,
        over_rows=over_rows,
        steepest=steepest,
        unit_teacher=unit_teacher,
    )
    is_fused = triton_sums.can_compute(
        unit_student.device,
        unit_student.dtype,
        excludes=threshold is not None,
        sides=(over_columns, over_rows),
    )
    is_fused = is_fused and (threshold is None or unit_teacher is not None)
    outputs = (triton_sums.FusedSums if is_fused else TiledSums).apply(unit_student, _of(scale, rows), problem)
    return Partition(*outputs[:3]), Partition(*outputs[3:])


def is_fused(device: torch.device, *, excludes: bool) -> bool:
    """Whether kernels compute these sums in float32, for which no tile of logits is written to memory.

    Args:
        device: of the tensors.
        excludes: a threshold leaves out entries.
    """
    if device.type == "cpu":
        return fused_kernels() is not None and not excludes
    return triton_sums.can_compute(device, torch.float32, excludes=excludes, sides=(True, False))


def _of(values: Tensor, chosen: Optional[Tensor]) -> Tensor:
    return values if chosen is None else values.index_select(0, chosen)
