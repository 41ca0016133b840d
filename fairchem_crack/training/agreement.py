"""Whether a teacher's energies and the labels of the data have the same zero.

Total energies and adsorption energies, or two DFT codes, differ by a constant or by one for each element. A student that is
trained on both is pulled apart by that difference, however good the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
from torch import Tensor
from torch_geometric.data import Batch

FEWEST = 4  # systems needed to evaluate a fit of the elements
DETERMINED = 1e-6  # by which the leverage of a system is below 1 where the other systems determine its fitted value
REMOVED = 0.1  # of the error left: the fit explains it


@dataclass(frozen=True)
class EnergyAgreement:
    """Mean absolute errors of the teacher's energies on B labelled systems, eV.

    Attributes:
        systems: B.
        error: of the energies as they are.
        label_deviation: of the labels from a fit of their own, by one constant, or by a constant for each element where the
            sample determines it; a teacher of the same zero has a smaller error.
        offset: mean of label minus teacher.
        after_constant: what is left of the error when a constant is subtracted.
        after_elements: likewise a constant for each element, by least squares; None where the sample does not determine it.
    """

    systems: int
    error: float
    label_deviation: float
    offset: float
    after_constant: float
    after_elements: Optional[float]

    @property
    def is_plausible(self) -> bool:
        """False where the teacher's error exceeds the labels' own deviation; a single system has none."""
        return self.systems < 2 or not self.error > self.label_deviation


def energy_agreement(labels: Tensor, teacher: Tensor, batch: Batch) -> EnergyAgreement:
    """Compare the teacher's energies with the labels. A fit is evaluated on each system from the others.

    Args:
        labels: (B,) eV; a system whose label is NaN is left out, some have one.
        teacher: (B,) eV.
        batch: of these systems.
    """
    values = labels.detach().cpu().double().view(-1).numpy()
    difference = values - teacher.detach().cpu().double().view(-1).numpy()
    elements, columns = np.unique(batch.atomic_numbers.long().cpu().numpy(), return_inverse=True)
    counts, constant = np.zeros((len(values), len(elements))), np.ones((len(values), 1))
    np.add.at(counts, (batch.batch.cpu().numpy(), columns), 1)
    labelled = ~np.isnan(values)
    values, difference, counts, constant = (rows[labelled] for rows in (values, difference, counts, constant))
    deviations = [_left(values, constant, 2), _left(values, counts, FEWEST)]
    return EnergyAgreement(
        systems=len(values),
        error=float(np.abs(difference).mean()),
        label_deviation=min((value for value in deviations if value is not None), default=0.0),
        offset=float(difference.mean()),
        after_constant=_left(difference, constant, 2) or 0.0,
        after_elements=_left(difference, counts, FEWEST),
    )


def _left(values: np.ndarray, features: np.ndarray, fewest: int) -> Optional[float]:
    """Mean absolute residual of a least-squares fit, each system left out of the fit that predicts it.

    The residual r of the fit of all systems and the leverage h give it, r / (1 - h). A system that is the only one with an
    element has h = 1: the others do not predict it. None where that leaves fewer than half of the systems, or fewer than
    `fewest`.

    Args:
        values: (B,).
        features: (B, F).
    """
    inverse = np.linalg.pinv(features)
    leverage = np.einsum("bf,fb->b", features, inverse)
    determined = leverage < 1 - DETERMINED
    if determined.sum() < max(fewest, len(values) / 2):
        return None
    with np.errstate(invalid="ignore"):  # labels that are not finite
        residuals = (values - features @ (inverse @ values))[determined] / (1 - leverage[determined])
    return float(np.abs(residuals).mean())


def explanation(agreement: EnergyAgreement, terms: list[str]) -> str:
    """The message where the agreement is not plausible: the error, what removes it, and what to do.

    Args:
        terms: the distillation terms that compare energies, by their keys.
    """
    elements = (
        f"a constant for each element, by least squares, {agreement.after_elements:.3g} eV"
        if agreement.after_elements is not None
        else "for a constant of each element the systems are too few"
    )
    return (
        f"the teacher's energies are off by {agreement.error:.3g} eV from the labels, which differ among themselves by "
        f"{agreement.label_deviation:.3g} eV (mean of {agreement.systems} systems). A constant ({agreement.offset:+.4g} eV) "
        f"subtracted from the labels leaves {agreement.after_constant:.3g} eV; {elements}. "
        f"{_cause(agreement)} {_remedy(terms)}"
    )


def _cause(agreement: EnergyAgreement) -> str:
    largest, of_elements = REMOVED * agreement.error, agreement.after_elements
    if agreement.after_constant < largest and (of_elements is None or agreement.after_constant < 2 * of_elements):
        return "They differ by a constant."
    if of_elements is not None and of_elements < largest:
        return "They have another reference energy for each element, as total and adsorption energies have."
    if of_elements is None:
        return "They may have another reference energy for each element, as total and adsorption energies have."
    return "No reference energy explains it: was the teacher trained on data of this kind, with energies in eV?"


def _remedy(terms: list[str]) -> str:
    compared = " and ".join(f"`{term}`" for term in terms)
    return (
        "Set task.distill.labels: teacher, and the student learns the teacher's energies"
        + (f"; or leave {compared} out, for embeddings and forces have no zero" if terms else "")
        + "; or bring the labels to the teacher's zero: those of ASE data by dataset.train.lin_ref, an .npz whose `coeff` "
        "holds what is subtracted for each atomic number, those of LMDBs when they are written. "
        "dataset.train.transforms.element_references do not help: they are subtracted from labels and teacher alike."
    )
