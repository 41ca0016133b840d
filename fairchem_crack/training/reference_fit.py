"""Element references by least squares, also from few compositions: what these do not determine is taken from a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

STRENGTHS = np.logspace(-12, 0, 25)  # of the ridge, of the largest squared singular value; the best one is chosen
DETERMINED = 0.9  # share of a reference that the compositions determine; below it the prior decides


@dataclass(frozen=True)
class ReferenceFit:
    """References of the E elements that S systems contain.

    Attributes:
        elements: (E,) atomic numbers.
        references: (E,) eV.
        determined: (E,) share of each reference that the compositions determine, from 0 to 1; the rest is the prior's.
        systems: (E,) how many contain each element.
        compositions: number of different ones.
        per_atom: eV, energy of an atom of any element, by least squares.
        deviation: eV, mean absolute, of the energies from their mean.
        residuals: (S,) eV, energy minus the references of a system's atoms.
        left_out: eV, mean absolute error for a composition that the fit has not seen; None where there is one composition.
    """

    elements: np.ndarray
    references: np.ndarray
    determined: np.ndarray
    systems: np.ndarray
    compositions: int
    per_atom: float
    deviation: float
    residuals: np.ndarray
    left_out: Optional[float]

    @property
    def undetermined(self) -> np.ndarray:
        """(E,) bool, the elements whose reference the compositions leave open: one is always beside another, for example."""
        return self.determined < DETERMINED

    @property
    def error(self) -> float:
        """Of the references on the systems, mean absolute, eV: what they leave to the student."""
        return float(np.abs(self.residuals - self.residuals.mean()).mean())


def fit_references(
    counts: np.ndarray, elements: np.ndarray, energies: np.ndarray, prior: Optional[np.ndarray] = None
) -> ReferenceFit:
    """Ridge regression of the energies on the numbers of atoms, towards a prior.

    references = prior + argmin_d sum_s (E_s - sum_e n_se (prior_e + d_e))^2 + strength |d|^2. The strength is the one with
    the smallest error of a composition left out of the fit (all systems with it). Where the compositions determine all
    references, and the energies are linear in them, this is the ordinary fit, which is also fairchem's.

    Args:
        counts: (S, E) atoms of each element.
        elements: (E,) atomic numbers, each in some system.
        energies: (S,) eV.
        prior: (E,) eV; None for the energy of an atom of any element.
    """
    energies = energies.astype(np.float64)
    atoms = counts.sum(axis=1, dtype=np.float64)
    per_atom = float(atoms @ energies / (atoms @ atoms))
    prior = np.full(len(elements), per_atom) if prior is None else prior
    compositions, group, sizes = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    compositions, group, root = compositions.astype(np.float64), group.reshape(-1), np.sqrt(sizes)
    target = np.bincount(group, energies - counts @ prior) / root  # (U,) of each composition
    left, singular, right = np.linalg.svd(compositions * root[:, None], full_matrices=False)
    projected, squared = left.T @ target, singular**2
    errors, filters = [], squared / (squared + STRENGTHS[:, None] * squared[0])
    for kept in filters:
        leverage = left**2 @ kept  # the residual of a row, divided by 1 - leverage, is that of a fit without it
        errors.append(float(np.abs(root * (target - left @ (kept * projected)) / (1 - leverage)).sum() / sizes.sum()))
    best = int(np.argmin(errors))
    # singular values of 0 stand beside a filter of 0
    solution = right.T @ (filters[best] * projected / np.maximum(singular, np.finfo(float).tiny))
    references = prior + solution
    return ReferenceFit(
        elements,
        references,
        determined=filters[0] @ right**2,
        systems=(counts > 0).sum(axis=0),
        compositions=len(compositions),
        per_atom=per_atom,
        deviation=float(np.abs(energies - energies.mean()).mean()),
        residuals=energies - counts @ references,
        left_out=errors[best] if len(compositions) > 1 else None,
    )
