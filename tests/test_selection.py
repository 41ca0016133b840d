"""Which systems are chosen of those that were made: `fairchem_crack.generate.selection` and `choice`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from fairchem_crack.generate.choice import choose
from fairchem_crack.generate.selection import farthest, system_embedding
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Staging
from fairchem_crack.generate.unit import Kept, Unit
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
    candidates, others = (rng.normal(size=(count, 3)) * (1, 10, 0.01) for count in (40, present))
    assert farthest(candidates, 12, others).tolist() == by_definition(candidates, 12, others)


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


def kept(strategy: str, *embedding: float) -> Kept:
    """A system of two atoms, the second one an adsorbate, whose embeddings are equal."""
    system = Data(
        pos=torch.zeros(2, 3), cell=torch.eye(3)[None], atomic_numbers=torch.ones(2), tags=torch.tensor([1, 2]), natoms=2
    )
    record = Record(b"", 2, {"node_embedding": np.array([embedding, embedding])}, np.zeros((2, 0)))
    return Kept(system, {}, record, {"strategy": strategy})


@pytest.fixture
def staging(tmp_path: Path):
    """Two parents: two copies near the first and one far away, then one far copy of the second. A third has none."""
    with Staging(tmp_path) as staging:
        near = [kept("rattle", 0.1, 0), kept("rattle", 0, 0.1), kept("md", 9, 0)]
        staging.put(0, Unit([kept("parent", 0, 0), *near], Counter({("md", "two atoms too close"): 1})))
        staging.put(1, Unit([kept("parent", 0, 1), kept("md", 0, 8)], Counter()))
        staging.put(2, Unit([], Counter({("parent", "numbers that are not finite"): 1})))
        yield staging


STRATEGIES = {"rattle": 2, "md": 2}


def test_a_selection_keeps_parents_and_what_is_farthest(staging):
    choice = choose(staging, 3, Settings(STRATEGIES, select=2))
    assert choice.places == [(0, 0), (0, 3), (1, 0), (1, 1)]
    assert choice.kept == {"parent": 2, "md": 2} and choice.not_selected == {("rattle", "not selected"): 2}
    alone = choose(staging, 3, Settings(STRATEGIES, select=2, with_parents=False))
    assert alone.places == [(0, 3), (1, 1)]  # parents are what is there, in the dataset or not


def test_without_a_selection_all_are_kept(staging):
    choice = choose(staging, 3, Settings(STRATEGIES))
    assert choice.places == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)] and not choice.not_selected


def test_a_random_selection_depends_on_the_seed_only(staging):
    picks = [choose(staging, 3, Settings(STRATEGIES, select_random=2, seed=seed)).places for seed in (0, 0, 1, 2, 3)]
    assert picks[0] == picks[1] and all(len(places) == 4 for places in picks) and len(set(map(tuple, picks))) > 1


@pytest.mark.parametrize("option", ["select", "select_random"])
def test_a_selection_of_more_than_there_are_is_refused(staging, option):
    message = f"--{option.replace('_', '-')} 5: 4 systems are within the limits; what is made is kept. Select fewer."
    with pytest.raises(ValueError, match=message):
        choose(staging, 3, Settings(STRATEGIES, **{option: 5}))
