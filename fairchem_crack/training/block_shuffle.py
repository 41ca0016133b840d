"""The order of an epoch: blocks of neighbouring systems in random order, mixed by a shuffle buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from fairchem.core.common.data_parallel import StatefulDistributedSampler

from fairchem_crack.config import ShuffleConfig


def block_shuffle(length: int, *, block: int, buffer: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of `length` systems that reads nearly in sequence.

    Blocks of `block` neighbours follow each other in random order. A buffer takes the next `buffer` of these systems, and
    gives them in random order before it takes others. So the places k * buffer to (k + 1) * buffer - 1 have the systems of
    at most buffer / block + 1 blocks; a buffer for all systems shuffles uniformly.

    Returns:
        (length,) each index once; the same for the same arguments.
    """
    rng = np.random.default_rng((seed, epoch))
    blocks = rng.permutation(-(-length // block))
    order = (blocks[:, None] * block + np.arange(block)).ravel()
    order = order[order < length]  # the last block may be short
    for begin in range(0, length, buffer):
        rng.shuffle(order[begin : begin + buffer])
    return order


class BlockSampler(StatefulDistributedSampler):
    """fairchem's sampler of a rank, with the order of `block_shuffle`; its length, padding and resumption are fairchem's.

    A rank takes consecutive places of the order, where fairchem's takes every n-th: it has a buffer of its own, and no other
    rank reads its blocks.
    """

    def __init__(self, sampler: StatefulDistributedSampler, shuffle: ShuffleConfig) -> None:
        same = {name: getattr(sampler, name) for name in ("num_replicas", "rank", "seed", "drop_last")}
        super().__init__(sampler.dataset, sampler.batch_size, shuffle=True, **same)
        self._buffer = {"block": shuffle.block, "buffer": shuffle.buffer}

    def __iter__(self) -> Iterator[Any]:
        order = block_shuffle(len(self.dataset), **self._buffer, seed=self.seed, epoch=self.epoch)
        places = np.arange(self.start_iter * self.batch_size, self.num_samples) + self.rank * self.num_samples
        return map(int, order[places % len(order)])  # beyond its end the order begins again, as fairchem pads
