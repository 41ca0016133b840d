"""An exported student as a model of torch-sim >= 0.6: batches of systems, without fairchem."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from fairchem_crack.export.batches import BatchPairs
from fairchem_crack.export.neighbors import SKIN
from fairchem_crack.export.student import read_student
from fairchem_crack.export.systems import check_elements, check_positions


class StudentModel(ModelInterface):
    """Energies (B,) in eV and forces (N, 3) in eV/A; no stress, which these students do not predict.

    Args:
        path: a file of `fairchem-crack export`.
        device: where states are; the CPU by default.
        dtype: of weights and outputs.
        skin: A, of the neighbor lists, see `neighbors.Pairs`.
    """

    def __init__(
        self,
        path: Union[str, Path],
        *,
        device: Optional[torch.device] = None,
        dtype: torch.dtype = torch.float32,
        skin: float = SKIN,
    ) -> None:
        super().__init__()
        self._device, self._dtype = torch.device(device or "cpu"), dtype
        self._compute_forces, self._compute_stress = True, False
        self.student = read_student(Path(path), self._device, dtype)
        self._memory_scales_with = "n_atoms" if self.student.info.max_neighbors else "n_atoms_x_density"
        self.pairs = BatchPairs(self.student.info.rule, skin)

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """`energy` and `forces` of a state.

        Raises:
            ValueError: an unknown element, positions that are not finite, or a periodic system without a cell.
        """
        positions = state.positions.detach()
        numbers, system = state.atomic_numbers.long(), state.system_idx.long()
        on_host = positions.double().cpu().numpy()
        check_positions(on_host)
        check_elements(numbers.cpu().numpy(), self.student.info)
        cells = state.row_vector_cell.detach()
        systems = len(cells)
        pbc = np.broadcast_to(state.pbc.cpu().numpy(), (systems, 3))
        pairs, shifts, cells = self.pairs(on_host, cells.double().cpu().numpy(), pbc, system.cpu().numpy())
        arrays = [torch.from_numpy(array).to(self._device) for array in (cells, pairs, shifts)]
        energy, forces, _atom_energies = self.student(numbers, positions, *arrays, system)
        return {"energy": energy.to(self._dtype).clone(), "forces": forces.to(self._dtype).clone()}
