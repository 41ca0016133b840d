"""The sums of `tiles` by the Triton kernels, on a GPU where they have been seen to agree with it."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from fairchem_crack.loss.relations import pair_difference, relation_vectors, unit_embedding
from fairchem_crack.loss.tiles import Problem, TiledSums, first_derivative

Sides = tuple[bool, bool]
DEVICE_TYPES = ("cuda",)  # where Triton compiles
# Entries of H (N, columns) in a block: with its gradient it stays in a GPU's L2 cache, of 40 to 60 MB.
GRAM_ENTRIES = 1 << 23
LARGEST_BLOCK, SMALLEST_BLOCK = 2048, 128
LOG2_E = math.log2(math.e)
# Of the trial: relations, atoms, width, and what a sum and a gradient may differ by, relative to the largest.
TRIAL_PAIRS, TRIAL_ATOMS, TRIAL_WIDTH, TRIAL_TOLERANCE = 300, 40, 32, 2e-5


def can_compute(device: torch.device, dtype: torch.dtype, *, excludes: bool, sides: Sides) -> bool:
    """Whether the kernels take such a problem: float32 on a GPU on which they passed a trial.

    Args:
        device: of the tensors, with its index.
        dtype: of the tensors.
        excludes: some entries are left out by a threshold.
        sides: are the rows anchors, are the columns.
    """
    return device.type in DEVICE_TYPES and dtype == torch.float32 and passes_trial(device, excludes, *sides)


class FusedSums(torch.autograd.Function):
    """`tiles.TiledSums` by Triton kernels; forward keeps two numbers for each row and column."""

    @staticmethod
    def forward(ctx, unit_student: Tensor, scale: Tensor, problem: Problem):  # noqa: D102
        kernels = _Kernels(unit_student, scale, problem)
        rows, columns = _Sums.zeros(scale, len(scale)), _Sums.zeros(scale, len(problem.relations))
        for block in kernels.blocks():
            if problem.over_columns:
                kernels.add_to_rows(block, rows)
            if problem.over_rows:
                kernels.add_to_columns(block, columns)
        of_rows = rows.finished() if problem.over_columns else _Finished(*rows.values)
        of_columns = columns.finished() if problem.over_rows else _Finished(*columns.values)
        ctx.save_for_backward(unit_student, scale, of_rows.log_sum, of_rows.mean, of_columns.log_sum)
        ctx.problem = problem
        outputs = tuple(
            values for side in (of_rows, of_columns) for values in (side.log_sum, side.largest, side.log_sum - side.mean)
        )
        ctx.mark_non_differentiable(outputs[1], outputs[2], outputs[4], outputs[5])
        return outputs

    @staticmethod
    @first_derivative
    def backward(ctx, row_grad: Tensor, _1, _2, column_grad: Tensor, _3, _4):  # noqa: D102
        problem: Problem = ctx.problem
        unit_student, scale, row_log_sum, row_mean, column_log_sum = ctx.saved_tensors
        kernels = _Kernels(unit_student, scale, problem)
        of_rows = _Anchors(row_grad.clone(), row_log_sum * LOG2_E)  # a kernel is compiled anew for pointers out of line
        of_columns = _Anchors(column_grad.clone(), column_log_sum * LOG2_E)
        student_grad = torch.zeros_like(unit_student)
        column_moment = torch.zeros_like(scale)  # (R,) sum_f x_ef dL/dx_ef, of the columns' anchors
        for block in kernels.blocks():
            student_grad.addmm_(kernels.gram_gradient(block, of_rows, of_columns), problem.relations[block.columns])
            if problem.over_rows:
                kernels.add_moments(block, of_columns, column_moment)
        moment = column_moment / LOG2_E
        if problem.over_columns:
            moment += row_grad * row_mean
        return student_grad, moment / scale, None


class _Anchors(NamedTuple):
    """Gradient of the loss with respect to each log sum, and the log sum."""

    weight: Tensor
    log_sum: Tensor


class _Finished(NamedTuple):
    log_sum: Tensor
    largest: Tensor
    mean: Tensor  # of x under the softmax over both directions


class _Block(NamedTuple):
    """Some columns of H, and of the teacher's H where entries are left out."""

    gram: Tensor  # (N, columns)
    teacher_gram: Tensor
    columns: slice

    @property
    def start(self) -> int:
        return self.columns.start

    @property
    def width(self) -> int:
        return self.gram.shape[1]


class _Sums:
    """Running sums of each anchor: largest |x|, and relative to exp of it, sum of 2 cosh x and of 2 x sinh x. In base 2."""

    def __init__(self, values: Tensor) -> None:
        self.values = values  # (3, ...)
        self.largest, self.total, self.moment = values

    @classmethod
    def zeros(cls, like: Tensor, *shape: int) -> _Sums:
        """Sums of a shape, each in line with the 16 bytes that a thread loads at once."""
        size = math.prod(shape)
        return cls(like.new_zeros(3, _cdiv(size, 4) * 4)[:, :size].view(3, *shape))

    def add(self, part: slice, shares: _Sums) -> None:
        """Add shares (S, part) to a part."""
        largest = torch.maximum(self.largest[part], shares.largest.amax(dim=0))
        for own, others in ((self.total, shares.total), (self.moment, shares.moment)):
            own[part] *= torch.exp2(self.largest[part] - largest)
            own[part] += (others * torch.exp2(shares.largest - largest)).sum(dim=0)
        self.largest[part] = largest

    def finished(self) -> _Finished:
        log_sum = (self.largest + self.total.log2()) / LOG2_E
        return _Finished(log_sum, self.largest / LOG2_E, self.moment / self.total / LOG2_E)


