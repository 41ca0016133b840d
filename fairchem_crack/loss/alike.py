"""Which pairs of atoms are alike: of the same two elements, and as far apart. Pure torch."""

from __future__ import annotations

import torch
from torch import Tensor

BIN = 0.2  # A, of the distance
LARGEST = 1 << 10  # bins


def groups_of_pairs(
    pairs: Tensor, atomic_numbers: Tensor, positions: Tensor, cells: Tensor, periodic: Tensor, systems: Tensor
) -> Tensor:
    """(P,) long, from 0 on, equal for two pairs of the same elements and the same bin of the distance.

    The distance is that of the nearest image, by rounding fractional coordinates; in a very skewed cell another image may
    be nearer.

    Args:
        pairs: (2, P) atoms of one system.
        atomic_numbers: (N,).
        positions: (N, 3) A.
        cells: (B, 3, 3) A, a lattice vector in each row; zeros where there is none.
        periodic: (B, 3) bool.
        systems: (N,) the system of each atom.
    """
    system = systems[pairs[0]]
    difference = positions[pairs[0]] - positions[pairs[1]]  # (P, 3)
    fractional = torch.einsum("px,pxy->py", difference, torch.linalg.pinv(cells)[system])
    images = fractional.round() * periodic[system]
    distance = (difference - torch.einsum("px,pxy->py", images, cells[system])).norm(dim=1)
    length = torch.div(distance, BIN, rounding_mode="floor").long().clamp(max=LARGEST - 1)
    numbers = atomic_numbers.long()[pairs].sort(dim=0).values
    return torch.unique((numbers[0] * LARGEST + numbers[1]) * LARGEST + length, return_inverse=True)[1]
