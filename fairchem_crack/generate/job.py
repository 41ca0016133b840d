"""`fairchem-crack generate`: make systems of every parent, resume where it stopped, write the outcome at once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Protocol

import torch
from tqdm import tqdm

from fairchem_crack.config import TeacherConfig, parse
from fairchem_crack.generate.choice import choose
from fairchem_crack.generate.counts import describe, nested
from fairchem_crack.generate.directory import LOCK, SETTINGS, STAGING, begin, check_same, explained
from fairchem_crack.generate.outcome import write_outcome
from fairchem_crack.generate.selection import check_installed
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Staging, Systems
from fairchem_crack.generate.unit import PARENTS, Workshop
from fairchem_crack.io.datasets import close_unused
from fairchem_crack.io.files import write_json
from fairchem_crack.io.locks import exclusive
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.processes import values_from
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cache import Plan
from fairchem_crack.teacher.cache_sources import Source, TeacherSource
from fairchem_crack.teacher.frozen import load_teacher
from fairchem_crack.training.config_checks import check_gpus

SUMMARY = "generate.json"
OF_OUTCOME = ("select", "select_random", "with_parents", "output_format")  # decide what is written of the systems made


class TeacherJob(Protocol):
    """What of `cache-teacher`'s job is needed: the data, the teacher, and the plan of a cache."""

    @property
    def config(self) -> dict:
        """Of the training, as `build_config` makes it."""

    @property
    def cpu(self) -> bool:
        """Even where there is a GPU."""

    def dataset(self) -> NamedRecords:
        """The parents."""

    def source(self, rank: int, dataset: NamedRecords) -> tuple[Source, Plan]:
        """What makes the teacher's outputs."""


@dataclass(frozen=True)
class Summary:
    """What `generate.json` holds.

    Attributes:
        settings: what decides the outcome; a second run with others is refused.
        systems: of the dataset.
        kept: systems by strategy.
        thrown_out: systems by strategy and reason, those that were not selected too.
        dataset: the options of fairchem that read it.
    """

    settings: dict[str, Any]
    parents: int
    systems: int
    kept: dict[str, int]
    thrown_out: dict[str, dict[str, int]]
    dataset: dict[str, Any]


def generate(job: TeacherJob, settings: Settings, directory: Path, *, ranks: int = 1) -> Summary:
    """Make the systems, or what is missing of them, and write `data`, `cache`, the manifest and the summary.

    Args:
        ranks: processes that make systems, each on a GPU of its own; the outcome does not depend on it.

    Raises:
        ValueError: the directory has another outcome or other files, too few systems are kept, the disk refuses, ranks lack
            GPUs, a library is missing.
        LockedError: another process writes to the directory.
    """
    check_gpus(ranks, cpu=job.cpu)
    if settings.select is not None:
        check_installed()
    parents = job.dataset()
    most = len(parents) * sum(settings.strategies.values())
    settings.check_selected(most, f"are made of {len(parents)} parents")
    workshop, plan = _workshop(job, settings, parents, 0)
    made_with = _made_with(settings, plan, workshop)
    unfinished, count = directory / STAGING, len(parents)
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory / LOCK):
            if (directory / SUMMARY).is_file():
                summary = Summary(**json.loads((directory / SUMMARY).read_text()))
                check_same(directory, summary.settings, made_with)
                shutil.rmtree(unfinished, ignore_errors=True)
                return summary
            begin(directory, unfinished / SETTINGS, _of_systems(made_with))
            todo = _missing(unfinished, count)
            if ranks > 1 and len(todo) >= ranks:
                del workshop, parents  # each process opens its own
                close_unused()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                shares = [(job, settings, unfinished, todo[rank::ranks], rank) for rank in range(ranks)]
                made: Iterator[int] = values_from(_make_share, shares)
            else:
                made = _made(unfinished, workshop, parents, todo)
                del workshop, parents
            for _ in tqdm(made, total=count, initial=count - len(todo), unit=" parents"):
                pass
            del made
            close_unused()
            with Staging(unfinished) as staging:
                summary = _write(job.config, settings, directory, staging, plan, made_with, count)
            shutil.rmtree(unfinished)
    return summary


def _workshop(job: TeacherJob, settings: Settings, parents: NamedRecords, rank: int) -> tuple[Workshop, Plan]:
    source, plan = job.source(rank, parents)
    assert isinstance(source, TeacherSource)
    model = source.teacher
    if settings.checkpoint is not None and settings.has_trajectories:
        given = parse(TeacherConfig, job.config["task"]["distill"]["teacher"], "task.distill.teacher")
        model = load_teacher(replace(given, checkpoint=settings.checkpoint, cache=None), source.device)
    return Workshop(source, model, settings), plan


def _missing(unfinished: Path, parents: int) -> list[int]:
    with Staging(unfinished) as staging:
        return [number for number in range(parents) if not staging.done(number)]


def _made(unfinished: Path, workshop: Workshop, parents: NamedRecords, numbers: list[int]) -> Iterator[int]:
    """Make the systems of these parents; the number of each when it is kept."""
    with Staging(unfinished) as staging:
        for number in numbers:
            staging.put(number, workshop.make(number, parents[number]))
            yield number


def _make_share(
    job: TeacherJob, settings: Settings, unfinished: Path, numbers: list[int], rank: int, put: Callable[[int], None]
) -> None:
    """In a process: the systems of some parents."""
    logging.basicConfig(level=logging.WARNING)
    load_plugins(imports_of(job.config.get("task")))
    parents = job.dataset()
    workshop, _ = _workshop(job, settings, parents, rank)
    with explained(unfinished.parent):
        for number in _made(unfinished, workshop, parents, numbers):
            put(number)


def _made_with(settings: Settings, plan: Plan, workshop: Workshop) -> dict[str, Any]:
    """What decides the outcome, as JSON has it; the model of trajectories by its weights."""
    options = {**asdict(settings), "checkpoint": workshop.model.fingerprint() if settings.has_trajectories else None}
    return json.loads(json.dumps({"options": options, "teacher_and_parents": asdict(plan)}))


def _of_systems(made_with: dict[str, Any]) -> dict[str, Any]:
    """What of the settings decides the systems that are made, whichever of them are written."""
    options = {name: value for name, value in made_with["options"].items() if name not in OF_OUTCOME}
    return {**made_with, "options": options}


def _write(
    config: dict, settings: Settings, directory: Path, staging: Staging, plan: Plan, made_with: dict[str, Any], parents: int
) -> Summary:
    """Write the outcome; the summary comes last."""
    unfinished, thrown_out = directory / STAGING, staging.thrown_out(parents)
    if not set(staging.strategies(parents).values()) - {PARENTS}:
        shutil.rmtree(unfinished)  # for a run with other settings
        raise ValueError(
            f"no system is kept. Thrown out: {describe(nested(thrown_out)) or 'none'}. Change the limits or strategies."
        )
    choice = choose(staging, parents, settings)
    systems = Systems(staging, choice.places)
    options = write_outcome(directory, unfinished, systems, config, plan, settings.output_format)
    left_out = nested(thrown_out + choice.not_selected)
    summary = Summary(made_with, parents, len(systems), dict(choice.kept), left_out, options)
    write_json(directory / SUMMARY, asdict(summary))
    return summary
