"""The systems of `dataset.train`, with the teacher's outputs in its cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch_geometric.data import Data

from fairchem_crack.generate.records import bare, own_labels
from fairchem_crack.generate.unit import PARENTS, Candidate, Kept, kept_of
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import record_of


class Known(Sequence[Kept]):
    """All of them, in the order of the dataset; each is read when it is needed. They keep their own labels.

    Args:
        names: of the labels in a record, by property.
    """

    def __init__(self, dataset: NamedRecords, cache: TeacherCache, names: Mapping[str, str]) -> None:
        self.dataset, self.plan, self._cache, self._names = dataset, cache.plan, cache, names

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        system = self.dataset[index]
        record = record_of(self._cache, system, index, self.dataset.name, self.dataset)
        return kept_of(Candidate(bare(system, index), {"strategy": PARENTS}), record, own_labels(system, self._names))

    def start(self, index: int) -> Data:
        """System `index`, as trajectories begin from it."""
        return bare(self.dataset[index], index)

    def starts(self, count: int) -> list[int]:
        """The numbers of at most `count` systems, evenly spaced."""
        return evenly_spaced(len(self), count)
