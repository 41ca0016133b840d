"""`fairchem-crack stability`: drift, what is sampled, and models side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import write
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from springs import Springs, slab, springs
from tolerances import ORACLE, SUM_OF_FLOAT64
from tools.make_published_checkpoint import write_published_checkpoint

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.stability.drift import constant_energy, line
from fairchem_crack.evaluation.stability.dynamics import (
    NOT_FINITE,
)
from fairchem_crack.evaluation.stability.limits import NO_LIMITS
from fairchem_crack.evaluation.stability.measure import NO_START, ModelRuns, Settings, figures, run_model
from fairchem_crack.evaluation.stability.structure import (
    EDGES,
    distance,
    pair_counts,
    radial_distribution,
    surface_of,
)

TIME_STEP = 1e-3  # ps


def test_drift_is_the_slope_of_the_energy():
    course = 3.0 + 7.0 * 0.002 * np.arange(500)
    assert line(course, 0.002) == pytest.approx((7.0, 0.0), abs=ORACLE)
    assert line(np.array([0.0, 1.0, 0.0, 1.0, 0.0]), 1.0)[0] == pytest.approx(0.0, abs=SUM_OF_FLOAT64)


def heated(atoms: Atoms, temperature: float = 300) -> Atoms:
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    return atoms


def test_a_wrong_force_drifts_by_the_work_that_it_does():
    conserved = constant_energy(heated(springs(molecule("H2O"))), ps=0.05, temperature=300)
    assert abs(conserved.drift) < 1 and len(conserved.energy) == 51 and conserved.energy[0] == 0
    assert conserved.survival.survived and 0 < conserved.temperature < 1000
    push, at = 0.1, 20 * units.fs  # eV/A, on a free atom whose energy knows nothing of it
    atom = springs(Atoms("H", momenta=[[1.0, 0, 0]]), stiffness=0, call=0, change=lambda forces: np.array([[push, 0, 0]]))
    moved = atom.get_velocities()[0, 0] * at + push * at**2 / (2 * atom.get_masses()[0])  # A
    course = constant_energy(atom, ps=0.02, temperature=300, limits=NO_LIMITS)
    assert course.energy[-1] == pytest.approx(1e3 * push * moved, rel=1e-6)  # meV


def test_a_run_at_constant_energy_that_explodes_has_no_drift():
    broken = heated(springs(molecule("H2O"), call=5, change=lambda forces: forces * np.nan))
    course = constant_energy(broken, ps=0.05, temperature=300)
    assert math.isnan(course.drift) and math.isnan(course.fluctuation)
    assert course.survival.reason == NOT_FINITE and course.survival.ps == pytest.approx(4 * TIME_STEP)


def test_pairs_are_those_of_the_periodic_crystal():
    crystal = bulk("Cu", a=3.6)
    counts = pair_counts(crystal)
    at = np.digitize([3.6 / math.sqrt(2), 3.6, 3.6 * math.sqrt(1.5)], EDGES) - 1
    assert counts[at].tolist() == [12, 6, 24] and counts[: at[0]].sum() == 0
    assert np.array_equal(pair_counts(crystal * (2, 2, 1)), 4 * counts)  # the same crystal in a larger cell
    ideal = radial_distribution(np.stack([counts, counts]))
    assert ideal.sum() == pytest.approx(1) and np.allclose(ideal, radial_distribution(counts))
    per_shell = counts[at] / np.diff(EDGES**3)[at]
    assert np.allclose(ideal[at] / ideal[at[0]], per_shell / per_shell[0])


def test_pairs_of_two_fixed_atoms_are_left_out():
    dimer = Atoms("Cu3", [[0, 0, 0], [2.5, 0, 0], [0, 4.05, 0]])
    assert pair_counts(dimer).sum() == 6
    dimer.set_constraint(FixAtoms([0, 1]))
    assert pair_counts(dimer).sum() == 4
    dimer.set_constraint(FixAtoms([0, 1, 2]))
    assert np.isnan(radial_distribution(pair_counts(dimer))).all()
    assert np.isnan(radial_distribution(pair_counts(Atoms("Cu")))).all()  # one atom, no cell


def test_the_distance_is_what_distributions_do_not_share():
    near, far, both = (np.zeros((1, len(EDGES) - 1)) for _ in range(3))
    near[0, 20], far[0, 40] = 5, 7
    p, q = radial_distribution(near), radial_distribution(far)
    both = (3 * p + q) / 4
    assert distance(p, p) == 0 and distance(p, q) == 1 and distance(p, both) == distance(both, p) == pytest.approx(0.25)
    assert math.isnan(distance(p, np.full_like(p, np.nan)))


def turned(atoms: Atoms) -> None:
    atoms.rotate(70, (1, 2, 3), rotate_cell=True)


def upside_down(atoms: Atoms) -> None:
    atoms.positions[:, 2] *= -1


@pytest.mark.parametrize("change", [turned, upside_down])
def test_the_adsorbates_height_is_over_the_top_layer(change):
    atoms = slab()
    change(atoms)
    surface = surface_of(atoms)
    assert surface is not None and surface.layer.sum() == 4 and surface.height(atoms) == pytest.approx(1.3)
    atoms.positions[-1] += 2 * surface.normal
    assert surface.height(atoms) == pytest.approx(3.3)


@pytest.mark.parametrize("missing", [{"pbc": False}, {"cell": None, "pbc": False}, {"tags": 1}, {"tags": 2}])
def test_without_a_surface_there_is_no_height(missing):
    atoms = slab()
    for name, value in missing.items():
        getattr(atoms, f"set_{name}")(value)
    assert surface_of(atoms) is None


def numbers(runs: ModelRuns, teachers: ModelRuns | None = None) -> dict:
    return figures(runs, teachers)["langevin"]["300"]


def test_a_copy_of_the_teacher_samples_what_it_does():
    starts, settings, ticks = [slab()], Settings(ps=0.04, drift_ps=0.01, every=2), []
    teacher = run_model(EMT(), starts, [300.0], settings, ticks.append)
    assert sum(ticks) == 40 + 10 and len(teacher.samples[300.0][0].counts) == 16  # not the first fifth
    again = run_model(EMT(), starts, [300.0], settings)
    assert numbers(again, teacher)["rdf_distance"] == [0] and numbers(again)["height"] == numbers(teacher)["height"]
    assert 0 < numbers(teacher, teacher)["rdf_distance"][0] < 0.5  # between its own halves
    assert 0.5 < numbers(again)["height"][0] < 2 and "rdf_distance" not in numbers(again)  # A
    assert abs(figures(again)["constant_energy"]["drift"][0]) < 1  # meV/atom/ps


def test_a_model_that_explodes_has_the_numbers_of_before():
    start, ticks = slab(), []
    settings = Settings(ps=0.04, drift_ps=0.01, every=2)
    model = Springs(start, call=21, change=lambda forces: forces * np.nan)
    runs = run_model(model, [start], [300.0], settings, ticks.append)
    teacher = run_model(Springs(start), [start], [300.0], settings)
    assert sum(ticks) == 50  # of a bar that ends full
    shown = numbers(runs, teacher)
    assert (
        shown["ps"] == pytest.approx([0.02]) and shown["reason"] == [NOT_FINITE] and len(runs.samples[300.0][0].counts) == 6
    )
    assert 0 < shown["rdf_distance"][0] < 1 and math.isnan(figures(runs)["constant_energy"]["drift"][0])
    broken = run_model(Springs(start, call=0, change=lambda forces: forces * np.nan), [start], [300.0], settings)
    shown = numbers(broken, teacher)
    assert shown["ps"] == [0] and math.isnan(shown["rdf_distance"][0]) and math.isnan(shown["height"][0])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Small models with random weights in OC20's published format, and one whose weights are not finite."""
    directory, widths = tmp_path_factory.mktemp("models"), {"hidden_channels": 16, "num_layers": 1, "num_rbf": 8}
    paths = {name: directory / f"{name}.pt" for name in ("student", "teacher", "broken")}
    for seed, path in enumerate(paths.values()):
        write_published_checkpoint("painn_h512", path, seed=seed, max_neighbors=12, cutoff=5.0, **widths)
    content = torch.load(paths["broken"], weights_only=True)
    for part in ("state_dict", "ema"):
        for tensor in _floats(content.get(part)):
            if tensor.numel() > 1:  # fairchem refuses scale factors that are not finite
                tensor.fill_(math.nan)
    torch.save(content, paths["broken"])
    return {name: str(path) for name, path in paths.items()}


