"""An exported student as a model of metatomic, in its calculator for ASE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import PLACE
from metatomic_ase import MetatomicCalculator
from vesin import NeighborList

from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.export.metatomic import fairchem_edges


@pytest.fixture(scope="module")
def of_metatomic():
    return MetatomicCalculator(PLACE / "student-metatomic.pt", non_conservative="forces", check_consistency=True)


def test_energies_and_forces_are_those_of_ocpcalculator(of_metatomic, slabs):
    atoms = slabs[-1]  # larger than the cutoff: no neighbors at equal distances
    atoms.set_constraint()
    atoms.calc = of_metatomic
    assert atoms.get_potential_energy() == pytest.approx(atoms.info["ocp_energy"], abs=1e-5)
    expected = atoms.arrays["ocp_forces"]
    expected = expected - expected.mean(axis=0)  # as metatomic's calculator does
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=2e-5)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.info["ocp_energy"], abs=1e-4)


def test_the_pairs_are_those_of_our_own_lists(exported, slabs):
    atoms = slabs[-1]  # no neighbors at equal distances
    student = StudentCalculator(exported)
    pairs, shifts = student.pairs(atoms.positions, atoms.cell.array, atoms.pbc)
    ours = {(*pair, *shift) for pair, shift in zip(pairs.T.tolist(), shifts.tolist())}
    i, j, shift, vectors = NeighborList(cutoff=6.0, full_list=True).compute(atoms.positions, atoms.cell.array, True, "ijSD")
    samples = torch.from_numpy(np.column_stack([i, j, shift]).astype(np.int64))
    kept = fairchem_edges(samples, torch.from_numpy(vectors), student.student.info.max_neighbors, len(atoms))
    theirs = set(map(tuple, samples[kept].tolist()))
    assert theirs == ours
