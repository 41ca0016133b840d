"""The screening benchmark: its starts, its figures, its verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.emt import EMT

from benchmarks.screening import report as screening_report
from benchmarks.screening.runs import (
    SITES,
    agreement,
    best_sites,
    candidates,
    constant_energy,
    rank_difference,
    relax_emt,
    surfaces,
    thermalised,
)


def test_surfaces_are_spread_over_facets_and_compositions():
    whole, some = surfaces(1000), surfaces(30)
    assert len(whole) == len(set(whole)) == 150 and len(some) == len(set(some)) == 30
    assert {surface.facet for surface in some} == set(SITES)
    assert any(surface.minor is None for surface in some) and len({surface.major for surface in some}) >= 5


def test_starts_are_the_sites_of_a_surface():
    pure = next(surface for surface in surfaces(1000) if surface.minor is None and surface.facet == "fcc111")
    alloy = next(surface for surface in surfaces(1000) if surface.minor is not None and surface.facet == "fcc100")
    starts = candidates([pure, alloy], "O")
    assert len(starts) == 4 + 2 * 3 and len({start.surface for start in starts}) == 2
    for start in starts:
        assert len(start.system) == 13 and start.system.get_tags()[-1] == 2 and start.system.constraints
        distances = start.system.get_distances(12, range(12), mic=True)
        assert 1.4 < distances.min() < 2.4  # A, oxygen on a metal
    relaxed = relax_emt(starts[:4], fmax=0.05, most_steps=100)
    assert all(relaxed["converged"]) and all(-3 < energy < 1 for energy in relaxed["energy"])
    assert best_sites(starts[:4], relaxed["energy"])[starts[0].surface][0] == min(relaxed["energy"])


def test_agreement_of_rankings():
    random = np.random.default_rng(1)
    truth = random.normal(size=40)
    same = agreement(truth + 0.5, truth, top=10)
    assert same["spearman"] == 1 and same["overlap"] == 1 and same["overlap_by_chance"] == 0.25
    assert same["mae"] == pytest.approx(0.5) and same["offset"] == pytest.approx(0.5)
    opposite = agreement(-truth, truth, top=10)
    assert opposite["spearman"] == -1 and opposite["overlap"] == 0
    low, high = agreement(random.normal(size=40), truth, top=10)["spearman_interval"]
    assert low < 0 < high  # nothing in common
    better = rank_difference(truth + 0.1 * random.normal(size=40), random.normal(size=40), truth)
    assert better["interval"][0] > 0 and better["difference"] > 0.5
    assert rank_difference(truth, truth, truth) == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_emt_conserves_energy_from_a_thermalised_start():
    start = thermalised(candidates(surfaces(1), "O")[0], steps=20, seed=0)
    course = constant_energy(start, EMT(), steps=50)
    assert len(course["energy"]) == 51 and course["energy"][0] == 0 and np.ptp(course["energy"]) < 1.0  # meV/atom
    assert 20 < course["temperature"] < 1500


@pytest.mark.parametrize(
    ("teacher", "outcome"),
    [([12.0] * 3, "reached."), ([11.0] * 3, "MISSED."), ([11.0, 18.0, 18.0], "reached, though not in every round.")],
)
def test_the_verdict_on_true_size_is_whether_the_target_is_met(teacher, outcome):
    times = {"painn_h512": [1.0] * 3, "eqV2_31M": [5.0] * 3, "eqV2_153M": teacher}
    part = {"student": "painn_h512", "forwards": {name: {"seconds": seconds} for name, seconds in times.items()}}
    first, second = screening_report.verdicts({"true_size": part})
    assert first.endswith(outcome) and "5.0 [5.0, 5.0] times the throughput of eqV2_31M" in second


def test_a_run_that_blew_up_has_no_drift():
    runs = [{"drift": -2.0, "temperature": 400.0}, {"drift": 1e6, "temperature": 1e5}]
    sentence = screening_report._drift({"student": runs, "EMT": runs[:1]}, 2000.0)
    assert "student 2.00 [2.00, 2.00], 1 of 2 runs left for above 2000 K" in sentence and "EMT 2.00" in sentence
