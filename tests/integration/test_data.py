"""What data may be: of several periodic boundaries, without optional fields, with split settings, partly unusable."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import weakref
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.db import connect
from conftest import DATASET
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from tolerances import ENERGY, EV_FLOAT64, REBATCHED, REORDERED, SOFT_FORCE

from fairchem_crack.commands.cache_teacher import job as module
from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.s2ef import runs as evaluation_runs
from fairchem_crack.io.boundaries import OwnBoundaries
from fairchem_crack.teacher.cache import TeacherCache, encode

ASE = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True}}


@pytest.fixture
def cache(tmp_path):
    """Callable: run `cache-teacher` in this process, and open what it wrote."""

    def run(config: dict, name: str, *flags: str) -> TeacherCache:
        file = tmp_path / f"{name}.yml"
        file.write_text(yaml.safe_dump(config))
        gc.collect()  # a former data set closes its LMDB when collected; one process opens it only once
        main(["cache-teacher", "--config-yml", str(file), "--cpu", "--output", str(tmp_path / name), *flags])
        gc.collect()
        return TeacherCache(tmp_path / name)

    return run


@pytest.fixture
def check(tmp_path, capsys):
    """Callable: run `check` in this process; what it printed."""

    def run(config: dict) -> str:
        file = tmp_path / "checked.yml"
        file.write_text(yaml.safe_dump(config))
        gc.collect()
        with contextlib.suppress(SystemExit):
            main(["check", "--config-yml", str(file), "--cpu", "--run-dir", str(tmp_path)])
        gc.collect()
        return capsys.readouterr().out

    return run


def write_database(file: Path, systems: list[Atoms]) -> dict:
    """An ASE database with EMT's labels, in this order; the options of a dataset that reads it."""
    with connect(file) as database:
        for system in systems:
            system.calc = EMT()
            system.get_forces()
            database.write(system)
    return {**ASE, "src": str(file), "no_shuffle": True}


