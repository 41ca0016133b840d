"""A teacher in another environment, by a command: systems in, a teacher cache out. docs/teachers.md has the protocol."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.io.processes import end_with_caller
from fairchem_crack.teacher.cache import HEADER, CacheError, Plan, Record, TeacherCache, differences
from fairchem_crack.teacher.cached import digest_of
from fairchem_crack.teacher.export import write_systems

SYSTEMS, RECORDS, LOG = "systems.db", "records", "command.log"  # of a directory of labelling
SHOWN = 6  # lines of a log that has ended with an error
OF_DATA = ("systems", "sample", "chunk", "max_atomic_number")  # of a plan: what two caches of one teacher may differ in


@dataclass(frozen=True)
class TeacherProcess:
    """A command that labels systems, and what its records have to hold.

    Attributes:
        command: `task.distill.teacher.command`.
        dtype: of the embeddings.
        has_vectors: with the l=1 embedding.
        has_response: with the response of the forces.
        chunk: systems that go through the teacher together.
    """

    command: str
    dtype: str = "float16"
    has_vectors: bool = False
    chunk: int = 16
    has_response: bool = False

    def line(self, directory: Path) -> list[str]:
        """The command line.

        Raises:
            ValueError: the command's quotes do not match.
        """
        try:
            command = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"task.distill.teacher.command: {self.command!r} is no command ({error}).") from error
        files = ["--data", str(directory / SYSTEMS), "--output", str(directory / RECORDS)]
        options = ["--dtype", self.dtype, "--chunk", str(self.chunk), "--keep-going"]
        options += [*(["--vectors"] if self.has_vectors else []), *(["--force-response"] if self.has_response else [])]
        return [*command, *files, *options]

    def label(self, systems: Iterable[Data], directory: Path) -> Labelled:
        """Label systems, or what is missing of them, by one call of the command.

        Args:
            systems: the same whenever it is called with this directory.
            directory: is made where it is missing.

        Raises:
            ValueError: the command fails or leaves no whole cache; the message ends with the end of its log.
        """
        directory.mkdir(exist_ok=True)
        if not (directory / SYSTEMS).is_file():
            write_systems(systems, directory / SYSTEMS)
        if not (directory / RECORDS / HEADER).is_file():
            self._run(directory)
        return self.labelled(directory)

    def _run(self, directory: Path) -> None:
        line, log = self.line(directory), directory / LOG
        with log.open("ab") as file:
            try:
                done = subprocess.run(line, stderr=file, stdin=subprocess.DEVNULL, preexec_fn=end_with_caller)
            except OSError as error:
                raise ValueError(f"task.distill.teacher.command: `{self.command}` cannot be run ({error}).") from error
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
            raise ValueError(
                "\n".join([f"`{self.command}` ended with status {done.returncode}. Its log, {log}, ends with:", *lines])
                + "\nPut that right, and run the same command again: what is labelled is kept."
            )

    def labelled(self, directory: Path) -> Labelled:
        """What `label` has left.

        Raises:
            ValueError: that is no whole cache, or it lacks a field.
        """
        place = directory / RECORDS
        try:
            cache = TeacherCache(place)
        except CacheError as error:
            raise ValueError(
                f"`{self.command}` left no whole teacher cache. Delete {place}, and run the same command again. ({error})"
            ) from error
        expected = [keys.ENERGY, keys.FORCES, *([keys.VECTOR_EMBEDDING] if self.has_vectors else [])]
        expected += [keys.FORCE_RESPONSE] if self.has_response else []
        lacking = [name for name in expected if name not in cache.plan.fields]
        if lacking:
            raise ValueError(f"`{self.command}` gives {', '.join(cache.plan.fields)}, and no {', '.join(lacking)}.")
        return Labelled(self.command, cache)


class Labelled:
    """The records of systems that a command has labelled."""

    def __init__(self, command: str, cache: TeacherCache) -> None:
        self.command, self.cache = command, cache

    def check_teacher(self, plan: Plan, owner: Path) -> None:
        """Raise ValueError where another teacher has filled the cache `owner`, whose plan this is."""
        before, now = ({**asdict(each), **dict.fromkeys(OF_DATA)} for each in (plan, self.cache.plan))
        changed = differences(before, now)
        if changed:
            named = "; ".join(f"{name} {old} (cache), {new} (command)" for name, old, new in changed[:4])
            raise ValueError(
                f"Teacher cache {owner} was not made as `{self.command}` labels: {named}. Give the command of its teacher, "
                "or write another cache with this one."
            )

    def __call__(self, systems: Sequence[Data]) -> list[Record]:
        """The record of each of these.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        records = []
        for system in systems:
            record = self.cache.get(digest_of(system))
            if record is None:
                where = f"copy {system.copy_number} of system {system.parent} of dataset.train"
                raise ValueError(
                    f"`{self.command}` left no record of {where} in {self.cache.directory}. It has to label every row of "
                    "its --data, by the digest in the row's data (docs/teachers.md)."
                )
            records.append(record)
        return records
