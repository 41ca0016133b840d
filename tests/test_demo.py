"""The demo's data, and its end."""

from __future__ import annotations

import gc
import pickle
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.data import chemical_symbols
from tolerances import CELL_FLOAT64, LABEL

from fairchem_crack.demo import prepare, systems
from fairchem_crack.demo.prepare import SPLITS, prepare_demo
from fairchem_crack.evaluation.s2ef import command as evaluate

ROOT = Path(__file__).parents[1]
SEED = 7
EMT_ROUNDING = 1e-9  # eV or eV/A: the same potential evaluated twice
RECORD_ROUNDING = 1e-4  # of the float32 records, from totals of some 10 eV


def draw(seed: int, *, held_out: bool = False) -> Atoms:
    adsorbates = systems.HELD_OUT_ADSORBATES if held_out else systems.ADSORBATES
    return systems.draw_system(np.random.default_rng(seed), systems.catalysts(held_out=held_out), adsorbates)


def emt(system: Atoms) -> Atoms:
    """The same atoms, free of constraints, with a fresh EMT potential."""
    bare = Atoms(system.numbers, system.positions, cell=system.cell, pbc=system.pbc)
    bare.calc = EMT()
    return bare


@pytest.fixture(scope="module")
def drawn() -> list[Atoms]:
    return [draw(seed, held_out=seed % 2 == 1) for seed in range(8)]


def test_a_system_is_fixed_by_its_random_numbers():
    system, same, other_seed = draw(3), draw(3), draw(4)
    assert np.array_equal(system.positions, same.positions) and np.array_equal(system.numbers, same.numbers)
    assert system.get_potential_energy() == same.get_potential_energy() and system.info == same.info
    assert len(system) != len(other_seed) or not np.allclose(system.positions, other_seed.positions)


def test_tags_say_fixed_free_adsorbate(drawn):
    for system in drawn:
        tags = system.get_tags()
        fixed = np.zeros(len(system), dtype=bool)
        fixed[system.constraints[0].index] = True
        assert np.array_equal(fixed, tags == 0)
        assert [int((tags == tag).sum()) for tag in (0, 1)] == [4, 8]  # 2 x 2 x 3, the lowest layer fixed
        assert system.positions[tags == 0, 2].max() < system.positions[tags == 1, 2].min()
        assert set(system.numbers[tags == 2]) <= {1, 6, 7, 8} and (tags == 2).any()
        assert {chemical_symbols[number] for number in system.numbers[tags < 2]} <= systems.LATTICE_CONSTANTS.keys()


def test_fixed_atoms_are_where_the_relaxed_slab_has_them(drawn):
    surfaces = systems.catalysts(held_out=False) + systems.catalysts(held_out=True)
    by_name = {(surface.composition, surface.facet): surface for surface in surfaces}
    for system in drawn:
        slab = systems.clean_slab(by_name[system.info["catalyst"], system.info["facet"]])[0]
        fixed = system.get_tags() == 0
        difference = (system.positions - slab.positions[[*range(len(slab))] + [0] * (len(system) - len(slab))])[fixed]
        in_cells = np.linalg.solve(np.asarray(slab.cell).T, difference.T)
        assert in_cells == pytest.approx(np.round(in_cells), abs=CELL_FLOAT64)  # wrapped, if anything


def test_energy_is_emts_adsorption_energy(drawn):
    surfaces = systems.catalysts(held_out=False) + systems.catalysts(held_out=True)
    by_name = {(surface.composition, surface.facet): surface for surface in surfaces}
    gas = {name: systems.gas_molecule(name)[1] for name in ("H2", "H2O", "CO", "N2")}
    hydrogen, oxygen = gas["H2"] / 2, gas["H2O"] - gas["H2"]
    reference = {1: hydrogen, 7: gas["N2"] / 2, 8: oxygen, 6: gas["CO"] - oxygen}
    for system in drawn:
        expected = emt(system).get_potential_energy()
        expected -= systems.clean_slab(by_name[system.info["catalyst"], system.info["facet"]])[1]
        expected -= sum(reference[number] for number in system.numbers[system.get_tags() == 2])
        assert system.get_potential_energy() == pytest.approx(expected, abs=EMT_ROUNDING)
        assert abs(system.get_potential_energy()) < systems.MAX_ENERGY


def test_forces_are_the_negative_gradient_of_the_energy(drawn):
    step = 1e-4  # A
    for system in drawn[:3]:
        forces = system.get_forces(apply_constraint=False)
        assert forces == pytest.approx(emt(system).get_forces(), abs=EMT_ROUNDING)
        assert np.abs(forces[system.get_tags() > 0]).max() < systems.MAX_FORCE
        atom, axis = len(system) - 1, 2  # the adsorbate's height
        energies = []
        for sign in (1, -1):
            moved = emt(system)
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        assert forces[atom, axis] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=LABEL)


