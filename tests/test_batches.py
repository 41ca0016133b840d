"""What the host knows of a batch that is on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.io.batches import free_rows, movable_rows, to_device
from fairchem_crack.io.boundaries import pbc_differ


def system(fixed: list[int], pbc: tuple[bool, bool, bool]) -> Data:
    atoms = len(fixed)
    return Data(pos=torch.zeros(atoms, 3), natoms=atoms, fixed=torch.tensor(fixed), pbc=torch.tensor(pbc))


@pytest.mark.parametrize("second, differ", [((True, True, False), True), ((True, True, True), False)])
def test_a_batch_holds_its_free_atoms_and_pbc(second, differ, device):
    systems = [system([1, 0, 0], (True,) * 3), system([1, 1], (True,) * 3), system([0], second)]
    batch = to_device(Batch.from_data_list(systems), device)
    assert batch.pos.device.type == torch.device(device).type
    assert free_rows(batch).tolist() == [1, 2, 5]
    assert movable_rows(batch).tolist() == [0, 1, 2, 5]
    assert pbc_differ(batch) is differ
    known = {keys.FREE_ROWS, keys.MOVABLE_ROWS, keys.PBC_DIFFER}
    assert known <= set(batch.keys()) or torch.device(device).type == "cpu"
