"""What the tests of the engines share: an exported student, and OCPCalculator's results (`prepare.py`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ase.io
import pytest
from ase import Atoms

ROOT = Path(__file__).parents[2]
PLACE = Path(os.environ.get("ENGINES", ROOT / "build" / "engines"))
sys.path += [str(ROOT / "examples" / engine) for engine in ("lammps", "openmm")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.engines)


@pytest.fixture(scope="session")
def exported() -> Path:
    return PLACE / "student.pt"


@pytest.fixture
def slabs() -> list[Atoms]:
    """Slabs with an adsorbate, fixed atoms and velocities of 300 K; with OCPCalculator's energy and forces in arrays."""
    return ase.io.read(PLACE / "reference.extxyz", ":")
