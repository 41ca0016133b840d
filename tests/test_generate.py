"""Moves of a geometry, what is thrown out, the settings: `fairchem_crack.generate` without a model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from tolerances import CELL_FLOAT64, LENGTH_FLOAT64
from torch_geometric.data import Data

from fairchem_crack.commands.generate import keep_order, yaml_of
from fairchem_crack.generate.energies import Energies
from fairchem_crack.generate.limits import check_geometry, check_outputs
from fairchem_crack.generate.moves import displace, free_mask, rattle, strain
from fairchem_crack.generate.outcome import dataset_options, write_dataset
from fairchem_crack.generate.records import bare, label_names, own_labels, to_bytes
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.generate.unit import Kept, Unit, Workshop, judged
from fairchem_crack.io.datasets import Records
from fairchem_crack.teacher.cache import Record

SETTINGS = Settings({"rattle": 1})


def slab(adsorbate: str = "CO", size: tuple[int, int, int] = (3, 3, 3)) -> Atoms:
    """Layers of copper, the lowest fixed, and an adsorbate that the cell's faces cut."""
    atoms = fcc111("Cu", size, vacuum=8.0, periodic=True)
    is_bottom = atoms.get_tags() == 3
    atoms.set_tags(np.where(is_bottom, 0, 1))
    gas = molecule(adsorbate) if len(adsorbate) > 1 else Atoms(adsorbate)
    gas.rotate(90, "x")
    gas.set_tags(2)
    add_adsorbate(atoms, gas, 1.8, position=(0.3, 0.2))
    atoms.set_constraint(FixAtoms(mask=[*is_bottom, *[False] * len(gas)]))
    atoms.wrap()
    return atoms


def moved(move, atoms: Atoms, settings: Settings = SETTINGS, seed: int = 0) -> tuple[Atoms, dict]:
    after = atoms.copy()
    return after, move(after, settings, np.random.default_rng(seed))


def test_rattle_moves_free_atoms_by_a_sigma_of_the_range():
    atoms = fcc111("Cu", (8, 8, 4), vacuum=8.0)
    atoms.set_constraint(FixAtoms(range(64)))
    sigmas = []
    for seed in range(20):
        after, drawn = moved(rattle, atoms, Settings({"rattle": 1}, sigma=(0.05, 0.2)), seed)
        step = after.positions - atoms.positions
        assert not step[:64].any() and step[64:].std() == pytest.approx(drawn["sigma"], rel=0.15)  # of 576 numbers
        sigmas.append(drawn["sigma"])
    assert 0.05 <= min(sigmas) < 0.07 and 0.18 < max(sigmas) <= 0.2


@pytest.mark.parametrize("adsorbate", ["CO", "H2O", "H"])
def test_displace_keeps_the_molecule_and_touches_the_surface(adsorbate):
    atoms = slab(adsorbate)
    is_adsorbate = atoms.get_tags() == 2
    places = []
    for seed in range(8):
        after, drawn = moved(displace, atoms, seed=seed)
        assert np.array_equal(after.positions[~is_adsorbate], atoms.positions[~is_adsorbate])
        before, now = (each[is_adsorbate].get_all_distances(mic=True) for each in (atoms, after))
        assert now == pytest.approx(before, abs=LENGTH_FLOAT64)
        rows = np.flatnonzero(is_adsorbate)
        touch = covalent_radii[after.numbers[rows]][:, None] + covalent_radii[after.numbers[~is_adsorbate]]
        assert (after.get_all_distances(mic=True)[rows][:, ~is_adsorbate] / touch).min() == pytest.approx(drawn["touch"])
        assert after.positions[rows, 2].min() > atoms.positions[~is_adsorbate, 2].max() - 0.5
        places.append(after.positions[rows[0], :2])
    assert np.std(places, axis=0).min() > 0.8
    below = atoms.copy()
    below.positions[is_adsorbate, 2] -= 12
    after, _ = moved(displace, below)
    assert after.positions[is_adsorbate, 2].max() < atoms.positions[:, 2].min() + 0.5  # on the side where it was


