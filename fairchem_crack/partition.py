r"""Sums over all pairs of relations, tiled, with a backward that recomputes the tiles. Torch, and fused kernels on CPU.

The logits x_ef = s_e . t_f / tau between the relations of student and teacher are differences of rows of a Gram matrix,

    x_ef = (H_if - H_jf) scale_e,    H = A T^T,    scale_e = 1 / (|a_i - a_j| tau),

A (N, D) the unit student embeddings, T (P, D) the teacher's unit relations: one subtraction for an entry, not D
multiplications. Columns come in slabs (of H, N x slab) and rows in tiles, so neither P x P nor N x P is ever held.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from fairchem_crack.precision import full_precision

_PROCESS = os.getpid()  # the one that imported this module

# On CPU a tile and its temporaries stay in the cache; on CUDA one tile fills the device.
TILE_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 24}
SLAB_COLUMNS = {"cpu": 1 << 11, "cuda": 1 << 13}


class Partition(NamedTuple):
    """Of each anchor: log of its sum, the largest |x| in it, and the entropy of its softmax; (P',) each."""

    log_sum: Tensor
    largest: Tensor
    entropy: Tensor


@dataclass
class _Problem:
    """What does not carry a gradient: rows and columns of x, and which of its blocks count."""

    pairs: Tensor  # (2, R) atoms of each row's pair
    relations: Tensor  # (C, D) teacher relation of each column
    row_relations: Tensor  # (R, D) teacher relation of each row
    row_ids: Tensor  # (R,) and
    column_ids: Tensor  # (C,) equal where a row and a column are the same pair
    blocks: list[tuple[int, int, int, int]]  # first row, end row, first column, end column
    threshold: Optional[float]
    over_columns: bool
    over_rows: bool
    steepest: float  # upper limit of `scale` in the gradient of H


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

    Returns:
        Partition of the rows, Partition of the columns.
    """
    ids = torch.arange(pairs.shape[1], device=pairs.device)
    rows, columns = (ids if chosen is None else chosen for chosen in (rows, columns))
    problem = _Problem(
        pairs=pairs[:, rows],
        relations=relations[columns],
        row_relations=relations[rows],
        row_ids=rows,
        column_ids=columns,
        blocks=_blocks(rows, columns, system_of_pair),
        threshold=threshold,
        over_columns=over_columns,
        over_rows=over_rows,
        steepest=steepest,
    )
    outputs = _PartitionSums.apply(unit_student, scale[rows], problem)
    return Partition(*outputs[:3]), Partition(*outputs[3:])


def _blocks(rows: Tensor, columns: Tensor, system_of_pair: Optional[Tensor]) -> list[tuple[int, int, int, int]]:
    if system_of_pair is None:
        return [(0, rows.numel(), 0, columns.numel())]
    systems = int(system_of_pair.max()) + 1 if system_of_pair.numel() else 0
    row_ends, column_ends = (
        torch.bincount(system_of_pair[chosen], minlength=systems).cumsum(0).tolist() for chosen in (rows, columns)
    )
    return list(zip([0, *row_ends], row_ends, [0, *column_ends], column_ends))


class _PartitionSums(torch.autograd.Function):
    """Forward keeps one sum per row and column; backward recomputes each tile."""

    @staticmethod
    def forward(ctx, unit_student: Tensor, scale: Tensor, problem: _Problem):
        rows, columns = scale.numel(), problem.relations.shape[0]
        sums = [scale.new_zeros(size) for size in (rows, rows, rows, columns, columns, columns)]
        row_sum, row_largest, row_moment, column_sum, column_largest, column_moment = sums
        kernels = _kernels_for(scale, problem)
        add = _add_tiles if kernels is None else functools.partial(_add_fused, kernels)
        for slab in _slabs(unit_student, problem):
            add(slab, scale, problem, (row_sum, row_moment, row_largest), (column_sum, column_moment, column_largest))
        ctx.save_for_backward(unit_student, scale, row_sum, column_sum)
        ctx.problem = problem
        outputs = (*_finish(row_sum, row_largest, row_moment), *_finish(column_sum, column_largest, column_moment))
        ctx.mark_non_differentiable(outputs[1], outputs[2], outputs[4], outputs[5])
        return outputs

    @staticmethod
    def backward(ctx, row_grad: Tensor, _1, _2, column_grad: Tensor, _3, _4):
        if torch.is_grad_enabled():
            raise RuntimeError("The CRACK loss cannot be differentiated twice: call backward without create_graph.")
        with full_precision(row_grad.device.type):
            return _PartitionSums._gradients(ctx, row_grad, column_grad)

    @staticmethod
    def _gradients(ctx, row_grad: Tensor, column_grad: Tensor) -> tuple[Tensor, Tensor, None]:
        problem: _Problem = ctx.problem
        unit_student, scale, row_sum, column_sum = ctx.saved_tensors
        student_grad = torch.zeros_like(unit_student)
        backward = _Backward(
            row_weight=_ratio(row_grad, row_sum),
            column_weight=_ratio(column_grad, column_sum),
            slope=scale.clamp(max=problem.steepest),
            scale_grad=torch.zeros_like(scale),
        )
        kernels = _kernels_for(scale, problem)
        differentiate = _differentiate_tiles if kernels is None else functools.partial(_differentiate_fused, kernels)
        for slab in _slabs(unit_student, problem):
            slab_grad = torch.zeros_like(slab.gram)  # (N, slab)
            differentiate(slab, scale, problem, backward, slab_grad)
            student_grad.addmm_(slab_grad, problem.relations[slab.columns])
        return student_grad, backward.scale_grad / scale, None


def _finish(total: Tensor, largest: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_sum = total.log()
    return log_sum, largest, log_sum - _ratio(moment, total)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where nothing was summed."""
    return torch.where(denominator > 0, numerator / denominator, 0)


@dataclass
class _Slab:
    gram: Tensor  # (N, columns) H = A T^T
    columns: slice
    rows: slice


@dataclass
class _Tile:
    logits: Tensor  # (rows, columns) x
    rows: slice
    columns: slice

    def exponentials(self, problem: _Problem) -> tuple[Tensor, Tensor]:
        """exp(x) and exp(-x), zero where an entry does not count."""
        up = self.logits.exp()
        down = up.reciprocal()
        if problem.threshold is not None:
            cosine = problem.row_relations[self.rows] @ problem.relations[self.columns].T
            is_other = problem.row_ids[self.rows, None] != problem.column_ids[self.columns]
            left_out = (cosine.abs() > problem.threshold) & is_other
            up, down = up.masked_fill_(left_out, 0), down.masked_fill_(left_out, 0)
        return up, down


def _slabs(unit_student: Tensor, problem: _Problem) -> Iterator[_Slab]:
    width = SLAB_COLUMNS[unit_student.device.type]
    for first_row, end_row, first_column, end_column in problem.blocks:
        for start in range(first_column, end_column, width):
            columns = slice(start, min(start + width, end_column))
            yield _Slab(unit_student @ problem.relations[columns].T, columns, slice(first_row, end_row))


def _tiles(slab: _Slab, scale: Tensor, problem: _Problem) -> Iterator[_Tile]:
    height = max(1, TILE_ENTRIES[scale.device.type] // slab.gram.shape[1])
    for start in range(slab.rows.start, slab.rows.stop, height):
        rows = slice(start, min(start + height, slab.rows.stop))
        logits = slab.gram[problem.pairs[0, rows]]
        logits -= slab.gram[problem.pairs[1, rows]]
        logits *= scale[rows, None]
        yield _Tile(logits, rows, slab.columns)


class _Backward(NamedTuple):
    """dL/dx_ef = 2 sinh(x_ef) (row_weight_e + column_weight_f), and where its consequences are added up."""

    row_weight: Tensor  # (R,)
    column_weight: Tensor  # (C,)
    slope: Tensor  # (R,) dx_ef/dH_if, bounded
    scale_grad: Tensor  # (R,) += sum_f x_ef dL/dx_ef


_Sums = tuple[Tensor, Tensor, Tensor]  # per row or column: sum of 2 cosh(x), of 2 x sinh(x), largest |x|


def _add_tiles(slab: _Slab, scale: Tensor, problem: _Problem, rows: _Sums, columns: _Sums) -> None:
    """Add a slab to the sums of its rows and columns, in place."""
    for tile in _tiles(slab, scale, problem):
        up, down = tile.exponentials(problem)
        cosh, largest = up + down, torch.maximum(up, down)
        moment = up.sub_(down).mul_(tile.logits)
        for wanted, (total, of_x, most), part, dim in (
            (problem.over_columns, rows, tile.rows, 1),
            (problem.over_rows, columns, tile.columns, 0),
        ):
            if wanted:
                total[part] += cosh.sum(dim)
                of_x[part] += moment.sum(dim)
                most[part] = torch.maximum(most[part], largest.amax(dim).log())


def _differentiate_tiles(slab: _Slab, scale: Tensor, problem: _Problem, backward: _Backward, slab_grad: Tensor) -> None:
    """Add dL/dH of a slab to slab_grad (N, C), in place."""
    for tile in _tiles(slab, scale, problem):
        up, down = tile.exponentials(problem)
        logit_grad = up.sub_(down)  # d 2cosh(x) / dx = 2 sinh(x)
        weight = backward.row_weight[tile.rows, None]
        logit_grad *= weight + backward.column_weight[tile.columns] if problem.over_rows else weight
        backward.scale_grad[tile.rows] += torch.linalg.vecdot(logit_grad, tile.logits)
        logit_grad *= backward.slope[tile.rows, None]
        slab_grad.index_add_(0, problem.pairs[0, tile.rows], logit_grad)
        slab_grad.index_add_(0, problem.pairs[1, tile.rows], logit_grad, alpha=-1)


def fused_kernels() -> Optional[ModuleType]:
    """`fairchem_crack.kernels`, loaded when a CPU tensor first needs it; None where it cannot run.

    It needs numba, which comes with fairchem, and a process that was not forked: OpenMP, on which numba's threads run,
    ends a forked process that enters a kernel. Elsewhere torch's operations compute the same.
    """
    return _load_kernels() if os.getpid() == _PROCESS else None


@functools.cache
def _load_kernels() -> Optional[ModuleType]:
    try:
        from fairchem_crack import kernels
    except ImportError:
        return None
    return kernels


def _kernels_for(scale: Tensor, problem: _Problem) -> Optional[ModuleType]:
    is_of_kernels = scale.device.type == "cpu" and scale.dtype == torch.float32 and problem.threshold is None
    return fused_kernels() if is_of_kernels else None


def _add_fused(kernels: ModuleType, slab: _Slab, scale: Tensor, problem: _Problem, rows: _Sums, columns: _Sums) -> None:
    pairs, factor = problem.pairs[:, slab.rows], scale[slab.rows]
    if problem.over_columns:
        kernels.sum_rows(slab.gram, pairs, factor, *(values[slab.rows] for values in rows))
    if problem.over_rows:
        kernels.sum_columns(slab.gram, pairs, factor, *(values[slab.columns] for values in columns))


def _differentiate_fused(
    kernels: ModuleType, slab: _Slab, scale: Tensor, problem: _Problem, backward: _Backward, slab_grad: Tensor
) -> None:
    kernels.gradients(
        slab.gram,
        problem.pairs[:, slab.rows],
        scale[slab.rows],
        backward.slope[slab.rows],
        backward.row_weight[slab.rows],
        backward.column_weight[slab.columns],
        slab_grad,
        backward.scale_grad[slab.rows],
    )
