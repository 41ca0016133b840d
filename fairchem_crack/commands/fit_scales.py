"""`fairchem-crack fit-scales`: the student's scale factors, into a file."""

from __future__ import annotations

from pathlib import Path

from fairchem_crack.commands.flags import parser_of, read_or_refuse
from fairchem_crack.io.files import write_json


def fit_scales(arguments: list[str]) -> None:
    """Fit the student's scale factors on its training data and write them to `--output`."""
    parser = parser_of("fit-scales", "Takes the flags and overrides of the training, and --output.")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    given = read_or_refuse(parser, arguments)
    output = given.flags.output
    if output.suffix != ".json":
        raise ValueError(f"--output {output}: expected the name of a .json file.")
    from fairchem_crack.training.scale_factors import fit_scale_factors

    factors = fit_scale_factors(given.config)
    write_json(output, factors)
    print(f"{len(factors)} scale factors written. Set model.scale_file: {output}")