def test_displace_touches_images_of_a_small_cell():
    for seed in range(20):
        after, drawn = moved(displace, slab(size=(1, 2, 3)), seed=seed)
        first, second, distances = neighbor_list("ijd", after, 3.0)
        touch = covalent_radii[after.numbers[first]] + covalent_radii[after.numbers[second]]
        is_contact = (after.get_tags()[first] == 2) & (after.get_tags()[second] != 2)
        assert (distances / touch)[is_contact].min() == pytest.approx(drawn["touch"])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda atoms: atoms.set_tags(1), "no adsorbate"),
        (lambda atoms: atoms.set_tags(2), "no surface"),
        (lambda atoms: atoms.set_constraint(FixAtoms(range(len(atoms)))), "the adsorbate is fixed"),
        (lambda atoms: atoms.set_pbc(False), "not periodic along"),
    ],
)
def test_what_cannot_be_displaced_says_why(edit, reason):
    atoms = slab()
    edit(atoms)
    with pytest.raises(ThrownOut, match=reason):
        displace(atoms, SETTINGS, np.random.default_rng(0))


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False), (False, False, True)])
def test_strain_deforms_the_periodic_directions(pbc):
    atoms = slab()
    atoms.pbc = pbc
    after, drawn = moved(strain, atoms, Settings({"strain": 1}, strain=0.02))
    assert after.get_scaled_positions() == pytest.approx(atoms.get_scaled_positions(), abs=CELL_FLOAT64)
    change = np.linalg.solve(atoms.cell.array, after.cell.array) - np.eye(3)
    assert change == pytest.approx(change.T, abs=CELL_FLOAT64) and 0 < np.linalg.norm(change) == pytest.approx(
        drawn["strain"]
    )
    assert [np.allclose(*rows) for rows in zip(atoms.cell.array, after.cell.array)] == [not each for each in pbc]


def test_what_has_no_cell_or_no_free_atom_is_thrown_out():
    atoms = molecule("H2O")
    with pytest.raises(ThrownOut, match="not periodic"):
        strain(atoms, SETTINGS, np.random.default_rng(0))
    atoms.set_constraint(FixAtoms([0, 1, 2]))
    assert not free_mask(atoms).any()
    with pytest.raises(ThrownOut, match="all atoms are fixed"):
        rattle(atoms, SETTINGS, np.random.default_rng(0))


def test_close_atoms_and_a_lost_adsorbate_are_thrown_out():
    """Distances are those of the nearest images."""
    check_geometry(slab(), Settings({}, min_distance=0.6, max_gap=2.5))
    atoms = slab()
    atoms.positions[-1] = atoms.positions[0] + atoms.cell[0] + (0, 0, 1.0)
    with pytest.raises(ThrownOut, match="too close"):
        check_geometry(atoms, SETTINGS)
    atoms = slab()
    atoms.positions[-2:, 2] += 4
    check_geometry(atoms, SETTINGS)
    with pytest.raises(ThrownOut, match="left the surface"):
        check_geometry(atoms, Settings({}, max_gap=2.5))
    check_geometry(molecule("H2O"), Settings({}, max_gap=2.5))  # no cell, no adsorbate
    atoms.positions[0, 0] = np.nan
    with pytest.raises(ThrownOut, match="not finite"):
        check_geometry(atoms, SETTINGS)


@pytest.mark.parametrize(
    ("energy", "force", "reason"),
    [
        (0.0, 21.0, "a force"),
        (25.0, 1.0, "an energy"),
        (-25.0, 1.0, "an energy"),
        (np.nan, 1.0, "finite"),
        (1.0, np.inf, "finite"),
    ],
)
def test_outputs_out_of_bounds_are_thrown_out(energy, force, reason):
    atoms = molecule("OH")
    atoms.set_constraint(FixAtoms([0]))

    def record(energy: float, *forces: float) -> Record:
        values = {"energy": np.array(energy), "forces": np.array([[one, 0, 0] for one in forces])}
        return Record(b"", 2, values, np.zeros((2, 0)))

    parent = record(0.0, 0.0, 0.0)
    check_outputs(record(19.0, 99.0, 19.0), parent, atoms, SETTINGS)  # of the fixed atom any force will do
    with pytest.raises(ThrownOut, match=reason):
        check_outputs(record(energy, 0.0, force), parent, atoms, SETTINGS)


