"""`fairchem-crack init`: options in, a commented YAML out that passes `fairchem-crack check`."""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from pathlib import Path

from fairchem_crack.io.arguments import check_at_least
from fairchem_crack.io.trust import TRUST_HELP

STUDENTS = ("painn", "gemnet_dT")
NEXT = """
{output} written. Read its comments, then
    fairchem-crack check --config-yml {output}           # what training would do, and all problems
    fairchem-crack cache-teacher --config-yml {output}   # optional: run the teacher once (docs/cache.md)
    fairchem --mode train --config-yml {output}"""
NEXT_WITH_CACHE = """
{output} written. Read its comments, then
    fairchem-crack check --config-yml {output}           # what training would do, and all problems
    fairchem --mode train --config-yml {output}"""


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack init",
        description="Write a first YAML for your data, from a look at them: format, labels, normalizers, terms, a schedule.",
        allow_abbrev=False,
    )
    own.add_argument("--dataset", type=Path, required=True, metavar="PATH", help="an ASE database, or fairchem's LMDBs")
    own.add_argument("--val", type=Path, metavar="PATH", help="the same of other systems, to choose the best checkpoint by")
    own.add_argument("--val-cache", metavar="DIR", help="a cache of the teacher's outputs for --val, where it has no labels")
    own.add_argument(
        "--hold-out", type=int, metavar="N", help="in place of --val: at most N systems of an ASE database, by composition"
    )
    own.add_argument(
        "--labels",
        choices=["teacher"],
        help="train on the teacher's energies and forces, whatever the data have",
    )
    own.add_argument("--student", required=True, choices=STUDENTS)
    own.add_argument("--teacher", required=True, help="a checkpoint of fairchem, or the directory of a teacher cache")
    own.add_argument("--output", type=Path, default=Path("my_student.yml"), metavar="FILE.yml", help="(my_student.yml)")
    own.add_argument("--systems", type=int, default=1000, metavar="N", help="look at N at most, evenly spaced (1000)")
    own.add_argument("--trust", action="store_true", help=TRUST_HELP)
    return own


def init(arguments: list[str]) -> None:
    """Look at the data and the teacher, and write the YAML; refuse to replace one."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    output: Path = options.output
    check_at_least(options, {"systems": 2, "hold_out": 1})
    if output.suffix not in (".yml", ".yaml"):
        raise ValueError(f"--output {output}: expected the name of a .yml file.")
    if output.exists():
        raise ValueError(f"--output {output}: there is such a file already. Give another name, or remove it.")
    from fairchem_crack.commands.init.data import look_at
    from fairchem_crack.commands.init.hold_out import hold_out
    from fairchem_crack.commands.init.page import page
    from fairchem_crack.commands.init.recipe import recipe
    from fairchem_crack.commands.init.teacher import read_teacher
    from fairchem_crack.io.files import write_text
    from fairchem_crack.teacher.cache import TeacherCache

    teacher = read_teacher(options.teacher, trust=options.trust)
    if options.labels == "teacher" and teacher.cache is None:
        raise ValueError("--labels teacher: expected a teacher cache of --dataset as --teacher; its energies are looked at.")
    if options.hold_out is not None and (options.val is not None or options.val_cache is not None):
        raise ValueError("--hold-out: takes the systems to validate on from --dataset; expected no --val, no --val-cache.")
    with ExitStack() as parts:
        division = None
        if options.hold_out is not None:
            division = parts.enter_context(hold_out(options.dataset, options.hold_out, output))
            options.dataset, options.val = division.train, division.val
        data = look_at(options.dataset, options.systems, teacher.cache, whose=options.labels)
        if division is not None and teacher.cache is not None and data.labels != "data":
            options.val_cache = options.teacher
        val_cache = None if options.val_cache is None else TeacherCache(Path(options.val_cache))
        val = None if options.val is None else look_at(options.val, 2, val_cache, option="--val", whose=options.labels)
        if val_cache is not None and (val is None or data.labels == "data"):
            raise ValueError("--val-cache: gives labels to --val; expected --val, and --dataset without labels of its own.")
        references = None
        if data.references is not None:
            references = output.with_name(f"{output.stem}_references.npz")
            output.parent.mkdir(parents=True, exist_ok=True)
            data.references.write(references)
        chosen = recipe(options.student, data, teacher)
        write_text(output, page(data, val, teacher, chosen, references, options.val_cache))
    print("\n".join([f"Data: {data.summary}.", f"Teacher: {teacher.summary}.", f"Student: {chosen.summary}."]))
    if division is not None:
        print(f"Held out for validation: {division.summary}, {division.val}; trained on: {division.train}.")
    print((NEXT if teacher.cache is None else NEXT_WITH_CACHE).format(output=output))
