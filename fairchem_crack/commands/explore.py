"""`fairchem-crack explore`: options in; rounds of exploration, labels and training out."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairchem_crack.commands.flags import Given, parser_of, read_or_refuse

if TYPE_CHECKING:
    from fairchem_crack.explore.settings import Settings
    from fairchem_crack.explore.summary import Explored

NEXT = """
Student: {student}
- Its errors on other data: fairchem-crack evaluate --checkpoint {student} --data NAME=PATH
- Its relaxations and dynamics with ASE: docs/use.md
- More rounds: the same command with a larger --rounds. It resumes here."""


def parser() -> argparse.ArgumentParser:
    """fairchem's flags, and those of the command."""
    own = parser_of("explore", "Train a student on frames of its own dynamics, labelled by its teacher, in rounds.")
    own.add_argument("--output", type=Path, required=True, help="directory of the rounds")
    own.add_argument("--rounds", type=int, required=True, metavar="N", help="trainings at most")
    own.add_argument("--steps", type=int, required=True, metavar="N", help="of each training")
    drawn = own.add_argument_group("trajectories, by the student")
    drawn.add_argument("--starts", type=int, default=20, metavar="N", help="systems of dataset.train, evenly spaced (20)")
    drawn.add_argument("--temperature", type=float, default=500.0, metavar="K", help="of the dynamics (500)")
    drawn.add_argument("--ps", type=float, default=2.0, help="of each dynamics (2)")
    drawn.add_argument("--relax-steps", type=int, default=50, metavar="N", help="of each relaxation (50; 0: none)")
    drawn.add_argument(
        "--sigma", nargs=2, type=float, default=(0.02, 0.12), metavar="A", help="rattles its start (0.02 0.12)"
    )
    drawn.add_argument("--every", type=int, default=20, metavar="N", help="steps between two frames (20)")
    drawn.add_argument("--max-temperature", type=float, default=2000.0, metavar="K", help="ends the dynamics (2000)")
    frames = own.add_argument_group("frames")
    frames.add_argument("--max-force", type=float, default=50.0, help="eV/A on a free atom, student's and teacher's (50)")
    frames.add_argument("--min-distance", type=float, default=0.6, help="of two atoms, in sums of covalent radii (0.6)")
    frames.add_argument("--max-energy-change", type=float, default=20.0, help="eV, the teacher's, from the start's (20)")
    frames.add_argument("--max-gap", type=float, metavar="A", help="from the adsorbate to the nearest atom (no limit)")
    frames.add_argument("--select", type=int, metavar="N", help="label the N of a round that add most (all)")
    end = own.add_argument_group("an early end, when all that is given holds")
    end.add_argument("--stable-ps", type=float, metavar="PS", help="the student's dynamics last so long")
    end.add_argument("--stable-starts", type=int, metavar="N", help="from so many starts (all)")
    end.add_argument("--max-forces-mae", type=float, metavar="MAE", help="eV/A, on the frames of a round")
    return own


def explore(arguments: list[str]) -> None:
    """Run the rounds, and print what was seen of each student."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = read_or_refuse(parser(), arguments)
    from fairchem_crack.explore.rounds import explore as run
    from fairchem_crack.explore.rounds import place_of
    from fairchem_crack.explore.summary import table
    from fairchem_crack.explore.tools import Job
    from fairchem_crack.explore.training import Training

    job, output = Job(given.config, settings_of(given), given.flags.cpu, given.flags.num_gpus), given.flags.output
    prepare(given, output)
    rounds = run(job, Path(given.flags.checkpoint), output, Training(flags_of(given), job.ranks))
    print(table(rounds, job.settings))
    print(ending(rounds[-1], job.settings))
    print(NEXT.format(student=place_of(output, len(rounds)) / "student.pt"))


def settings_of(given: Given) -> Settings:
    """What of the flags decides the rounds."""
    from fairchem_crack.explore.settings import Settings

    values: dict[str, Any] = {field.name: getattr(given.flags, field.name) for field in fields(Settings)}
    return Settings(**{**values, "sigma": tuple(given.flags.sigma)})


def flags_of(given: Given) -> tuple[str, ...]:
    """fairchem's flags of a training, as they were given."""
    flags = [f"--{name}" for name in ("cpu", "amp") if getattr(given.flags, name)]
    return (*flags, "--seed", str(given.flags.seed), *(["--trust"] if given.flags.trust else []))


def prepare(given: Given, output: Path) -> None:
    """Refuse what would fail only when the first training starts.

    Raises:
        ValueError: there is no student, a flag does not apply, or `check` finds a problem in the YAML.
    """
    from fairchem_crack.commands.check.sections import check_config
    from fairchem_crack.commands.generate import keep_order
    from fairchem_crack.generate.directory import SETTINGS
    from fairchem_crack.io.datasets import close_unused

    if given.flags.checkpoint is None:
        raise ValueError("--checkpoint: missing; it is the student that explores.")
    if given.flags.submit:
        raise ValueError("--submit: the rounds run on this machine. Submit the command itself.")
    keep_order(given.config)
    if (output / SETTINGS).is_file():
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        problems = check_config({**given.config, "checkpoint": None}, str(given.flags.config_yml))
    close_unused()
    if problems:
        raise ValueError("\n- ".join(["the YAML cannot be trained with:", *problems]))


def ending(last: Explored, settings: Settings) -> str:
    """Why the rounds are over."""
    if last.is_good_enough(settings):
        return f"The student is good enough after {last.round - 1} of {settings.rounds} rounds."
    missed = " The student is not as good as requested." if settings.ends_early else ""
    return f"All {settings.rounds} rounds are over.{missed}"