def test_what_is_held_out_is_unseen_and_its_elements_are_seen():
    def elements(formulas) -> set[str]:
        return {symbol for formula in formulas for symbol in Atoms(formula).get_chemical_symbols()}

    seen, unseen = ({surface.composition for surface in systems.catalysts(held_out=held)} for held in (False, True))
    assert seen and unseen and not seen & unseen
    assert not set(systems.ADSORBATES) & set(systems.HELD_OUT_ADSORBATES)
    assert elements(unseen) <= elements(seen)
    assert elements(systems.HELD_OUT_ADSORBATES) <= elements(systems.ADSORBATES)
    # no system of a held-out composition under another name: CuPt = PtCu
    stoichiometries = ({Atoms(formula).get_chemical_formula() for formula in names} for names in (seen, unseen))
    assert not set.intersection(*stoichiometries)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_what_its_name_says(split):
    new_adsorbates, new_catalysts = "ads" in split or "both" in split, "cat" in split or "both" in split
    assert SPLITS[split][1:] == (new_adsorbates, new_catalysts)
    assert len({number for number, *_ in SPLITS.values()}) == len(SPLITS)  # no split repeats another's systems


@pytest.fixture
def in_process(monkeypatch):
    """`prepare_demo` in this process, where its functions can be replaced."""
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", lambda workers, *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(prepare, "CHUNK", 2)


def records(split: Path) -> dict:
    """Every entry of a split's LMDB: its length, and the systems by their number."""
    gc.collect()  # closes the LMDB where a dataset still holds it: one process opens it only once
    file = str(split / "data.0000.lmdb")
    with lmdb.open(file, subdir=False, readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): pickle.loads(value) for key, value in transaction.cursor()}


def same(first: dict, second: dict) -> bool:
    """Whether two splits hold the same systems, bit by bit (their pickles differ, in the names of tensors)."""

    def plain(record) -> dict | int:
        return {key: np.asarray(value).tobytes() for key, value in record.items()} if hasattr(record, "pos") else record

    return {key: plain(record) for key, record in first.items()} == {key: plain(record) for key, record in second.items()}


def test_a_record_has_the_fields_of_oc20(data):
    for split in SPLITS:
        content = records(data / split)
        length = content.pop("length")
        assert length == len(content) == (12 if split == "train" else 6)
        natoms = []
        for index in range(length):
            record = content[str(index)]
            natoms.append(record.natoms)
            assert record.pos.shape == record.force.shape == (record.natoms, 3) and record.cell.shape == (1, 3, 3)
            assert record.atomic_numbers.shape == record.tags.shape == record.fixed.shape == (record.natoms,)
            assert isinstance(record.y, float) and record.sid == index and 0 <= record.fid <= 8
            assert np.array_equal(record.fixed.numpy() == 1, record.tags.numpy() == 0)
            assert not {"energy", "forces", "edge_index"} & set(record.keys())
        assert np.array_equal(np.load(data / split / "metadata.npz")["natoms"], natoms)


def test_a_records_forces_and_energy_are_emts(data):
    record = records(data / "train")["0"]
    system = Atoms(record.atomic_numbers.numpy(), record.pos.numpy(), cell=record.cell[0].numpy(), pbc=True)
    assert record.force.numpy() == pytest.approx(emt(system).get_forces(), abs=LABEL)  # of float32 positions
    rng = np.random.default_rng([5, SPLITS["train"][0], 0])  # 5 is the fixture's seed
    again = systems.draw_system(rng, systems.catalysts(held_out=False), systems.ADSORBATES)
    assert record.y == pytest.approx(again.get_potential_energy(), abs=RECORD_ROUNDING)


def test_fairchem_reads_a_split(data):
    from fairchem.core.datasets import LmdbDataset

    content = records(data / "val_ood_both")
    dataset = LmdbDataset({"src": str(data / "val_ood_both")})
    assert len(dataset) == 6
    assert [len(dataset[index].pos) for index in range(6)] == [dataset.get_metadata("natoms", index) for index in range(6)]
    assert dataset[2].y == content["2"].y


def test_the_seed_fixes_every_bit(tmp_path, in_process):
    sizes = {"train": 3, "val_id": 2}
    for name, seed in (("one", SEED), ("same", SEED), ("other", SEED + 1)):
        prepare_demo(tmp_path / name, sizes=sizes, seed=seed, workers=1)
    for split in sizes:
        first, repeated, other_seed = (records(tmp_path / name / split) for name in ("one", "same", "other"))
        assert same(first, repeated) and not same(first, other_seed)
    first_records = ({"0": records(tmp_path / "one" / split)["0"]} for split in sizes)
    assert not same(*first_records)


