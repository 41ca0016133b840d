"""All systems made of one parent: the candidates, the teacher's outputs for them, and those that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.generate import moves, trajectories
from fairchem_crack.generate.limits import check_finite, check_geometry, check_outputs, check_parent, largest_force
from fairchem_crack.generate.records import COPY, LABELS, at, bare, labels_of
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cache import Record
from fairchem_crack.teacher.cache_sources import TeacherSource
from fairchem_crack.teacher.frozen import Teacher

PARENTS = "parent"  # in the place of a strategy


@dataclass(frozen=True)
class Candidate:
    """A system before the teacher has seen it.

    Attributes:
        made: what the manifest says: strategy, and the numbers drawn.
    """

    system: Data
    made: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A system that is kept.

    Attributes:
        labels: energy (eV) and forces (eV/A) that the dataset has of it.
        record: the teacher's outputs; its digest is that of the system before the dataset was written.
        row: of the manifest.
    """

    system: Data
    labels: dict[str, Any]
    record: Record
    row: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What is made of one parent before the teacher has seen it.

    Attributes:
        candidates: the parent, then the systems whose geometry is accepted; none of a parent that models cannot be run on.
        thrown_out: how many others, by strategy and reason.
    """

    candidates: list[Candidate]
    thrown_out: Counter[tuple[str, str]]

    @property
    def systems(self) -> list[Data]:
        """Of the candidates."""
        return [candidate.system for candidate in self.candidates]


@dataclass(frozen=True)
class Unit:
    """What one parent has led to.

    Attributes:
        kept: the parent and the systems within the limits; empty where the parent is thrown out.
        thrown_out: how many systems, by strategy and reason.
    """

    kept: list[Kept]
    thrown_out: Counter[tuple[str, str]]


class Workshop:
    """Draws the systems of a parent; those of one parent depend on it, the settings and the model only.

    Args:
        teacher: None where it runs in another environment.
        model: moves atoms in trajectories; the teacher itself, or a student; None where there are none.
    """

    def __init__(
        self, teacher: Optional[Teacher], model: Optional[Teacher], device: torch.device, settings: Settings
    ) -> None:
        self._teacher, self.model, self._device, self._settings = teacher, model, device, settings

    def draw(self, number: int, parent: Data) -> Drawn:
        """The systems of parent `number`."""
        system, thrown_out = bare(parent, number), Counter[tuple[str, str]]()
        try:
            check_parent(system, self._teacher)
        except ThrownOut as thrown:
            counts = {PARENTS: 1, **self._settings.strategies}
            return Drawn([], Counter({(strategy, thrown.reason): count for strategy, count in counts.items()}))
        return Drawn([Candidate(system, {"strategy": PARENTS}), *self._candidates(system, thrown_out)], thrown_out)

    def _candidates(self, parent: Data, thrown_out: Counter[tuple[str, str]]) -> Iterator[Candidate]:
        copy = 1
        for strategy, count in self._settings.strategies.items():
            *_, last = strategy.split("+")
            frames = count if last in trajectories.BY_NAME else 1
            for first in range(copy, copy + count, frames):
                rng = np.random.default_rng(np.random.SeedSequence((self._settings.seed, parent.parent, first)))
                made = 0
                try:
                    for candidate in self._attempt(parent, strategy, frames, rng):
                        candidate.system[COPY] = first + made
                        made += 1
                        reason = self._fault_of(candidate.system)
                        if reason is None:
                            yield candidate
                        else:
                            thrown_out[strategy, reason] += 1
                except ThrownOut as thrown:  # with all the frames that would have followed
                    if made < frames:
                        thrown_out[strategy, thrown.reason] += frames - made
            copy += count

    def _attempt(self, parent: Data, strategy: str, frames: int, rng: np.random.Generator) -> Iterator[Candidate]:
        """The systems of a strategy: one, or the frames of a trajectory."""
        settings, atoms = self._settings, to_atoms(parent)
        drawn: dict[str, Any] = {"strategy": strategy}
        for name in strategy.split("+"):
            if name in moves.BY_NAME:
                drawn |= moves.BY_NAME[name](atoms, settings, rng)
                continue
            assert self.model is not None
            atoms.calc = trajectories.ModelCalculator(self.model, self._device, at(parent, atoms))
            for step in trajectories.BY_NAME[name](atoms, frames, settings, rng):
                yield Candidate(at(parent, atoms), {**drawn, **step})
            return
        yield Candidate(at(parent, atoms), drawn)

    def _fault_of(self, system: Data) -> Optional[str]:
        try:
            check_geometry(to_atoms(system), self._settings)
        except ThrownOut as thrown:
            return thrown.reason
        return None


def judged(drawn: Drawn, records: Sequence[Record], own: dict[str, Any], settings: Settings) -> Unit:
    """The systems within the limits. Without finite outputs for the parent there are none.

    Args:
        records: the teacher's outputs for the candidates.
        own: labels of the parent.
    """
    thrown_out = drawn.thrown_out.copy()
    if not drawn.candidates:
        return Unit([], thrown_out)
    try:
        check_finite(records[0])
    except ThrownOut as thrown:
        thrown_out.update((candidate.made["strategy"], thrown.reason) for candidate in drawn.candidates)
        return Unit([], thrown_out)
    kept = [kept_of(drawn.candidates[0], records[0], own)]
    for candidate, record in zip(drawn.candidates[1:], records[1:]):
        try:
            check_outputs(record, records[0], to_atoms(candidate.system), settings)
        except ThrownOut as thrown:
            thrown_out[candidate.made["strategy"], thrown.reason] += 1
        else:
            kept.append(kept_of(candidate, record, {}))
    return Unit(kept, thrown_out)


def outputs_of(source: TeacherSource, systems: list[Data]) -> list[Record]:
    """A model's outputs for systems, in batches that they fill."""
    named = NamedRecords(systems, source.dataset.name)  # type: ignore[arg-type]
    of_systems, chunk = TeacherSource(source.teacher, named, source.device, source.plan), source.plan.chunk
    starts = range(0, len(systems), chunk)
    return [record for start in starts for record in of_systems(range(start, min(start + chunk, len(systems))))]


def kept_of(candidate: Candidate, record: Record, own: dict[str, Any]) -> Kept:
    """A system that is kept. Its labels are its own where it has them, else the teacher's."""
    system = candidate.system
    row = {
        "parent": system.parent,
        "copy_number": system.copy_number,
        **{name: _plain(system[name]) for name in ("sid", "fid") if name in system},
        **candidate.made,
        "labels": {name: "data" if name in own else "teacher" for name in LABELS},
        "teacher_energy": float(record.values[keys.ENERGY]),
        "teacher_max_force": largest_force(record.values[keys.FORCES], system.fixed.numpy() == 0),
    }
    return Kept(system, {**labels_of(record), **own}, record, row)


def _plain(value: Any) -> Any:
    """A number or a text of a record, for JSON."""
    if isinstance(value, torch.Tensor):
        value = value.reshape(-1).tolist()
        return value[0] if len(value) == 1 else value
    return value.item() if isinstance(value, np.generic) else value


def with_digest(record: Record, digest: bytes) -> Record:
    """The same outputs, of the system as a dataset gives it."""
    return replace(record, digest=digest)
