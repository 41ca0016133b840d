"""All ranks' rows on every rank, with gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def gather_rows(values: Tensor) -> tuple[Tensor, list[int]]:
    """The rows (dim 0) of every rank, in the order of the ranks, and how many each has; any number, also none.

    The gradient of a row is the sum of what all ranks make of it. Every rank must take part in the backward pass.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values, [len(values)]
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.long, device=values.device)
    sizes[dist.get_rank()] = len(values)
    dist.all_reduce(sizes)
    counts = sizes.tolist()
    return _GatherRows.apply(values, counts), counts


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, counts: list[int]) -> Tensor:
        ctx.first = sum(counts[: dist.get_rank()])
        ctx.count = len(values)
        padded = values.new_zeros((max(counts), *values.shape[1:]))  # all_gather wants equal shapes
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.count], None
