"""The student as an ASE calculator: OCPCalculator's results, and what it cannot compute."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import CUTOFF
from ase import Atoms, units
from ase.build import bulk, fcc100, molecule
from ase.md.verlet import VelocityVerlet
from fairchem.core.modules.normalization.element_references import LinearReferences
from test_denormals import are_flushed
from tolerances import REORDERED

from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.speed.runs import Model

sys.path.append(str(Path(__file__).parent / "tools"))

WITHOUT_FAIRCHEM = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("fairchem", "torch_scatter", "torch_geometric"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from ase.build import molecule
from fairchem_crack.calculator import StudentCalculator
atoms = molecule("H2O")
atoms.calc = StudentCalculator(sys.argv[1])
print(repr(atoms.get_potential_energy()))
try:
    StudentCalculator(sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A PaiNN with normalizers, averaged weights, element references, and 12 neighbors: the limit cuts."""
    from make_published_checkpoint import write_published_checkpoint

    path = tmp_path_factory.mktemp("student") / "student.pt"
    write_published_checkpoint(
        "painn_h512", path, hidden_channels=16, num_layers=2, num_rbf=8, max_neighbors=12, cutoff=CUTOFF
    )
    content = torch.load(path)
    references = LinearReferences(torch.linspace(-3, 2, 100))
    content["elementrefs"] = {"energy": references.state_dict()}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint) -> Path:
    path = checkpoint.with_name("exported.pt")
    main(["export", "--checkpoint", str(checkpoint), "--output", str(path), "--elements", "H", "O", "Cu"])
    return path


@pytest.fixture(scope="module")
def ocp(checkpoint):
    return Model(checkpoint, cpu=True).calculator


def slab() -> Atoms:
    atoms = fcc100("Cu", (2, 2, 3), vacuum=4.0, periodic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def assert_forces_close(forces: np.ndarray, expected: np.ndarray) -> None:
    """Compared with the largest: fairchem rounds positions to float32."""
    np.testing.assert_allclose(forces, expected, rtol=0, atol=REORDERED * abs(expected).max())


def test_dynamics_follow_those_of_ocpcalculator(checkpoint, exported, ocp):
    trajectories = []
    for calculator in (ocp, StudentCalculator(checkpoint), StudentCalculator(exported, skin=0.0)):
        atoms = slab()
        atoms.calc = calculator
        energies = []
        dynamics = VelocityVerlet(atoms, timestep=units.fs)
        dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_potential_energy()))
        dynamics.run(10)
        trajectories.append((energies, atoms.get_forces()))
    for energies, forces in trajectories[1:]:
        np.testing.assert_allclose(energies, trajectories[0][0], rtol=REORDERED)
        assert_forces_close(forces, trajectories[0][1])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, False), (True, False, True)])
def test_any_boundaries_and_cells_equal_ocpcalculator(pbc, checkpoint, ocp):
    student = StudentCalculator(checkpoint)
    of_boundaries, smaller_than_cutoff = slab(), bulk("Cu", cubic=True)
    of_boundaries.pbc = pbc
    smaller_than_cutoff.rattle(0.1, seed=1)
    for atoms in (of_boundaries, smaller_than_cutoff, molecule("H2O"), of_boundaries):  # one calculator for all
        results = []
        for calculator in (ocp, student):
            atoms.calc = calculator
            results.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert results[1][0] == pytest.approx(results[0][0], abs=REORDERED * len(atoms))  # of references that cancel
        assert_forces_close(results[1][1], results[0][1])
        assert student.results["energies"].sum() == pytest.approx(results[1][0])


