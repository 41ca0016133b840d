"""A dataset whose unreadable records are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

NAMED = 8  # systems that a message lists


class NamedRecords(Dataset):
    """A dataset of fairchem that says which of its records cannot be read. Read by the loader's workers."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Data:
        """Raise ValueError by the name of the record."""
        try:
            return self.dataset[index]
        except Exception as error:
            raise ValueError(
                f"{self.name}: system {int(index)} cannot be read ({type(error).__name__}: {error}). Is a file of "
                f"{self.name}.src damaged or cut short? Put it right and start the command again."
            ) from error


def ids_of(batch: Batch) -> Optional[list[str]]:
    """The `sid` of each system of a batch, numbers or strings; None for data without."""
    if "sid" not in batch:
        return None
    return [_word(sid) for sid in batch.sid]


def listed(batch: Batch, chosen: Optional[Sequence[int]] = None) -> str:
    """The first few of a batch's systems, or of the `chosen` ones, by `sid` or else by their number in the batch."""
    numbers = list(range(len(batch.natoms)) if chosen is None else chosen)
    ids = ids_of(batch)
    shown = ", ".join(str(number) if ids is None else ids[number] for number in numbers[:NAMED])
    return f"{'number' if ids is None else 'sid'} {shown}{', ...' if len(numbers) > NAMED else ''}"


def _word(sid: Any) -> str:
    return str(sid.tolist() if isinstance(sid, Tensor) else sid)
