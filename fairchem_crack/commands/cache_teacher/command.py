"""`fairchem-crack cache-teacher`: options in, a teacher cache out."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_crack import keys
from fairchem_crack.commands.flags import Given, parser_of, read_or_refuse
from fairchem_crack.io.arguments import CALCULATOR

if TYPE_CHECKING:
    from fairchem_crack.commands.cache_teacher.job import Job

JACOBIAN_ROWS = 4  # of each system, where a term reads them and no flag says how many


def parser() -> argparse.ArgumentParser:
    """fairchem's flags, and those of the command."""
    own = parser_of("cache-teacher", "Takes the flags and overrides of the training, and its own.")
    own.add_argument("--output", type=Path, help="directory of the cache (default: task.distill.teacher.cache)")
    own.add_argument("--split", default="train", help="of the YAML's dataset (default: train)")
    own.add_argument("--dtype", default="float16", choices=["float16", "float32"], help="of the embeddings")
    own.add_argument("--chunk", type=int, default=16, help="systems in a teacher's batch; fewer take less memory (16)")
    own.add_argument(
        "--vectors", action="store_true", help="keep the l=1 embedding too (by itself where a term of the YAML reads it)"
    )
    own.add_argument("--all-degrees", action="store_true", help="keep the embeddings of all degrees l, likewise")
    own.add_argument("--embedding-response", action="store_true", help="keep what embedding_response reads, likewise")
    own.add_argument("--force-response", action="store_true", help="keep what force_response reads, likewise")
    own.add_argument(
        "--jacobian-rows",
        type=int,
        metavar="N",
        help=f"keep N rows of the Jacobian of the forces (default: {JACOBIAN_ROWS} where a term of the YAML reads them)",
    )
    own.add_argument("--calculator", help=f"keep its energies and forces in place of a teacher's outputs: {CALCULATOR}")
    own.add_argument("--verify", type=int, metavar="N", help="recompute N records of a finished cache and compare")
    own.add_argument("--repair", action="store_true", help="read every record, and write anew what is damaged or missing")
    return own


def cache_teacher(arguments: list[str]) -> None:
    """Write a teacher cache, or verify one."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = read_or_refuse(parser(), arguments)
    from fairchem_crack.commands.cache_teacher.job import cache_teacher as write_cache
    from fairchem_crack.commands.cache_teacher.verify import verify

    job = job_of(given)
    if given.flags.verify is not None:
        count = given.flags.verify
        print(f"{count} records recomputed: they differ by at most {verify(job, count):.1e} of the largest.")
        return
    cache = write_cache(job, ranks=given.flags.num_gpus, is_repair=given.flags.repair)
    size = sum(file.stat().st_size for file in job.directory.iterdir())
    print(f"{len(cache)} systems, {size / 2**20:,.1f} MB. Train with task.distill.teacher.cache: {job.directory}")


def job_of(given: Given, *, runs_commands: bool = False) -> Job:
    """The job that the command's flags and config describe.

    Args:
        runs_commands: the teacher may be in another environment, `task.distill.teacher.command`.

    Raises:
        ValueError: no directory to write to, or no teacher to run.
    """
    from fairchem_crack.commands.cache_teacher.job import Job, needs_of_terms

    options, config = given.flags, given.config
    teacher = ((config.get("task") or {}).get("distill") or {}).get("teacher") or {}
    directory = options.output or teacher.get("cache")
    if directory is None:
        raise ValueError("where to write? Give task.distill.teacher.cache in the YAML, or --output DIR.")
    command = teacher.get("command")
    if options.calculator is None and not teacher.get("checkpoint") and not (command and runs_commands):
        instead = " `command` serves generate and explore; with it, see docs/teachers.md." if command else ""
        raise ValueError(f"task.distill.teacher.checkpoint: missing; it is the teacher to run.{instead}")
    needs = needs_of_terms(config) if options.calculator is None else set()
    rows = JACOBIAN_ROWS if keys.FORCE_JACOBIAN in needs else 0
    return Job(
        config,
        Path(directory),
        options.split,
        options.dtype,
        has_vectors=options.vectors or keys.VECTOR_EMBEDDING in needs,
        chunk=options.chunk,
        calculator=options.calculator,
        cpu=options.cpu,
        jacobian_rows=rows if options.jacobian_rows is None else options.jacobian_rows,
        has_all_degrees=options.all_degrees or keys.HIGHER_EMBEDDING in needs,
        responses=tuple(name for name in keys.RESPONSES if getattr(options, name) or name in needs),
    )