def test_systems_do_not_depend_on_their_number_or_the_processes(data, tmp_path):
    prepare_demo(tmp_path, sizes={"val_ood_ads": 3}, seed=5, workers=1)  # in a process; 5 is the fixture's seed
    few, many = records(tmp_path / "val_ood_ads"), records(data / "val_ood_ads")
    assert few.pop("length") == 3 and same(few, {index: many[index] for index in few})


def test_a_complete_split_is_left_alone_and_another_refused(tmp_path, in_process):
    prepare_demo(tmp_path, sizes={"train": 2}, seed=SEED, workers=1)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "train").iterdir()}
    assert len(before) == 3
    prepare_demo(tmp_path, sizes={"train": 2}, seed=SEED, workers=1)
    for wrong in ({"seed": SEED + 1}, {"sizes": {"train": 3}}):
        with pytest.raises(ValueError, match=r"train was made with .*'seed': 7.*not with .*remove"):
            prepare_demo(tmp_path, **{"sizes": {"train": 2}, "seed": SEED, "workers": 1, **wrong})
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "train").iterdir()} == before


class Interrupted(Exception):
    pass


def interrupt(directory: Path, monkeypatch, *, at: int, seed: int) -> None:
    """Prepare 5 systems and stop in the one numbered `at`."""
    make = prepare._make_record

    def stop(split: str, seed: int, index: int) -> bytes:
        if index == at:
            raise Interrupted
        return make(split, seed, index)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_make_record", stop)
        try:
            prepare_demo(directory, sizes={"train": 5}, seed=seed, workers=1)
        except Interrupted:
            pass
        else:
            raise AssertionError("not interrupted")


def test_an_interrupted_split_resumes_where_it_stopped(tmp_path, in_process, monkeypatch):
    prepare_demo(tmp_path / "whole", sizes={"train": 5}, seed=SEED, workers=1)
    interrupt(tmp_path / "cut", monkeypatch, at=3, seed=SEED)
    assert not (tmp_path / "cut/train").exists()
    assert records(tmp_path / "cut/.train.partial").keys() == {"0", "1"}
    made, make = [], prepare._make_record
    monkeypatch.setattr(prepare, "_make_record", lambda *arguments: made.append(arguments[-1]) or make(*arguments))
    prepare_demo(tmp_path / "cut", sizes={"train": 5}, seed=SEED, workers=1)
    assert made == [2, 3, 4]
    assert same(records(tmp_path / "cut/train"), records(tmp_path / "whole/train"))
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["train"]


def test_an_interrupted_split_of_another_seed_is_not_used(tmp_path, in_process, monkeypatch):
    prepare_demo(tmp_path / "whole", sizes={"train": 5}, seed=SEED, workers=1)
    interrupt(tmp_path / "cut", monkeypatch, at=3, seed=SEED + 1)
    gc.collect()
    prepare_demo(tmp_path / "cut", sizes={"train": 5}, seed=SEED, workers=1)
    assert same(records(tmp_path / "cut/train"), records(tmp_path / "whole/train"))


def test_an_interruption_before_the_rename_loses_nothing(tmp_path, in_process):
    prepare_demo(tmp_path, sizes={"train": 3}, seed=SEED, workers=1)
    before = records(tmp_path / "train")
    (tmp_path / "train").rename(tmp_path / ".train.partial")
    (tmp_path / ".train.partial/metadata.npz").unlink()
    prepare_demo(tmp_path, sizes={"train": 3}, seed=SEED, workers=1)
    assert same(records(tmp_path / "train"), before)
    assert len(np.load(tmp_path / "train/metadata.npz")["natoms"]) == 3


def test_the_demo_ends_with_an_evaluation_of_every_seed():
    made = subprocess.run(["make", "-n", "demo", "SEEDS=0 1"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = re.findall(r"fairchem-crack evaluate (.*?[^\\])\n", made, re.DOTALL)
    options = evaluate.parser().parse_args(shlex.split(command.replace("\\\n", " ")))
    undistilled, distilled, teacher = evaluate.groups_of(options)
    for group, name in ((undistilled, "undistilled"), (distilled, "crack")):
        assert [path.parts[-2:] for path in group.checkpoints] == [(f"{name}-{n}", "best_checkpoint.pt") for n in (0, 1)]
    assert (ROOT / teacher.checkpoints[0]).is_file()
    assert set(evaluate.splits_of(options.data, "--data")) == SPLITS.keys() - {"train"}
