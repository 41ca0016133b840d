"""Read the next batch while a step computes, where fairchem's loader has no workers: `--num-gpus` allows it none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Union

import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch


class ReadAhead:
    """The batches of a loader without workers, in its order; a thread reads one while the caller uses the one before.

    The batch sampler runs in the caller's thread, one batch ahead of the loader's own: fairchem's balanced one talks to the
    other ranks. What is read must not depend on torch's random numbers, which both threads draw from. An error of a read
    is raised where its batch would be. The thread ends with the last read, or with the iterator.

    Attributes:
        dataset: the loader's.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.dataset = loader, loader.dataset
        self._sampler: Any = loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        following: Union[Future[Batch], None] = None
        with ThreadPoolExecutor(1, "read-ahead", *_on_current_gpu()) as thread:
            for indices in self._sampler:
                current, following = following, thread.submit(self._read, indices)
                if current is not None:
                    yield current.result()
        if following is not None:
            yield following.result()

    def _read(self, indices: Sequence[int]) -> Batch:
        batch = self.loader.collate_fn([self.dataset[index] for index in indices])
        return batch.pin_memory() if self.loader.pin_memory and torch.cuda.is_available() else batch


def _on_current_gpu() -> tuple[Any, ...]:
    """Initializer of a thread, whose current GPU, where memory is pinned, would be the first one."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_available() else ()


def read_ahead(loader: DataLoader) -> Any:
    """The loader, read ahead by a thread if it has no workers that do."""
    return loader if loader.num_workers else ReadAhead(loader)
