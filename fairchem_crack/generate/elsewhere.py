"""The systems of all parents, labelled by a teacher in another environment: drawn first, then labelled by one call of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Optional

import torch
from tqdm import tqdm

from fairchem_crack.generate.making import TeacherJob, in_ranks, model_of
from fairchem_crack.generate.records import label_names, own_labels
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Drawings, Staging
from fairchem_crack.generate.unit import Workshop, judged
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cache import Plan
from fairchem_crack.teacher.cache_sources import sample_digest
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.teacher.process import TeacherProcess

LABELLING = "labelling"  # directory of the teacher's process


class MadeElsewhere:
    """The systems of all parents are drawn, by any number of processes; then one call of the teacher labels them.

    Raises:
        ValueError: trajectories are asked for, and there is no model that moves atoms.
    """

    def __init__(
        self, job: TeacherJob, settings: Settings, parents: NamedRecords, process: TeacherProcess, rank: int = 0
    ) -> None:
        if settings.has_trajectories and settings.checkpoint is None:
            raise ValueError(
                "--strategies with md or relax: the teacher runs in another environment, and only labels what is made. Give "
                "a student that moves the atoms, --with CHECKPOINT."
            )
        self._job, self._settings, self._parents, self._process = job, settings, parents, process
        self._names = label_names(job.config)
        on_cpu = job.cpu or not torch.cuda.is_available()
        device = torch.device("cpu" if on_cpu else f"cuda:{rank}")
        self._workshop = Workshop(None, model_of(job, settings, device), device, settings)

    def made_with(self) -> dict[str, Any]:
        """See `Making`; which weights the command has, its records say."""
        return {**asdict(self._process), "systems": len(self._parents), "sample": sample_digest(self._parents)}

    def model(self) -> Optional[Teacher]:
        """See `Making`."""
        return self._workshop.model

    def make(self, unfinished: Path, numbers: list[int], ranks: int) -> Iterator[int]:
        """See `Making`."""
        self._draw(unfinished, ranks)
        with Drawings(unfinished) as drawings, Staging(unfinished) as staging:
            every = (drawings[number].systems for number in range(len(self._parents)))
            labelled = self._process.label(chain.from_iterable(every), unfinished / LABELLING)
            for number in numbers:
                drawn = drawings[number]
                records, own = labelled(drawn.systems), own_labels(self._parents[number], self._names)
                staging.put(number, judged(drawn, records, own, self._settings))
                yield number

    def _draw(self, unfinished: Path, ranks: int) -> None:
        with Drawings(unfinished) as drawings:
            todo = [number for number in range(len(self._parents)) if not drawings.done(number)]
        drawn = self.draw_these(unfinished, todo)
        if ranks > 1 and len(todo) >= ranks:
            drawn = in_ranks(_draw_share, self._job, self._settings, unfinished, todo, ranks)
        for _ in tqdm(drawn, desc="drawn", total=len(self._parents), initial=len(self._parents) - len(todo)):
            pass

    def draw_these(self, unfinished: Path, numbers: list[int]) -> Iterator[int]:
        """Draw the systems of these parents."""
        with Drawings(unfinished) as drawings:
            for number in numbers:
                drawings.put(number, self._workshop.draw(number, self._parents[number]))
                yield number

    def plan(self, unfinished: Path) -> Plan:
        """See `Making`."""
        return self._process.labelled(unfinished / LABELLING).cache.plan


def _draw_share(job: TeacherJob, settings: Settings, unfinished: Path, numbers: list[int], rank: int) -> Iterator[int]:
    process = job.process
    assert process is not None
    return MadeElsewhere(job, settings, job.dataset(), process, rank).draw_these(unfinished, numbers)
