"""The rounds of `fairchem-crack explore`: explore, train, again; and where an interrupted one resumes."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Callable, cast

import torch
from torch.utils.data import ConcatDataset

from fairchem_crack.explore.exploration import FRAMES, explored_in, frames_of, place_of
from fairchem_crack.explore.student import load_student, write_student
from fairchem_crack.explore.summary import ROUND, Explored, Trained, read_trained
from fairchem_crack.explore.tools import STUDENT, Job, Tools
from fairchem_crack.explore.training import checkpoint_of, write_yaml
from fairchem_crack.generate.counts import describe
from fairchem_crack.generate.directory import LOCK, SETTINGS, STAGING, begin, explained
from fairchem_crack.generate.outcome import CACHE, write_outcome
from fairchem_crack.generate.selection import check_installed
from fairchem_crack.generate.staging import Staging
from fairchem_crack.generate.unit import Kept
from fairchem_crack.io.files import write_json
from fairchem_crack.io.locks import exclusive
from fairchem_crack.training.config_checks import check_gpus

BEGUN = "training.json"  # of a round whose data are written

Train = Callable[[Path, int], None]  # in the directory of a round, up to a step


def explore(job: Job, student: Path, directory: Path, train: Train) -> list[Explored]:
    """Let a student explore, label its frames, train it on them, until it is good enough or the rounds are over.

    Args:
        student: its checkpoint.
        train: trains in the directory of a round, from its student on, or resumes there.

    Returns:
        What was seen of each student: the given one, and that of each training.

    Raises:
        ValueError: the directory has another outcome or other files, no frame is kept, a training fails, the disk refuses,
            a library is missing.
        LockedError: another process writes to the directory.
    """
    check_gpus(job.ranks, cpu=job.cpu)
    if job.settings.select is not None:
        check_installed()
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory / LOCK):
            _begin(job, student, directory)
            rounds: list[Explored] = []
            while True:
                number = len(rounds) + 1
                place = place_of(directory, number)
                rounds.append(explored_in(job, place, number, student))
                if number > job.settings.rounds or rounds[-1].is_good_enough(job.settings):
                    return rounds
                _train(job, place, rounds[-1], train)
                student = checkpoint_of(place)


def _begin(job: Job, student: Path, directory: Path) -> None:
    """Compare what the directory was begun with, or keep it, once the student is known to be one."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / STUDENT
        write_student(student, file, job.config, job.cache())
        model = load_student(file, job.config, torch.device("cpu"))
        model.close()
    begin(directory, directory / SETTINGS, job.made_with(model.fingerprint()))


def _train(job: Job, place: Path, explored: Explored, train: Train) -> None:
    """The training of a round, or what is missing of it."""
    begun = place / BEGUN
    if read_trained(place) is None:
        if not explored.kept:
            ended = ", ".join(f"{count} by {reason}" for reason, count in explored.endings.items()) or "none"
            raise ValueError(
                f"{place}: no frame is kept. Thrown out: {describe(explored.thrown_out) or 'none'}. Dynamics ended: "
                f"{ended}. Give another --output, and other limits or another student."
            )
        if not begun.is_file():
            write_json(begun, asdict(_write_data(job, place, explored.round)))
        training = Trained(**json.loads(begun.read_text()))
        train(place, training.steps)
        write_json(place / ROUND, {**asdict(explored), "training": asdict(training)})
    begun.unlink(missing_ok=True)


def _write_data(job: Job, place: Path, number: int) -> Trained:
    """Data, cache and YAML: the systems of dataset.train, and the frames of all rounds so far."""
    unfinished = place / STAGING
    unfinished.mkdir(exist_ok=True)
    with ExitStack() as stack:
        tools = stack.enter_context(Tools(job, place / STUDENT))
        parts: list = [tools.known]
        for before in range(1, number + 1):
            staging = stack.enter_context(Staging(place_of(place.parent, before) / FRAMES))
            parts.append(frames_of(staging, len(tools.starts)))
        systems = cast("list[Kept]", ConcatDataset([part for part in parts if len(part)]))
        dataset = write_outcome(place, unfinished, systems, job.config, tools.known.plan, "lmdb")
        count = len(systems)
    shutil.rmtree(unfinished)
    steps = write_yaml(place, job.config, dataset, place / CACHE, systems=count, steps=job.settings.steps, ranks=job.ranks)
    return Trained(count, steps, dataset)
