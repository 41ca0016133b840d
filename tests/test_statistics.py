"""Intervals against closed forms, hand computation, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tolerances import QUANTILE

from fairchem_crack.evaluation.intervals import Errors, gap_closed, gap_closed_interval, t_interval


def test_the_t_interval_of_three_values():
    # mean 2, s = 1, t_{0.975, 2} = 4.3027 (any table)
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.estimate == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3027 / math.sqrt(3), rel=QUANTILE)
    assert interval.low == pytest.approx(4.0 - interval.high)


def test_a_single_value_has_no_interval():
    interval = t_interval([5.0])
    assert interval.estimate == 5.0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_the_t_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    intervals = [t_interval(random.normal(3.0, 2.0, size=4)) for _ in range(2000)]
    coverage = np.mean([interval.low < 3.0 < interval.high for interval in intervals])
    assert coverage == pytest.approx(0.95, abs=0.015)  # three standard deviations of 2000 throws


def made_of(undistilled, distilled, teacher, weights) -> Errors:
    return Errors(*(np.array(values, dtype=float) for values in (undistilled, distilled, teacher, weights)))


# Two seeds, two systems of 1 and 3 components: the sums over components, not the mean of the systems' means.
SPLIT = made_of([[4, 8], [6, 6]], [[2, 6], [4, 4]], [1, 3], [1, 3])


def test_the_gap_closed_by_hand():
    # u = (12/4 + 12/4) / 2 = 3, d = (8/4 + 8/4) / 2 = 2, t = 4/4 = 1
    assert gap_closed([SPLIT]) == pytest.approx((3 - 2) / (3 - 1))


def test_the_gap_closed_over_splits_is_that_of_the_mean_error():
    second_split = made_of([[2], [4]], [[2], [4]], [1], [1])  # u = d = 3, t = 1
    # means over the two splits: u = 3, d = 2.5, t = 1
    assert gap_closed([SPLIT, second_split]) == pytest.approx((3 - 2.5) / (3 - 1))


def test_teacher_and_undistilled_student_close_all_and_nothing():
    random = np.random.default_rng(1)
    undistilled, teacher, weights = 5 + random.random((3, 7)), random.random(7), np.ones(7)
    as_teacher = gap_closed_interval([Errors(undistilled, np.tile(teacher, (3, 1)), teacher, weights)], replicates=200)
    as_before = gap_closed_interval([Errors(undistilled, undistilled, teacher, weights)], replicates=200)
    assert [as_teacher.low, as_teacher.estimate, as_teacher.high] == pytest.approx([1, 1, 1])
    assert [as_before.low, as_before.estimate, as_before.high] == pytest.approx([0, 0, 0])


def test_seeds_and_systems_are_resampled_in_pairs():
    # Seeds and systems scatter by a factor of thousand, every model by the same: the gap is 1/2 in each of them.
    scale = np.outer([1.0, 10.0, 100.0], [1.0, 3.0, 10.0, 0.1])
    interval = gap_closed_interval([Errors(2 * scale, scale, np.zeros(4), np.ones(4))], replicates=500)
    assert [interval.low, interval.high] == pytest.approx([0.5, 0.5])


def test_the_order_of_systems_and_seeds_does_not_matter():
    random = np.random.default_rng(2)
    undistilled, distilled = 3 + random.random((4, 9)), 2 + random.random((4, 9))
    teacher, weights = random.random(9), 1 + random.random(9)
    seeds, systems = random.permutation(4), random.permutation(9)
    shuffled = Errors(undistilled[seeds][:, systems], distilled[seeds][:, systems], teacher[systems], weights[systems])
    assert gap_closed([shuffled]) == pytest.approx(gap_closed([Errors(undistilled, distilled, teacher, weights)]))


def test_the_interval_is_reproducible_and_widens_with_confidence():
    random = np.random.default_rng(3)
    errors = [Errors(3 + random.random((3, 20)), 2 + random.random((3, 20)), random.random(20), np.ones(20))]
    narrow, wide = (gap_closed_interval(errors, confidence=level, replicates=2000) for level in (0.5, 0.95))
    assert gap_closed_interval(errors, confidence=0.95, replicates=2000) == wide
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high


def test_one_seed_leaves_the_scatter_of_the_systems():
    # d of a replicate is the mean of K draws of 0 or 1, u = 1 and t = 0: the gap's standard deviation is 1 / (2 sqrt(K)).
    systems = 400
    distilled = np.arange(systems) % 2
    errors = Errors(np.ones((1, systems)), distilled[None].astype(float), np.zeros(systems), np.ones(systems))
    interval = gap_closed_interval([errors])
    assert interval.high - interval.low == pytest.approx(
        2 * 1.96 / (2 * math.sqrt(systems)),
        rel=0.1,  # the spread of a sample's spread
    )


@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_the_variance_over_seeds_is_unbiased(seeds):
    """With one system, u = 1 and t = 0, the replicates' variance is that of 1 - mean(d): s^2 / S, from its quartiles."""
    random = np.random.default_rng(4)
    ratios = []
    for trial in range(60):
        distilled = random.normal(0.5, 0.05, size=(seeds, 1))
        errors = [Errors(np.ones((seeds, 1)), distilled, np.zeros(1), np.ones(1))]
        ends = [
            gap_closed_interval(errors, confidence=level, replicates=1000, seed=trial) for level in np.arange(0.02, 1, 0.02)
        ]
        quantiles = np.array([end for interval in ends for end in (interval.low, interval.high)])
        ratios.append(quantiles.var() / (distilled.var(ddof=1) / seeds))
    assert np.median(ratios) == pytest.approx(1, abs=0.12)  # the bootstrap's spread


@pytest.mark.parametrize(
    ("of_seeds", "of_pairs", "seeds", "least", "most"),
    [
        (0.05, 0.0, 3, 0.65, 0.85),  # seeds that do the same to all systems: few know little of their scatter
        (0.05, 0.0, 5, 0.78, 0.92),
        (0.05, 0.0, 20, 0.90, 0.98),
        (0.05, 0.5, 5, 0.95, 1.0),  # seeds that do something else to each system: counted twice
        (0.10, 0.3, 5, 0.87, 0.99),  # both
    ],
)
def test_how_often_the_interval_holds_the_gap(of_seeds, of_pairs, seeds, least, most):
    """Students with relative errors of the seed, and of the seed on a system; the true gap is (1 - 0.7) / (1 - 0.2)."""
    random = np.random.default_rng(5)
    trials, systems, held = 300, 150, 0
    for _ in range(trials):
        difficulty = random.gamma(2.0, 0.5, size=systems)  # mean 1; the same system is hard for every model
        undistilled, distilled = (
            mean
            * difficulty
            * random.normal(1, of_seeds, size=(seeds, 1))
            * (1 + of_pairs * random.uniform(-1.7, 1.7, size=(seeds, systems)))
            for mean in (1.0, 0.7)
        )
        interval = gap_closed_interval([Errors(undistilled, distilled, 0.2 * difficulty, np.ones(systems))], replicates=500)
        held += interval.low < 0.375 < interval.high
    assert least <= held / trials <= most


def test_a_teacher_that_is_not_better_leaves_no_gap():
    student, weights = np.array([[1.0, 2.0]]), np.ones(2)
    for teacher in (np.array([2.0, 1.0]), np.array([3.0, 3.0])):
        interval = gap_closed_interval([Errors(student, student / 2, teacher, weights)])
        assert np.isnan([interval.estimate, interval.low, interval.high]).all()
