"""What the host learns of a batch before it goes to the GPU: read there later, each of it would make the host wait."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.boundaries import pbc_differ
from fairchem_crack.named_records import free_atoms


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch, in place as PyG does; `free_rows`, `movable_rows` and `pbc_differ` of it then cost no wait."""
    if keys.FREE_ROWS not in batch and batch.pos.device != device:
        batch[keys.FREE_ROWS], batch[keys.MOVABLE_ROWS] = free_rows(batch), movable_rows(batch)
        batch[keys.PBC_DIFFER] = pbc_differ(batch)
    return batch.to(device, non_blocking=True)


def free_rows(batch: Batch) -> Tensor:
    """(N_free,) long, the atoms that are not fixed."""
    return batch[keys.FREE_ROWS] if keys.FREE_ROWS in batch else free_atoms(batch).nonzero()[:, 0]


def movable_rows(batch: Batch) -> Tensor:
    """(N',) long, the atoms of the systems that have a free atom."""
    if keys.MOVABLE_ROWS in batch:
        return batch[keys.MOVABLE_ROWS]
    free = free_atoms(batch)
    free_of_system = torch.zeros_like(batch.natoms).index_add(0, batch.batch, free.to(batch.natoms.dtype))  # (B,)
    return (free_of_system > 0)[batch.batch].nonzero()[:, 0]
