"""`fairchem-crack report`: arguments in, a folder with a page and its pictures out."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_crack.io.arguments import CACHE_HELP, LABELS_HELP, add_import_and_trust
from fairchem_crack.io.files import write_bytes, write_json, write_text
from fairchem_crack.plugins import load_plugins

if TYPE_CHECKING:
    from fairchem_crack.evaluation.report.request import Request

PAGE, NUMBERS = "report.html", "report.json"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="fairchem-crack report",
        allow_abbrev=False,
        description="Compare a distilled student with its teacher, and with an undistilled student: one HTML page without "
        "references to other files, its pictures as PNG beside it, and its numbers as JSON.",
    )
    made.add_argument("run_dir", type=Path, help="the --run-dir of the training")
    made.add_argument("--name", help="name of the run, its folder below checkpoints/ (default: the only one)")
    teacher = made.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher", help="its checkpoint, or a name of fairchem's pretrained models")
    teacher.add_argument("--teacher-cache", type=Path, nargs="+", default=[], metavar="DIR", help=CACHE_HELP)
    made.add_argument("--labels", choices=["teacher"], help=LABELS_HELP)
    made.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=SRC",
        help="splits to evaluate, read with the options of the training's data set (default: its dataset.val)",
    )
    made.add_argument("--undistilled", help="checkpoint of a student trained on labels only, or the name of its run")
    made.add_argument(
        "--also",
        nargs="+",
        default=[],
        metavar="FILE",
        help="further fairchem checkpoints, or names of runs, for the tables and the pictures of speed and accuracy",
    )
    made.add_argument(
        "--stability", type=Path, metavar="FILE", help="the JSON of `fairchem-crack stability` of this student, to show it"
    )
    made.add_argument("--systems", type=int, default=200, help="maximum number of systems of each split (default: 200)")
    made.add_argument("--batch-size", type=int, default=16, help="systems per batch (default: 16)")
    made.add_argument("--cpu", action="store_true", help="run on the CPU even if there is a GPU")
    add_import_and_trust(made)
    made.add_argument("--output", type=Path, help="directory to write to (default: RUN_DIR/reports/NAME)")
    return made


def report(arguments: list[str]) -> None:
    """Make a report."""
    options = vars(parser().parse_args(arguments))
    options.pop("trust")  # holds for the process, see `cli`
    own = logging.StreamHandler()
    own.addFilter(lambda record: "fairchem_crack" in record.pathname and Path(record.pathname).name == "collect.py")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[own])
    warnings.filterwarnings("ignore", module="tensorboard")
    from fairchem_crack.evaluation.report.request import make_request

    load_plugins(options.pop("imports"), "--import")
    page, pictures = write_report(make_request(options.pop("run_dir"), **options))
    print(f"{page} written ({page.stat().st_size / 2**20:.1f} MB), with {pictures} pictures beside it.")


def write_report(request: Request) -> tuple[Path, int]:
    """Write pictures, numbers and, last, the page; nothing before everything is computed.

    Returns:
        The page, and how many pictures are beside it.
    """
    from fairchem_crack.evaluation.report.collect import collect, numbers_of
    from fairchem_crack.evaluation.report.page import page
    from fairchem_crack.evaluation.report.sections import sections

    findings = collect(request)
    shown = sections(findings)
    html = page(findings, shown, name=request.name)
    request.output.mkdir(parents=True, exist_ok=True)
    pictures = [picture for section in shown for picture in section.all_pictures]
    for picture in pictures:
        write_bytes(request.output / f"{picture.name}.png", picture.png)
    write_json(request.output / NUMBERS, numbers_of(findings))
    write_text(request.output / PAGE, html)
    return request.output / PAGE, len(pictures)
