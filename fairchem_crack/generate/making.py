"""The systems of all parents, made and labelled by a teacher that runs here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Optional, Protocol

import torch

from fairchem_crack.config import TeacherConfig, parse
from fairchem_crack.generate.directory import explained
from fairchem_crack.generate.records import label_names, own_labels
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Staging
from fairchem_crack.generate.unit import Unit, Workshop, judged, outputs_of
from fairchem_crack.io.datasets import close_unused
from fairchem_crack.io.denormals import without_denormals
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.processes import values_from
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cache import Plan
from fairchem_crack.teacher.cache_sources import Source, TeacherSource
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.process import TeacherProcess


class TeacherJob(Protocol):
    """What of `cache-teacher`'s job is needed: the data, the teacher, and the plan of a cache."""

    @property
    def config(self) -> dict:
        """Of the training, as `build_config` makes it."""

    @property
    def cpu(self) -> bool:
        """Even where there is a GPU."""

    @property
    def process(self) -> Optional[TeacherProcess]:
        """The teacher where it runs in another environment."""

    def dataset(self) -> NamedRecords:
        """The parents."""

    def source(self, rank: int, dataset: NamedRecords) -> tuple[Source, Plan]:
        """What makes the teacher's outputs."""


class Making(Protocol):
    """A way to make and label the systems of all parents."""

    def made_with(self) -> dict[str, Any]:
        """What of the teacher and the parents decides the outcome."""

    def model(self) -> Optional[Teacher]:
        """What moves the atoms of trajectories."""

    def make(self, unfinished: Path, numbers: list[int], ranks: int) -> Iterator[int]:
        """Make the systems of these parents; the number of each when they are in the staging."""

    def plan(self, unfinished: Path) -> Plan:
        """Of their cache, once all are made."""


class MadeHere:
    """Each parent's systems are drawn, run through the teacher and kept, by any number of processes.

    Args:
        rank: whose GPU is taken.
    """

    def __init__(self, job: TeacherJob, settings: Settings, parents: NamedRecords, rank: int = 0) -> None:
        self._job, self._settings, self._parents, self._names = job, settings, parents, label_names(job.config)
        source, self._plan = job.source(rank, parents)
        assert isinstance(source, TeacherSource)
        self._source = source
        own = model_of(job, settings, source.device)
        self._workshop = Workshop(source.teacher, source.teacher if own is None else own, source.device, settings)

    def made_with(self) -> dict[str, Any]:
        """See `Making`."""
        return asdict(self._plan)

    def model(self) -> Optional[Teacher]:
        """See `Making`."""
        return self._workshop.model

    def make(self, unfinished: Path, numbers: list[int], ranks: int) -> Iterator[int]:
        """See `Making`."""
        if ranks == 1 or len(numbers) < ranks:
            return self.make_these(unfinished, numbers)
        del self._source, self._workshop, self._parents  # each process opens its own
        return in_ranks(_make_share, self._job, self._settings, unfinished, numbers, ranks)

    def make_these(self, unfinished: Path, numbers: list[int]) -> Iterator[int]:
        """The systems of these parents, one parent after the other."""
        with Staging(unfinished) as staging:
            for number in numbers:
                staging.put(number, self._made(number))
                yield number

    def _made(self, number: int) -> Unit:
        parent = self._parents[number]
        drawn = self._workshop.draw(number, parent)
        own = own_labels(parent, self._names)
        return judged(drawn, outputs_of(self._source, drawn.systems), own, self._settings)

    def plan(self, unfinished: Path) -> Plan:
        """See `Making`."""
        return self._plan


def model_of(job: TeacherJob, settings: Settings, device: torch.device) -> Optional[Teacher]:
    """The model of `--with`, where there are trajectories; None without it."""
    if settings.checkpoint is None or not settings.has_trajectories:
        return None
    given = parse(TeacherConfig, job.config["task"]["distill"]["teacher"], "task.distill.teacher")
    return load_teacher(replace(given, checkpoint=settings.checkpoint, cache=None, command=None), device)


Share = Callable[[TeacherJob, Settings, Path, list[int], int], Iterator[int]]  # of a rank: the number of each parent


def in_ranks(
    share: Share, job: TeacherJob, settings: Settings, unfinished: Path, numbers: list[int], ranks: int
) -> Iterator[int]:
    """Work on parents in processes; the number of each when it is done."""
    close_unused()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    shares = [(share, job, settings, unfinished, numbers[rank::ranks], rank) for rank in range(ranks)]
    return values_from(_in_process, shares)


@without_denormals()
def _in_process(
    share: Share,
    job: TeacherJob,
    settings: Settings,
    unfinished: Path,
    numbers: list[int],
    rank: int,
    put: Callable[[int], None],
) -> None:
    logging.basicConfig(level=logging.WARNING)
    load_plugins(imports_of(job.config.get("task")))
    with explained(unfinished.parent):
        for number in share(job, settings, unfinished, numbers, rank):
            put(number)


def _make_share(job: TeacherJob, settings: Settings, unfinished: Path, numbers: list[int], rank: int) -> Iterator[int]:
    return MadeHere(job, settings, job.dataset(), rank).make_these(unfinished, numbers)
