"""Rows of the Jacobian of the forces with respect to the positions: minus rows of the Hessian, eV/A^2.

For a coordinate k (an atom and x, y or z) a row of a conservative force field is d F_k / d x = d F / d x_k = -d2E / dx dx_k.
The student's is the first form, one extra backward pass; the teacher's the second, a central difference of its forces, for
EquiformerV2 and eSCN detach the rotations of their edges, so that autograd does not provide the whole derivative of their
forces. The Hessian is symmetric, and both forms are estimates of the same numbers where forces are not exactly conservative.
Source of matching Hessian rows: Amin, Raja, Krishnapriyan 2025.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack.io.named_records import free_atoms

DISPLACEMENT = 0.01  # A; of the central difference, whose error is of second order in it


class JacobianRows(NamedTuple):
    """One row for each system.

    Attributes:
        coordinates: (B,) long, 3 * atom of the batch + component; -1 for a system without a free atom.
        values: (N, 3) eV/A^2, in the rows of a system's atoms its own row of the Jacobian.
    """

    coordinates: Tensor
    values: Tensor


def draw_coordinates(batch: Batch, seed: int) -> Tensor:
    """(B,) a random coordinate of a free atom of each system, see `JacobianRows`."""
    free = free_atoms(batch).to(batch.natoms.dtype)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(batch.natoms), generator=generator, dtype=torch.float64)  # in [0, 1)
    drawn = drawn.to(batch.pos.device, non_blocking=True)
    count = torch.zeros_like(batch.natoms).index_add(0, batch.batch, free)  # (B,) free atoms of each system
    chosen = (drawn * (3 * count)).long()  # (B,) among the coordinates of the system's free atoms
    number = count.cumsum(0) - count + torch.div(chosen, 3, rounding_mode="floor")  # of the atom, among all free ones
    atom = torch.searchsorted(free.cumsum(0), number + 1)
    return torch.where(count > 0, 3 * atom + chosen % 3, -1)


def to_keep(rows: JacobianRows, batch: Batch) -> Tensor:
    """(N, 4) as a teacher cache keeps a row: its values, and in the row of the atom of k 1 + its component."""
    marks = torch.zeros(batch.num_nodes, device=rows.values.device)
    chosen = rows.coordinates[rows.coordinates >= 0]
    marks[chosen // 3] = (1 + chosen % 3).to(marks.dtype)
    return torch.cat((rows.values, marks[:, None]), dim=1)


def kept_coordinates(kept: Tensor) -> list[Tensor]:
    """The coordinate (1,) of each of the kept rows of one system.

    Args:
        kept: (N, rows, 4), see `to_keep`.
    """
    coordinates = []
    for marks in kept[:, :, 3].T:  # (N,)
        atom = marks.nonzero()[:, 0]
        coordinates.append(3 * atom + marks[atom].long() - 1 if len(atom) else torch.tensor([-1]))
    return coordinates


def choose_rows(batch: Batch, kept: Tensor, seed: int) -> JacobianRows:
    """A random one of the kept rows of each system.

    Args:
        kept: (N, rows, 4), see `to_keep`.
    """
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(kept.shape[1], (len(batch.natoms),), generator=generator)
    row = row.to(kept.device, non_blocking=True)  # (B,)
    atoms = torch.arange(len(kept), device=kept.device)
    chosen = kept[atoms, row[batch.batch]]  # (N, 4)
    mark = chosen[:, 3].long()  # 0 but for one atom of each system that had a free one
    marked = torch.where(mark > 0, 3 * atoms + mark - 1, -1)
    coordinates = torch.full((len(batch.natoms),), -1, device=kept.device).scatter_reduce(0, batch.batch, marked, "amax")
    return JacobianRows(coordinates, chosen[:, :3])


def jacobian_columns(forces_of: Callable[[Batch], Tensor], batch: Batch, coordinates: Tensor) -> Tensor:
    """(N, 3) d F / d x_k of each system by a central difference; two evaluations for the whole batch.

    Args:
        forces_of: (N, 3) forces of a batch.
        coordinates: of the displaced atoms, see `JacobianRows`.
    """
    forces = []
    is_displaced = (coordinates >= 0).to(batch.pos.dtype)  # (B,)
    for sign in (1, -1):
        moved = copy.copy(batch)
        moved.pos = batch.pos.detach().clone()
        moved.pos.view(-1).index_add_(0, coordinates.clamp(min=0), is_displaced * (sign * DISPLACEMENT))
        forces.append(forces_of(moved))
    return (forces[0] - forces[1]) / (2 * DISPLACEMENT)


def jacobian_rows(forces: Tensor, positions: Tensor, coordinates: Tensor) -> Tensor:
    """(N, 3) d F_k / d x of each system, differentiable; one backward pass for the whole batch.

    Args:
        forces: (N, 3), computed from positions that require a gradient.
        positions: (N, 3).
        coordinates: see `JacobianRows`; the systems do not interact, so that one sum serves all.
    """
    chosen = torch.where(coordinates >= 0, forces.reshape(-1)[coordinates.clamp(min=0)], 0)  # (B,)
    (rows,) = torch.autograd.grad(chosen.sum(), positions, create_graph=True)
    return rows
