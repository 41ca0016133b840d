"""The rows of all ranks on every rank: with gradient, or sent while the caller computes."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch import distributed as dist


class Gathering:
    """The rows (dim 0) of every rank, in the order of the ranks, any number of each, also none; without gradient.

    Sent when it is made, and by a backend that can (gloo, NCCL) while the caller computes; `rows` waits for them.

    Attributes:
        counts: rows of each rank.
    """

    def __init__(self, values: Tensor) -> None:
        self._own = values.detach()
        self._rows: Optional[Tensor] = None
        self.counts: list[int] = [len(values)]
        if _world_size() == 1:
            self._rows = self._own
            return
        sizes = torch.zeros(_world_size(), dtype=torch.long, device=values.device)
        sizes[dist.get_rank()] = len(values)
        dist.all_reduce(sizes)
        self.counts = sizes.tolist()
        padded = self._own.new_zeros((max(self.counts), *values.shape[1:]))  # all_gather needs equal shapes
        padded[: len(values)] = self._own
        self._parts = [torch.empty_like(padded) for _ in self.counts]
        self._work = dist.all_gather(self._parts, padded, async_op=True)

    @property
    def first(self) -> int:
        """Where this rank's own rows begin."""
        return sum(self.counts[: dist.get_rank()]) if len(self.counts) > 1 else 0

    def rows(self) -> Tensor:
        """The rows of all ranks."""
        if self._rows is None:
            self._work.wait()
            self._rows = torch.cat([part[:count] for part, count in zip(self._parts, self.counts)])
            del self._parts
        return self._rows


def gather_rows(values: Tensor) -> Tensor:
    """The rows of every rank, as `Gathering` has them, with gradient.

    The gradient of a row is the sum of its gradients on all ranks. Every rank must take part in the backward pass.
    """
    return values if _world_size() == 1 else _GatherRows.apply(values)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        gathering = Gathering(values)
        ctx.first, ctx.count = gathering.first, len(values)
        return gathering.rows()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count]
