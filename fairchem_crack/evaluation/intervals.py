"""Intervals of what a benchmark measures over seeds and systems.

An error of a model is a ratio of sums, e = sum_k x_k / sum_k w_k over the systems k of a split: x_k the energy error and
w_k = 1, or x_k the sum of the force errors of a system and w_k the number of its components. One letter per dimension:
S seeds, K systems, R replicates of a bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.stats import t as student

MOST_UNITS = 2000  # that a bootstrap resamples
REPLICATES = 10_000  # the ends of a 95 % interval then scatter by some 2 % of its width


@dataclass(frozen=True)
class Interval:
    """An estimate, and the ends of its interval; the ends are NaN where there is none."""

    estimate: float
    low: float = math.nan
    high: float = math.nan


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and interval of normally distributed values: m -+ t s / sqrt(S), t of S - 1 degrees of freedom.

    Args:
        values: (S,) one number of each seed; a single one has no interval.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean)
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def error_interval(sums: np.ndarray, weights: np.ndarray, **options: Any) -> Interval:
    """The error e = sum_k x_k / sum_k w_k and its percentile interval by a bootstrap over the systems.

    Args:
        sums: (K,) x.
        weights: (K,) w.
        options: of `average_error_interval`.
    """
    return average_error_interval([(sums, weights)], **options)


def average_error_interval(
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """The mean over splits of the error e, each counting the same, and its interval by a bootstrap within each split.

    Args:
        splits: x and w of each, (K,).
    """
    random = np.random.default_rng(seed)
    drawn = np.zeros(replicates)
    for sums, weights in splits:
        sums, weights = (_grouped(values, seed) for values in (sums, weights))
        counts = _resampled(random, len(weights), replicates)  # (R, K)
        drawn += (counts @ sums) / (counts @ weights) / len(splits)
    estimate = float(np.mean([sums.sum() / weights.sum() for sums, weights in splits]))
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


@dataclass(frozen=True)
class Errors:
    """The errors of students and teacher on the systems of one split.

    Row s of `undistilled` and of `distilled` are of the same seed; column k of everything is the same system.

    Attributes:
        undistilled: (S, K) x of the students trained on labels only.
        distilled: (S, K) x of the distilled ones.
        teacher: (K,) x of the teacher.
        weights: (K,) w, what x is divided by.
    """

    undistilled: np.ndarray
    distilled: np.ndarray
    teacher: np.ndarray
    weights: np.ndarray


def gap_closed(splits: Sequence[Errors]) -> float:
    """(u - d) / (u - t), each the mean over splits and seeds of the error e; 1 is the teacher, 0 the undistilled student.

    NaN where the teacher's error is not below the undistilled student's: there is no gap.
    """
    seeds = np.full((1, len(splits[0].undistilled)), 1 / len(splits[0].undistilled))
    undistilled, distilled, teacher = _means(splits, seeds, [np.ones((1, len(errors.weights))) for errors in splits])
    return float((undistilled - distilled)[0] / (undistilled - teacher)[0]) if teacher[0] < undistilled[0] else math.nan


def gap_closed_interval(
    splits: Sequence[Errors], *, confidence: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> Interval:
    """`gap_closed` and its interval by a paired bootstrap over seeds and systems: percentiles of the replicates.

    A replicate draws seeds with replacement, the same for the undistilled and the distilled students, and of each split as
    many systems as it has, the same for all models. Of S seeds it draws S - 1, which makes the variance over them unbiased
    (Rao & Wu 1988); S of S would make it (S - 1) / S of what it is.

    The coverage (tests/test_statistics.py) depends on what varies. A seed's effect on all systems alike is estimated from S
    numbers only: where it dominates, a 95 % interval of five seeds covers the truth in about 85 % of cases, one of three in
    73 %. A seed's effect on single systems enters with the seeds and with the systems (Owen 2007): where it dominates, the
    interval is too wide. One seed is not resampled: its interval is over the systems only.
    """
    estimate = gap_closed(splits)
    if math.isnan(estimate):
        return Interval(estimate)
    splits = [Errors(*(_grouped(getattr(errors, field.name), seed) for field in fields(errors))) for errors in splits]
    sizes = tuple(len(errors.weights) for errors in splits)
    seeds, systems = _drawn(seed, len(splits[0].undistilled), sizes, replicates)
    undistilled, distilled, teacher = _means(splits, seeds, systems)
    with np.errstate(divide="ignore", invalid="ignore"):  # replicates of very few systems may have no gap
        gaps = (undistilled - distilled) / (undistilled - teacher)
    low, high = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def _grouped(values: np.ndarray, seed: int) -> np.ndarray:
    """(..., K) of many systems as sums over random groups of equal size, which are resampled in their place.

    Sums over random groups scatter as their systems do; with them the replicates of a million systems fit into memory.
    """
    systems = values.shape[-1]
    if systems <= MOST_UNITS:
        return values
    order = np.random.default_rng(seed).permutation(systems)
    starts = np.arange(MOST_UNITS) * systems // MOST_UNITS
    return np.add.reduceat(values[..., order], starts, axis=-1)


@lru_cache(maxsize=2)  # many gaps are of the same seeds and systems, and drawing takes longer than all the rest
def _drawn(seed: int, seeds: int, systems: tuple[int, ...], replicates: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The replicates of a paired bootstrap: (R, S) weights of the seeds, and of each split (R, K) counts of its systems."""
    random, drawn = np.random.default_rng(seed), max(seeds - 1, 1)
    weights = random.multinomial(drawn, np.full(seeds, 1 / seeds), size=replicates) / drawn
    return weights, [_resampled(random, count, replicates) for count in systems]


def _resampled(random: np.random.Generator, systems: int, replicates: int) -> np.ndarray:
    """(R, K) how often each system was drawn, of at most `MOST_UNITS`."""
    return random.multinomial(systems, np.full(systems, 1 / systems), size=replicates).astype(np.int16)


def _means(splits: Sequence[Errors], seeds: np.ndarray, systems: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(R,) errors of undistilled, distilled and teacher.

    Args:
        seeds: (R, S) their weights, which sum to 1.
        systems: (R, K) for each split, counts of its systems.
    """

    def mean(name: str) -> np.ndarray:
        total = np.zeros(len(seeds))
        for errors, counts in zip(splits, systems):
            drawn = counts @ getattr(errors, name).T  # (R, S), the teacher's (R,)
            sums = drawn if drawn.ndim == 1 else (seeds * drawn).sum(axis=1)  # (R,)
            total += sums / (counts @ errors.weights)
        return total

    return [mean(name) for name in ("undistilled", "distilled", "teacher")]
