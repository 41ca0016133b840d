"""A teacher whose outputs for the evaluated systems are in caches, in the place of its checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.teacher.cache import PAIRS, CacheError, Record, TeacherCache
from fairchem_crack.teacher.cached import CachedTeacher, attach, digest_of


class TeacherCaches(CachedTeacher):
    """Caches of one teacher that are read as one. A record is looked up by its system, in whichever it is.

    Raises:
        CacheError: one cannot be used, has no energies and forces, or is of another teacher than the first.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self.caches = [TeacherCache(directory) for directory in directories]
        super().__init__(self.caches[0])
        for cache in self.caches:
            if cache.plan.fingerprint != self.cache.plan.fingerprint:
                raise CacheError(
                    f"--teacher-cache: {cache.directory} was made by another teacher than {self.cache.directory}; the "
                    "fingerprints of their weights differ."
                )
            if lacking := [name for name in (keys.ENERGY, keys.FORCES) if name not in cache.plan.fields]:
                raise CacheError(f"--teacher-cache {cache.directory}: holds no {', '.join(lacking)} to compare.")

    @property
    def has_embeddings(self) -> bool:
        """Whether all of them hold node embeddings and the pairs of the teacher's graph."""
        return all(cache.plan.has_pairs and keys.NODE_EMBEDDING in cache.plan.fields for cache in self.caches)

    def record(self, system: Data, index: int, where: str, fields: Collection[str]) -> Record:
        """Some fields of the record of system `index` of the data at `where`.

        Raises:
            CacheError: no cache has one, or it cannot be read.
        """
        digest = digest_of(system)
        for cache in self.caches:
            if (record := cache.get(digest, fields)) is not None and record.atoms:  # not an empty one
                return record
        searched = ", ".join(str(cache.directory) for cache in self.caches)
        raise CacheError(
            f"--teacher-cache: no record of system {index} of {where} in {searched}. Were they made of other data? A record "
            "belongs to the atoms of a system, their positions, tags and fixed atoms, its cell, pbc, charge and spin. "
            "`fairchem-crack cache-teacher --split val` writes the cache of a validation split."
        )

    def attach(self, systems: Sequence[Data], where: str) -> None:
        """Add to the systems what `__call__` reads of a batch: energies, forces and, where there are some, embeddings."""
        fields = {keys.ENERGY, keys.FORCES, *([keys.NODE_EMBEDDING] if self.has_embeddings else [])}
        for index, system in enumerate(systems):
            record = self.record(system, index, where, {*fields, PAIRS})
            attach(system, record, fields, has_pairs=self.cache.plan.has_pairs)
