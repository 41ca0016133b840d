r"""Sums over all pairs of relations, tiled, with a backward that recomputes the tiles. Torch, and fused kernels on CPU.

The logits x_ef = s_e . t_f / tau between the relations of student and teacher are differences of rows of a Gram matrix,

    x_ef = (H_if - H_jf) scale_e,    H = A T^T,    scale_e = 1 / (|a_i - a_j| tau),

A (N, D) the unit student embeddings, T (P, D) the teacher's unit relations: one subtraction for an entry, not D
multiplications. Columns come in blocks (of H, N x block) and rows in tiles, so neither P x P nor N x P is ever held.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from fairchem_crack.loss.precision import full_precision

_PROCESS = os.getpid()  # the one that imported this module

# On a CPU a tile and its temporaries stay in the cache; on a GPU a smaller one than this is slower, for its launches.
TILE_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 23}
COLUMN_BLOCK = {"cpu": 1 << 11, "cuda": 1 << 11}


@dataclass
class Problem:
    """What does not carry a gradient: rows and columns of x, and which of its entries count.

    Attributes:
        pairs: (2, R) atoms of each row's pair.
        relations: (C, D) teacher relation of each column.
        row_relations: (R, D) teacher relation of each row.
        row_ids: (R,) and
        column_ids: (C,) equal where a row and a column are the same pair.
        row_systems: (R,) and
        column_systems: (C,) sorted; entries of two systems do not count. None: all count.
        threshold: entries of two pairs whose teacher relations have a larger |cosine| do not count.
        over_columns: the rows are anchors.
        over_rows: the columns are anchors.
        steepest: upper limit of `scale` in the gradient of H.
        unit_teacher: (N, D) unit embeddings of the teacher, with which the Triton kernels compare relations.
    """

    pairs: Tensor
    relations: Tensor
    row_relations: Tensor
    row_ids: Tensor
    column_ids: Tensor
    row_systems: Optional[Tensor]
    column_systems: Optional[Tensor]
    threshold: Optional[float]
    over_columns: bool
    over_rows: bool
    steepest: float
    unit_teacher: Optional[Tensor] = None

    def blocks(self) -> list[tuple[int, int, int, int]]:
        """First row, end row, first column, end column of what counts."""
        rows, columns = self.pairs.shape[1], len(self.relations)
        if self.row_systems is None or self.column_systems is None or not rows or not columns:
            return [(0, rows, 0, columns)]
        systems = int(torch.maximum(self.row_systems.max(), self.column_systems.max())) + 1
        row_ends, column_ends = (
            torch.bincount(of_pairs, minlength=systems).cumsum(0).tolist()
            for of_pairs in (self.row_systems, self.column_systems)
        )
        return list(zip([0, *row_ends], row_ends, [0, *column_ends], column_ends))


def first_derivative(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a `backward`: computed in full precision, and refused where autograd would differentiate it again."""

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("The CRACK loss cannot be differentiated twice: call backward without create_graph.")
        with full_precision(gradients[0].device.type):
            return backward(ctx, *gradients)

    return checked


class TiledSums(torch.autograd.Function):
    """Forward keeps one sum per row and column; backward recomputes each tile."""

    @staticmethod
    def forward(ctx, unit_student: Tensor, scale: Tensor, problem: Problem):  # noqa: D102
        rows, columns = scale.numel(), problem.relations.shape[0]
        sums = [scale.new_zeros(size) for size in (rows, rows, rows, columns, columns, columns)]
        row_sum, row_largest, row_moment, column_sum, column_largest, column_moment = sums
        kernels = _kernels_for(scale, problem)
        add = _add_tiles if kernels is None else functools.partial(_add_fused, kernels)
        for block in _column_blocks(unit_student, problem):
            add(block, scale, problem, (row_sum, row_moment, row_largest), (column_sum, column_moment, column_largest))
        ctx.save_for_backward(unit_student, scale, row_sum, column_sum)
        ctx.problem = problem
        outputs = (*_finish(row_sum, row_largest, row_moment), *_finish(column_sum, column_largest, column_moment))
        ctx.mark_non_differentiable(outputs[1], outputs[2], outputs[4], outputs[5])
        return outputs

    @staticmethod
    @first_derivative
    def backward(ctx, row_grad: Tensor, _1, _2, column_grad: Tensor, _3, _4):  # noqa: D102
        problem: Problem = ctx.problem
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
        for block in _column_blocks(unit_student, problem):
            gram_grad = torch.zeros_like(block.gram)  # (N, block)
            differentiate(block, scale, problem, backward, gram_grad)
            student_grad.addmm_(gram_grad, problem.relations[block.columns])
        return student_grad, backward.scale_grad / scale, None


