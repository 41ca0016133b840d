"""The exploration of a round: trajectories of its student, their frames labelled by the teacher, its errors on them."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Callable

from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack.explore.labelling import label, mean_errors, select
from fairchem_crack.explore.student import write_student
from fairchem_crack.explore.summary import EXPLORED, Explored, read_explored
from fairchem_crack.explore.tools import STUDENT, Job, Tools
from fairchem_crack.explore.trajectories import Run, run_from
from fairchem_crack.generate.choice import NOT_SELECTED
from fairchem_crack.generate.counts import nested
from fairchem_crack.generate.elsewhere import LABELLING
from fairchem_crack.generate.staging import Staging, Systems
from fairchem_crack.generate.unit import Candidate
from fairchem_crack.io.denormals import without_denormals
from fairchem_crack.io.files import write_bytes, write_json
from fairchem_crack.io.processes import values_from
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.process import TeacherProcess

TRAJECTORIES, FRAMES = "trajectories", "frames"  # of a round: what is drawn, until it is labelled; what is labelled
SELECTED = "selected.json"
PRESENT = 1000  # systems of dataset.train, at most, that the frames of a round are compared with

Stage = Callable[[Tools, Path, int, Sequence[int]], Iterator[int]]  # of a round, for some of its starts


def place_of(directory: Path, number: int) -> Path:
    """The directory of a round."""
    return directory / f"round-{number}"


def explored_in(job: Job, place: Path, number: int, student: Path) -> Explored:
    """The frames of a round, drawn and labelled, or what is missing of them."""
    explored = read_explored(place)
    if explored is None:
        place.mkdir(exist_ok=True)
        if not (place / STUDENT).is_file():
            write_student(student, place / STUDENT, job.config, job.cache())
        with Tools(job, place / STUDENT) as tools:
            explored = _explore(tools, place, number)
        write_json(place / EXPLORED, asdict(explored))
    shutil.rmtree(place / TRAJECTORIES, ignore_errors=True)  # what was selected of them is labelled
    return explored


def _explore(tools: Tools, place: Path, number: int) -> Explored:
    starts, settings = range(len(tools.starts)), tools.job.settings
    (place / TRAJECTORIES).mkdir(exist_ok=True)
    todo = [start for start in starts if not _file(place, start).is_file()]
    _in_ranks(draw, tools, place, number, todo, len(starts))
    runs = [_read(place, start) for start in starts]
    movable = sum(run.ending.ps is not None for run in runs)
    if not movable:
        raise ValueError(
            f"nothing can move: all atoms of the {len(starts)} starts are fixed. Give another --output, and more --starts."
        )
    if (settings.stable_starts or 0) > movable:
        raise ValueError(
            f"--stable-starts {settings.stable_starts}: {movable} of the {len(starts)} starts have free atoms. Give fewer."
        )
    if settings.select is not None and not (place / TRAJECTORIES / SELECTED).is_file():
        chosen = select([run.candidates for run in runs], _present(tools, place, number), settings.select, tools.student)
        write_json(place / TRAJECTORIES / SELECTED, chosen)
    with Staging(place / FRAMES) as staging:
        todo = [start for start in starts if not staging.done(start)]
    if todo and tools.job.process is not None:
        _label_elsewhere(tools, tools.job.process, place, runs)
    _in_ranks(label_frames, tools, place, number, todo, len(starts))
    return _concluded(tools, place, number, runs)


def _label_elsewhere(tools: Tools, process: TeacherProcess, place: Path, runs: Sequence[Run]) -> None:
    """Have the frames of all starts labelled by one call of the teacher in its environment."""
    frames = [frame.system for start, run in enumerate(runs) for frame in _selected(place, start, run)]
    if frames:
        labelled = process.label(frames, place / TRAJECTORIES / LABELLING)
        labelled.check_teacher(tools.known.plan, tools.job.cache().directory)


def _present(tools: Tools, place: Path, number: int) -> list[Data]:
    """What is trained on already: a sample of dataset.train, and the frames of earlier rounds."""
    systems = [tools.known.start(index) for index in evenly_spaced(len(tools.known), PRESENT)]
    for before in range(1, number):
        with Staging(place_of(place.parent, before) / FRAMES) as staging:
            systems += [frame.system for frame in frames_of(staging, len(tools.starts))]
    return systems


def draw(tools: Tools, place: Path, number: int, starts: Sequence[int]) -> Iterator[int]:
    """What the student of a round does from these starts; each when it is kept."""
    for start in starts:
        system = tools.known.start(tools.starts[start])
        run = run_from(system, tools.student.teacher, tools.device, tools.job.settings, number)
        write_bytes(_file(place, start), pickle.dumps(run, protocol=4))
        yield start


def label_frames(tools: Tools, place: Path, number: int, starts: Sequence[int]) -> Iterator[int]:
    """Label the frames of these starts, those that were selected; each start when they are kept."""
    limits, labelling = tools.job.settings.of_frames, place / TRAJECTORIES / LABELLING
    with Staging(place / FRAMES) as staging:
        for start in starts:
            frames, parent = _selected(place, start, _read(place, start)), tools.known[tools.starts[start]].record
            records = tools.outputs([frame.system for frame in frames], labelling)
            staging.put(start, label(frames, records, parent, tools.student, limits))
            yield start


def _concluded(tools: Tools, place: Path, number: int, runs: Sequence[Run]) -> Explored:
    starts, thrown_out, labels = [], Counter[tuple[str, str]](), 0
    for start, run in enumerate(runs):
        selected = _selected(place, start, run)
        left_out = Counter((candidate.made["strategy"], NOT_SELECTED) for candidate in run.candidates)
        left_out.subtract((candidate.made["strategy"], NOT_SELECTED) for candidate in selected)
        thrown_out += run.thrown_out + left_out
        labels += len(selected)
        starts.append({"parent": tools.starts[start], **asdict(run.ending)})
    with Staging(place / FRAMES) as staging:
        rows = [frame.row for frame in frames_of(staging, len(runs))]
        thrown_out += staging.thrown_out(len(runs))
    kept, fingerprint = Counter(row["strategy"] for row in rows), tools.student.teacher.fingerprint()
    return Explored(number, fingerprint, starts, dict(kept), nested(thrown_out), labels, mean_errors(rows))


def frames_of(staging: Staging, starts: int) -> Systems:
    """The frames of a round that are kept, by start."""
    return Systems(staging, list(staging.strategies(starts)))


def _file(place: Path, start: int) -> Path:
    return place / TRAJECTORIES / f"{start}.pickle"


def _read(place: Path, start: int) -> Run:
    return pickle.loads(_file(place, start).read_bytes())  # of this command


def _selected(place: Path, start: int, run: Run) -> list[Candidate]:
    """The candidates of a start that are labelled: all, unless some were selected."""
    file = place / TRAJECTORIES / SELECTED
    if not file.is_file():
        return run.candidates
    return [run.candidates[index] for index in json.loads(file.read_text())[start]]


WORDS: dict[Stage, str] = {draw: "trajectories", label_frames: "teacher"}  # of a progress bar


def _in_ranks(stage: Stage, tools: Tools, place: Path, number: int, todo: list[int], count: int) -> None:
    """A stage for the starts that are missing, in as many processes as the job has ranks."""
    job = tools.job
    done: Iterator[int] = stage(tools, place, number, todo)
    if job.ranks > 1 and len(todo) >= job.ranks:
        tools.release()  # each process has its own
        done = values_from(_share, [(stage, job, place, number, todo[rank :: job.ranks], rank) for rank in range(job.ranks)])
    for _ in tqdm(done, desc=f"round {number}, {WORDS[stage]}", total=count, initial=count - len(todo), unit=" starts"):
        pass


@without_denormals()
def _share(
    stage: Stage, job: Job, place: Path, number: int, starts: list[int], rank: int, put: Callable[[int], None]
) -> None:
    """In a process: a stage for some of the starts."""
    logging.basicConfig(level=logging.WARNING)
    load_plugins(imports_of(job.config.get("task")))
    with Tools(job, place / STUDENT, rank) as tools:
        for start in stage(tools, place, number, starts):
            put(start)
