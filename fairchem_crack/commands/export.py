"""`fairchem-crack export`: a student as one file that needs torch only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fairchem_crack.io.arguments import add_import_and_trust

if TYPE_CHECKING:
    from fairchem_crack.export.painn import PaiNN
    from fairchem_crack.export.student import StudentInfo

FORMATS = ("torchscript", "pt2")  # that need torch only
METATOMIC = "metatomic"


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack export",
        allow_abbrev=False,
        description="Writes a PaiNN student as one file for simulation engines: its forward, normalizers and references "
        "included, with cutoff, elements and units. It runs with torch, without fairchem and this package.",
    )
    own.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    own.add_argument("--output", type=Path, required=True, metavar="FILE")
    own.add_argument(
        "--format",
        choices=(*FORMATS, METATOMIC),
        default="torchscript",
        help="torchscript (default): torch 2.4 and later, C++ too; pt2: torch.export, for the same version of torch; "
        "metatomic: for engines that read metatomic's models (needs metatomic-torch)",
    )
    own.add_argument(
        "--elements", nargs="+", default=[], metavar="SYMBOL", help="those it was trained on; the file refuses others"
    )
    add_import_and_trust(own)
    return own


def export(arguments: list[str]) -> None:
    """Write the file."""
    options = parser().parse_args(arguments)
    from ase.data import atomic_numbers

    from fairchem_crack.export.checkpoint import student_of
    from fairchem_crack.export.student import write_student
    from fairchem_crack.plugins import load_plugins

    load_plugins(options.imports, "--import")
    unknown = [symbol for symbol in options.elements if symbol not in atomic_numbers]
    if unknown:
        raise ValueError(f"--elements: {', '.join(unknown)}: expected symbols, for example H O Cu.")
    elements = [atomic_numbers[symbol] for symbol in options.elements]
    painn, info = student_of(options.checkpoint, elements=elements, trust=options.trust)
    if options.output.exists() and options.output.samefile(options.checkpoint):
        raise ValueError(f"--output {options.output} would replace the checkpoint.")
    if options.format == METATOMIC:
        _write_metatomic(painn, info, options.output)
    else:
        write_student(painn, info, options.output, options.format)
    limit = f", the {info.max_neighbors} nearest neighbors of an atom" if info.max_neighbors else ""
    print(
        f"{options.output}: {len(info.elements)} elements, cutoff {info.cutoff:g} A{limit}, {info.forces} forces; "
        "energies in eV, lengths in A."
    )


def _write_metatomic(painn: PaiNN, info: StudentInfo, path: Path) -> None:
    try:
        from fairchem_crack.export.metatomic import write_metatomic
    except ModuleNotFoundError as error:
        raise ValueError(f"--format metatomic needs `pip install metatomic-torch` ({error}).") from error
    write_metatomic(painn, info, path)
