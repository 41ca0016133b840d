"""A dataset whose unreadable records are named."""

from __future__ import annotations

from torch.utils.data import Dataset
from torch_geometric.data import Data


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
