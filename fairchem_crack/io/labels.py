"""Labels that a record may lack: such records are read, and collated with others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.preprocessing import AtomsToGraphs
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from fairchem_crack import keys


class OptionalLabels(Dataset):
    """A dataset of fairchem, every system with a label of each output: NaN where it has none. Read by the loader's workers.

    fairchem's collater takes only systems with the same fields.

    Args:
        names: of the outputs, by property: `keys.ENERGY`, `keys.FORCES`.
    """

    def __init__(self, dataset: Dataset, names: Mapping[str, str]) -> None:
        self.dataset, self.names = dataset, names
        read_unlabelled(dataset)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Data:
        """System `index`, its labels in float32, as fairchem's formats have them."""
        system = self.dataset[index]
        for property_, name in self.names.items():
            if name not in system or system[name] is None:
                system[name] = math.nan if property_ == keys.ENERGY else torch.full_like(system.pos, math.nan)
            label = torch.as_tensor(system[name], dtype=torch.float32)
            system[name] = label.view(-1) if property_ == keys.ENERGY else label
        return system


def is_missing(batch: Batch, name: str, property_: str) -> Tensor:
    """(B,) bool, the systems whose label has a NaN: in the energy, or in the forces on any of their atoms."""
    unknown = batch[name].isnan().view(len(batch[name]), -1).any(dim=1)
    if property_ == keys.ENERGY:
        return unknown
    of_system = torch.zeros_like(batch.natoms).index_add(0, batch.batch, unknown.to(batch.natoms.dtype))
    return of_system > 0


def is_of_teacher(batch: Batch, property_: str) -> Tensor:
    """(B,) bool, the systems whose label in the data is a teacher's, as `generate` notes it."""
    field = keys.OF_TEACHER[property_]
    return torch.as_tensor(batch[field]) if field in batch else torch.zeros_like(batch.natoms, dtype=torch.bool)


def read_unlabelled(dataset: Any) -> None:
    """Let a dataset of ASE's formats read systems without energy or forces, which fairchem cannot where it reads labels."""
    while isinstance(getattr(dataset, "dataset", None), Dataset):  # a subset, or what names the records
        dataset = dataset.dataset
    if type(getattr(dataset, "a2g", None)) is AtomsToGraphs:
        dataset.a2g = _OptionallyLabelled(**vars(dataset.a2g))


class _OptionallyLabelled(AtomsToGraphs):
    """fairchem's conversion of ASE's Atoms, with NaN for labels that these do not have."""

    def convert(self, atoms: Atoms, sid: Optional[Any] = None) -> Data:
        results = dict(getattr(atoms.calc, "results", {}))
        lacking = {"energy": math.nan, "forces": np.full((len(atoms), 3), math.nan)}
        requested = {"energy": self.r_energy, "forces": self.r_forces}
        if any(requested[name] and name not in results for name in lacking):
            atoms.calc = SinglePointCalculator(atoms, **{**lacking, **results})
        return super().convert(atoms, sid)
