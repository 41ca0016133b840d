"""`python -m fairchem_crack.teacher.label`: systems in, a teacher cache out; in the teacher's own environment."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from fairchem_crack.teacher.label.conformance import check, table
from fairchem_crack.teacher.label.job import Job, check_elements, label
from fairchem_crack.teacher.label.systems import DATA_KEYS
from fairchem_crack.teacher.label.teachers import EXPECTED
from fairchem_crack.teacher.label.verify import verify


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="python -m fairchem_crack.teacher.label",
        description="Label systems with a teacher of another framework, into a teacher cache; resumes what was begun.",
        allow_abbrev=False,
    )
    own.add_argument("--teacher", required=True, help=EXPECTED)
    own.add_argument(
        "--data", required=True, nargs="+", type=Path, metavar="FILE", help="ASE databases, extxyz, or what else ASE reads"
    )
    own.add_argument("--output", type=Path, metavar="DIR", help="directory of the cache")
    own.add_argument("--check", action="store_true", help="try the teacher on a few of the systems, and write nothing")
    own.add_argument("--verify", type=int, metavar="N", help="recompute N records of a finished cache, and compare")
    own.add_argument("--dtype", default="float16", choices=["float16", "float32"], help="of the embeddings (float16)")
    own.add_argument("--vectors", action="store_true", help="keep the l=1 embedding too, for vector_embeddings")
    own.add_argument("--force-response", action="store_true", help="keep what force_response reads, by a second run of each")
    own.add_argument("--chunk", type=int, default=16, metavar="N", help="systems that go through the teacher together (16)")
    own.add_argument("--processes", type=int, default=1, metavar="N", help="each with its own teacher (1)")
    own.add_argument(
        "--device",
        nargs="+",
        default=(),
        metavar="D",
        help="of torch, for each process: cpu, cuda:0 (a GPU if there is one)",
    )
    own.add_argument(
        "--data-keys",
        nargs="+",
        default=(),
        choices=DATA_KEYS,
        metavar="KEY",
        help=f"what the training reads by a2g_args.r_data_keys, of {', '.join(DATA_KEYS)}",
    )
    own.add_argument("--untagged", action="store_true", help="the training has atoms_transform_args: {skip_always: True}")
    own.add_argument(
        "--keep-going", action="store_true", help="give a system that the teacher fails for an empty record, and name it"
    )
    own.add_argument("--repair", action="store_true", help="read every record, and label again what is damaged or missing")
    return own


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Label, check, or verify."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    options = parser().parse_args(arguments)
    try:
        if options.output is None and not options.check:
            raise ValueError("where is the cache? Give --output DIR, or --check.")
        for name, value in (("--chunk", options.chunk), ("--processes", options.processes)):
            if value < 1:
                raise ValueError(f"{name} {value}: expected at least 1.")
        job = Job(
            teacher=options.teacher,
            data=tuple(options.data),
            directory=options.output or Path(),
            dtype=options.dtype,
            has_vectors=options.vectors,
            has_response=options.force_response,
            chunk=options.chunk,
            devices=tuple(options.device),
            data_keys=tuple(options.data_keys),
            is_untagged=options.untagged,
            keeps_going=options.keep_going,
        )
        if options.check:
            _check(job)
            return
        if options.verify is not None:
            count, deviation = verify(job, options.verify)
            print(f"{count} records recomputed: they differ by at most {deviation:.1e} of the largest.")
            return
        cache = label(job, processes=options.processes, is_repair=options.repair)
    except (ValueError, OSError) as error:
        sys.exit(f"label: {error}")
    size = sum(file.stat().st_size for file in job.directory.iterdir())
    advice = "" if job.keeps_going else f" Train with task.distill.teacher.cache: {job.directory}"  # else for `generate`
    print(f"{len(cache)} systems, {size / 2**20:,.1f} MB.{advice}")


def _check(job: Job) -> None:
    systems, labeller = job.systems(), job.labeller()
    check_elements(systems, labeller, job.teacher)
    rows = check(labeller, systems)
    print(table(rows))
    failed = sum(row.is_met is False for row in rows)
    if failed:
        sys.exit(f"label: {failed} of {len(rows)} checks failed.")
