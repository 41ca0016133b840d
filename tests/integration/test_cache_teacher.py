"""`fairchem-crack cache-teacher`, and trainings from the cache it writes."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import random
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from architectures import MODELS
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from conftest import DATASET, distill_config, run_fairchem
from fairchem.core.common.relaxation.ase_utils import OCPCalculator
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from killing import fork
from tolerances import ENERGY, FORCE, PREDICTION, REPEATED, TOTAL_ENERGY

from fairchem_crack.adapters import attach_features
from fairchem_crack.commands.cache_teacher import job as module
from fairchem_crack.commands.cache_teacher.command import JACOBIAN_ROWS
from fairchem_crack.commands.cli import main
from fairchem_crack.config import TeacherConfig
from fairchem_crack.loss.relations import unordered_pairs
from fairchem_crack.teacher.cache import (
    CacheError,
    CacheWriter,
    Record,
    TeacherCache,
    encode,
    fill,
    finish,
    only_writer,
    written_chunks,
)
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.frozen import load_teacher
from fairchem_crack.training import trainer

STUDENTS = {"painn": None, "gemnet_t": MODELS["gemnet_t"]}
FLOAT32 = 1e-5  # the teacher ran on other batches: the last bits of its sums differ
FLOAT16 = 1e-3  # of the loss; an embedding has 11 bits


def cache_teacher(config: dict, directory: Path, *flags: str) -> TeacherCache:
    """Run the command in this process, and open what it wrote."""
    file = directory.parent / f"{directory.name}.yml"
    file.write_text(yaml.safe_dump(config))
    gc.collect()  # a former data set closes its LMDB when collected; one process opens it only once
    main(["cache-teacher", "--config-yml", str(file), "--cpu", "--output", str(directory), *flags])
    gc.collect()
    return TeacherCache(directory)


def content(cache: TeacherCache) -> list[bytes]:
    return [encode(record, cache.plan) for record in cache.records()]


def systems_of(source: Path, split: str = "train") -> list:
    """In the order of a training: fairchem shuffles a dataset once, by its own seed."""
    gc.collect()
    dataset = create_dataset({**DATASET, "src": str(source)}, split)
    systems = [dataset[index] for index in range(len(dataset))]
    del dataset
    gc.collect()
    return systems


def atoms_of(system) -> Atoms:
    numbers = system.atomic_numbers.int().numpy()
    return Atoms(numbers, system.pos.numpy(), cell=system.cell[0].numpy(), pbc=True, tags=system.tags.numpy())


@pytest.fixture(scope="session")
def caches(tmp_path_factory, data, teacher_checkpoint) -> dict[str, Path]:
    """The training data's cache, by the type of its embeddings."""
    setup_imports()
    directory = tmp_path_factory.mktemp("caches")
    for dtype in ("float32", "float16"):
        cache_teacher(distill_config(data, teacher_checkpoint), directory / dtype, "--dtype", dtype)
    return {dtype: directory / dtype for dtype in ("float32", "float16")}


@pytest.fixture
def from_cache(distilled, caches) -> dict:
    """The distilled training, from the float32 cache."""
    distilled["task"]["distill"]["teacher"]["cache"] = str(caches["float32"])
    return distilled


def write_database(file: Path, systems: list[Atoms], labels: list) -> dict:
    """An ASE database, and the options of a dataset that reads it."""
    with connect(file) as database:
        for atoms, system in zip(systems, labels):
            atoms.calc = SinglePointCalculator(atoms, energy=float(system.energy), forces=system.forces.numpy())
            database.write(atoms)
    return {"format": "ase_db", "src": str(file), "a2g_args": {"r_energy": True, "r_forces": True}}


