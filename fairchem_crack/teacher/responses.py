"""How node embeddings z and forces F respond to a displacement of the atoms: (z(x + h u) - z(x)) / h, per A; F likewise.

u is random, one for each system, and moves its free atoms. A force needs no more of an embedding than its first derivative,
which this is along u. The response of the forces is J u of their Jacobian J, of which `force_jacobian` has rows: a student
runs once more for it, where a row takes a second derivative. Both models take the same difference, of the same u and h.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.io.named_records import free_atoms
from fairchem_crack.teacher.cache import RESPONSE_STEP

STEP = RESPONSE_STEP
OF_RESPONSE = {keys.EMBEDDING_RESPONSE: keys.NODE_EMBEDDING, keys.FORCE_RESPONSE: keys.FORCES}  # what changes


class Response(NamedTuple):
    """Of the atoms of a batch.

    Attributes:
        displacement: (N, 3) h u, A; 0 for fixed atoms.
        values: the response of the node embedding, (N, D) in 1/A, or of the forces, (N, 3) in eV/A^2.
    """

    displacement: Tensor
    values: Tensor


def draw_displacement(batch: Batch, seed: int) -> Tensor:
    """(N, 3) a random displacement of the free atoms, h u."""
    drawn = torch.randn(batch.num_nodes, 3, generator=torch.Generator().manual_seed(seed))
    return STEP * drawn.to(batch.pos.device, batch.pos.dtype, non_blocking=True) * free_atoms(batch)[:, None]


def displaced(batch: Batch, displacement: Tensor) -> Batch:
    """The systems after a displacement (N, 3); all but the positions is shared."""
    moved = copy.copy(batch)
    moved.pos = batch.pos.detach() + displacement
    return moved


def to_keep(response: Response) -> Tensor:
    """(N, 3 + D) or (N, 3 + 3), as a teacher cache keeps it."""
    return torch.cat((response.displacement.to(response.values.dtype), response.values), dim=1)


def kept(values: Tensor) -> Response:
    """The inverse of `to_keep`."""
    return Response(values[:, :3], values[:, 3:])
