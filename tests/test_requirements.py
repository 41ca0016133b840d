"""What setup.cfg declares is what is imported."""

from __future__ import annotations

import ast
import configparser
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
WITH_TORCH = {"triton"}  # torch requires it where it can run; imported only there
OF_ENGINES = {
    "torch_sim",
    "openmm",
    "lammps_student",
    "openmm_student",
    "respa",
}  # in an environment of their own, and examples
OF_METATOMIC = {"metatensor", "metatomic", "metatomic_ase"}  # only for `export --format metatomic`
# imported only in a teacher's own environment
OF_TEACHERS = {"chgnet", "e3nn", "mace", "nequix", "orb_models", "pymatgen", "sevenn"}


def imported(*folders: str) -> Iterator[str]:
    """Top-level names imported anywhere in these folders: not the standard library's, not the folders' own."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    own = {"fairchem_crack", *(file.stem for file in files), *(file.parent.name for file in files)}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            else:
                continue
            yield from {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - own


def declared(section: str, option: str) -> set[str]:
    """The distributions that an option of setup.cfg lists."""
    setup = configparser.ConfigParser(inline_comment_prefixes=("#",))
    setup.read(ROOT / "setup.cfg")
    return {canonicalize_name(Requirement(line).name) for line in setup[section][option].strip().splitlines() if line}


@pytest.mark.parametrize("folders", [("fairchem_crack",), ("fairchem_crack", "tests", "benchmarks")])
def test_every_imported_distribution_is_declared(folders):
    required = declared("options", "install_requires")
    required |= declared("options.extras_require", "select") | declared("options.extras_require", "calculator")
    if folders != ("fairchem_crack",):
        required |= declared("options.extras_require", "dev")
    distributions = packages_distributions()
    undeclared = {
        name
        for name in set(imported(*folders)) - WITH_TORCH - OF_ENGINES - OF_METATOMIC - OF_TEACHERS
        if not required & {canonicalize_name(distribution) for distribution in distributions.get(name, ())}
    }
    assert not undeclared
