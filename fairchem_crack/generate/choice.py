"""Which of the systems that were made become the dataset: all within the limits, or a selection of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fairchem_crack.generate.moves import ADSORBATE
from fairchem_crack.generate.selection import farthest, system_embedding
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Place, Staging
from fairchem_crack.generate.unit import PARENTS
from fairchem_crack.io.atoms import to_atoms

NOT_SELECTED = "not selected"


@dataclass(frozen=True)
class Choice:
    """What of the staging is written.

    Attributes:
        places: of the systems, in the order of the dataset.
        kept: how many of them, by strategy.
        not_selected: how many others, by strategy and reason.
    """

    places: list[Place]
    kept: Counter[str]
    not_selected: Counter[tuple[str, str]]


def choose(staging: Staging, parents: int, settings: Settings) -> Choice:
    """The systems of the dataset, which depend on the staging, the selection and the seed.

    Raises:
        ValueError: more systems are to be selected than are within the limits.
    """
    strategies = staging.strategies(parents)
    present = [place for place, strategy in strategies.items() if strategy == PARENTS]
    candidates = [place for place, strategy in strategies.items() if strategy != PARENTS]
    selected = _selected(staging, candidates, present, settings)
    written = selected | set(present if settings.with_parents else ())
    places = [place for place in strategies if place in written]
    left_out = Counter((strategies[place], NOT_SELECTED) for place in candidates if place not in selected)
    return Choice(places, Counter(strategies[place] for place in places), left_out)


def _selected(staging: Staging, candidates: list[Place], present: list[Place], settings: Settings) -> set[Place]:
    if settings.selected is None:
        return set(candidates)
    settings.check_selected(len(candidates), "are within the limits; what is made is kept")
    if settings.select is None:
        indices = np.random.default_rng(settings.seed).permutation(len(candidates))[: settings.selected]
    else:
        indices = farthest(_embeddings(staging, candidates), settings.select, _embeddings(staging, present))
    return {candidates[index] for index in indices}


def _embeddings(staging: Staging, places: Sequence[Place]) -> np.ndarray:
    """(n, 2 D) of these systems."""
    kept = (staging[place] for place in tqdm(places, desc="selection", unit=" systems"))
    return np.stack([system_embedding(each.record, to_atoms(each.system).get_tags() == ADSORBATE) for each in kept])