def test_own_labels_are_those_that_are_there_and_finite():
    system = Data(pos=torch.zeros(2, 3), energy=1.5, forces=torch.ones(2, 3), edge_index=torch.zeros(2, 0), sid="a-1")
    names = {"energy": "energy", "forces": "forces"}
    labels = own_labels(system, names)
    assert labels["energy"] == 1.5 and torch.equal(labels["forces"], torch.ones(2, 3))
    assert set(bare(system, 3).keys()) == {"pos", "sid", "parent", "copy_number"}
    system.forces[0, 0] = torch.nan
    system.energy = torch.tensor([2.5])
    assert own_labels(system, names) == {"energy": 2.5}
    assert own_labels(Data(pos=torch.zeros(2, 3)), names) == {}


OC20 = {"oc20_energy": {"property": "energy"}, "oc20_forces": {"property": "forces"}}


def test_labels_go_by_the_names_of_the_outputs(tmp_path):
    """In a record, in an LMDB by its `key_mapping`, and in an ASE database, which calls them energy and forces."""
    names = label_names({"outputs": OC20})
    assert names == {"energy": "oc20_energy", "forces": "oc20_forces"}
    assert label_names({}) == {"energy": "energy", "forces": "forces"}
    system = Data(pos=torch.zeros(2, 3), atomic_numbers=torch.tensor([8, 1]), fixed=torch.zeros(2), charge=1, energy=5.0)
    system.oc20_energy, system.oc20_forces = torch.tensor([1.5]), torch.full((2, 3), 0.25)
    own = own_labels(system, names)
    row = {"strategy": "parent", "labels": {"energy": "data", "forces": "data"}}
    kept = Kept(bare(system, 0), own, Record(b"", 2, {}, np.zeros((2, 0))), row)
    parents = {"key_mapping": {"y": "oc20_energy"}, "a2g_args": {"r_data_keys": ["charge", "mine"]}, "lin_ref": "x.npz"}
    for output_format in ("lmdb", "ase_db"):
        options = dataset_options(parents, tmp_path / output_format, output_format, names)
        write_dataset(tmp_path / output_format, [kept], options, names)
        with Records(options) as records:
            (read,) = records.first(2)
        assert float(read.oc20_energy) == 1.5 and (read.oc20_forces == 0.25).all() and "energy" not in read
        assert int(read.charge) == 1 and not read.energy_of_teacher and not read.get("tags", torch.zeros(2)).any()
    two = {**OC20, "energy": {}}
    with pytest.raises(ValueError, match="outputs: expected one output of property `energy`, found `oc20_energy`, `energy`"):
        label_names({"outputs": two})


@pytest.mark.parametrize(("offset", "is_warned"), [(0.0, False), (30.0, True)])
def test_energies_of_two_zeros_are_warned_of(caplog, offset, is_warned):
    energies, rng = Energies(), np.random.default_rng(0)
    for index in range(12):
        own = float(rng.normal())
        system = Data(pos=torch.zeros(2, 3), atomic_numbers=torch.tensor([8, 1]))
        origin = "data" if index % 3 == 0 else "teacher"  # a copy has the teacher's energy
        energy = own if origin == "data" else own + offset
        row = {"labels": {"energy": origin}, "teacher_energy": own + offset + 0.01}
        energies.add(Kept(system, {"energy": energy}, Record(b"", 2, {}, np.zeros((2, 0))), row))
    energies.warn_of_another_zero()
    expected = (
        "The parents keep their energies of the data, and all other systems have the teacher's: the teacher's energies"
    )
    assert (f"{expected} are off by 30 eV from the labels" in caplog.text) == is_warned == bool(caplog.records)


def lone(position=0.0, **fields) -> Data:
    system = Data(
        pos=torch.full((1, 3), position), atomic_numbers=torch.tensor([8]), natoms=1, fixed=torch.zeros(1), **fields
    )
    system.cell = torch.eye(3)[None] * fields.get("edge", 20.0)
    return system