def _finish(total: Tensor, largest: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_sum = total.log()
    return log_sum, largest, log_sum - _ratio(moment, total)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where nothing was summed."""
    return torch.where(denominator > 0, numerator / denominator, 0)


@dataclass
class _ColumnBlock:
    gram: Tensor  # (N, columns) H = A T^T
    columns: slice
    rows: slice


@dataclass
class _Tile:
    logits: Tensor  # (rows, columns) x
    rows: slice
    columns: slice

    def exponentials(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """exp(x) and exp(-x), zero where an entry does not count; its logit becomes zero."""
        if problem.threshold is None:
            up = self.logits.exp()
            return up, up.reciprocal()
        cosine = problem.row_relations[self.rows] @ problem.relations[self.columns].T
        is_other = problem.row_ids[self.rows, None] != problem.column_ids[self.columns]
        left_out = (cosine.abs_() > problem.threshold) & is_other
        up = self.logits.masked_fill_(left_out, 0).exp()
        down = up.reciprocal().masked_fill_(left_out, 0)
        return up.masked_fill_(left_out, 0), down


def _column_blocks(unit_student: Tensor, problem: Problem) -> Iterator[_ColumnBlock]:
    width = COLUMN_BLOCK[unit_student.device.type]
    for first_row, end_row, first_column, end_column in problem.blocks():
        for start in range(first_column, end_column, width):
            columns = slice(start, min(start + width, end_column))
            yield _ColumnBlock(unit_student @ problem.relations[columns].T, columns, slice(first_row, end_row))


def _tiles(block: _ColumnBlock, scale: Tensor, problem: Problem) -> Iterator[_Tile]:
    height = max(1, TILE_ENTRIES[scale.device.type] // block.gram.shape[1])
    for start in range(block.rows.start, block.rows.stop, height):
        rows = slice(start, min(start + height, block.rows.stop))
        logits = block.gram[problem.pairs[0, rows]]
        logits -= block.gram[problem.pairs[1, rows]]
        logits *= scale[rows, None]
        yield _Tile(logits, rows, block.columns)


class _Backward(NamedTuple):
    """dL/dx_ef = 2 sinh(x_ef) (row_weight_e + column_weight_f), and where its consequences are added up."""

    row_weight: Tensor  # (R,)
    column_weight: Tensor  # (C,)
    slope: Tensor  # (R,) dx_ef/dH_if, bounded
    scale_grad: Tensor  # (R,) += sum_f x_ef dL/dx_ef


_Sums = tuple[Tensor, Tensor, Tensor]  # per row or column: sum of 2 cosh(x), of 2 x sinh(x), largest |x|


def _add_tiles(block: _ColumnBlock, scale: Tensor, problem: Problem, rows: _Sums, columns: _Sums) -> None:
    """Add a block to the sums of its rows and columns, in place."""
    for tile in _tiles(block, scale, problem):
        up, down = tile.exponentials(problem)
        sides = []
        if problem.over_columns:
            sides.append((rows, tile.rows, 1))
        if problem.over_rows:
            sides.append((columns, tile.columns, 0))
        for (total, _, largest), part, dim in sides:
            total[part] += up.sum(dim).add_(down.sum(dim))
            lowest, highest = torch.aminmax(tile.logits, dim=dim)
            largest[part] = torch.maximum(largest[part], torch.maximum(highest, -lowest))
        moment = up.sub_(down).mul_(tile.logits)
        for (_, of_x, _), part, dim in sides:
            of_x[part] += moment.sum(dim)


def _differentiate_tiles(
    block: _ColumnBlock, scale: Tensor, problem: Problem, backward: _Backward, gram_grad: Tensor
) -> None:
    """Add dL/dH of a block to gram_grad (N, C), in place."""
    for tile in _tiles(block, scale, problem):
        up, down = tile.exponentials(problem)
        logit_grad = up.sub_(down)  # d 2cosh(x) / dx = 2 sinh(x)
        weight = backward.row_weight[tile.rows, None]
        logit_grad *= weight + backward.column_weight[tile.columns] if problem.over_rows else weight
        backward.scale_grad[tile.rows] += torch.linalg.vecdot(logit_grad, tile.logits)
        logit_grad *= backward.slope[tile.rows, None]
        gram_grad.index_add_(0, problem.pairs[0, tile.rows], logit_grad)
        gram_grad.index_add_(0, problem.pairs[1, tile.rows], logit_grad, alpha=-1)


def fused_kernels() -> Optional[ModuleType]:
    """`fairchem_crack.loss.cpu_kernels`, loaded when a CPU tensor first needs it; None where it cannot run.

    It needs numba, which comes with fairchem, and a process that was not forked: OpenMP, on which numba's threads run,
    ends a forked process that enters a kernel. Elsewhere torch's operations compute the same.
    """
    return _load_kernels() if os.getpid() == _PROCESS else None


@functools.cache
def _load_kernels() -> Optional[ModuleType]:
    try:
        from fairchem_crack.loss import cpu_kernels
    except ImportError:
        return None
    return cpu_kernels


def _kernels_for(scale: Tensor, problem: Problem) -> Optional[ModuleType]:
    is_of_kernels = scale.device.type == "cpu" and scale.dtype == torch.float32 and problem.threshold is None
    return fused_kernels() if is_of_kernels else None


def _add_fused(
    kernels: ModuleType, block: _ColumnBlock, scale: Tensor, problem: Problem, rows: _Sums, columns: _Sums
) -> None:
    pairs, factor = problem.pairs[:, block.rows], scale[block.rows]
    if problem.over_columns:
        kernels.sum_rows(block.gram, pairs, factor, *(values[block.rows] for values in rows))
    if problem.over_rows:
        kernels.sum_columns(block.gram, pairs, factor, *(values[block.columns] for values in columns))


def _differentiate_fused(
    kernels: ModuleType, block: _ColumnBlock, scale: Tensor, problem: Problem, backward: _Backward, gram_grad: Tensor
) -> None:
    kernels.gradients(
        block.gram,
        problem.pairs[:, block.rows],
        scale[block.rows],
        backward.slope[block.rows],
        backward.row_weight[block.rows],
        backward.column_weight[block.columns],
        gram_grad,
        backward.scale_grad[block.rows],
    )
