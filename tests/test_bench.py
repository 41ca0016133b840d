"""`fairchem-crack bench`: the figures it computes, and a run of it at toy size."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.geometry import find_mic
from ase.io import write
from tolerances import POSITION, RELAXED_ENERGY, SOFT_FORCE
from torch.cuda import OutOfMemoryError
from torch_geometric.data import Batch

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.speed import runs
from fairchem_crack.evaluation.speed.measure import ratios
from fairchem_crack.evaluation.speed.runs import Model, ns_per_day, relax
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems, slab_size, take
from fairchem_crack.evaluation.tables import digits
from fairchem_crack.evaluation.time_and_memory import WARM_UP, measure_throughput
from fairchem_crack.io.named_records import free_atoms

sys.path.append(str(Path(__file__).parent / "tools"))

SMALL = ["--cpu", "--atoms=13", "--batch-sizes", "1", "2"]
TOY = [*SMALL, "--repeats=2", "--md-steps=2", "--relax-steps=3", "--relax-batch-size=2"]
PAINN = {"hidden_channels": 16, "num_layers": 1, "num_rbf": 8, "max_neighbors": 12, "cutoff": 5.0}
EQUIFORMER = {"num_layers": 1, "sphere_channels": 16, "lmax_list": [1], "mmax_list": [1], "max_neighbors": 8}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> list[Path]:
    """A student and a teacher in the published format of OC20, small and with random weights."""
    from make_published_checkpoint import write_published_checkpoint

    directory = tmp_path_factory.mktemp("published")
    paths = [directory / "student.pt", directory / "teacher.pt"]
    write_published_checkpoint("painn_h512", paths[0], **PAINN)
    write_published_checkpoint("eqV2_31M", paths[1], **EQUIFORMER)
    return paths


def test_ns_per_day_follow_from_the_seconds_of_a_step():
    assert ns_per_day(1.0, 2.0) == pytest.approx(0.1728)  # 86 400 steps of 2 fs
    assert ns_per_day(0.5, 1.0) == pytest.approx(0.1728)


def test_ratios_are_how_many_times_as_fast():
    fast = {
        "throughput": {"1": {"atoms_per_second": [20.0, 30.0]}, "8": {}},
        "latency": {"seconds": [0.1, 0.2]},
        "dynamics": {"ns_per_day": [8.0, 8.0]},
        "relaxation": {"per_hour": [6.0, 2.0]},
    }
    slow = {
        "throughput": {"1": {"atoms_per_second": [10.0, 10.0]}, "8": {"atoms_per_second": [1.0]}},
        "latency": {"seconds": [0.4, 0.4]},
        "dynamics": {"ns_per_day": [2.0, 4.0]},
        "relaxation": {"per_hour": [2.0, 2.0]},
    }
    quotients = ratios(fast, slow)
    assert quotients["throughput"] == {"1": [2.0, 3.0], "8": []}  # a batch that did not fit has none
    assert quotients["latency"] == pytest.approx([4.0, 2.0])
    assert quotients["dynamics"] == [4.0, 2.0] and quotients["relaxation"] == [3.0, 1.0]
    assert ratios({"latency": {"seconds": [1.0]}}, {"latency": {"seconds": [1.0]}}) == {"latency": [1.0]}


def test_models_are_interleaved_and_one_may_not_fit():
    runs = []

    def model(name: str):
        return lambda batch: runs.append(name)

    def too_large(batch):
        raise OutOfMemoryError

    batch = Batch(pos=torch.zeros(5, 3), num_nodes=5)
    models = {"a": model("a"), "b": too_large, "c": model("c")}
    throughput = measure_throughput(models, dict.fromkeys(models, batch), torch.device("cpu"), repeats=3)
    assert runs == ["a"] * WARM_UP + ["c"] * WARM_UP + ["a", "c"] * 3
    assert throughput["b"] == {} and all(len(throughput[name]["atoms_per_second"]) == 3 for name in "ac")


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,300"), (1.2345, "1.23"), (0.0123456, "0.0123"), (99.96, "100"), (0.0, "0"), (math.nan, "-")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert digits(value) == text


@pytest.mark.parametrize("atoms", [13, 30, 73, 200])
def test_made_slabs_have_the_requested_size(atoms):
    systems = make_systems(atoms, 9)
    x, y, layers = slab_size(atoms)
    assert {len(system) for system in systems} == {x * y * layers + 1}
    assert abs(len(systems[0]) - atoms) <= 0.1 * atoms
    assert len({system.get_chemical_formula() for system in systems}) == 7  # metals
    for system in systems:
        distances = system.get_all_distances(mic=True) + 10 * np.eye(len(system))
        assert system.pbc.all() and distances.min() > 1.0  # A
        assert set(system.get_tags()) == {0, 1, 2} and system.get_tags()[-1] == 2
        assert set(system.constraints[0].index) == set(np.flatnonzero(system.get_tags() == 0))
    again = make_systems(atoms, 9)
    assert all(np.array_equal(system.positions, same.positions) for system, same in zip(systems, again))


def test_systems_are_taken_round_the_list():
    assert [take(list("abc"), 2, turn) for turn in range(3)] == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert take(list("ab"), 3) == ["a", "b", "a"]


def test_systems_come_from_lmdbs_or_from_what_ase_reads(data, tmp_path):
    systems = read_systems(data / "val_ood_cat", 4)
    assert len(systems) == 4 and all({0, 1, 2} == set(system.get_tags()) for system in systems)
    write(tmp_path / "systems.extxyz", systems)
    again = read_systems(tmp_path / "systems.extxyz", 3)
    assert len(again) == 3 and np.allclose(again[2].positions, systems[2].positions, atol=POSITION)


def test_a_batch_keeps_each_systems_pbc_tags_and_fixed_atoms(published):
    slab = fcc111("Cu", (2, 1, 3), vacuum=0.5)
    slab.rattle(0.1, seed=1)
    slab.set_constraint(FixAtoms([0, 3]))
    model, systems = Model(published[0], cpu=True), [bulk("Cu", cubic=True), slab, molecule("CH3")]
    batch = model.batch(systems)
    assert batch.tags.tolist() == [tag for system in systems for tag in system.get_tags()]
    assert free_atoms(batch).tolist() == [index not in (4, 7) for index in range(batch.num_nodes)]
    together = model.forward(batch)["forces"].split([len(system) for system in systems])
    for system, forces in zip(systems, together):
        system.calc = model.calculator
        np.testing.assert_allclose(forces, system.get_forces(apply_constraint=False), atol=SOFT_FORCE)


def test_relaxing_counts_the_steps_of_each_system(published):
    """Against one system at a time: those in a batch stop counting when they are converged themselves."""
    if not runs.RELAXES_IN_BATCHES:
        pytest.skip("fairchem's batched relaxations need ase < 3.26")
    model = Model(published[0], cpu=True)
    systems = make_systems(13, 3)
    forces = [model.forward(model.batch([system]))["forces"][system.get_tags() > 0] for system in systems]
    largest = sorted(float(of_system.norm(dim=1).max()) for of_system in forces)
    fmax = (largest[0] + largest[1]) / 2  # eV/A: one of them is converged before it starts
    together = relax(model, systems, fmax=fmax, most_steps=5)
    singly = [relax(model, [system], fmax=fmax, most_steps=5) for system in systems]
    assert together.steps.tolist() == [int(relaxed.steps[0]) for relaxed in singly] and 0 in together.steps
    assert together.converged.tolist() == [bool(relaxed.converged[0]) for relaxed in singly]
    assert together.energy == pytest.approx([float(relaxed.energy[0]) for relaxed in singly], abs=RELAXED_ENERGY)
    for system, positions in zip(systems, together.positions):
        moved = find_mic(positions - system.positions, system.cell)[1]  # A; fairchem wraps atoms into the cell
        assert moved[system.get_tags() == 0].max() < 1e-5 and moved.max() <= 5 * 0.04 + 1e-5


def test_one_by_one_gives_the_same_kind_of_result(published, monkeypatch):
    monkeypatch.setattr(runs, "RELAXES_IN_BATCHES", False)
    relaxed = relax(Model(published[0], cpu=True), make_systems(13, 2), fmax=1e-6, most_steps=2)
    assert relaxed.steps.tolist() == [2, 2] and not relaxed.converged.any() and relaxed.energy.shape == (2,)
    assert [positions.shape for positions in relaxed.positions] == [(13, 3)] * 2 and relaxed.seconds > 0


def test_bench_measures_two_checkpoints(published, tmp_path, capsys):
    output = tmp_path / "new" / "bench.json"
    main(["bench", "--checkpoint", *map(str, published), *TOY, "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["reference"] == "teacher" and list(content["checkpoints"]) == ["student", "teacher"]
    student, teacher = content["checkpoints"].values()
    assert (student["architecture"], teacher["architecture"]) == ("painn", "equiformer_v2")
    for checkpoint in (student, teacher):
        assert set(checkpoint["throughput"]) == {"1", "2"}
        assert all(len(throughput["atoms_per_second"]) == 2 for throughput in checkpoint["throughput"].values())
        assert len(checkpoint["latency"]["seconds"]) == len(checkpoint["dynamics"]["ns_per_day"]) == 2
        assert max(checkpoint["relaxation"]["steps"]) <= 3 and min(checkpoint["relaxation"]["per_hour"]) > 0
    assert teacher["ratios"]["dynamics"] == [1.0, 1.0]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("atoms/s", "ns/day", "per hour", "MiB", "student", "at most 3 steps"))
    assert printed.count("step 1000, epoch 1") == 2 and "untrained" not in printed


def test_the_reference_can_be_named_and_quantities_chosen(published, tmp_path, capsys):
    output = tmp_path / "bench.json"
    student, teacher = map(str, published)
    main(["bench", "--checkpoint", teacher, "--reference", student, *TOY, "--only", "latency", "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["reference"] == "student" and set(content["checkpoints"]) == {"teacher", "student"}
    facts = {"path", "architecture", "parameters", "step", "epoch"}
    assert set(content["checkpoints"]["teacher"]) == {*facts, "latency", "ratios"}
    assert "ns/day" not in capsys.readouterr().out


def test_bench_takes_a_checkpoint_of_todays_format(tmp_path, capsys):
    teacher = Path(__file__).parents[1] / "configs/oc20/demo/teacher_equiformer_v2.pt"
    main(["bench", "--checkpoint", str(teacher), *TOY, "--only", "throughput"])
    assert "equiformer_v2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--checkpoint", "missing.pt"], "missing.pt: no such file"),
        (["--checkpoint", "missing.pt", "--repeats", "0"], "--repeats 0: expected at least 1"),
        (["--checkpoint", "missing.pt", "--batch-sizes", "8", "-1"], "--batch-sizes -1"),
        (["--checkpoint", "missing.pt", "missing.pt"], "the same file twice"),
        (["--checkpoint", "missing.pt", "--atoms", "5"], "the smallest slab has 13 atoms"),
        (["--checkpoint", "missing.pt", "--data", "nowhere"], "--data nowhere: no such file or directory"),
        (["--checkpoint", "missing.pt", "--data", "."], "no .lmdb file in it"),
        (["--checkpoint", __file__], "cannot be read as a checkpoint"),
        (["--checkpoint", "missing.pt", "--data", __file__], "ASE cannot read it"),
    ],
)
def test_wrong_inputs_are_named(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=expected):
        main(["bench", *arguments, "--cpu"])
