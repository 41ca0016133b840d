"""`fairchem-crack evaluate-relaxations`: each metric against a loop, EMT's own ends against EMT, bad input is named."""

from __future__ import annotations

import csv
import gc
import json
import math
import pickle
import re
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory, read, write
from ase.optimize import BFGS
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.modules.evaluator import Evaluator
from tolerances import POSITION

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.relaxations.metrics import (
    FORCE_THRESHOLDS,
    METRICS,
    distance_within_thresholds,
    forces_below_thresholds,
    largest_force,
)
from fairchem_crack.evaluation.relaxations.reading import read_systems

TIGHT = 0.005  # eV/A: EMT's ends are below every threshold of FbT and AFbT


class Ends:
    """Six systems whose ends are EMT's: the LMDB, and what run-relaxations would have written of a model that is EMT."""

    def __init__(self, directory: Path, records: list) -> None:
        self.data, self.file = directory / "is2re", directory / "relaxed_positions.npz"
        self.trajectories, self.atoms = directory / "trajectories", {}
        self.trajectories.mkdir()
        for record in records:
            atoms = batch_to_atoms(data_list_collater([record], otf_graph=True))[0]
            atoms.calc = EMT()
            BFGS(atoms, logfile=None).run(fmax=TIGHT, steps=500)
            record.pos_relaxed, record.y_relaxed = torch.tensor(atoms.positions).float(), atoms.get_potential_energy()
            del record.y, record.force
            self.atoms[str(record.sid)] = atoms
            with Trajectory(self.trajectories / f"{record.sid}.traj", "w") as trajectory:
                trajectory.write(atoms)
        write_lmdb(self.data, records)
        self.records = records
        write_npz(self.file, {sid: atoms.positions for sid, atoms in self.atoms.items()})

    def flags(self, *more: str) -> list[str]:
        return ["--data", str(self.data), "--positions", f"student={self.file}", *more]


