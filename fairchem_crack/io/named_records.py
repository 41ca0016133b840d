"""A dataset whose unusable records are named, and whose others have all that a trainer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from fairchem_crack.io.boundaries import as_pbc, without_volume

NAMED = 8  # systems that a message lists


class NamedRecords(Dataset):
    """A dataset of fairchem that says which of its records cannot be used. Read by the loader's workers.

    A record without `fixed` gets it: all its atoms are free. So does one without `natoms`; a `pbc` that is no tensor becomes
    one.
    """

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Data:
        """Raise ValueError by the name of the record."""
        try:
            system = self.dataset[index]
        except Exception as error:
            raise ValueError(
                f"{self.name}: system {int(index)} cannot be read ({type(error).__name__}: {error}). Is a file of "
                f"{self.name}.src damaged or cut short? Put it right and start the command again."
            ) from error
        atoms = len(system.pos)
        fault = "no atoms" if not atoms else "" if torch.isfinite(system.pos).all() else "positions that are not finite"
        if fault:
            sid = f" (sid {_word(system.sid)})" if "sid" in system else ""
            raise ValueError(f"{self.name}: system {int(index)}{sid} has {fault}. Leave it out.")
        if "natoms" not in system:
            system.natoms = atoms
        if "fixed" not in system:
            system.fixed = torch.zeros(atoms, dtype=torch.int)
        if "pbc" in system and not isinstance(system.pbc, Tensor):
            system.pbc = as_pbc(system.pbc)
        return system


def free_atoms(batch: Batch) -> Tensor:
    """(N,) bool, the atoms that are not fixed; all of data without `fixed`."""
    if "fixed" in batch:
        return batch.fixed == 0
    return torch.ones(batch.num_nodes, dtype=torch.bool, device=batch.pos.device)


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


def check_cells(batch: Batch, where: str) -> None:
    """Raise ValueError for a periodic system whose cell has no volume, in which fairchem looks for images without end."""
    flat = without_volume(batch)
    if flat.any():
        raise ValueError(
            f"{where}: systems of {listed(batch, flat.nonzero()[:, 0].tolist())} are periodic, and their cells have no "
            "volume. Leave such systems out, or give them their `pbc`."
        )


def _word(sid: Any) -> str:
    return str(sid.tolist() if isinstance(sid, Tensor) else sid)