def _floats(content) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor) and content.is_floating_point():
        yield content
    elif isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _floats(value)


TOY = ["--cpu", "--atoms=13", "--starts=2", "--ps=0.02", "--every=2", "--drift-ps=0.005", "--temperatures", "300", "500"]


def test_the_command_sets_models_beside_their_teacher(checkpoints, tmp_path, capsys):
    output = tmp_path / "new" / "stability.json"
    models = ["--checkpoint", checkpoints["student"], checkpoints["broken"], "--teacher", checkpoints["teacher"]]
    main(["stability", *models, *TOY, "--output", str(output)])
    content = json.loads(output.read_text())
    assert content["teacher"] == "teacher" and list(content["checkpoints"]) == ["student", "broken", "teacher"]
    assert content["starts"]["atoms"] == [13, 13] and content["starts"]["free_atoms"] == [9, 9]
    for model in content["checkpoints"].values():
        assert set(model["langevin"]) == {"300", "500"}
        for runs in model["langevin"].values():
            assert {name: len(values) for name, values in runs.items()} == dict.fromkeys(
                ("ps", "reason", "detail", "height", "rdf_distance"), 2
            )
    broken = content["checkpoints"]["broken"]
    assert broken["langevin"]["500"]["ps"] == [0, 0] and broken["langevin"]["500"]["reason"] == [NOT_FINITE] * 2
    assert broken["constant_energy"]["drift"] == [None, None] and broken["constant_energy"]["reason"] == [NO_START] * 2
    printed = capsys.readouterr().out
    assert f"broken at 300 K, start 1, ended after 0 ps: {NOT_FINITE} (forces, at the start)." in printed
    assert all(words in printed for words in ("RDF distance", "height [A]", "meV/atom/ps", "0 of 2"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--starts", "0"], "--starts 0: expected a positive number"),
        (["--temperatures", "300", "nan"], "--temperatures nan: expected a positive number"),
        (["--temperatures", "300", "300"], "--temperatures: the same twice"),
        (["--ps", "0.02", "--every", "21"], "--every 21: expected a number of steps within the 0.02 ps of a run"),
        (["--drift-ps", "-1"], "--drift-ps -1: expected 0 or a positive number"),
        (["--max-force", "0"], "--max-force 0: expected a positive number"),
        (["--data", "nowhere"], "--data nowhere: no such file or directory"),
        (["--data", "fixed.traj"], "--data fixed.traj, system 1: all 13 atoms are fixed: nothing to move. Leave it out."),
        ([], "missing.pt: no such file"),
    ],
)
def test_what_cannot_be_measured_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = slab()
    fixed.set_constraint(FixAtoms(range(13)))
    write("fixed.traj", [slab(), fixed])
    with pytest.raises(SystemExit, match=message):
        main(["stability", "--checkpoint", "missing.pt", "--cpu", *arguments])
