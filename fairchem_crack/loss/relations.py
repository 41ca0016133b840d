"""From edges to pairs, from pairs to relations. Pure torch.

A relation is the directed unit vector between the embeddings of two atoms of one system (CRACK, Lim, Choung, Han 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Two unit embeddings closer than this many rounding errors have no direction between them.
COINCIDENCE_ULPS = 128
# Two unit embeddings closer than this have a direction, whose gradient is bounded: that of a pair this far apart.
NEAR = 1e-3
# An embedding whose largest entry is below this has no direction: its gradient, ~1/|z|, would leave the range of float32.
SMALLEST_EMBEDDING = 1e-20


def unordered_pairs(edge_index: Tensor, num_atoms: int) -> Tensor:
    """The pairs of distinct atoms joined by at least one edge.

    Both directions of an edge and all its periodic images are one pair; an atom with its own image is none.

    Args:
        edge_index: (2, E) long, atoms of the batch; an edge joins two atoms of one system.
        num_atoms: N, atoms of the batch.

    Returns:
        (2, P) long, i < j, sorted by i then j, hence also by system.
    """
    low, high = edge_index.amin(dim=0), edge_index.amax(dim=0)
    code = torch.where(low != high, low * num_atoms + high, -1)  # -1: an atom with its own image
    code = torch.unique(torch.cat((code, code.new_full((1,), -1))))[1:]  # (P,), sorted; the first is -1, now always there
    return torch.stack((torch.div(code, num_atoms, rounding_mode="floor"), code % num_atoms))


def has_direction(embedding: Tensor) -> Tensor:
    """(N,) bool: False where an embedding is zero, or too small, so that it has no unit vector.

    A non-finite embedding is not hidden: its NaN reaches the loss.
    """
    return ~(embedding.detach().abs().amax(dim=-1) <= SMALLEST_EMBEDDING)


def unit_embedding(embedding: Tensor) -> Tensor:
    """Scale each embedding to unit length, z^ = z / |z|; zero, with zero gradient, where `has_direction` is False.

    Divided by the largest entry first, so that |z|^2 neither overflows nor underflows.

    Args:
        embedding: (N, D) floating.

    Returns:
        (N, D), float32, or float64 for a float64 input.
    """
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    valid = has_direction(embedding)[:, None]
    largest = embedding.detach().abs().amax(dim=-1, keepdim=True)
    scaled = torch.where(valid, embedding / torch.where(valid, largest, 1), 1)  # any direction, masked below
    return torch.where(valid, scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True), 0)


def pair_difference(unit: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Differences z^_i - z^_j of unit embeddings, (P, D), their lengths, (P,), and which have a direction, (P,) bool.

    A pair has none where its embeddings coincide, or one of them is zero. The gradient of a direction, d(d/|d|), is of
    the order of 1/|d|; where |d| < `NEAR` it is multiplied by |d| / NEAR, so that a few pairs of nearly equivalent atoms
    do not dominate the clipped gradient of a step. Values are not changed.
    """
    difference = unit.index_select(0, pairs[0]) - unit.index_select(0, pairs[1])
    if difference.requires_grad:
        damping = (torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True) / NEAR).clamp(max=1)  # (P, 1)
        difference.register_hook(lambda gradient: None if gradient is None else gradient * damping)
    length = torch.linalg.vector_norm(difference, dim=-1)
    is_zero = ~unit.detach().bool().any(dim=-1)
    coincide = length.detach() <= COINCIDENCE_ULPS * torch.finfo(unit.dtype).eps
    return difference, length, ~(coincide | is_zero[pairs[0]] | is_zero[pairs[1]])


def relation_vectors(embedding: Tensor, pairs: Tensor) -> Tensor:
    """Unit difference of two atoms' embeddings, one row per pair.

    r_ij = unit(z^_i - z^_j), z^ the embedding scaled to unit length; r_ji = -r_ij (CRACK, Lim et al. 2025).

    Args:
        embedding: (N, D) invariant node embedding, dimensionless.
        pairs: (2, P) long, i < j, both atoms of one system.

    Returns:
        (P, D); a zero row, with zero gradient, where the pair has no direction.
    """
    difference, length, valid = (values[..., None] for values in pair_difference(unit_embedding(embedding), pairs))
    return torch.where(valid, difference[..., 0] / torch.where(valid, length, 1), 0)


def relation_lengths(embedding: Tensor, pairs: Tensor) -> Tensor:
    """Distance of two atoms' embeddings, in units of the mean distance of all pairs.

    d_ij = |z_i - z_j| / mean over the pairs of |z_k - z_l| (Park et al. 2019, equation 3). Whatever the embedding's scale.

    Args:
        embedding: (N, D) invariant node embedding, dimensionless.
        pairs: (2, P) long.

    Returns:
        (P, 1); 0, with zero gradient, where two embeddings coincide.
    """
    difference = embedding.index_select(0, pairs[0]) - embedding.index_select(0, pairs[1])
    length = torch.linalg.vector_norm(difference, dim=1, keepdim=True)  # whose gradient is 0 at 0
    return length / length.mean().clamp(min=torch.finfo(length.dtype).tiny)
