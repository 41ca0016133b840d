"""`fairchem-crack export-data`: a dataset of fairchem as an ASE database, for a teacher of another framework."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from fairchem_crack.commands.flags import parser_of, read_or_refuse


def parser() -> argparse.ArgumentParser:
    """fairchem's flags, and those of the command."""
    own = parser_of("export-data", "Writes a split of the YAML's dataset as an ASE database.")
    own.add_argument("--output", type=Path, required=True, metavar="FILE.db", help="the database; there must be none")
    own.add_argument("--split", default="train", help="of the YAML's dataset (default: train)")
    return own


def export_data(arguments: list[str]) -> None:
    """Write the database."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given = read_or_refuse(parser(), arguments)
    from fairchem_crack.teacher.export import write_database

    count = write_database(given.config, given.flags.split, given.flags.output)
    print(f"{count} systems in {given.flags.output}.")
