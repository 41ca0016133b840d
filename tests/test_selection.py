"""Farthest-point sampling, and what represents a system: `fairchem_crack.generate.selection`."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fairchem_crack.generate.selection import farthest, system_embedding
from fairchem_crack.teacher.cache import Record


def by_definition(candidates: np.ndarray, count: int, present: np.ndarray) -> list[int]:
    """Farthest-point sampling by full distances, written from the definition."""
    everything = np.concatenate([present, candidates])
    candidates, present = candidates / everything.std(0), present / everything.std(0)
    chosen: list[int] = []
    for _ in range(count):
        others = [*present, *candidates[chosen]]
        nearest = [min((np.linalg.norm(point - other) for other in others), default=np.inf) for point in candidates]
        chosen.append(int(np.argmax([-1 if index in chosen else value for index, value in enumerate(nearest)])))
    return sorted(chosen)


@pytest.mark.parametrize("present", [0, 1, 7])
def test_farthest_follows_its_definition(present):
    rng = np.random.default_rng(present)
    candidates, others = rng.normal(size=(40, 3)) * (1, 10, 0.01), rng.normal(size=(present, 3)) * (1, 10, 0.01)
    assert farthest(candidates, 12, others).tolist() == by_definition(candidates, 12, others)


def test_farthest_leaves_out_what_is_present():
    candidates = np.array([[0.0, 0], [5, 0], [0, 0.1], [5, 5], [0, 5]])
    assert farthest(candidates, 3, np.zeros((1, 2))).tolist() == [1, 3, 4]


def test_farthest_chooses_each_of_equal_candidates_once():
    equal = np.repeat(np.arange(6.0).reshape(3, 2), 4, axis=0)
    assert len(set(farthest(equal, 7, equal[:1]))) == 7
    assert farthest(equal, 12, equal[:1]).tolist() == list(range(12)) and farthest(equal, 0, equal).size == 0
    with pytest.raises(ValueError, match="cannot choose 13 of 12 candidates"):
        farthest(equal, 13, equal)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skmatter.sample_selection", None)
    with pytest.raises(ValueError, match=r"needs scikit-matter, for Python 3.11 and later: pip install 'skmatter>=0.4'"):
        farthest(np.eye(3), 2, np.eye(3))


def test_a_system_is_the_mean_of_its_adsorbate_and_of_its_rest():
    embedding = np.array([[1, 2], [3, 4], [8, 0]], dtype=np.float16)
    record = Record(b"", 3, {"node_embedding": embedding}, np.zeros((2, 0)))
    assert system_embedding(record, np.array([True, True, False])).tolist() == [2, 3, 8, 0]
    assert system_embedding(record, np.zeros(3, bool)).tolist() == [0, 0, 4, 2]
    with pytest.raises(ValueError, match="no node embeddings"):
        system_embedding(Record(b"", 3, {}, np.zeros((2, 0))), np.zeros(3, bool))
