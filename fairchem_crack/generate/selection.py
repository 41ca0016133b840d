"""Of many systems, those that add most to others: farthest-point sampling in the teacher's embedding space."""

from __future__ import annotations

import numpy as np

from fairchem_crack import keys
from fairchem_crack.teacher.cache import Record

MISSING = "farthest-point sampling needs scikit-matter, for Python 3.11 and later: pip install 'skmatter>=0.4'."


def system_embedding(record: Record, is_adsorbate: np.ndarray) -> np.ndarray:
    """The mean of a system's node embeddings, over its adsorbate and over its other atoms.

    s = (mean of b_i over the adsorbate, mean of b_i over the rest); 0 for a group without atoms. Means over atomic
    environments compare systems as the average kernel does (De, Bartok, Csanyi, Ceriotti 2016). In one mean over all
    atoms, those of the surface would hide the few of the adsorbate.

    Args:
        record: teacher outputs of N atoms, with (N, D) node embeddings.
        is_adsorbate: (N,) bool.

    Returns:
        (2 D,) float64.

    Raises:
        ValueError: the record has no node embeddings.
    """
    if keys.NODE_EMBEDDING not in record.values:
        raise ValueError("these teacher outputs have no node embeddings, by which systems are compared.")
    embedding = record.values[keys.NODE_EMBEDDING].astype(np.float64)
    groups = (embedding[is_adsorbate], embedding[~is_adsorbate])
    return np.concatenate([group.sum(axis=0) / max(len(group), 1) for group in groups])


def farthest(candidates: np.ndarray, count: int, present: np.ndarray) -> np.ndarray:
    """Choose the candidates that are farthest from what is present and from each other, by farthest-point sampling.

    Each is the candidate of the largest min over the chosen and the present of |x - y|, every channel scaled to unit
    variance over all systems (Imbalzano et al. 2018, for reference configurations of potentials).

    Args:
        candidates: (n, D).
        count: how many to choose, at most n.
        present: (m, D), m may be 0.

    Returns:
        (count,) indices of candidates, ascending.

    Raises:
        ValueError: there are fewer candidates, or scikit-matter is not installed.
    """
    if not 0 <= count <= len(candidates):
        raise ValueError(f"cannot choose {count} of {len(candidates)} candidates.")
    if count in (0, len(candidates)):
        return np.arange(count)
    check_installed()
    from sklearn.preprocessing import StandardScaler
    from skmatter.sample_selection import FPS

    points = StandardScaler(copy=False).fit_transform(np.concatenate([present, candidates], dtype=np.float64))
    first = len(present)
    selector = FPS(initialize=list(range(first)), n_to_select=first + count).fit(points)
    return np.sort(selector.selected_idx_[first:] - first)


def check_installed() -> None:
    """Raise ValueError where the library of `farthest` is missing."""
    try:
        import skmatter.sample_selection  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{MISSING} ({error})") from error
