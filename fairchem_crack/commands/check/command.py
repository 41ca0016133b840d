"""`fairchem-crack check`: options in, the list of problems out."""

from __future__ import annotations

import logging
import sys

from fairchem_crack.commands.flags import parser_of, read
from fairchem_crack.io.trust import trusting, trusts


def check(arguments: list[str]) -> None:
    """Print what training would do; exit with status 1 and the list of all problems if there is one."""
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: "fairchem_crack" in record.pathname)  # fairchem's warnings come when training
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])
    parser = parser_of("check", "Takes the flags and overrides of the training.")
    parser.add_argument("--no-data", action="store_true", help="open no dataset: a record of an LMDB can run code")
    given = read(parser, arguments)
    for warning in given.warnings:
        print(f"WARNING: {warning}")
    from fairchem_crack.commands.check.sections import check_config

    faults = [str(fault) for fault in given.problems]
    with trusting(trusts(given.config.get("task"))):
        problems = check_config(given.config, str(given.flags.config_yml), faults, opens_data=not given.flags.no_data)
    if not problems:
        print("\nNo problem found.")
        return
    print(f"\n{len(problems)} problem{'s'[: len(problems) > 1]}:")
    for problem in problems:
        print(f"- {problem}")
    sys.exit(1)