class _Kernels:
    """The kernels with the arguments that all blocks of columns share."""

    def __init__(self, unit_student: Tensor, scale: Tensor, problem: Problem) -> None:
        from fairchem_crack.loss import triton_kernels

        self._kernels, self._problem, self._unit_student = triton_kernels, problem, unit_student
        self._num_rows, self._num_columns = len(scale), len(problem.relations)
        self._atoms = problem.pairs[0].int(), problem.pairs[1].int()
        self._scale = scale * LOG2_E
        self._excludes = {"EXCLUDES": problem.threshold is not None}
        self._ids: tuple = (problem.row_ids, problem.column_ids, 0.0)  # these two are not read without a threshold
        self._teacher_scale = self._scale
        if problem.threshold is not None:
            assert problem.unit_teacher is not None
            self._ids = problem.row_ids.int(), problem.column_ids.int(), problem.threshold
            self._teacher_scale = 1 / torch.linalg.vector_norm(_differences(problem.unit_teacher, problem), dim=1)

    def blocks(self) -> Iterator[_Block]:
        """H of one block of columns after the other."""
        problem = self._problem
        for start in range(0, self._num_columns, self._block):
            columns = slice(start, min(start + self._block, self._num_columns))
            gram = self._unit_student @ problem.relations[columns].T
            excludes = problem.unit_teacher is not None and problem.threshold is not None
            yield _Block(gram, problem.unit_teacher @ problem.relations[columns].T if excludes else gram, columns)

    def add_to_rows(self, block: _Block, sums: _Sums) -> None:
        """Of each row, the sums over the columns of a block."""
        unread = sums.total
        self._over_rows(block, sums, unread, unread, WEIGHTED=False)

    def add_moments(self, block: _Block, anchors: _Anchors, moment: Tensor) -> None:
        """Of each row, sum_f x_ef dL/dx_ef in base 2, over the columns of a block as anchors."""
        self._over_rows(block, _Sums(moment.expand(3, -1)), *anchors, WEIGHTED=True)

    def _over_rows(self, block: _Block, sums: _Sums, weight: Tensor, log_sum: Tensor, **options: bool) -> None:
        self._launch(
            self._kernels.row_kernel,
            (self._num_rows,),
            *(block.gram, block.teacher_gram, *self._atoms, self._scale, self._teacher_scale, *self._columns_of_rows),
            *(*self._ids, sums.largest, sums.total, sums.moment, weight, log_sum, block.start, block.width),
            **{"COLUMNS": self._block, **self._excludes, **options},
        )

    def add_to_columns(self, block: _Block, sums: _Sums) -> None:
        """Of each column of a block, the sums over the rows."""
        kernels = self._kernels
        shares = _Sums.zeros(self._scale, kernels.SPLITS, block.width)
        self._launch(
            kernels.column_kernel,
            (_cdiv(block.width, kernels.COLUMN_TILE), kernels.SPLITS),
            *(block.gram, block.teacher_gram, *self._atoms, self._scale, self._teacher_scale, *self._rows_of_columns),
            *(*self._ids, shares.largest, shares.total, shares.moment, self._num_rows, block.start, block.width),
            **{"ROWS": kernels.ROWS_AT_ONCE, "COLUMNS": kernels.COLUMN_TILE, **self._excludes},
        )
        sums.add(block.columns, shares)

    def gram_gradient(self, block: _Block, of_rows: _Anchors, of_columns: _Anchors) -> Tensor:
        """(N, columns) dL/dH of a block."""
        problem, tile = self._problem, min(self._kernels.ATOM_TILE, self._block)
        gradient = torch.empty_like(block.gram)
        self._launch(
            self._kernels.atom_kernel,
            (len(gradient), _cdiv(block.width, tile)),
            *(block.gram, block.teacher_gram, *self._pairs_of_atoms, self._scale, self._slope, self._teacher_scale),
            *(*self._columns_of_rows, *self._ids, *of_rows, *of_columns, gradient, block.start, block.width),
            **{"COLUMNS": tile, **self._excludes, "OF_ROWS": problem.over_columns, "OF_COLUMNS": problem.over_rows},
        )
        return gradient

    def _launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        """On the tensors' device: Triton takes the current one."""
        if min(grid):
            with torch.cuda.device(self._scale.device) if self._scale.is_cuda else contextlib.nullcontext():
                kernel[grid](*arguments, **options)

    @functools.cached_property
    def _block(self) -> int:
        """Columns of a block, a power of two; the last may have fewer, for which no kernel is compiled anew."""
        fit = 1 << (GRAM_ENTRIES // max(len(self._unit_student), 1)).bit_length() - 1
        return max(SMALLEST_BLOCK, min(LARGEST_BLOCK, fit, _power_of_two(self._num_columns)))

    @functools.cached_property
    def _slope(self) -> Tensor:
        """(R,) dx_ef/dH_if, bounded."""
        return self._scale.clamp(max=self._problem.steepest * LOG2_E) / LOG2_E

    @functools.cached_property
    def _columns_of_rows(self) -> tuple[Tensor, Tensor]:
        return _range(
            self._problem.row_systems, self._problem.column_systems, self._num_rows, self._num_columns, self._scale
        )

    @functools.cached_property
    def _rows_of_columns(self) -> tuple[Tensor, Tensor]:
        return _range(
            self._problem.column_systems, self._problem.row_systems, self._num_columns, self._num_rows, self._scale
        )

    @functools.cached_property
    def _pairs_of_atoms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where each atom's pairs begin (N + 1,), and in the order of the atoms (2R,) pairs and other atoms."""
        pairs, num_atoms = self._problem.pairs, len(self._unit_student)
        atoms, order = pairs.flatten().sort(stable=True)
        begins = torch.searchsorted(atoms, torch.arange(num_atoms + 1, device=pairs.device))
        return begins.int(), (order % max(self._num_rows, 1)).int(), pairs.flip(0).flatten()[order].int()


def _differences(unit: Tensor, problem: Problem) -> Tensor:
    return unit.index_select(0, problem.pairs[0]) - unit.index_select(0, problem.pairs[1])


def _range(own: Optional[Tensor], others: Optional[Tensor], size: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(size,) first and end among the others, of the same system; both sorted."""
    if own is None or others is None:
        first = torch.zeros(size, dtype=torch.int32, device=like.device)
        return first, torch.full_like(first, end)
    return torch.searchsorted(others, own, out_int32=True), torch.searchsorted(others, own, right=True, out_int32=True)


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _cdiv(size: int, part: int) -> int:
    return -(-size // part)


@functools.cache
def passes_trial(device: torch.device, excludes: bool, over_columns: bool, over_rows: bool) -> bool:
    """Whether the kernels compile on a device and agree with `TiledSums` on a small problem; logged, once."""
    problem, unit_student, scale = _trial_problem(device, excludes, over_columns, over_rows)
    try:
        differences = [
            float((fused - tiled).abs().max() / tiled.abs().max())
            for fused, tiled in zip(
                *(_values_and_gradients(of, unit_student, scale, problem) for of in (FusedSums, TiledSums))
            )
        ]
    except Exception as error:  # of the compiler, of the driver, or no Triton at all
        logging.warning(
            f"The CRACK loss is computed by torch's operations on {device}, slower: its Triton kernels do not run here "
            f"({type(error).__name__}: {str(error)[:500]})."
        )
        return False
    if not max(differences) <= TRIAL_TOLERANCE:
        logging.warning(
            f"The CRACK loss is computed by torch's operations on {device}, slower: its Triton kernels differ from them by "
            f"{max(differences):.1e} on a trial of {TRIAL_PAIRS} pairs, expected {TRIAL_TOLERANCE:.0e} at most."
        )
        return False
    logging.info(f"The CRACK loss is computed by Triton kernels on {device}.")
    return True


def _trial_problem(
    device: torch.device, excludes: bool, over_columns: bool, over_rows: bool
) -> tuple[Problem, Tensor, Tensor]:
    """Two systems of random embeddings."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, TRIAL_ATOMS, TRIAL_WIDTH, generator=generator).to(device)
    student, teacher = (unit_embedding(embedding) for embedding in embeddings)
    systems = torch.arange(TRIAL_ATOMS) // (TRIAL_ATOMS // 2)
    pairs = torch.triu_indices(TRIAL_ATOMS, TRIAL_ATOMS, 1)
    pairs = pairs[:, systems[pairs[0]] == systems[pairs[1]]][:, :TRIAL_PAIRS]
    system_of_pair = systems[pairs[0]].to(device)
    pairs = pairs.to(device)
    relations, ids = relation_vectors(teacher, pairs), torch.arange(pairs.shape[1], device=device)
    problem = Problem(
        pairs=pairs,
        relations=relations,
        row_relations=relations,
        row_ids=ids,
        column_ids=ids,
        row_systems=system_of_pair,
        column_systems=system_of_pair,
        threshold=0.3 if excludes else None,
        over_columns=over_columns,
        over_rows=over_rows,
        steepest=math.inf,
        unit_teacher=teacher,
    )
    return problem, student, 1 / (0.15 * pair_difference(student, pairs)[1])


def _values_and_gradients(sums: Any, unit_student: Tensor, scale: Tensor, problem: Problem) -> list[Tensor]:
    with torch.enable_grad():
        leaves = unit_student.detach().requires_grad_(), scale.detach().requires_grad_()
        outputs = sums.apply(*leaves, problem)
        sides = [outputs[:3]] * problem.over_columns + [outputs[3:]] * problem.over_rows
        loss = sum(side[0].square().sum() for side in sides)
        return [*(value.detach() for side in sides for value in side), *torch.autograd.grad(loss, leaves)]
