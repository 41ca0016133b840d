"""How alike the student's relations and the teacher's are, and where their node embeddings lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from torch import Tensor

from fairchem_crack.evaluation.report.predict import Embeddings
from fairchem_crack.loss.relations import relation_vectors, unit_embedding

SHOWN_PAIRS = 60  # of the matrices
SAMPLED_PAIRS = 1000  # of the histogram
SHOWN_ATOMS = 3000  # of the PCA


@dataclass(frozen=True)
class Similarity:
    """Cosines between relations of a random sample of pairs.

    Attributes:
        own: (P,) s_e . t_e, each student relation with its own teacher relation.
        others: (P (P - 1),) s_e . t_f, f != e.
        top1: fraction of student relations nearest to their own teacher relation among the 2P of the sample.
        matrix: (60, 60) s_e . t_f.
        reference: (60, 60) t_e . t_f.
    """

    own: np.ndarray
    others: np.ndarray
    top1: float
    matrix: np.ndarray
    reference: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Embeddings in a plane: (N, 2) coordinates, and the fraction of the variance along each axis."""

    points: np.ndarray
    variance: tuple[float, float]


@dataclass(frozen=True)
class Planes:
    """PCA of the node embeddings of both models.

    Attributes:
        atomic_numbers: (N,).
        shared: both are drawn along the teacher's two leading components; else each along its own.
    """

    atomic_numbers: np.ndarray
    teacher: Plane
    student: Plane | None
    shared: bool


def similarity(embeddings: Embeddings, *, seed: int = 0) -> Similarity | None:
    """Compare the relations of up to 1000 random pairs; None where the student is not projected, or has no two relations.

    A relation points from the lighter atom to the heavier one, so that those of like pairs point alike; the pairs of the
    matrices are ordered by the teacher (average linkage of its cosines).
    """
    if embeddings.student is None or embeddings.lacking:
        return None
    pairs, numbers = embeddings.pairs, torch.from_numpy(embeddings.atomic_numbers)
    pairs = torch.where(numbers[pairs[0]] > numbers[pairs[1]], pairs.flip(0), pairs)
    student, teacher = (
        relation_vectors(embedding.double(), pairs) for embedding in (embeddings.student, embeddings.teacher)
    )
    has_direction = (student.abs().amax(dim=1) > 0) & (teacher.abs().amax(dim=1) > 0)
    kept = has_direction.nonzero()[:, 0].numpy()
    if len(kept) < 2:
        return None
    chosen = np.random.default_rng(seed).permutation(kept)[:SAMPLED_PAIRS]
    student, teacher = student[chosen], teacher[chosen]
    cosines = (student @ teacher.T).numpy()  # (P, P)
    own, is_own = np.diag(cosines), np.eye(len(chosen), dtype=bool)
    order = _ordered(teacher[:SHOWN_PAIRS])
    return Similarity(
        own=own,
        others=cosines[~is_own],
        top1=float((own >= np.abs(np.where(is_own, 0, cosines)).max(axis=1)).mean()),
        matrix=cosines[np.ix_(order, order)],
        reference=(teacher[order] @ teacher[order].T).numpy(),
    )


def _ordered(relations: Tensor) -> np.ndarray:
    """Order in which like relations are neighbors."""
    return leaves_list(linkage(relations.numpy(), "average", metric="cosine", optimal_ordering=True))


def planes(embeddings: Embeddings, *, seed: int = 0) -> Planes:
    """The unit embeddings of up to 3000 atoms, each model's around its own mean: relations are differences of them."""
    count = len(embeddings.atomic_numbers)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:SHOWN_ATOMS])
    teacher = _centred(embeddings.teacher)
    axes = _components(teacher)
    shared = embeddings.student is not None and not embeddings.lacking
    student = None
    if embeddings.student is not None:
        centred = _centred(embeddings.student)
        student = _plane(centred, axes if shared else _components(centred), chosen)
    return Planes(embeddings.atomic_numbers[chosen], _plane(teacher, axes, chosen), student, shared)


def _centred(embedding: Tensor) -> np.ndarray:
    unit = unit_embedding(embedding.double()).numpy()
    return unit - unit.mean(axis=0)


def _components(centred: np.ndarray) -> np.ndarray:
    """(2, D) leading principal components, each with its largest entry positive."""
    leading = np.linalg.svd(centred, full_matrices=False)[2][:2]
    signs = np.sign(leading[np.arange(len(leading)), np.abs(leading).argmax(axis=1)])
    return leading * signs[:, None]


def _plane(centred: np.ndarray, axes: np.ndarray, chosen: np.ndarray) -> Plane:
    points = centred @ axes.T
    fraction = points.var(axis=0) / max(centred.var(axis=0).sum(), np.finfo(float).tiny)
    return Plane(points[chosen], (float(fraction[0]), float(fraction[1])))
