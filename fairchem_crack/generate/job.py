"""`fairchem-crack generate`: make systems of every parent, resume where it stopped, write the outcome at once."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairchem_crack.generate.choice import choose
from fairchem_crack.generate.counts import describe, nested
from fairchem_crack.generate.directory import LOCK, SETTINGS, STAGING, begin, check_same, explained
from fairchem_crack.generate.elsewhere import MadeElsewhere
from fairchem_crack.generate.making import MadeHere, Making, TeacherJob
from fairchem_crack.generate.outcome import CACHE, DATA, MANIFEST, write_outcome
from fairchem_crack.generate.selection import check_installed
from fairchem_crack.generate.settings import Settings
from fairchem_crack.generate.staging import Staging, Systems
from fairchem_crack.generate.unit import PARENTS
from fairchem_crack.io.datasets import close_unused
from fairchem_crack.io.files import write_json
from fairchem_crack.io.locks import exclusive
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cache import Plan
from fairchem_crack.training.config_checks import check_gpus

SUMMARY = "generate.json"
OF_OUTCOME = ("select", "select_random", "with_parents", "output_format")  # decide what is written of the systems made


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
    making = _making(job, settings, parents)
    made_with = _made_with(settings, making)
    unfinished, count = directory / STAGING, len(parents)
    del parents
    with explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory / LOCK):
            if (directory / SUMMARY).is_file():
                summary = Summary(**json.loads((directory / SUMMARY).read_text()))
                check_same(directory, summary.settings, made_with)
                _check_written(directory)
                shutil.rmtree(unfinished, ignore_errors=True)
                return replace(summary, dataset={**summary.dataset, "src": str(directory / DATA)})  # moved since, perhaps
            begin(directory, unfinished / SETTINGS, _of_systems(made_with))
            todo = _missing(unfinished, count)
            for _ in tqdm(making.make(unfinished, todo, ranks), total=count, initial=count - len(todo), unit=" parents"):
                pass
            plan = making.plan(unfinished)
            del making
            close_unused()
            with Staging(unfinished) as staging:
                summary = _write(job.config, settings, directory, staging, plan, made_with, count)
            shutil.rmtree(unfinished)
    return summary


def _making(job: TeacherJob, settings: Settings, parents: NamedRecords) -> Making:
    if job.process is None:
        return MadeHere(job, settings, parents)
    return MadeElsewhere(job, settings, parents, job.process)


def _check_written(directory: Path) -> None:
    missing = [name for name in (DATA, CACHE, MANIFEST) if not (directory / name).exists()]
    if missing:
        raise ValueError(
            f"--output {directory}: {', '.join(missing)} of a finished run is missing. Delete the directory to make it anew."
        )


def _missing(unfinished: Path, parents: int) -> list[int]:
    with Staging(unfinished) as staging:
        return [number for number in range(parents) if not staging.done(number)]


def _made_with(settings: Settings, making: Making) -> dict[str, Any]:
    """What decides the outcome, as JSON has it; the model of trajectories by its weights."""
    model = making.model()
    options = {**asdict(settings), "checkpoint": model.fingerprint() if model and settings.has_trajectories else None}
    return json.loads(json.dumps({"options": options, "teacher_and_parents": making.made_with()}))


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
