"""The response of a teacher's forces to a displacement of the atoms, for the term `force_response`: by a second run."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np

from fairchem_crack.teacher.cache import RESPONSE_STEP
from fairchem_crack.teacher.label.protocol import Outputs
from fairchem_crack.teacher.label.systems import System


def displacement_of(system: System) -> np.ndarray:
    """(N, 3) A, h u in float32: random, the same whenever it is drawn for a system, and 0 for its fixed atoms."""
    rng = np.random.default_rng(int.from_bytes(system.digest, "little"))
    drawn = RESPONSE_STEP * rng.normal(size=(len(system.atoms), 3))
    return (drawn * ~system.fixed[:, None]).astype(np.float32)


def displaced(system: System) -> System:
    """The system after its displacement."""
    atoms = system.atoms.copy()
    atoms.positions += displacement_of(system)
    return system._replace(atoms=atoms)


def with_response(system: System, rest: Optional[Outputs], moved: Optional[Outputs]) -> Optional[Outputs]:
    """The outputs at rest with `force_response`, (N, 6): h u in A and (F(x + h u) - F(x)) / h in eV/A^2.

    None where the teacher has failed for one of the two.
    """
    if rest is None or moved is None:
        return None
    change = (moved.forces.astype(np.float64) - rest.forces) / RESPONSE_STEP
    return replace(rest, force_response=np.concatenate([displacement_of(system), change], axis=1))
