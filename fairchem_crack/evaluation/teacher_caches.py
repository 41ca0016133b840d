"""A teacher whose outputs for the evaluated systems are in caches, in the place of its checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.teacher.cache import PAIRS, CacheError, Record, TeacherCache
from fairchem_crack.teacher.cached import CachedTeacher, attach, difference_of_teachers, look_up

LABELS = (keys.ENERGY, keys.FORCES)


class TeacherCaches(CachedTeacher):
    """Caches of one teacher that are read as one. A record is looked up by its system, in whichever it is.

    Raises:
        CacheError: one cannot be used, has no energies and forces, or is of another teacher than the first.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self.caches = [TeacherCache(directory) for directory in directories]
        super().__init__(self.caches[0])
        for cache in self.caches:
            if difference := difference_of_teachers(cache, self.cache):
                raise CacheError(
                    f"--teacher-cache: {cache.directory} was made by another teacher than {self.cache.directory}: "
                    f"{difference}."
                )
            if lacking := [name for name in LABELS if name not in cache.plan.fields]:
                raise CacheError(f"--teacher-cache {cache.directory}: holds no {', '.join(lacking)} to compare.")

    @property
    def has_embeddings(self) -> bool:
        """Whether all of them hold node embeddings and the pairs of the teacher's graph."""
        return all(cache.plan.has_pairs and keys.NODE_EMBEDDING in cache.plan.fields for cache in self.caches)

    def record(self, system: Data, index: int, where: str, dataset: Dataset, fields: Collection[str]) -> Record:
        """Some fields of the record of system `index` of a dataset, that at `where`.

        Raises:
            CacheError: no cache has one, or it cannot be read.
        """
        records = [look_up(cache, system, index, dataset, fields) for cache in self.caches]
        for record in records:
            if record is not None and record.atoms:
                return record
        if any(record is not None for record in records):
            raise CacheError(
                f"--teacher-cache: the record of system {index} of {where} is empty: the teacher failed for it. Leave the "
                "system out."
            )
        searched = ", ".join(str(cache.directory) for cache in self.caches)
        raise CacheError(
            f"--teacher-cache: no record of system {index} of {where} in {searched}. Were they made of other data? A record "
            "belongs to the atoms of a system, their positions, tags and fixed atoms, its cell, pbc, charge and spin. "
            "`fairchem-crack cache-teacher --split val` writes the cache of a validation split."
        )

    def attach(self, system: Data, index: int, where: str, dataset: Dataset) -> None:
        """Add to a system what `__call__` reads of a batch: energy, forces and, where there are some, embeddings."""
        fields = {*LABELS, *([keys.NODE_EMBEDDING] if self.has_embeddings else [])}
        record = self.record(system, index, where, dataset, {*fields, PAIRS})
        attach(system, record, fields, has_pairs=self.cache.plan.has_pairs)


class LabelledByCaches(Dataset):
    """A dataset of fairchem whose labels are a teacher's outputs; it needs none of its own. Read by the loader's workers.

    Args:
        dataset: its systems have `energy` and `forces` afterwards.
        caches: of the teacher.
        where: of the dataset, for messages.
    """

    def __init__(self, dataset: Dataset, caches: TeacherCaches, where: str) -> None:
        self.dataset, self.caches, self.where = OptionalLabels(dataset, {name: name for name in LABELS}), caches, where

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Data:
        """System `index`, its labels in float32, eV and eV/A."""
        system = self.dataset[index]
        values = self.caches.record(system, int(index), self.where, self.dataset, LABELS).values
        system.energy = torch.tensor(values[keys.ENERGY], dtype=torch.float32).view(-1)
        system.forces = torch.tensor(values[keys.FORCES], dtype=torch.float32)
        return system
