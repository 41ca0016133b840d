"""The foundation benchmark: its systems, its runs, its figures."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii

from benchmarks.accuracy.plan import Run, read_plan
from benchmarks.accuracy.training import Workspace
from benchmarks.foundation import EXPERIMENTS, NAME, POTENTIALS, dft, page, side_by_side, simulations
from benchmarks.foundation.starts import draw_starts
from benchmarks.foundation.systems import LIMITS, VOLUMES, draw_split, held_out_compositions, surfaces
from fairchem_crack.evaluation.stability.measure import Settings
from fairchem_crack.io.atoms import free_mask

SURFACES = surfaces()


def test_every_surface_has_its_composition_and_its_volume():
    minor = {"A1": 0, "A2": 0, "L1_2": 4, "L1_0": 8, "B2": 8}
    for surface in SURFACES:
        slab = surface.slab()
        count = Counter(slab.get_chemical_symbols())
        assert len(slab) == 16 and free_mask(slab).sum() == 8
        if surface.minor != surface.major:
            assert count[surface.minor] == minor[surface.prototype]
        # Nearest neighbours are as far apart as in the bulk, and the slab's first two vectors are a cell of it.
        mean = sum(VOLUMES[symbol] for symbol in (surface.major, surface.minor)) / 2
        if surface.prototype != "L1_2":
            bond = (mean * 2**0.5) ** (1 / 3) if surface.prototype in ("A1", "L1_0") else 3**0.5 / 2 * (2 * mean) ** (1 / 3)
            distances = slab.get_all_distances(mic=True) + 99 * np.eye(16)
            assert distances.min(axis=1) == pytest.approx(np.full(16, bond), rel=1e-6)


def test_held_out_alloys_have_elements_of_other_ones():
    held_out = held_out_compositions()
    trained = [surface for surface in SURFACES if surface.composition not in held_out]
    assert len(held_out) == 16 and len({surface.composition for surface in SURFACES}) == 92
    assert {symbol for surface in trained for symbol in (surface.major, surface.minor)} == set(VOLUMES)


def test_the_first_systems_of_a_split_are_the_same():
    few, more = list(draw_split("val_ood_both", 2)), list(islice(draw_split("val_ood_both", 9), 2))
    for one, other in zip(few, more):
        assert one == other and one.info["composition"] in held_out_compositions()
        assert one.get_scaled_positions(wrap=False).min() >= 0 and one.get_scaled_positions(wrap=False).max() < 1
        first, second = np.triu_indices(len(one), 1)
        touching = covalent_radii[one.numbers[first]] + covalent_radii[one.numbers[second]]
        assert (one.get_all_distances(mic=True)[first, second] > LIMITS.min_distance * touching).all()


@pytest.mark.parametrize(("teacher", "methods"), [("sevennet", 10), ("nequix", 8), ("chgnet", 4)])
def test_gemnet_is_given_no_vectors(teacher, methods):
    plan = read_plan(POTENTIALS[teacher].experiments)
    runs = plan.runs(NAME, {})
    assert len({run.method for run in runs}) == methods and list(plan.teachers) == [teacher]
    for run in runs:
        if run.student:
            assert plan.steps(NAME, run) > 0
            fields = {name for term in plan.terms(run) for name in term}
            assert run.student == "painn" or "vector_embeddings" not in fields


@pytest.mark.parametrize("teacher", ["nequix", "chgnet"])
def test_what_was_tuned_for_one_teacher_is_taken_for_others(teacher):
    first, second = (read_plan(POTENTIALS[name].experiments) for name in ("sevennet", teacher))
    assert second.methods.items() <= first.methods.items()


def test_a_line_of_the_page_is_of_all_trainings_of_a_method():
    model = {"student": "painn", "method": "all"}
    relaxations = [
        {"student": "", "method": "teacher", "steps": [9, 9], "converged": 2, "seconds": 5.0, "excess": []},
        *(
            {
                **model,
                "steps": [steps, steps],
                "converged": 1,
                "seconds": 1.0,
                "excess": [excess, excess],
                "force": [1.0, 1.0],
            }
            | {"displacement": [0.2, 0.4], "adsorbate": [0.1, 0.9]}
            for steps, excess in ((10, 0.1), (30, 0.3))
        ),
    ]
    sites = [
        {**model, "group": group, "starts": 2, "pairs": 1, "ordered": ordered, "regret": 0.5, "spread": 1.0}
        for group in ("A", "B")
        for ordered in (1.0, 0.5)
    ]
    dynamics = [
        {
            **model,
            "ps": [0.3, ps],
            "reason": ["", reason],
            "temperature": [300.0, kelvin],
            "rdf": [0.1, None],
            "seconds": 2.0,
        }
        for ps, reason, kelvin in ((0.3, "", 280.0), (0.1, "exploded", None))
    ]
    text = "\n".join(side_by_side.section({"relaxations": relaxations, "sites": sites, "dynamics": dynamics}))
    assert "| teacher |  | 2 of 2 | 9 | 5.00 |  |  |  |  |  |" in text
    assert (
        "| painn all | 2 | 2 of 4 | 20 | 1.00 [1.00, 1.00] | 0.200 [0.100, 0.300] | 0.200 [0.100, 0.300] "
        "| 0.30 [0.30, 0.30] | 2 of 4 | 1.00 [1.00, 1.00] |"
    ) in text
    assert "| painn all | 2 | A | 2 | 1.00 | 1.5 of 2 | 0.500 [0.500, 0.500] |" in text and text.count("| 1.5 of 2 |") == 2
    assert "| painn all | 2 | 3 of 4 | 0.10 | 300, 280 | 0.10, none | 2 [2, 2] |" in text


def relaxation(energies: list[float]) -> list[Atoms]:
    frames = []
    for energy in energies:
        atoms = Atoms("Pt2O", positions=np.arange(9).reshape(3, 3), constraint=FixAtoms([0]))
        forces = np.full((3, 3), energy)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    return frames


def test_dft_is_compared_within_a_relaxation_on_free_atoms():
    relaxations = {"a": relaxation([3.0, 2.0, 1.0]), "b": relaxation([0.0, 0.5])}
    forces = np.zeros((3, 3))
    forces[0] = 1000.0  # fixed
    predictions = [(100.0 + energy, forces) for energy in (2.0, 2.0, 0.0, 0.0, 0.0)]
    first, second = dft.rows_of(relaxations, predictions, student="painn", method="all", seed=0)
    assert (first["energy_mae"], first["energy_size"]) == (0.5, 1.5)  # (0, 1), (2, 1) eV above the last frame
    assert (first["forces_mae"], first["forces_size"]) == (2.0, 2.0)
    assert (second["energy_mae"], second["forces_mae"]) == (0.5, 0.25)


def test_the_exponent_of_halved_errors_at_four_times_the_data():
    rows = [{"train_systems": size, "forces_mae": [error, None, None]} for size, error in ((400, 0.2), (1600, 0.1))]
    assert page.exponent(*rows, "forces_mae") == pytest.approx(0.5)


def test_only_the_largest_students_meet_dft():
    plan = read_plan(EXPERIMENTS)
    compared = {(run.student, run.method) for run in plan.runs(NAME, {}) if dft.is_compared(run, plan)}
    assert compared == {
        ("painn", "undistilled"),
        ("painn", "relations_atoms"),
        ("gemnet_dT", "undistilled"),
        ("gemnet_dT", "relations_atoms"),
    }
    assert not dft.is_compared(Run(student="painn", method="relations_atoms", train_systems=900), plan)


def test_a_student_that_is_the_teacher_ends_where_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(simulations, "SETTINGS", Settings(ps=0.02, every=2))
    monkeypatch.setattr(simulations, "STEPS", 3)
    workspace, starts = Workspace(tmp_path), list(islice(draw_starts(), 3))
    assert {start.info["group"] for start in starts} == {"Pt 111, O"}
    assert all((start.cell == starts[0].cell).all() for start in starts)  # else energies of sites are not comparable
    student = {"student": "painn", "method": "all", "seed": 0}
    for model in (student, simulations.TEACHERS):
        simulations.simulate(workspace, starts, EMT(), model)
    simulations.judge(workspace, starts, EMT())
    simulations.simulate(workspace, starts, None, student)  # which has all rows
    assert len(workspace.table("relaxations").rows()) == 6
    content = side_by_side.figures(workspace)
    teachers, ours = content["relaxations"]
    assert ours["excess"] == pytest.approx([0, 0, 0], abs=1e-4) and ours["displacement"] == pytest.approx(
        [0, 0, 0], abs=1e-5
    )
    assert ours["steps"] == teachers["steps"] == [3, 3, 3] and teachers["excess"] == []
    assert [len(row["ps"]) for row in content["dynamics"]] == [1, 1]  # from the first start of the group
    assert content["dynamics"][1]["rdf"] == [0.0] and content["dynamics"][0]["rdf"][0] > 0  # its two halves
    (sites,) = content["sites"]
    assert sites["ordered"] == sites["pairs"] and sites["regret"] == pytest.approx(0, abs=1e-4)
    assert "painn all" in "\n".join(side_by_side.section(content))


def test_sites_are_compared_pair_by_pair():
    """The teacher: 0 < 1 < 2 eV, and a fourth start at the first place; the student orders 0, 1 wrongly, and ties 1, 2."""
    rows = [{**dict(student="s", method="m", seed=0, start=n), "energy": e} for n, e in enumerate((0.5, 0.2, 0.202, 9.0))]
    teachers = {number: {"energy": energy} for number, energy in enumerate((0.0, 1.0, 2.0, 0.01))}
    views = {simulations.name(row): {"energy": row["start"] + 0.25} for row in rows}
    found = side_by_side.preferences(rows, views, teachers)
    assert (found["pairs"], found["ordered"]) == (5, 0.5)  # 0-1, 0-2 wrong, 1-2 tied, 1-3, 2-3 wrong; 0-3 is one place
    assert found["regret"] == 1.25 and found["spread"] == 2.0
