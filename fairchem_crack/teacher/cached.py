"""Train from a teacher cache: its records attached to the systems, and read from a batch where a teacher would be run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig
from fairchem_crack.io.atoms import positions_in_file
from fairchem_crack.io.boundaries import as_pbc
from fairchem_crack.teacher.cache import PAIRS, CacheError, Record, TeacherCache, differences, system_digest
from fairchem_crack.teacher.force_jacobian import choose_rows
from fairchem_crack.teacher.frozen import TeacherOutputs, load_teacher
from fairchem_crack.teacher.responses import kept

OTHERS = ("charge", "spin", "initial_charges", "initial_magmoms")  # as `io.atoms` gives them to a calculator
NAMED = 4  # settings that a message names
SAMPLE = 64  # systems compared with their records before the first step; the others when they are read


def open_cache(config: TeacherConfig, device: torch.device) -> TeacherCache:
    """The cache of `config`, compared with the teacher's checkpoint where that is available.

    Raises:
        CacheError: the cache cannot be used, or is another teacher's, or was made with another relation graph or precision.
    """
    assert config.cache is not None
    cache = TeacherCache(Path(config.cache))
    if cache.plan.precision != config.cache_precision:
        raise CacheError(
            f"Teacher cache {config.cache} was made in {cache.plan.precision}, and task.distill.teacher.precision is "
            f"{config.precision}: a cache for it is in {config.cache_precision}. Set it to {cache.plan.precision}, or write "
            "another cache with `fairchem-crack cache-teacher`."
        )
    if config.checkpoint is None or not Path(config.checkpoint).is_file():
        logging.info(f"Teacher cache {config.cache}: used without its teacher's checkpoint, which is not available.")
        return cache
    teacher = load_teacher(config, device)
    teacher.close()
    if teacher.fingerprint() != cache.plan.fingerprint:
        raise CacheError(
            f"Teacher cache {config.cache} was made by another teacher than {config.checkpoint}: the fingerprints of their "
            "weights differ. Give its own checkpoint or none, or write another cache with `fairchem-crack cache-teacher`."
        )
    changed = differences(settings_of(cache), teacher.settings())
    if changed:
        named = "; ".join(f"{name} {before} (cache), {now} (checkpoint)" for name, before, now in changed[:NAMED])
        raise CacheError(
            f"Teacher cache {config.cache} was made with other settings than {config.checkpoint} has: {named}. Give the "
            "checkpoint it was made with, or write another cache with `fairchem-crack cache-teacher`."
        )
    return cache


def settings_of(cache: TeacherCache) -> dict[str, Any]:
    """What decided the outputs of the teacher that filled a cache, besides its weights; see `Teacher.settings`."""
    return {"graph": cache.plan.graph, **cache.plan.identity}


def difference_of_teachers(first: TeacherCache, second: TeacherCache) -> str:
    """In what the teachers of two caches differ; empty where they are the same."""
    if first.plan.fingerprint != second.plan.fingerprint:
        return "the fingerprints of their weights differ"
    changed = differences(settings_of(first), settings_of(second))
    return "; ".join(f"{name} is {before} and {now}" for name, before, now in changed[:NAMED])


class CachedDataset(Dataset):
    """A dataset of fairchem, each system with the teacher's outputs for it. Read by the loader's workers.

    Records are looked up by the digest of the system: the data may be in another order than the cache's, or a part of them.

    Args:
        fields: of the cache, those to attach.

    Raises:
        CacheError: the cache was made of other systems, or lacks a field.
    """

    def __init__(self, dataset: Dataset, cache: TeacherCache, name: str, fields: Collection[str]) -> None:
        self.dataset, self.cache, self.name, self.fields = dataset, cache, name, sorted(fields)
        self._parts = {*self.fields, PAIRS}  # of a record: what is not needed is not read
        lacking = [field for field in self.fields if field not in cache.plan.fields]
        if lacking:
            raise CacheError(
                f"Teacher cache {cache.directory} holds {', '.join(cache.plan.fields)}, and no {', '.join(lacking)}, which "
                "terms of loss_functions need. Write a new cache to another directory: `fairchem-crack cache-teacher` keeps "
                "what the terms of its YAML need, `python -m fairchem_crack.teacher.label` what its flags say."
            )
        size = len(dataset)  # type: ignore[arg-type]
        if len(cache) < size:
            raise CacheError(
                f"Teacher cache {cache.directory} holds {len(cache)} systems, {name} {size}. The cache belongs to another "
                "dataset or to a part of this one; write one for all of it with `fairchem-crack cache-teacher`."
            )
        for index in {number * size // SAMPLE for number in range(SAMPLE)}:
            self[index]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Data:
        """System `index` with the fields `keys.TEACHER_*`."""
        system = self.dataset[index]
        record = record_of(self.cache, system, int(index), self.name, self.dataset, self._parts)
        return attach(system, record, self.fields, has_pairs=self.cache.plan.has_pairs)


def attach(system: Data, record: Record, fields: Collection[str], *, has_pairs: bool) -> Data:
    """The system with fields of its record, as `CachedTeacher` reads them of a batch."""
    for field in fields:
        system[keys.TEACHER_PREFIX + field] = torch.from_numpy(np.array(record.values[field]))
    if has_pairs:
        system[keys.TEACHER_PAIRS] = torch.from_numpy(record.pairs.astype(np.int64))
    return system


def look_up(
    cache: TeacherCache, system: Data, index: int, dataset: Dataset, parts: Optional[Collection[str]] = None
) -> Optional[Record]:
    """The record of system `index` of a dataset, or some of its parts; None where the cache has none.

    A dataset of ASE's is read again where no record has the digest: fairchem may have wrapped an atom on a face of the cell
    to its other side than the machine that wrote the cache.
    """
    record = cache.get(digest_of(system), parts)
    if record is None and (positions := positions_in_file(dataset, index)) is not None:
        record = cache.get(digest_of(system, positions), parts)
    return record


def record_of(
    cache: TeacherCache, system: Data, index: int, name: str, dataset: Dataset, parts: Optional[Collection[str]] = None
) -> Record:
    """As `look_up`, of the dataset called `name`.

    Raises:
        CacheError: the cache has none, or an empty one, or it cannot be read.
    """
    record = look_up(cache, system, index, dataset, parts)
    if record is None:
        sid = f" (sid {np.asarray(system.sid).tolist()})" if "sid" in system else ""
        raise CacheError(
            f"Teacher cache {cache.directory} has no record of system {index} of {name}{sid}. A record belongs to the "
            "atoms of a system, their positions, tags and fixed atoms, its cell, pbc, charge and spin. Take back what "
            "has changed in the data or in the dataset's options (src, first_n, sample_n, ...), or write another cache. "
            'For one of another framework, see docs/teachers.md, "Which record is whose".'
        )
    if not record.atoms:
        raise CacheError(
            f"Teacher cache {cache.directory} has an empty record of system {index} of {name}: the teacher failed for it. "
            "Leave the system out of the training's data."
        )
    return record


class CachedTeacher:
    """A teacher whose outputs are in the batch; a training uses it as it does `teacher.Teacher`."""

    def __init__(self, cache: TeacherCache) -> None:
        plan = cache.plan
        self.name, self.checkpoint = plan.teacher, Path(cache.directory)
        self.width, self.max_atomic_number, self.cutoff = plan.width, plan.max_atomic_number, plan.graph.get("cutoff")
        self.vector_width, self.cache, self.use_pbc = plan.vector_width, cache, plan.graph.get("use_pbc", True)
        self.lmax = plan.lmax

    def __call__(self, batch: Batch, requested: Collection[str] = (keys.NODE_EMBEDDING,), seed: int = 0) -> TeacherOutputs:
        """The cached outputs for the batch.

        Args:
            requested: fields of `TeacherOutputs`, of those that `CachedDataset` has attached.
            seed: chooses which of the kept rows of `force_jacobian` each system gets.
        """
        held = {name: batch[keys.TEACHER_PREFIX + name] for name in requested}
        fields: dict[str, Any] = {name: value.float() for name, value in held.items()}
        if keys.FORCE_JACOBIAN in held:
            fields[keys.FORCE_JACOBIAN] = choose_rows(batch, fields[keys.FORCE_JACOBIAN], seed)
        fields |= {name: kept(fields[name]) for name in keys.RESPONSES if name in held}
        fields.setdefault(keys.NODE_EMBEDDING, batch.pos.new_zeros((batch.num_nodes, 0)))
        has_pairs = self.cache.plan.has_pairs  # else the student's graph must do, and the preflight says so
        pairs = batch[keys.TEACHER_PAIRS] if has_pairs else torch.zeros((2, 0), dtype=torch.long, device=batch.pos.device)
        return TeacherOutputs(edge_index=pairs, **fields)

    def fingerprint(self) -> str:
        """The teacher's own."""
        return self.cache.plan.fingerprint

    def settings(self) -> dict[str, Any]:
        """The teacher's own."""
        return settings_of(self.cache)

    def close(self) -> None:
        """Close the cache's files in this process."""
        self.cache.close()


def digest_of(system: Data, positions: Optional[np.ndarray] = None) -> bytes:
    """`cache.system_digest` of a system of fairchem's dataset: of all that a model or a calculator reads of it.

    Args:
        positions: (N, 3) in place of its own.
    """
    positions = system.pos.numpy() if positions is None else positions
    cell = system.cell.numpy() if "cell" in system else np.zeros((3, 3))
    pbc = as_pbc(system.pbc).numpy() if "pbc" in system else None
    others = {name: np.asarray(system[name]) for name in ("tags", "fixed", *OTHERS) if name in system}
    return system_digest(system.atomic_numbers.numpy(), positions, cell, pbc, **others)
