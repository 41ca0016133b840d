"""Systems of datasets as ASE's Atoms, and back: nothing that a calculator or a model reads is lost."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixedLine
from ase.db import connect
from fairchem.core.preprocessing import AtomsToGraphs
from tolerances import ENERGY, FORCE, POSITION
from torch_geometric.data import Data

from fairchem_crack.evaluation.relaxations import command as relaxations
from fairchem_crack.evaluation.relaxations.metrics import Row, distance_within_thresholds, distances
from fairchem_crack.evaluation.s2ef import leaderboard as s2ef
from fairchem_crack.io.atoms import atoms_at, to_atoms
from fairchem_crack.io.datasets import Records, open_dataset
from fairchem_crack.io.files import csv_text, whole, write_json
from fairchem_crack.io.named_records import NamedRecords, ids_of, listed
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cached import digest_of


def slab() -> Atoms:
    system = fcc111("Cu", (2, 1, 3), vacuum=0.5)
    system.rattle(0.1, seed=1)
    system.positions[:, 2] -= 3  # beyond the cell, in the direction without images
    system.set_constraint(FixAtoms([0, 3]))
    return system


def test_a_record_is_taken_as_it_is():
    system = slab()
    atoms = to_atoms(AtomsToGraphs(r_edges=False, r_pbc=True).convert(system))
    assert atoms.pbc.tolist() == [True, True, False] and atoms.constraints[0].index.tolist() == [0, 3]
    assert atoms.get_tags().tolist() == system.get_tags().tolist() and atoms.positions[:, 2].min() < -2
    np.testing.assert_allclose(atoms.cell.array, system.cell.array, atol=POSITION)
    system.calc, atoms.calc = EMT(), EMT()
    assert atoms.get_potential_energy() == pytest.approx(system.get_potential_energy(), abs=ENERGY)
    np.testing.assert_allclose(atoms.get_forces(), system.get_forces(), atol=FORCE)


def test_a_record_has_what_it_has():
    plain = Data(pos=torch.rand(2, 3), atomic_numbers=torch.tensor([8.0, 1.0]), cell=5 * torch.eye(3)[None])
    atoms = to_atoms(plain)
    assert atoms.pbc.all() and not atoms.constraints and not atoms.has("initial_charges")  # as OC20's, without pbc
    assert atoms.get_atomic_numbers().tolist() == [8, 1]
    del plain.cell
    assert not to_atoms(plain).pbc.any()
    plain.pbc, plain.charge, plain.spin = [1, 0, 1], torch.tensor([-1]), 2
    plain.initial_charges, plain.initial_magmoms = torch.tensor([0.5, -0.5]), np.array([1.0, 2.0])
    atoms = to_atoms(plain)
    assert atoms.pbc.tolist() == [True, False, True] and atoms.info == {"charge": -1, "spin": 2}
    assert atoms.get_initial_charges().tolist() == [0.5, -0.5] and atoms.get_initial_magnetic_moments().tolist() == [1, 2]


def test_atoms_of_an_ase_dataset_are_those_it_reads(tmp_path):
    systems = [molecule("CH3"), slab(), bulk("Fe")]
    systems[1].set_constraint([FixAtoms([0]), FixedLine(2, [0, 0, 1])])
    systems[2].set_initial_magnetic_moments([2.2])
    with connect(tmp_path / "data.db") as database:
        for system in systems:
            database.write(system, data={"note": system.get_chemical_formula()})
    options = {"format": "ase_db", "src": str(tmp_path / "data.db"), "val_split_settings": {"sample_n": 2}}
    dataset = NamedRecords(open_dataset(options), "dataset.val")
    assert len(dataset) == 2
    for index in range(2):  # fairchem has drawn them in an order of its own
        atoms = atoms_at(dataset, index)
        original = next(system for system in systems if len(system) == len(atoms))
        assert atoms.positions.tolist() == original.positions.tolist()  # not float32
        assert atoms.pbc.tolist() == original.pbc.tolist() and len(atoms.constraints) == len(original.constraints)
        assert atoms.info["note"] == original.get_chemical_formula() and atoms.calc is None
        assert atoms.get_initial_magnetic_moments().tolist() == original.get_initial_magnetic_moments().tolist()
        assert np.array_equal(atoms.get_tags(), dataset[index].tags.numpy())  # 1 where none is tagged, as models get them


def test_records_keep_their_order_and_can_be_read_again(data):
    options = {"src": str(data / "train"), "key_mapping": {"y": "energy"}}
    for _ in range(2):  # a process opens an LMDB only once at a time
        with Records(options) as records:
            read = records.first(20)
        assert [record.sid for record in read] == list(range(12)) and "energy" in read[0]
    assert options == {"src": str(data / "train"), "key_mapping": {"y": "energy"}}


def test_systems_of_different_pbc_have_different_digests():
    convert = AtomsToGraphs(r_edges=False, r_pbc=True).convert
    system = bulk("Cu", cubic=True)
    periodic, without = convert(system), convert(system)
    del without.pbc
    assert digest_of(periodic) == digest_of(without)  # which is periodic, too; as caches of before have it
    system.pbc = [True, True, False]
    assert digest_of(convert(system)) != digest_of(periodic)
    without.cell = None
    del without.cell
    assert len(digest_of(without)) == 16


def test_distances_are_to_the_nearest_image():
    cell, start = np.diag([4.0, 4.0, 10.0]), np.array([[0.1, 0.0, 9.0], [1.0, 1.0, 1.0]])
    end = np.array([[3.9, 0.0, 1.0], [1.0, 1.0, 1.3]])
    np.testing.assert_allclose(distances(start, end, cell), [np.hypot(0.2, 2), 0.3])
    np.testing.assert_allclose(distances(start, end, cell, (True, True, False)), [np.hypot(0.2, 8), 0.3])
    far = np.array([[0.0, 0.0, 0.9]])  # in the 1 A cell that fairchem gives a molecule, an image is 0.1 A away
    assert distance_within_thresholds(far, 0 * far, np.eye(3)) > 0.5
    assert distance_within_thresholds(far, 0 * far, np.eye(3), (False,) * 3) == 0
    near = np.array([[0.0, 0.0, 0.205]])
    expected = distance_within_thresholds(near, 0 * near, np.eye(3))
    assert distance_within_thresholds(near, 0 * near, np.eye(3), (True, True, False)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("sid", "expected"),
    [
        (torch.tensor([3, 5]), "sid 3, 5"),
        (torch.tensor([[3], [5]]), "sid [3], [5]"),
        (["a", 7], "sid a, 7"),
        ([torch.tensor(3), "mp-1"], "sid 3, mp-1"),
        (None, "number 0, 1"),
    ],
)
def test_systems_are_listed_by_any_id(batch, sid, expected):
    del batch.sid
    batch.natoms = batch.natoms[:2]
    if sid is not None:
        batch.sid = sid
    assert listed(batch) == expected and (ids_of(batch) is None) == (sid is None)
    assert listed(batch, [1]).endswith(expected.rpartition(" ")[2])


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "found.png"
    file.write_bytes(b"before")
    with pytest.raises(OSError, match="disk"), whole(file) as partial:
        assert partial.suffix == ".png"
        partial.write_bytes(b"half")
        raise OSError("disk full")
    assert file.read_bytes() == b"before"
    with whole(file) as partial:
        partial.write_bytes(b"after")
    assert file.read_bytes() == b"after" and list(tmp_path.iterdir()) == [file]


def test_json_has_null_for_what_is_not_a_number(tmp_path):
    write_json(tmp_path / "found.json", {"mae": [1.5, float("nan"), (float("inf"), 2)], "name": "ü"})
    assert json.loads((tmp_path / "found.json").read_text()) == {"mae": [1.5, None, [None, 2]], "name": "ü"}


def test_no_text_of_a_csv_is_a_formula():
    texts = ["=cmd()", "+1+1", "-1.5 eV", "@sum", "\t=1", "\r=1", "\n=1", "eq=1", "'=1", "-"]
    numbers = [-1.5, "-1.5", "+2e-3", float("-inf"), 7, None, True]
    rows = list(
        csv.reader(io.StringIO(csv_text(["=name", "value"], [{"=name": value} for value in [*texts, *numbers]]), newline=""))
    )
    assert rows[0] == ["'=name", "value"] and all(row[1] == "" for row in rows[1:])
    escaped = ["'=cmd()", "'+1+1", "'-1.5 eV", "'@sum", "'\t=1", "'\r=1", "'\n=1", "eq=1", "'=1", "'-"]
    assert [row[0] for row in rows[1:]] == [*escaped, "-1.5", "-1.5", "+2e-3", "-inf", "7", "", "True"]
    leaderboard = s2ef.as_csv([s2ef.Row("=model", "student", "@split", {}, {}, {})], {})
    assert leaderboard.splitlines()[1].startswith("'=model,student,'@split,")
    assert relaxations.as_csv([Row("+model", 0)]).splitlines()[1].startswith("'+model,0,")


@pytest.mark.parametrize("size, count, indices", [(10, 4, [0, 2, 5, 7]), (3, 5, [0, 1, 2]), (4, 4, [*range(4)]), (0, 5, [])])
def test_a_sample_is_evenly_spaced(size, count, indices):
    assert evenly_spaced(size, count) == indices
