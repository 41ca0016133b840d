"""Dynamics within bounds: that they last, that they end where a bound is passed, and why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from springs import slab, springs

from fairchem_crack.evaluation.stability.dynamics import (
    NOT_FINITE,
    RARE,
    TOO_CLOSE,
    TOO_HOT,
    TOO_STRONG,
    Survival,
    hottest,
    survive,
)
from fairchem_crack.evaluation.stability.limits import LIMITS, Limits

TIME_STEP = 1e-3  # ps


def run(atoms: Atoms, *, ps: float = 0.02, seed: int = 0, temperature: float = 300, **options) -> Survival:
    return survive(atoms, temperature=temperature, ps=ps, rng=np.random.default_rng(seed), **options)


def test_a_sound_model_survives_and_a_seed_decides_its_frames():
    atoms = slab()
    start = atoms.positions.copy()

    def frames(seed: int) -> list[tuple[int, np.ndarray]]:
        kept: list[tuple[int, np.ndarray]] = []
        survival = run(atoms, seed=seed, every=8, on_frame=lambda moved, step: kept.append((step, moved.positions.copy())))
        assert survival == Survival(pytest.approx(0.02)) and survival.survived
        return kept

    first, same, other = frames(0), frames(0), frames(1)
    assert [step for step, _ in first] == [8, 16]  # not the start
    assert all(np.array_equal(frame, again) for (_, frame), (_, again) in zip(first, same))
    assert not np.allclose(first[0][1], other[0][1])
    fixed = atoms.get_tags() == 0
    assert np.array_equal(first[1][1][fixed], start[fixed]) and np.array_equal(atoms.positions, start)


@pytest.mark.parametrize(
    ("change", "limits", "reason", "detail"),
    [
        (lambda forces: np.full_like(forces, np.nan), {}, NOT_FINITE, "forces"),
        (lambda forces: forces + 100.0, {}, TOO_STRONG, "eV/A on atom "),
        (lambda forces: forces + 1e4, {"max_force": 1e6}, TOO_HOT, " K, above 2,"),
    ],
)
def test_a_model_that_explodes_ends_with_time_and_reason(change, limits, reason, detail):
    atoms, seen = springs(molecule("CH3CH2OH"), call=7, change=change), []
    survival = run(atoms, every=1, limits=Limits(**limits), on_frame=lambda moved, step: seen.append(step))
    assert survival.ps == pytest.approx(6 * TIME_STEP) and survival.reason == reason and detail in survival.detail
    assert seen == [1, 2, 3, 4, 5, 6]  # the frames before are kept, the one out of bounds is not
    assert str(survival).startswith(f"ended after 0.006 ps: {reason} (")


def test_atoms_that_fall_onto_each_other_are_caught():
    pair = Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])  # 0.62 A: sum of the radii
    pull = np.array([[0, 0, 2.0], [0, 0, -2.0]])
    survival = run(springs(pair, call=0, change=lambda forces: pull), limits=Limits(max_temperature=1e6))
    assert survival.reason == TOO_CLOSE and 0 < survival.ps < 0.02
    assert survival.detail.startswith("atom 0 (H) and atom 1 (H) at 0.2") and survival.detail.endswith("below 0.6")


def test_a_start_out_of_bounds_is_named_as_such():
    broken = springs(molecule("H2O"), call=0, change=lambda forces: forces * np.nan)
    assert run(broken) == Survival(0.0, NOT_FINITE, "forces, at the start")
    close = Atoms("Cu2", [[0, 0, 0], [0, 0, 9.7]], cell=[10, 10, 10], pbc=True)  # 0.3 A over the cell's face
    assert run(springs(close)).reason == TOO_CLOSE
    close.pbc = False
    assert run(springs(close)).survived


@pytest.mark.parametrize("cell", [None, [3.0, 3.0, 3.0]])
def test_one_atom_survives_with_and_without_a_cell(cell):
    atom = Atoms("Cu", [[0, 0, 0]], cell=cell, pbc=cell is not None)
    assert run(springs(atom)).survived


def test_few_atoms_may_be_hot_by_chance():
    assert hottest(300, 3000, Limits(max_temperature=1000)) == 1000
    squared = 3 * hottest(300, 3, LIMITS) / 300  # of three normal numbers
    assert math.erfc(math.sqrt(squared / 2)) + math.sqrt(2 * squared / math.pi) * math.exp(-squared / 2) == pytest.approx(
        RARE
    )
    draws = np.random.default_rng(0).chisquare(15, 200_000) / 15
    assert (800 * draws > 2000).any() and not (800 * draws > hottest(800, 15, LIMITS)).any()


@pytest.mark.parametrize(
    ("atoms", "options", "message"),
    [
        (Atoms("Cu", constraint=FixAtoms([0])), {}, "all 1 atoms are fixed"),
        (Atoms(), {}, "no atoms"),
        (Atoms("Cu"), {"temperature": 0.0}, "temperature 0: expected a positive number"),
        (Atoms("Cu"), {"ps": math.nan}, "ps nan: expected a positive number"),
    ],
)
def test_what_cannot_move_is_refused(atoms, options, message):
    with pytest.raises(ValueError, match=message):
        run(springs(atoms), **options)


@pytest.mark.parametrize("option", ["max_temperature", "max_force", "min_distance"])
def test_limits_are_positive_numbers(option):
    with pytest.raises(ValueError, match=f"^--{option.replace('_', '-')} -1: expected "):
        Limits(**{option: -1.0})
