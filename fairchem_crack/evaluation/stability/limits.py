"""Where molecular dynamics end, and the time step and thermostat they run with, for options that need no ASE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fairchem_crack.io.arguments import check_positive

TIME_STEP = 1.0  # fs; 2 is much for hydrogen
FRICTION = 0.01  # 1/fs, of the thermostat


@dataclass(frozen=True)
class Limits:
    """Where a run ends; numbers that are not finite end it in any case.

    Attributes:
        max_temperature: K, of the free atoms; for few atoms `hottest` may be higher. inf for no limit.
        max_force: eV/A, on a free atom; inf for no limit. 50 is 25 times the root mean square force sqrt(k k_B T) in an O-H
            bond, one of the stiffest, at 1000 K.
        min_distance: of two atoms, in sums of their covalent radii; 0 for no limit.

    Raises:
        ValueError: one of them is out of bounds; the message begins with its option.
    """

    max_temperature: float = 2000.0
    max_force: float = 50.0
    min_distance: float = 0.6

    def __post_init__(self) -> None:
        for option in ("max_temperature", "max_force"):
            if not getattr(self, option) > 0:
                raise ValueError(f"--{option.replace('_', '-')} {getattr(self, option):g}: expected a positive number.")
        check_positive(self, ("min_distance",), or_zero=True)


LIMITS = Limits()
NO_LIMITS = Limits(max_temperature=math.inf, max_force=math.inf, min_distance=0.0)
