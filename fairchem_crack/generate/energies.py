"""Whether the energies of a generated dataset, of the data and of the teacher, have one zero."""

from __future__ import annotations

import logging

import torch
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.generate.unit import Kept
from fairchem_crack.training.agreement import energy_agreement, explanation

COMPARED = 64  # systems


class Energies:
    """The energies of the first parents that keep the data's, and the teacher's of the same systems."""

    def __init__(self) -> None:
        self._systems: list[Data] = []
        self._energies: list[tuple[float, float]] = []

    def add(self, kept: Kept) -> None:
        """See a system of the dataset."""
        if kept.row["labels"][keys.ENERGY] == "data" and len(self._systems) < COMPARED:
            self._systems.append(Data(pos=kept.system.pos, atomic_numbers=kept.system.atomic_numbers))
            self._energies.append((kept.labels[keys.ENERGY], kept.row["teacher_energy"]))

    def warn_of_another_zero(self) -> None:
        """Warn where those of the data have another zero, for each element or for all: the dataset then has two."""
        if not self._systems:
            return
        labels, teacher = torch.tensor(self._energies, dtype=torch.float64).T
        agreement = energy_agreement(labels, teacher, Batch.from_data_list(self._systems))
        if not agreement.is_plausible:
            logging.warning(
                "The parents keep their energies of the data, and all other systems have the teacher's: "
                + explanation(agreement, [])
            )