def write_lmdb(directory: Path, records: list) -> None:
    directory.mkdir()
    environment = lmdb.open(str(directory / "data.lmdb"), map_size=1 << 24, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, record in enumerate(records):
            transaction.put(str(index).encode(), pickle.dumps(record, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(records)))
    environment.close()


def write_npz(file: Path, rows: dict[str, np.ndarray], key: str = "pos") -> None:
    """As fairchem's trainer writes relaxed_positions.npz."""
    cuts = np.cumsum([len(values) for values in rows.values()])[:-1]
    np.savez_compressed(file, **{"ids": np.array(list(rows)), key: np.concatenate(list(rows.values())), "chunk_idx": cuts})


@pytest.fixture(scope="module")
def ends(data, tmp_path_factory) -> Ends:
    gc.collect()
    dataset = LmdbDataset({"src": str(data / "val_id")})
    records = [dataset[index] for index in range(len(dataset))]
    del dataset
    gc.collect()
    return Ends(tmp_path_factory.mktemp("ends"), records)


@pytest.fixture
def shifted(ends, tmp_path) -> tuple[Path, dict[str, np.ndarray]]:
    """Ends of another model: every free atom off by up to a tenth of an A, and whole systems by a lattice vector."""
    random = np.random.default_rng(3)
    rows = {}
    for number, (sid, atoms) in enumerate(ends.atoms.items()):
        move = random.normal(scale=0.02 * number, size=(len(atoms), 3)) * (atoms.get_tags() > 0)[:, None]
        rows[sid] = atoms.positions + move + (number % 2) * atoms.cell.array[0]
    write_npz(tmp_path / "shifted.npz", rows)
    return tmp_path / "shifted.npz", rows


def metrics_of(output: Path) -> dict[str, dict[str, float]]:
    rows = json.loads(Path(f"{output}.json").read_text())["rows"]
    return {row["model"]: {name: interval["estimate"] for name, interval in row["metrics"].items()} for row in rows}


def test_the_ends_of_emt_are_right_by_emt(ends, tmp_path, capsys):
    output = tmp_path / "made/out"
    flags = ends.flags("--trajectories", f"student={ends.trajectories}", "--calculator", "emt", "--output", str(output))
    main(["evaluate-relaxations", *flags])
    metrics = metrics_of(output)["student"]
    assert set(metrics) == set(METRICS)
    assert metrics["forces_below_threshold"] == metrics["average_forces_below_threshold"] == 1
    assert metrics["average_distance_within_threshold"] == metrics["energy_within_threshold"] == 1
    assert metrics["energy_mae"] < 1e-5
    assert json.loads(Path(f"{output}.json").read_text())["notes"] == []
    assert "left out" not in capsys.readouterr().out
    assert sorted(path.name for path in output.parent.iterdir()) == ["out.csv", "out.json"]


def test_every_metric_is_that_of_a_loop(ends, shifted, tmp_path):
    file, rows = shifted
    energies = {sid: atoms.get_potential_energy() + 0.015 * number for number, (sid, atoms) in enumerate(ends.atoms.items())}
    directory = tmp_path / "trajectories"
    directory.mkdir()
    for sid, atoms in ends.atoms.items():
        frame = atoms.copy()
        frame.positions = rows[sid]
        frame.calc = SinglePointCalculator(frame, energy=energies[sid])
        with Trajectory(directory / f"{sid}.traj", "w") as trajectory:
            trajectory.write(frame)
    flags = ["--data", str(ends.data), "--positions", f"student={file}", f"perfect={ends.file}", "--calculator", "emt"]
    main(["evaluate-relaxations", *flags, "--trajectories", f"student={directory}", "--output", str(tmp_path / "out")])
    metrics = metrics_of(tmp_path / "out")["student"]

    errors = [abs(energies[sid] - float(record.y_relaxed)) for sid, record in zip(rows, ends.records)]
    assert metrics["energy_mae"] == pytest.approx(sum(errors) / 6)
    assert metrics["energy_within_threshold"] == sum(error < 0.02 for error in errors) / 6 == 2 / 6

    within = below = averaged = 0.0
    for sid, record in zip(rows, ends.records):
        atoms, free = ends.atoms[sid].copy(), np.flatnonzero(record.fixed.numpy() == 0)
        reach = [np.array([i, j, k]) @ atoms.cell.array for i in (-2, -1, 0, 1, 2) for j in (-1, 0, 1) for k in (-1, 0, 1)]
        target = record.pos_relaxed.numpy()
        mean = np.mean([min(np.linalg.norm(rows[sid][atom] - target[atom] + shift) for shift in reach) for atom in free])
        within += sum(mean < 0.01 + 0.001 * step for step in range(490)) / 490 / 6
        atoms.positions, atoms.calc = rows[sid], EMT()
        largest = max(np.sqrt((atoms.get_forces(apply_constraint=False)[atom] ** 2).sum()) for atom in free)
        below += (largest < 0.05) / 6
        averaged += sum(largest < 0.01 + 0.001 * step for step in range(391)) / 391 / 6
    assert metrics["average_distance_within_threshold"] == pytest.approx(within, abs=1 / 490)  # a threshold's rounding
    assert metrics["forces_below_threshold"] == pytest.approx(below)
    assert metrics["average_forces_below_threshold"] == pytest.approx(averaged, abs=1 / 391)  # likewise
    assert 0 < averaged < 1 and 0 < within < 1

    with Path(f"{tmp_path / 'out'}.csv").open() as lines:
        (line,) = [line for line in csv.DictReader(lines) if line["model"] == "student"]
    assert all(float(line[name]) == pytest.approx(metrics[name]) and line[f"{name}_systems"] == "6" for name in METRICS)
    assert float(line["energy_mae_low"]) < metrics["energy_mae"] < float(line["energy_mae_high"])


def test_adwt_is_fairchems(ends, shifted):
    _, rows = shifted
    systems = read_systems(ends.data, {})
    free = {sid: system.free for sid, system in systems.items()}
    target = {"cell": torch.stack([torch.tensor(system.atoms.cell.array).float() for system in systems.values()])}
    target["pbc"] = torch.tensor([True] * 3)
    prediction = {"natoms": torch.tensor([int(mask.sum()) for mask in free.values()])}
    prediction["positions"] = torch.cat([torch.tensor(rows[sid][mask]).float() for sid, mask in free.items()])
    target["positions"] = torch.cat([torch.tensor(systems[sid].positions[mask]).float() for sid, mask in free.items()])
    target["natoms"] = prediction["natoms"]
    of_batch = Evaluator(task="is2rs").eval(prediction, target)["positions_average_distance_within_threshold"]["metric"]
    ours = [
        distance_within_thresholds(rows[sid][mask], systems[sid].positions[mask], systems[sid].atoms.cell.array)
        for sid, mask in free.items()
    ]
    assert np.mean(ours) == pytest.approx(of_batch)


def test_a_force_is_measured_by_its_length_on_free_atoms():
    forces = np.array([[9.0, 0, 0], [0.03, 0.04, 0], [0.01, 0, 0]])
    largest = largest_force(forces, np.array([False, True, True]))
    assert largest == pytest.approx(0.05)
    shares = forces_below_thresholds(np.array([0.0, largest, math.inf]), FORCE_THRESHOLDS)
    assert shares == pytest.approx([1, 350 / 391, 0], abs=1.1 / 391)  # likewise
    assert largest_force(np.full((1, 3), math.nan), np.array([True])) == math.inf
    assert FORCE_THRESHOLDS[[0, -1]] == pytest.approx([0.01, 0.4]) and np.diff(FORCE_THRESHOLDS) == pytest.approx(0.001)


def test_within_counts_only_ends_near_the_reference(ends, tmp_path):
    far = dict({sid: atoms.positions for sid, atoms in ends.atoms.items()})
    first, atoms = next(iter(ends.atoms.items()))
    far[first] = atoms.positions + 0.3 * atoms.cell.array[0]  # the whole system: the forces stay
    write_npz(tmp_path / "far.npz", far)
    flags = ["--data", str(ends.data), "--positions", f"student={tmp_path / 'far.npz'}", "--calculator", "emt"]
    main(["evaluate-relaxations", *flags, "--output", str(tmp_path / "all")])
    main(["evaluate-relaxations", *flags, "--output", str(tmp_path / "near"), "--within", "0.5"])
    assert metrics_of(tmp_path / "all")["student"]["forces_below_threshold"] == 1
    near = metrics_of(tmp_path / "near")["student"]
    assert near["forces_below_threshold"] == near["average_forces_below_threshold"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("suffix", ["npz", "extxyz"])
def test_forces_of_elsewhere_are_those_of_the_calculator(ends, shifted, tmp_path, suffix):
    positions, rows = shifted
    flags = ["--data", str(ends.data), "--positions", f"student={positions}"]
    main(["evaluate-relaxations", *flags, "--structures", str(tmp_path / "made")])
    frames = read(tmp_path / "made/student.extxyz", ":")
    for frame, (sid, atoms) in zip(frames, ends.atoms.items()):
        assert str(frame.info["sid"]) == sid and frame.positions == pytest.approx(rows[sid], abs=POSITION)
        assert (frame.constraints[0].index == atoms.constraints[0].index).all() and frame.pbc.all()
        frame.calc = EMT()
        frame.get_forces()
    file = tmp_path / f"dft.{suffix}"
    if suffix == "npz":
        write_npz(file, {str(frame.info["sid"]): frame.get_forces(apply_constraint=False) for frame in frames}, "forces")
    else:
        write(file, frames)
    main(["evaluate-relaxations", *flags, "--forces", f"student={file}", "--output", str(tmp_path / "elsewhere")])
    main(["evaluate-relaxations", *flags, "--calculator", "ase.calculators.emt:EMT", "--output", str(tmp_path / "here")])
    elsewhere, here = (metrics_of(tmp_path / name)["student"] for name in ("elsewhere", "here"))
    assert elsewhere == pytest.approx(here, abs=1 / 391)  # a threshold's rounding


def test_what_has_no_reference_is_left_out_and_named_once(ends, shifted, capsys):
    main(["evaluate-relaxations", *ends.flags(f"other={shifted[0]}")])
    printed = capsys.readouterr().out
    assert "ADwT" in printed and "FbT " not in printed.splitlines()[0]
    assert printed.count("energy MAE and EwT left out: no --trajectories.") == 1
    assert "student, other: FbT and AFbT left out: no reference forces" in printed


def test_systems_without_figures_are_named(ends, tmp_path, capsys):
    first, *others = ends.atoms
    write_npz(tmp_path / "part.npz", {sid: ends.atoms[sid].positions for sid in others})
    forces = {sid: ends.atoms[sid].get_forces() for sid in others[1:]}
    forces[others[1]] = np.full_like(forces[others[1]], math.nan)  # DFT that did not converge
    write_npz(tmp_path / "dft.npz", forces, "forces")
    (tmp_path / "trajectories").mkdir()
    for sid in others:
        with Trajectory(tmp_path / f"trajectories/{sid}.traj", "w") as trajectory:
            if sid != others[0]:  # fairchem writes an empty one where nothing is left to relax
                trajectory.write(ends.atoms[sid])
    flags = ["--data", str(ends.data), "--positions", f"s={tmp_path / 'part.npz'}", "--forces", f"s={tmp_path / 'dft.npz'}"]
    flags += ["--trajectories", f"s={tmp_path / 'trajectories'}", "--output", str(tmp_path / "out")]
    main(["evaluate-relaxations", *flags])
    printed = capsys.readouterr().out
    assert f"no relaxed positions of 1 of 6 systems ({first})" in printed
    assert f"no energy of 1 of 5 systems ({others[0]})" in printed
    assert f"no reference forces of 1 of 5 systems ({others[0]})" in printed
    assert f"reference forces not finite of 1 of 5 systems ({others[1]})" in printed
    assert metrics_of(tmp_path / "out")["s"]["forces_below_threshold"] == pytest.approx(3 / 4)
    systems = json.loads((tmp_path / "out.json").read_text())["rows"][0]["counted"]
    assert systems["energy_mae"] == systems["forces_below_threshold"] == 4


def test_key_mapping_reads_labels_of_other_names(ends, tmp_path):
    records = [record.clone() for record in ends.records]
    for record in records:
        record.e_dft, record.x_dft = record.y_relaxed, record.pos_relaxed
        del record.y_relaxed, record.pos_relaxed
    write_lmdb(tmp_path / "own", records)
    mapped = read_systems(tmp_path / "own", {"e_dft": "energy_relaxed", "x_dft": "pos_relaxed"})
    for sid, system in read_systems(ends.data, {}).items():
        assert mapped[sid].energy == system.energy and np.array_equal(mapped[sid].positions, system.positions)


class Unconverged(LennardJones):
    """A calculator that fails as DFT does."""

    def calculate(self, *arguments, **options) -> None:
        from ase.calculators.calculator import SCFError

        raise SCFError("no convergence")


def test_a_calculation_that_does_not_converge_is_not_below(ends, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    flags = ends.flags("--calculator", "test_relaxations:Unconverged", "--output", str(tmp_path / "out"))
    main(["evaluate-relaxations", *flags])
    assert metrics_of(tmp_path / "out")["student"]["average_forces_below_threshold"] == 0
    assert "reference forces not finite of 6 of 6 systems" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, part",
    [
        ({"--positions": ["student"]}, "--positions student: expected NAME=VALUE"),
        ({"--positions": ["a=x.npz", "a=y.npz"]}, "--positions a=y.npz: a is given twice"),
        ({"--positions": ["a=nowhere.npz"]}, "nowhere.npz"),
        ({"--data": ["nowhere"]}, "--data nowhere: no .lmdb file"),
        ({"--trajectories": ["teacher=x"]}, "--trajectories teacher=...: no --positions teacher=...; given are student"),
        ({"--trajectories": ["student=nowhere"]}, "does not exist"),
        ({"--calculator": ["nosuch"]}, "--calculator nosuch: expected a name that ASE knows"),
        ({"--calculator": ["ase.calculators.emt:Nosuch"]}, "--calculator ase.calculators.emt:Nosuch: expected"),
        ({"--calculator": ["emt"], "--forces": ["student=x"]}, "--calculator and --forces: give one of the two"),
        ({"--forces": ["student=nowhere.extxyz"]}, "nowhere.extxyz does not exist"),
    ],
)
def test_bad_input_is_named(ends, change, part):
    flags = {"--data": [str(ends.data)], "--positions": [f"student={ends.file}"], **change}
    with pytest.raises(SystemExit, match=re.escape(part)):
        main(["evaluate-relaxations", *(word for flag, words in flags.items() for word in (flag, *words))])


def test_files_of_other_systems_are_named(ends, tmp_path):
    first = next(iter(ends.atoms))
    rows = {sid: atoms.positions for sid, atoms in ends.atoms.items()}
    data, file = ["--data", str(ends.data), "--positions"], tmp_path / "wrong.npz"
    write_npz(file, {**rows, "17": rows[first]})
    with pytest.raises(SystemExit, match=r"1 of 7 systems \(17\) are not in --data"):
        main(["evaluate-relaxations", *data, f"s={file}"])
    write_npz(file, {**rows, first: rows[first][1:]})
    with pytest.raises(SystemExit, match=f"system {first} has {len(rows[first]) - 1} atoms, in --data {len(rows[first])}"):
        main(["evaluate-relaxations", *data, f"s={file}"])
    np.savez(file, ids=np.arange(3))
    with pytest.raises(SystemExit, match=r"expected an \.npz with ids, pos and chunk_idx"):
        main(["evaluate-relaxations", *data, f"s={file}"])


def test_trajectories_and_forces_of_elsewhere_are_refused(ends, tmp_path):
    moved = {sid: atoms.positions + np.array([0.5, 0, 0]) for sid, atoms in ends.atoms.items()}
    write_npz(tmp_path / "moved.npz", moved)
    flags = ["--data", str(ends.data), "--positions", f"s={tmp_path / 'moved.npz'}"]
    with pytest.raises(SystemExit, match="its last frame differs from the relaxed positions"):
        main(["evaluate-relaxations", *flags, "--trajectories", f"s={ends.trajectories}"])
    frames = [atoms.copy() for atoms in ends.atoms.values()]
    for sid, frame in zip(ends.atoms, frames):
        frame.info["sid"], frame.calc = sid, EMT()
        frame.get_forces()
    write(tmp_path / "dft.extxyz", frames)
    with pytest.raises(SystemExit, match="is not at its relaxed positions"):
        main(["evaluate-relaxations", *flags, "--forces", f"s={tmp_path / 'dft.extxyz'}"])
    write(tmp_path / "dft.extxyz", Atoms("H"))
    with pytest.raises(SystemExit, match=re.escape('frame 0 has no info["sid"]')):
        main(["evaluate-relaxations", *flags, "--forces", f"s={tmp_path / 'dft.extxyz'}"])


def test_a_calculator_for_other_elements_is_named(ends, tmp_path):
    records = [ends.records[0].clone()]
    records[0].atomic_numbers = torch.full_like(records[0].atomic_numbers, 92)
    write_lmdb(tmp_path / "uranium", records)
    sid = str(records[0].sid)
    write_npz(tmp_path / "u.npz", {sid: ends.atoms[sid].positions})
    flags = ["--data", str(tmp_path / "uranium"), "--positions", f"s={tmp_path / 'u.npz'}", "--calculator", "emt"]
    with pytest.raises(SystemExit, match=f"--calculator: system {sid}, U"):
        main(["evaluate-relaxations", *flags])


def test_an_s2ef_split_has_nothing_to_measure(ends, data):
    with pytest.raises(SystemExit, match=r"nothing to measure. s: energy MAE and EwT left out: no y_relaxed in --data"):
        main(["evaluate-relaxations", "--data", str(data / "val_id"), "--positions", f"s={ends.file}"])