@pytest.fixture(scope="session")
def many(tmp_path_factory, data) -> dict:
    """Options of a dataset of four chunks: the training data, shaken."""
    systems = 5 * systems_of(data / "train")
    shaken = [atoms_of(system) for system in systems]
    for seed, atoms in enumerate(shaken):
        atoms.rattle(0.03, seed=seed)
    return write_database(tmp_path_factory.mktemp("many") / "train.db", shaken, systems)


# ---- what the command writes


def test_records_are_the_teachers_outputs(distilled, data, caches):
    cache = TeacherCache(caches["float32"])
    teacher = load_teacher(TeacherConfig(**distilled["task"]["distill"]["teacher"]), torch.device("cpu"))
    assert (cache.plan.fingerprint, cache.plan.width, cache.plan.teacher) == (teacher.fingerprint(), 16, "equiformer_v2")
    assert cache.plan.graph["max_neighbors"] == 8 and cache.plan.graph["cutoff"] == 6.0
    systems = systems_of(data / "train")
    assert len(cache) == len(systems) == 12
    for system, record, half in zip(systems, cache.records(), TeacherCache(caches["float16"]).records()):
        batch = data_list_collater([system], otf_graph=True)
        online = teacher(batch)
        assert record.digest == half.digest == digest_of(system)
        expected = online.node_embedding.numpy()
        np.testing.assert_allclose(record.values["node_embedding"], expected, atol=FLOAT32 * np.abs(expected).max())
        assert np.array_equal(record.pairs, unordered_pairs(online.edge_index, batch.num_nodes).numpy())
        assert np.array_equal(half.values["node_embedding"], record.values["node_embedding"].astype("f2"))
        for name in ("energy", "forces", "atom_energies"):
            assert np.array_equal(half.values[name], record.values[name])