def write_lmdb(directory: Path, records: list) -> str:
    directory.mkdir()
    environment = lmdb.open(str(directory / "data.lmdb"), map_size=1 << 24, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, record in enumerate(records):
            transaction.put(str(index).encode(), pickle.dumps(record))
    environment.close()
    return str(directory)


def bulks_and_slabs(count: int) -> list[Atoms]:
    """Alternating and rattled: T T T and T T F, with so little vacuum that the difference shows."""
    systems = []
    for seed in range(count):
        system = fcc111("Cu", (2, 2, 2), vacuum=1.0) if seed % 2 else bulk("Cu", cubic=True) * (2, 1, 1)
        system.rattle(0.1, seed=seed)
        systems.append(system)
    return systems


@pytest.fixture
def mixed(distilled, tmp_path) -> dict:
    """The distilled training on alternating bulks and slabs."""
    distilled["dataset"] = {
        "train": write_database(tmp_path / "train.db", bulks_and_slabs(8)),
        "val": write_database(tmp_path / "val.db", bulks_and_slabs(4)),
    }
    distilled["optim"].update(batch_size=4, eval_batch_size=4)
    return distilled


# ---- periodic boundaries


def test_records_do_not_depend_on_the_pbc_of_their_chunk(mixed, cache, monkeypatch, tmp_path):
    flags = ("--dtype", "float32", "--jacobian-rows", "1")
    singly = cache(mixed, "alone", *flags, "--chunk", "1")
    together = cache(mixed, "together", *flags, "--chunk", "8")
    for record, chunked in zip(singly.records(), together.records()):
        assert record.digest == chunked.digest and np.array_equal(record.pairs, chunked.pairs)
        np.testing.assert_allclose(record.values["forces"], chunked.values["forces"], atol=SOFT_FORCE)
    cache(mixed, "together", *flags, "--chunk", "8", "--verify", "8")
    # as fairchem has it: the pbc of the first
    monkeypatch.setattr(OwnBoundaries, "_begin", lambda *_: None)
    wrong = cache(mixed, "wrong", *flags, "--chunk", "8")
    assert (
        max(
            np.abs(record.values["forces"] - chunked.values["forces"]).max()
            for record, chunked in zip(singly.records(), wrong.records())
        )
        > 0.01
    )
    with pytest.raises(SystemExit, match=r"record \d differs from the teacher"):
        cache(mixed, "wrong", *flags, "--chunk", "8", "--verify", "8")


def test_a_student_keeps_each_pbc_in_training_and_validation(run, mixed, check, caplog):
    assert "of several pbc (T T T, T T F): the graph of each system is built by itself" in check(mixed)
    trained = run(mixed)
    assert len([record for record in caplog.records if "systems of several pbc" in record.message]) == 1
    best = trained.checkpoints / "best_checkpoint.pt"
    assert torch.load(best, weights_only=False)["config"]["model"]["use_pbc_single"] is True
    calculator, errors = OCPCalculator(checkpoint_path=best, cpu=True, seed=0), []
    for system in bulks_and_slabs(4):  # each by itself
        expected = system.copy()
        expected.calc = EMT()
        system.calc = calculator
        errors.append(np.abs(system.get_forces() - expected.get_forces()))
    assert trained.validations[-1]["forces_mae"] == pytest.approx(np.concatenate(errors).mean(), rel=REBATCHED)
    # stock fairchem with the option of the checkpoint's config
    mixed["model"]["use_pbc_single"] = True
    stock = run({**mixed, "trainer": "ocp", "task": {}, "loss_functions": mixed["loss_functions"][:2]}, mode="validate",
                name="stock", checkpoint=best)  # fmt: skip
    assert stock.validations[0]["forces_mae"] == pytest.approx(trained.validations[-1]["forces_mae"], rel=REORDERED)


# ---- optional fields


@pytest.mark.parametrize("lacking", [("sid",), ("sid", "fid", "tags", "fixed", "natoms")], ids="+".join)
def test_data_without_optional_fields_are_taken(run, check, cache, distilled, systems, tmp_path, lacking):
    records = [copy.deepcopy(systems[index % 3]) for index in range(4)]
    for record in records:
        for name in lacking:
            delattr(record, name)
    source = write_lmdb(tmp_path / "data", records)
    distilled["dataset"] = {"train": {**DATASET, "src": source}}
    distilled["loss_functions"].append({"teacher_forces": {"fn": "mae", "coefficient": 1}})
    assert "No problem found" in check(distilled)
    online = run(distilled, name="online").losses()
    cache(distilled, "cache", "--dtype", "float32", "--jacobian-rows", "1")
    distilled["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    assert len(online) == 2 and run(distilled, name="cached").losses() == pytest.approx(online, rel=REORDERED)


def test_ids_may_be_words_where_a_message_names_systems(distilled, check, run, systems, tmp_path):
    records = [copy.deepcopy(systems[0]) for _ in range(3)]
    records[1].atomic_numbers[0] = 118
    for record, sid in zip(records, ("slab-a", "slab-b", "slab-c")):
        record.sid = sid
    distilled["dataset"] = {"train": {**DATASET, "src": write_lmdb(tmp_path / "data", records), "no_shuffle": True}}
    assert "atomic number 118" in check(distilled)
    records[1].atomic_numbers[0] = 29
    far = records[2]
    far.pos, far.cell = far.pos * 40, far.cell * 40
    distilled["dataset"]["train"]["src"] = write_lmdb(tmp_path / "far", records)
    assert "in 1 of a sample of 3 systems (sid slab-c) no atom has a neighbor" in check(distilled)
    for record in records:
        del record.sid
    distilled["dataset"]["train"]["src"] = write_lmdb(tmp_path / "without", records)
    with pytest.raises(ValueError, match=r"in 1 of a sample of 3 systems \(number 2\) no atom has a neighbor"):
        run(distilled)


# ---- splits with settings


def test_split_settings_are_those_of_the_training(run, cache, check, distilled, tmp_path):
    distilled["dataset"]["train"]["train_split_settings"] = {"first_n": 8}
    distilled["dataset"]["val"]["val_split_settings"] = {"sample_n": 3}
    assert "systems in train 8, val 3, test 6" in check(distilled)
    assert len(cache(distilled, "cache")) == 8
    distilled["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    assert len(run(distilled).steps) == 4
    assert len(cache(distilled, "val", "--split", "val")) == 3
    with pytest.raises(SystemExit, match="--split val_ood: fairchem's trainer has the splits train, val, test, relax"):
        cache(distilled, "other", "--split", "val_ood")


def test_a_dataset_given_as_a_list_is_read(cache, distilled):
    train, val = distilled["dataset"]["train"], distilled["dataset"]["val"]
    distilled["dataset"] = [train, {**val, "use_train_settings": False}]
    distilled["task"]["distill"]["teacher"].pop("cache", None)
    assert len(cache(distilled, "cache")) == 12


# ---- unusable records


@pytest.mark.parametrize("fault", ["no atoms", "positions that are not finite"])
def test_an_unusable_record_is_named(run, check, cache, distilled, systems, tmp_path, fault):
    records = [copy.deepcopy(systems[0]) for _ in range(3)]
    if fault == "no atoms":
        for name in ("pos", "atomic_numbers", "tags", "fixed", "force"):
            records[1][name] = records[1][name][:0]
        records[1].natoms = 0
    else:
        records[1].pos[0, 0] = np.nan
    records[1].sid = "bad"
    distilled["dataset"] = {"train": {**DATASET, "src": write_lmdb(tmp_path / "data", records), "no_shuffle": True}}
    message = f"dataset.train: system 1 .sid bad. has {fault}. Leave it out."
    with pytest.raises(SystemExit, match=message):
        cache(distilled, "cache")
    with pytest.raises(ValueError, match=message):
        run(distilled)
    assert message.replace(".sid bad.", "(sid bad)") in check(distilled)


def test_a_periodic_system_without_volume_is_named(run, cache, distilled, systems, tmp_path):
    records = [copy.deepcopy(systems[0]) for _ in range(3)]
    records[1].cell = torch.zeros(1, 3, 3)
    distilled["dataset"] = {"train": {**DATASET, "src": write_lmdb(tmp_path / "data", records), "no_shuffle": True}}
    message = "dataset.train: systems of sid 0 are periodic, and their cells have no volume"
    records[1].sid = 0
    with pytest.raises(SystemExit, match=message):
        cache(distilled, "cache")
    with pytest.raises(ValueError, match=message):
        run(distilled)


# ---- calculators


def test_a_calculator_sees_the_atoms_as_they_are(cache, distilled, tmp_path):
    systems = [molecule("C2H6"), *bulks_and_slabs(3), fcc111("Pt", (1, 1, 3), vacuum=0.5)]
    systems[0].positions -= 20  # nothing is wrapped
    distilled["dataset"] = {"train": {**write_database(tmp_path / "data.db", systems), "first_n": 5}}
    del distilled["dataset"]["train"]["no_shuffle"]
    written = cache(distilled, "cache", "--calculator", "ase.calculators.emt:EMT")
    records = list(written.records())
    assert float(records[0].values["energy"]) == pytest.approx(3.079, abs=1e-3)  # in a periodic box of 1 A it is thousands
    for record, system in zip(records, systems, strict=True):
        assert float(record.values["energy"]) == pytest.approx(system.get_potential_energy(), abs=ENERGY)
        np.testing.assert_allclose(record.values["forces"], system.get_forces(), atol=SOFT_FORCE)
    cache(distilled, "cache", "--calculator", "ase.calculators.emt:EMT", "--verify", "5")
    by_name = cache(distilled, "by_name", "--calculator", "emt")
    assert [encode(record, written.plan) for record in records] == [
        encode(record, by_name.plan) for record in by_name.records()
    ]


class Charged(Calculator):
    """Its energy is what it reads of charges, moments and info."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        energy = atoms.get_initial_charges().sum() + 10 * atoms.get_initial_magnetic_moments().sum()
        self.results = {"energy": energy + 100 * atoms.info.get("charge", 0), "forces": np.zeros((len(atoms), 3))}


def test_a_calculator_sees_charges_moments_and_info(cache, distilled, tmp_path):
    systems = [bulk("Fe", cubic=True, a=lattice) for lattice in (2.86, 2.87)]
    with connect(tmp_path / "data.db") as database:
        for number, system in enumerate(systems):
            system.set_initial_charges([0.5 + number, 0])
            system.set_initial_magnetic_moments([2, number])
            database.write(system, data={"charge": number})
    distilled["dataset"] = {"train": {"format": "ase_db", "src": str(tmp_path / "data.db"), "first_n": 2}}
    records = cache(distilled, "cache", "--calculator", f"{__name__}:Charged")
    assert [float(record.values["energy"]) for record in records.records()] == [20.5, 131.5]


def needs_an_argument(temperature):
    raise AssertionError


def raises():
    raise RuntimeError("no licence")


class Fails(Calculator):
    """Does three atoms only."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=(), system_changes=()):
        if len(atoms) > 8:
            raise KeyError("Cu")
        self.results = {"energy": self.energy, "forces": np.zeros((len(atoms), 3))}

    energy = 1.0


class Infinite(Fails):
    energy = np.inf


class Shapeless(Fails):
    def calculate(self, atoms=None, properties=(), system_changes=()):
        self.results = {"energy": 1.0, "forces": np.zeros(3)}


calculator, makes, returns_none, not_callable = EMT(), lambda: EMT(), lambda: None, 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("needs_an_argument", "expected a name that ASE knows .*; TypeError: needs_an_argument.. missing 1"),
        ("raises", "RuntimeError: no licence"),
        ("returns_none", "it returned NoneType, which has no get_potential_energy"),
        ("not_callable", "TypeError: 'int' object is not callable"),
        ("Fails", "system 1 of dataset.train, Cu9: KeyError: 'Cu'"),
        ("Infinite", "system 0 of dataset.train, Cu4: ValueError: energy not finite"),
        ("Shapeless", r"system 0 of dataset.train, Cu4: ValueError: forces of shape \(3,\), expected \(4, 3\)"),
        ("EMT.no.such", "AttributeError"),
    ],
)
def test_a_calculator_that_cannot_is_one_message(cache, distilled, tmp_path, name, message):
    systems = [bulk("Cu", cubic=True), bulk("Cu") * (9, 1, 1)]
    distilled["dataset"] = {"train": write_database(tmp_path / "data.db", systems)}
    with pytest.raises(SystemExit, match=f"--calculator {__name__}:{name}: .*{message}"):
        cache(distilled, "cache", "--calculator", f"{__name__}:{name}")


@pytest.mark.parametrize("name", ["calculator", "makes", "EMT"])
def test_a_calculator_may_be_made_or_a_function(cache, distilled, tmp_path, name):
    distilled["dataset"] = {"train": write_database(tmp_path / "data.db", [bulk("Cu", cubic=True)])}
    energy = bulk("Cu", cubic=True)
    energy.calc = EMT()
    (record,) = cache(distilled, "cache", "--calculator", f"{__name__}:{name}").records()
    assert float(record.values["energy"]) == pytest.approx(energy.get_potential_energy(), abs=EV_FLOAT64)


# ---- ranks


@pytest.mark.parametrize("command", ["cache-teacher", "train", "check"])
def test_more_gpus_than_there_are_are_refused(distilled, tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distilled["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(distilled))
    with pytest.raises(SystemExit) as ended:
        main([command, "--config-yml", str(file), "--num-gpus", "3"])
    assert "--num-gpus 3: this machine has 2" in f"{ended.value} {capsys.readouterr().out}"


def test_the_teacher_is_gone_before_the_ranks_start(cache, distilled, monkeypatch):
    teachers, written = [], []

    def in_this_process(rank, shares):
        assert [reference() for reference in teachers] == [None]
        for share in shares:
            gc.collect()  # one process opens an LMDB only once
            rank(*share, written.append)
        return written

    load = module.load_teacher

    def loaded(*arguments):
        teacher = load(*arguments)
        teachers.append(weakref.ref(teacher.model))
        return teacher

    monkeypatch.setattr(module, "load_teacher", loaded)
    monkeypatch.setattr(module, "values_from", in_this_process)
    assert len(cache(distilled, "cache", "--chunk", "2", "--num-gpus", "2")) == 12


def test_a_rank_sets_its_own_device(distilled, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(module, "load_teacher", lambda config, device: (_ for _ in ()).throw(InterruptedError(str(device))))
    job = module.Job(distilled, Path("cache"))
    with pytest.raises(InterruptedError, match="cuda:3"):
        job.source(3, [])
    assert chosen == [torch.device("cuda:3")]


@pytest.mark.parametrize("cpu", [True, False])
def test_a_process_of_evaluate_sets_its_own_device(monkeypatch, cpu):
    class Queue(list):
        get = list.pop

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(evaluation_runs, "_device", 0)
    monkeypatch.setattr(evaluation_runs.logging, "disable", lambda level: None)
    evaluation_runs._start_process(Queue([2]), cpu, ())
    assert chosen == ([] if cpu else [2]) and evaluation_runs._device == 2


def test_a_rank_names_the_system_that_is_not_finite(distilled, systems, tmp_path):
    records = [copy.deepcopy(systems[0]) for _ in range(3)]
    records[2].pos[0, 0] = np.nan
    distilled["dataset"] = {"train": {**DATASET, "src": write_lmdb(tmp_path / "data", records), "no_shuffle": True}}
    job = module.Job(distilled, tmp_path / "cache", cpu=True, calculator="emt")
    (tmp_path / "cache").mkdir()
    with pytest.raises(
        ValueError, match=r"dataset.train: system 2 \(sid 0\) has positions that are not finite. Leave it out"
    ):
        module._rank(job, [0], 1, print)