@pytest.mark.parametrize(
    ("system", "reason"),
    [
        (lone(pbc=torch.tensor([True, True, False]), edge=0.0), "a cell without volume"),
        (lone(edge=0.0), "a cell without volume"),  # to fairchem, it is periodic
        (lone(position=np.nan), "numbers that are not finite"),
        (lone(edge=np.inf), "numbers that are not finite"),
        (lone(pbc=torch.zeros(3, dtype=torch.bool)), "no two atoms within the teacher's cutoff"),
        (lone(edge=5.0), None),  # its images are its neighbors
    ],
)
def test_a_parent_that_models_fail_on_costs_its_copies(system, reason):
    teacher = SimpleNamespace(cutoff=6.0, use_pbc=True)
    drawn = Workshop(teacher, None, torch.device("cpu"), SETTINGS).draw(0, system)
    assert len(drawn.candidates) == (0 if reason else 2)
    assert {counted.partition(", and ")[2] or counted for _, counted in drawn.thrown_out} == ({reason} if reason else set())
    if reason:
        assert sum(drawn.thrown_out.values()) == 2 and judged(drawn, [], {}, SETTINGS) == Unit([], drawn.thrown_out)


def test_equal_records_have_equal_bytes():
    first, second = (Data(pos=torch.arange(6.0).view(2, 3), sid=3) for _ in range(2))
    assert to_bytes(first) == to_bytes(second)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strategies": {"shake": 2}}, "--strategies shake: 'shake' is none of rattle, displace, strain, relax, md"),
        ({"strategies": {"md+rattle": 2}}, r"--strategies md\+rattle: md can only be the last"),
        ({"strategies": {"rattle": 0}}, "--strategies rattle=0: expected at least 1"),
        ({"sigma": (0.2, 0.1)}, "--sigma 0.2 0.1: expected two positive numbers"),
        ({"max_force": float("nan")}, "--max-force nan: expected a positive number"),
        ({"min_distance": -1.0}, "--min-distance -1: expected 0 or"),
        ({"every": 0}, "--every 0: expected at least 1"),
        ({"select": 0}, "--select 0: expected at least 1"),
        ({"select_random": -2}, "--select-random -2: expected at least 1"),
        ({"select": 1, "select_random": 1}, "--select and --select-random: expected one of them"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_option(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"strategies": {"rattle": 1}, **given})


def test_the_order_of_parents_is_no_option_of_other_splits():
    """fairchem refuses `no_shuffle` beside `first_n`."""
    config = {"dataset": {"train": {"src": "a"}, "val": {"src": "b", "first_n": 9}}}
    keep_order(config)
    assert config["dataset"] == {
        "train": {"src": "a", "train_split_settings": {"no_shuffle": True}},
        "val": {"src": "b", "first_n": 9},
    }
    for options in ({"src": "a", "first_n": 3}, {"src": "a", "train_split_settings": {"sample_n": 3}}):
        config = {"dataset": {"train": dict(options)}}
        keep_order(config)
        assert config["dataset"]["train"] == options


def test_the_printed_yaml_leaves_other_splits_as_they_were():
    """And takes back what holds for the parents only."""
    settings = {"sample_n": 3, "subset_to": [{"op": "in"}], "no_shuffle": True}
    train = {"src": "a.db", "format": "ase_db", "lin_ref": "x.npz", "first_n": None, "train_split_settings": settings}
    before = {
        "train": train,
        "val": {"src": "b.db", "first_n": 9},
        "test": {"src": "c", "format": "lmdb", "lin_ref": "y.npz"},
    }
    made = {"format": "lmdb", "src": "made/data", "atoms_transform_args": {"skip_always": True}}
    printed = yaml_of(before, made, Path("made/cache")).partition("\n\n")[2]
    none = {"lin_ref": None, "first_n": None, "train_split_settings": {"sample_n": None, "subset_to": []}}
    assert yaml.safe_load(printed) == {
        "dataset": {
            "train": {**made, **none},
            "val": {"format": "ase_db", "atoms_transform_args": {}, "lin_ref": "x.npz"},
            "test": {"atoms_transform_args": {}},
        },
        "task": {"distill": {"labels": "teacher", "teacher": {"cache": "made/cache"}}},
    }