@pytest.mark.parametrize("scale", [2.5, 1.0])  # 1: element references without a normalizer of the energy
def test_energies_and_forces_are_those_of_the_stock_calculator(run, stock, distilled, data, tmp_path, scale):
    """Of a checkpoint with normalizers and element references; the calculator takes its own weights, not the EMA's."""
    stock["model"]["max_neighbors"] = 200  # else the calculator takes some of those at equal distance, the teacher others
    stock["dataset"]["train"]["transforms"] = {
        "normalizer": {"energy": {"mean": -1.3, "stdev": scale}, "forces": {"mean": 0.0, "stdev": 1.7}},
        "element_references": {"fit": {"targets": ["energy"], "batch_size": 4, "num_batches": 3, "driver": "gelsd"}},
    }
    if scale == 1:
        del stock["dataset"]["train"]["transforms"]["normalizer"]["energy"]
    checkpoint = run(stock).checkpoints / "checkpoint.pt"
    distilled["task"]["distill"]["teacher"] = {"checkpoint": str(checkpoint), "use_ema": False}
    cache = cache_teacher(distilled, tmp_path / "cache", "--vectors", "--dtype", "float32")
    assert cache.plan.graph["element_references"] == "of each atom"  # a cache of 0.1.0, which shared them, is refused
    calculator = OCPCalculator(checkpoint_path=str(checkpoint), cpu=True, seed=0)
    features = attach_features(calculator.trainer._unwrapped_model, "teacher")
    reference = calculator.trainer.elementrefs["energy"].element_references.numpy().reshape(-1)  # eV, of each element
    for system, record in zip(systems_of(data / "train"), cache.records()):
        atoms = atoms_of(system)
        atoms.calc = calculator
        assert float(record.values["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=PREDICTION)
        np.testing.assert_allclose(record.values["forces"], atoms.get_forces(), atol=FORCE)
        assert record.values["vector_embedding"].shape == (len(atoms), 3, 16)
        energies = record.values["atom_energies"]
        assert float(energies.sum()) == pytest.approx(float(record.values["energy"]), abs=TOTAL_ENERGY)
        own = features.atom_energies.detach().numpy()[:, 0] * scale + reference[atoms.numbers]
        np.testing.assert_allclose(energies - energies[0], own - own[0], atol=FORCE)


def test_vectors_are_kept_on_demand(distilled, data, caches, tmp_path):
    plain, cache = TeacherCache(caches["float16"]), cache_teacher(distilled, tmp_path / "cache", "--vectors")
    assert cache.plan.vector_width == 16 and "vector_embedding" not in plain.plan.fields
    for record, with_vectors in zip(plain.records(), cache.records()):
        assert np.array_equal(record.values["node_embedding"], with_vectors.values["node_embedding"])
        assert with_vectors.values["vector_embedding"].shape == (record.atoms, 3, 16)
        assert np.abs(with_vectors.values["vector_embedding"]).max() > 0.01


def test_another_split(distilled, data, tmp_path):
    cache = cache_teacher(distilled, tmp_path / "cache", "--split", "val")
    assert [record.atoms for record in cache.records()] == [
        int(system.natoms) for system in systems_of(data / "val_id", "val")
    ]


@pytest.mark.slow
def test_the_records_do_not_depend_on_the_number_of_ranks(quick_processes, distilled, many, tmp_path):
    distilled["dataset"] = {"train": many}
    chunk = ("--chunk", "4")
    of_one_rank = cache_teacher(distilled, tmp_path / "one", *chunk)
    of_two_ranks = cache_teacher(distilled, tmp_path / "two", *chunk, "--num-gpus", "2")
    assert len(list((tmp_path / "two").glob("shard.*.records"))) == 2
    assert len(of_one_rank) == 60 and content(of_one_rank) == content(of_two_ranks)
    (tmp_path / "two" / "header.json").unlink()
    (tmp_path / "two" / "shard.0001.records").unlink()
    of_two_ranks.close()
    del of_two_ranks
    again = cache_teacher(distilled, tmp_path / "two", *chunk)  # what is missing, with one
    assert content(again) == content(of_one_rank)


def test_a_calculator_of_ase(distilled, data, tmp_path):
    cache = cache_teacher(distilled, tmp_path / "cache", "--calculator", "ase.calculators.emt:EMT")
    assert (cache.plan.width, cache.plan.has_pairs, cache.plan.teacher) == (0, False, "ase.calculators.emt:EMT")
    for system, record in zip(systems_of(data / "train"), cache.records()):
        atoms = atoms_of(system)
        atoms.calc = EMT()
        assert float(record.values["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=ENERGY)
        np.testing.assert_allclose(record.values["forces"], system.forces.numpy(), atol=FORCE)


@pytest.mark.parametrize("name", ["ase.calculators.emt", "ase.calculators.emt:Emt", "no_such_module:EMT", ":EMT"])
def test_no_calculator(distilled, tmp_path, name):
    with pytest.raises(SystemExit, match=f"--calculator {name}: expected a name that ASE knows"):
        cache_teacher(distilled, tmp_path / "cache", "--calculator", name)


def test_a_calculators_cache_cannot_distil_embeddings(run, distilled, tmp_path):
    cache_teacher(distilled, tmp_path / "cache", "--calculator", "ase.calculators.emt:EMT")
    distilled["task"]["distill"]["teacher"] = {"cache": str(tmp_path / "cache")}
    with pytest.raises(CacheError, match="holds energy, forces, and no node_embedding"):
        run(distilled)


def test_verify(distilled, caches, tmp_path, capsys):
    for dtype, directory in caches.items():
        cache_teacher(distilled, directory, "--dtype", dtype, "--verify", "5")
        assert "5 records recomputed" in capsys.readouterr().out
    cache = TeacherCache(caches["float16"])
    for name, problem in (("energy", "in energy"), ("node_embedding", "in node_embedding"), ("pairs", "other pairs")):
        records = [dataclasses.replace(record, values=dict(record.values)) for record in cache.records()]
        if name == "pairs":
            records[7] = dataclasses.replace(records[7], pairs=records[7].pairs[:, 1:])
        else:
            records[7].values[name] = records[7].values[name] * 1.01
        writer = CacheWriter(tmp_path / name, cache.plan)
        writer.write(0, records)
        writer.close()
        finish(tmp_path / name, cache.plan)
        with pytest.raises(SystemExit, match=f"record 7 .*{problem}"):
            cache_teacher(distilled, tmp_path / name, "--verify", "12")


def test_a_finished_cache_is_left_unchanged(distilled, caches, capsys):
    before = {file.name: file.stat().st_mtime_ns for file in caches["float16"].iterdir()}
    cache_teacher(distilled, caches["float16"])
    assert {file.name: file.stat().st_mtime_ns for file in caches["float16"].iterdir()} == before


def test_a_second_command_on_the_directory_is_refused(distilled, tmp_path):
    (tmp_path / "cache").mkdir()
    with only_writer(tmp_path / "cache" / fill.LOCK):
        named = f"process {os.getpid()} on {socket.gethostname()} is writing it"
        with pytest.raises(SystemExit, match=re.escape(named)):
            cache_teacher(distilled, tmp_path / "cache", "--calculator", "emt")
    assert len(cache_teacher(distilled, tmp_path / "cache", "--calculator", "emt")) == 12


def test_a_damaged_record_is_repaired(distilled, tmp_path, capsys):
    flags = ("--calculator", "emt", "--repair")
    expected = content(cache_teacher(distilled, tmp_path / "cache", *flags))  # of nothing, it writes all
    records = tmp_path / "cache" / "shard.0000.records"
    records.write_bytes(records.read_bytes()[:-1] + b"\xff")
    capsys.readouterr()
    assert content(cache_teacher(distilled, tmp_path / "cache", *flags)) == expected
    assert "1 of 1 chunks are damaged or missing: 0 (systems 0 to 11)" in capsys.readouterr().out


def test_a_calculator_that_has_changed_is_refused(distilled, tmp_path, monkeypatch):
    """Where its name and the parameters that it reports are the same."""
    source = "from ase.calculators.emt import EMT\n\ndef make():\n    return EMT()  # {}\n"
    (tmp_path / "changing.py").write_text(source.format("first"))
    monkeypatch.syspath_prepend(tmp_path)
    flags = ("--calculator", "changing:make")
    cache_teacher(distilled, tmp_path / "cache", *flags)
    cache_teacher(distilled, tmp_path / "cache", *flags)
    (tmp_path / "changing.py").write_text(source.format("second"))
    with pytest.raises(SystemExit, match=r"was begun with identity.source \w+, and is now requested with \w+\. Give"):
        cache_teacher(distilled, tmp_path / "cache", *flags)


def test_another_type_in_the_same_directory(distilled, caches):
    with pytest.raises(SystemExit, match="was begun with dtype float16, and is now requested with float32"):
        cache_teacher(distilled, caches["float16"], "--dtype", "float32")


def test_a_disk_that_is_too_small(distilled, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SystemExit, match=r"are needed and .* are free"):
        cache_teacher(distilled, tmp_path / "cache", "--chunk", "2")
    assert len(list((tmp_path / "cache").glob("header.json"))) == 0  # the sample by which the size was estimated
    monkeypatch.undo()
    assert len(cache_teacher(distilled, tmp_path / "cache", "--chunk", "2")) == 12


@pytest.mark.parametrize("change", ["no output", "no checkpoint", "no data"])
def test_what_is_missing_is_named(distilled, tmp_path, change):
    teacher, flags = distilled["task"]["distill"]["teacher"], ["--output", str(tmp_path / "cache")]
    if change == "no output":
        flags, message = [], "task.distill.teacher.cache in the YAML, or --output DIR"
    elif change == "no checkpoint":
        teacher.clear()
        message = "task.distill.teacher.checkpoint: missing"
    else:
        del distilled["dataset"]["train"]["src"]
        message = "dataset.train.src: missing"
    file = tmp_path / "config.yml"
    file.write_text(yaml.safe_dump(distilled))
    with pytest.raises(SystemExit, match=message):
        main(["cache-teacher", "--config-yml", str(file), "--cpu", *flags])


@pytest.mark.slow
def test_killed_at_ten_moments_it_resumes_where_it_was(distilled, many, tmp_path, monkeypatch):
    """SIGKILL while the toy teacher runs over chunks of one system; no finished chunk is run again."""
    log = tmp_path / "log"
    source_of = module.Job.source

    def slowly(job, rank, dataset):
        source, plan = source_of(job, rank, dataset)

        def logged(systems: list) -> list[Record]:
            records = source(systems)
            with log.open("a") as file:
                file.writelines(f"{record.digest.hex()}\n" for record in records)
            return records

        return logged, dataclasses.replace(plan, chunk=1)

    monkeypatch.setattr(module.Job, "source", slowly)
    monkeypatch.setattr(fill, "SAMPLE_CHUNKS", 1)
    distilled["dataset"] = {"train": many}
    whole = cache_teacher(distilled, tmp_path / "whole")
    digests = [record.digest.hex() for record in whole.records()]
    directory = tmp_path / "killed"
    directory.mkdir()
    moments, progress = random.Random(1), [0]
    gc.collect()
    for _ in range(10):
        done = {digests[chunk] for chunk in written_chunks(directory, whole.plan)}
        log.write_text("")
        pid = fork()
        if pid == 0:
            try:
                torch.set_num_threads(1)  # the threads of the parent's pool are not here
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                cache_teacher(distilled, directory)
            finally:
                os._exit(1)
        runs = moments.randint(1, 2)  # of the teacher: all chunks but the last are written, however slow the machine
        for _ in range(30_000):
            if len(log.read_text().split()) >= runs or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not done & set(log.read_text().split())
        progress.append(len(written_chunks(directory, whole.plan)))
        assert progress[-1] >= progress[-2]
    assert progress[-1] > 2
    killed = cache_teacher(distilled, directory)
    assert content(killed) == content(whole)


# ---- training from it


@pytest.mark.parametrize("student", STUDENTS)
def test_training_from_the_cache_is_training_online(run, distilled, caches, student):
    distilled["model"] = STUDENTS[student] or distilled["model"]
    distilled["optim"].update(max_epochs=2)
    online = run(distilled, name="online")
    assert len(online.steps) == 12
    for dtype, tolerance in (("float32", FLOAT32), ("float16", FLOAT16)):
        distilled["task"]["distill"]["teacher"]["cache"] = str(caches[dtype])
        assert run(distilled, name=dtype).losses() == pytest.approx(online.losses(), rel=tolerance)


@pytest.mark.parametrize("relations", [{"graph": "student"}, {"negatives": "system"}, {"max_pairs": 30}], ids=str)
def test_options_of_the_relations(run, distilled, caches, relations):
    distilled["task"]["distill"]["relations"] = relations
    online = run(distilled, name="online")
    distilled["task"]["distill"]["teacher"]["cache"] = str(caches["float32"])
    assert run(distilled, name="cached").losses() == pytest.approx(online.losses(), rel=FLOAT32)


def test_loader_workers_read_the_cache(run, from_cache):
    direct = run(from_cache, name="direct")
    from_cache["optim"]["num_workers"] = 1
    assert run(from_cache, name="workers").losses() == direct.losses()


def test_reading_ahead_changes_no_step(run, from_cache, monkeypatch):
    from_cache["optim"].update(max_epochs=2)
    ahead = run(from_cache, name="ahead")
    monkeypatch.setattr(trainer, "read_ahead", lambda loader: loader)
    assert len(ahead.steps) == 12 and run(from_cache, name="plain").losses() == ahead.losses()


@pytest.mark.parametrize("change", ["a missing file", "no checkpoint"])
def test_the_teacher_may_be_gone(run, from_cache, change):
    known = run(from_cache, name="known")
    teacher = from_cache["task"]["distill"]["teacher"]
    if change == "no checkpoint":
        del teacher["checkpoint"]
    else:
        teacher["checkpoint"] = "gone.pt"
    assert run(from_cache, name="gone").losses() == known.losses()


def test_an_online_run_is_resumed_from_the_cache(run, distilled, caches):
    distilled["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=4)
    whole = run(distilled, name="whole")
    run(distilled, name="cut", stop_at=5)
    distilled["task"]["distill"]["teacher"]["cache"] = str(caches["float32"])
    resumed = run(distilled, name="cut")
    assert [record["step"] for record in resumed.steps] == list(range(5, 13))
    assert resumed.losses() == pytest.approx(whole.losses()[4:], rel=FLOAT32)


def test_validation_and_prediction_need_no_cache(run, from_cache):
    trained = run(from_cache)
    from_cache["task"]["distill"]["teacher"] = {"cache": "gone"}
    best = trained.checkpoints / "best_checkpoint.pt"
    validated = run(from_cache, mode="validate", name="validate", checkpoint=best)
    assert validated.validations[0]["forces_mae"] == pytest.approx(trained.validations[-1]["forces_mae"], rel=REPEATED)
    assert (run(from_cache, mode="predict", name="predict", checkpoint=best).results / "ocp_predictions.npz").is_file()


def test_data_of_an_ase_database(run, distilled, data, tmp_path):
    distilled["dataset"] = {}
    for split, source in (("train", data / "train"), ("val", data / "val_id")):
        systems = systems_of(source)
        distilled["dataset"][split] = write_database(tmp_path / f"{split}.db", list(map(atoms_of, systems)), systems)
    online = run(distilled, name="online")
    cache_teacher(distilled, tmp_path / "cache", "--dtype", "float32")
    distilled["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    assert run(distilled, name="cached").losses() == pytest.approx(online.losses(), rel=FLOAT32)


# ---- refused before the first step


@pytest.fixture
def refused(tmp_path):
    """Callable: the training is refused with this message, before its first step."""

    def check(config: dict, message: str) -> None:
        with pytest.raises(CacheError, match=message):
            run_fairchem(tmp_path, config, name="refused")
        import recorder

        assert not [record for record in recorder.records() if record["split"] == "train"]

    return check


def test_no_cache(refused, from_cache, tmp_path):
    from_cache["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "gone")
    refused(from_cache, f"{tmp_path / 'gone'} does not exist")


def test_another_teacher(refused, from_cache):
    from_cache["task"]["distill"]["teacher"]["use_ema"] = False
    refused(from_cache, "was made by another teacher than .*: the fingerprints of their weights differ")


@pytest.mark.parametrize(
    "change, message",
    [
        ("max_neighbors", r"graph.max_neighbors 8 \(cache\), 5 \(checkpoint\)"),
        ("avg_degree", r"config.avg_degree None \(cache\), 7.5 \(checkpoint\)"),
        ("normalizer", r"normalizers.energy.rmsd .*\[3.0\] \(checkpoint\)"),
        ("references", r"element_references.energy None \(cache\)"),
    ],
)
def test_a_teacher_with_other_settings(refused, from_cache, teacher_checkpoint, tmp_path, change, message):
    """Of the same weights: what else decides its outputs."""
    checkpoint = torch.load(teacher_checkpoint, weights_only=False)
    if change == "normalizer":
        checkpoint["normalizers"]["energy"] = {"mean": torch.tensor(0.0), "rmsd": torch.tensor(3.0)}
    elif change == "references":
        checkpoint["elementrefs"] = {"energy": {"element_references": torch.ones(119)}}
    else:
        checkpoint["config"]["model"][change] = {"max_neighbors": 5, "avg_degree": 7.5}[change]
    torch.save(checkpoint, tmp_path / "other.pt")
    from_cache["task"]["distill"]["teacher"]["checkpoint"] = str(tmp_path / "other.pt")
    refused(from_cache, f"was made with other settings than .*: .*{message}")


def test_another_precision(refused, run, distilled, from_cache, tmp_path):
    teacher = from_cache["task"]["distill"]["teacher"]
    teacher["precision"] = "bfloat16"
    refused(from_cache, "was made in float32, and task.distill.teacher.precision is bfloat16.* Set it to float32, or write")
    assert cache_teacher(distilled, tmp_path / "rough").plan.precision == "bfloat16"
    teacher["cache"] = str(tmp_path / "rough")
    assert len(run(from_cache, name="rough").steps) == 6
    del teacher["precision"]
    refused(from_cache, "was made in bfloat16, and task.distill.teacher.precision is auto: a cache for it is in float32")


def test_another_dataset(refused, from_cache, data, tmp_path):
    config = copy.deepcopy(from_cache)
    config["dataset"]["train"]["src"] = str(data / "val_ood_ads")
    refused(config, "has no record of system 0 of dataset.train")


@pytest.mark.parametrize("change", ["position", "tag", "fixed atom"])
def test_another_system(refused, distilled, data, caches, tmp_path, change):
    """Whatever of it a model or a calculator reads."""
    systems = systems_of(data / "train")
    atoms = list(map(atoms_of, systems))
    for changed, system in zip(atoms, systems):
        changed.set_constraint(FixAtoms(mask=system.fixed.numpy() == (0 if change == "fixed atom" else 1)))
        changed.positions[0, 0] += 0.01 * (change == "position")
        changed.set_tags(changed.get_tags() + (change == "tag"))
    distilled["dataset"] = {"train": write_database(tmp_path / "other.db", atoms, systems)}
    distilled["task"]["distill"]["teacher"]["cache"] = str(caches["float32"])
    refused(distilled, r"has no record of system 0 of dataset.train \(sid 8\). A record belongs to the atoms")


def test_another_order_and_a_part_of_the_data_are_served(run, from_cache, caches):
    whole = run(from_cache, name="whole")
    from_cache["dataset"]["train"].update(no_shuffle=True)
    reordered = run(from_cache, name="other")
    assert len(reordered.steps) == 6 and reordered.losses() != whole.losses()
    del from_cache["dataset"]["train"]["no_shuffle"]
    from_cache["dataset"]["train"].update(first_n=4)
    assert len(run(from_cache, name="part").steps) == 2


def test_a_cache_keeps_what_the_terms_of_its_yaml_read(distilled, tmp_path):
    distilled["loss_functions"] += [
        {"vector_embeddings": {"fn": "mse", "coefficient": 1}},
        {"force_jacobian": {"fn": "mae", "coefficient": 1}},
        {"node_contrast": {"fn": "info_nce", "coefficient": 0}},
    ]
    plan = cache_teacher(distilled, tmp_path / "all", "--dtype", "float32").plan
    assert plan.fields[-2:] == ("vector_embedding", "force_jacobian") and plan.jacobian_rows == JACOBIAN_ROWS
    flags = ("--jacobian-rows", "2", "--embedding-response", "--force-response")
    plan = cache_teacher(distilled, tmp_path / "two", *flags).plan
    assert plan.jacobian_rows == 2 and plan.fields[-3:] == ("embedding_response", "force_response", "force_jacobian")
    cache_teacher(distilled, tmp_path / "two", *flags, "--verify", "3")  # by the displacements that were kept


def test_a_cache_that_lacks_what_terms_read_names_all_of_it(refused, from_cache):
    from_cache["loss_functions"] += [
        {"vector_embeddings": {"fn": "mse", "coefficient": 1}},
        {"force_jacobian": {"fn": "mae", "coefficient": 1}},
    ]
    refused(from_cache, "and no force_jacobian, vector_embedding, which terms")
