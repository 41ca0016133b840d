"""Fused float32 kernels of `partition` for the CPU: one pass over a block of columns, nothing of it stored.

An entry costs one subtraction, one exponential and one division, in registers, instead of a read and a write for each
operation of torch. numba comes with fairchem; without it, and for float64, masks and CUDA, `partition` runs its torch code,
which computes the same and is these kernels' oracle in the tests.
"""

from __future__ import annotations

import threading
from typing import Any, Callable

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic
from torch import Tensor

# No reassociation: in the process that compiles a kernel and in those that read it from numba's cache, sums are of another
# order then, and a training differs in its last digits. Infinities and NaN keep their meaning, to reach the loss.
FAST = {"nsz", "contract", "arcp"}
# Sums over a row are kept in so many parts, which a loop without reassociation adds to in vectors.
LANES = 64
# Columns of H a thread works on in the backward: 2 kB of each row, so that the rows of a system's atoms stay in the cache.
CHUNK = 512
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp(r) = 1 + r + r^2 p(r) on |r| <= ln(2) / 2, to 1e-7: the coefficients of Cephes' expf (S. Moshier).
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_THREADS = numba.get_num_threads()  # at most
# numba's simplest threading layer aborts the process when two threads of Python enter a kernel at once.
_lock = threading.Lock()


def _compiled(**options: Any) -> Callable[[Callable], Callable]:
    """numba.njit, the machine code kept on disk where numba has a directory for it.

    There is none in a read-only installation with a home that cannot be written to; then every process compiles.
    """

    def compiled(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no directory
            return numba.njit(**options)(function)

    return compiled


@intrinsic
def _as_float(typing_context, bits):
    """The float32 of the same 32 bits; vectorises, where numpy's view does not."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.int32), generate


@numba.njit(inline="always")
def _exp(x):
    """exp(x) for |x| < 87, without a branch: 2^n exp(r), n the nearest integer of x log2(e)."""
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    return (p * r * r + r + _ONE) * _as_float((numba.int32(n) + numba.int32(127)) << numba.int32(23))  # type: ignore[call-arg]


@_compiled(fastmath=FAST)
def _sum(values):
    """Of a row, in the same order as the other sums."""
    lanes = np.zeros(LANES, np.float32)
    for start in range(0, values.size, LANES):
        part = values[start : start + LANES]
        for lane in range(part.size):
            lanes[lane] += part[lane]
    total = np.float32(0)
    for lane in range(LANES):
        total += lanes[lane]
    return total


@_compiled(parallel=True, fastmath=FAST, error_model="numpy")
def _sum_rows(gram, first, second, scale, total, moment, largest):
    for e in numba.prange(first.size):
        i, j, factor = gram[first[e]], gram[second[e]], scale[e]
        totals, moments, sizes = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        for start in range(0, gram.shape[1], LANES):
            i_part, j_part = i[start : start + LANES], j[start : start + LANES]
            for lane in range(i_part.size):
                x = (i_part[lane] - j_part[lane]) * factor
                up = _exp(x)
                down = _ONE / up
                totals[lane] += up + down
                moments[lane] += x * (up - down)
                d = abs(x)
                sizes[lane] = d if d > sizes[lane] else sizes[lane]  # a NaN reaches the loss through the sums
        for lane in range(LANES):
            total[e] += totals[lane]
            moment[e] += moments[lane]
            largest[e] = max(largest[e], sizes[lane])


@_compiled(parallel=True, fastmath=FAST, error_model="numpy")
def _sum_columns(gram, first, second, scale, total, moment, largest):
    for chunk in numba.prange((gram.shape[1] + CHUNK - 1) // CHUNK):
        start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, gram.shape[1])
        t, m, g = total[start:end], moment[start:end], largest[start:end]
        for e in range(first.size):
            i, j, factor = gram[first[e], start:end], gram[second[e], start:end], scale[e]
            for f in range(end - start):
                x = (i[f] - j[f]) * factor
                up = _exp(x)
                down = _ONE / up
                t[f] += up + down
                m[f] += x * (up - down)
                d = abs(x)
                g[f] = d if d > g[f] else g[f]


@_compiled(parallel=True, fastmath=FAST, error_model="numpy")
def _gradients(gram, first, second, scale, slope, row_weight, column_weight, gram_grad, scale_grad):
    chunks = (gram.shape[1] + CHUNK - 1) // CHUNK
    parts = np.zeros((chunks, first.size), np.float32)
    for chunk in numba.prange(chunks):  # a thread owns its columns: no two add to one entry
        start, end = chunk * CHUNK, min((chunk + 1) * CHUNK, gram.shape[1])
        weight, moments = column_weight[start:end], np.empty(CHUNK, np.float32)
        for e in range(first.size):
            i, j = gram[first[e], start:end], gram[second[e], start:end]
            factor, steep, own = scale[e], slope[e], row_weight[e]
            i_grad, j_grad = gram_grad[first[e], start:end], gram_grad[second[e], start:end]
            for f in range(end - start):
                x = (i[f] - j[f]) * factor
                up = _exp(x)
                g = (up - _ONE / up) * (own + weight[f])
                moments[f] = g * x
                g *= steep
                i_grad[f] += g
                j_grad[f] -= g
            parts[chunk, e] = _sum(moments[: end - start])
    for e in numba.prange(first.size):
        for chunk in range(chunks):
            scale_grad[e] += parts[chunk, e]


def sum_rows(gram: Tensor, pairs: Tensor, scale: Tensor, total: Tensor, moment: Tensor, largest: Tensor) -> None:
    """Add a block of columns to the sums of its rows.

    Args:
        gram: (N, C) block of H.
        pairs: (2, R) atoms of each row.
        scale: (R,).
        total: (R,) += sum_f 2 cosh(x_ef), in place.
        moment: (R,) += sum_f 2 x_ef sinh(x_ef), in place.
        largest: (R,) = max with max_f |x_ef|, in place.
    """
    _call(_sum_rows, gram, pairs[0], pairs[1], scale, total, moment, largest)


def sum_columns(gram: Tensor, pairs: Tensor, scale: Tensor, total: Tensor, moment: Tensor, largest: Tensor) -> None:
    """As `sum_rows`, for the columns: total, moment and largest are (C,) and run over the rows."""
    _call(_sum_columns, gram, pairs[0], pairs[1], scale, total, moment, largest)


def gradients(
    gram: Tensor,
    pairs: Tensor,
    scale: Tensor,
    slope: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    gram_grad: Tensor,
    scale_grad: Tensor,
) -> None:
    """Add dL/dH of a block to gram_grad (N, C), and sum_f x_ef dL/dx_ef to scale_grad (R,), in place.

    dL/dx_ef = 2 sinh(x_ef) (row_weight_e + column_weight_f), dx_ef/dH_if = slope_e.
    """
    _call(_gradients, gram, pairs[0], pairs[1], scale, slope, row_weight, column_weight, gram_grad, scale_grad)


def _call(kernel, *tensors: Tensor) -> None:
    with _lock:
        numba.set_num_threads(min(torch.get_num_threads(), _THREADS))
        kernel(*(tensor.numpy() for tensor in tensors))