def test_atoms_without_neighbors_have_their_own_energy(checkpoint, ocp):
    student, far = StudentCalculator(checkpoint), [[0, 0, 50.0 * place] for place in range(3)]
    energies = [student.get_potential_energy(Atoms("O" * count, far[:count])) for count in (1, 2, 3)]
    water = molecule("H2O")
    expected = ocp.get_potential_energy(water + Atoms("O", [[90, 0, 0]])) - ocp.get_potential_energy(water)
    np.testing.assert_allclose(np.diff(energies), expected, rtol=REORDERED)
    np.testing.assert_array_equal(student.get_forces(Atoms("O")), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda atoms: atoms.set_atomic_numbers([8, 92] + [29] * (len(atoms) - 2)), "knows no atomic number 92; it knows 3"),
        (lambda atoms: atoms.set_cell(None), "periodic along a, b, c, where its cell is 0"),
        (lambda atoms: atoms.set_cell([[4, 0, 0], [4, 0, 0], [0, 0, 9]]), "The cell has no volume"),
        (lambda atoms: (atoms.set_pbc(False), atoms.set_cell([[4, 0, 0], [4, 0, 0], [0, 0, 0]])), "The cell has no volume"),
        (lambda atoms: atoms.set_cell([np.nan] * 3), "The cell is not finite"),
        (lambda atoms: atoms.__delitem__(slice(None)), "The system has no atoms"),
        (
            lambda atoms: atoms.positions.__setitem__((3, 1), np.nan),
            "Positions must be finite, and those of these atoms are not: 3.",
        ),
    ],
)
def test_what_a_student_cannot_compute_is_an_error(edit, message, exported):
    atoms = slab()
    edit(atoms)
    atoms.calc = StudentCalculator(exported)
    with pytest.raises(ValueError) as error:
        atoms.get_forces()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("none.pt", {}, "none.pt: no such file"),
        ("student.pt", {"skin": -1.0}, "skin: expected a number of at least 0 A, not -1.0"),
        ("student.pt", {"skin": np.inf}, "skin: expected a number of at least 0 A, not inf"),
    ],
)
def test_a_calculator_that_cannot_be_made_is_an_error(name, options, message, checkpoint):
    with pytest.raises(ValueError) as error:
        StudentCalculator(checkpoint.with_name(name), **options)
    assert message in str(error.value)


def test_an_exported_file_needs_no_fairchem(exported, checkpoint, ocp):
    command = [sys.executable, "-c", WITHOUT_FAIRCHEM, exported, checkpoint]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    energy, refusal = done.stdout.splitlines()
    assert float(energy) == pytest.approx(ocp.get_potential_energy(molecule("H2O")), rel=REORDERED)
    assert refusal.startswith(f"{checkpoint} is no exported student, and a checkpoint needs fairchem (fairchem")


def test_after_an_error_nothing_of_the_atoms_before_is_left(exported):
    student, atoms = StudentCalculator(exported), slab()
    student.get_forces(atoms)
    atoms.numbers[1], atoms.positions[0, 0] = 8, np.nan
    with pytest.raises(ValueError, match="must be finite"):
        student.get_forces(atoms)
    atoms.positions[0] = slab().positions[0]
    assert student.get_potential_energy(atoms) == StudentCalculator(exported).get_potential_energy(atoms)
    atoms.numbers[1] = 92
    for _ in range(2):
        with pytest.raises(ValueError, match="no atomic number 92"):
            student.get_forces(atoms)
        atoms.positions += 0.1


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_in_a_step_only(exported, before, monkeypatch):
    atoms, seen = slab(), []
    atoms.calc = StudentCalculator(exported)
    kind = type(atoms.calc.student)
    run = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda *inputs: (seen.append(are_flushed()), run(*inputs))[1])
    were_flushed = are_flushed()
    torch.set_flush_denormal(before)
    try:
        atoms.get_forces()
        assert seen == [True] and are_flushed() is before
    finally:
        torch.set_flush_denormal(were_flushed)


def test_a_copy_is_a_calculator_of_its_own(exported):
    student, moved = StudentCalculator(exported, skin=0.3), slab()
    moved.rattle(0.1, seed=1)
    expected = StudentCalculator(exported).get_potential_energy(moved)
    for copied in (copy.copy(student), copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        student.get_potential_energy(slab())
        assert copied.get_potential_energy(moved) == student.get_potential_energy(moved) == expected
        assert copied.pairs.skin == 0.3
