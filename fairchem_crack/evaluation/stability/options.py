"""The options of `fairchem-crack stability`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_crack.evaluation.speed.options import add_systems
from fairchem_crack.evaluation.stability.limits import FRICTION, LIMITS, TIME_STEP
from fairchem_crack.io.arguments import add_import_and_trust

STARTS = 5


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack stability",
        allow_abbrev=False,
        description="Molecular dynamics with checkpoints, ours or any of fairchem's: ps until a run leaves its limits, at "
        "several temperatures; drift of the energy; distance of the radial distribution function from the teacher's, and "
        "height of the adsorbate.",
    )
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE")
    own.add_argument("--teacher", type=Path, metavar="FILE", help="run it too, and compare what the others sample with it")
    add_systems(own)
    own.add_argument(
        "--starts", type=int, default=STARTS, help=f"systems, the first ones, from which it starts (default: {STARTS})"
    )
    own.add_argument(
        "--temperatures", type=float, nargs="+", default=[300, 500, 800], metavar="K", help="K (default: 300 500 800)"
    )
    own.add_argument("--ps", type=float, default=5.0, help="ps of each Langevin run (default: 5)")
    own.add_argument(
        "--drift-ps",
        type=float,
        default=1.0,
        help="ps at constant energy, from where the run at the first temperature ended; 0 for none (default: 1)",
    )
    own.add_argument("--time-step", type=float, default=TIME_STEP, help=f"fs (default: {TIME_STEP:g})")
    own.add_argument("--friction", type=float, default=FRICTION, help=f"of the thermostat in 1/fs (default: {FRICTION:g})")
    own.add_argument("--every", type=int, default=10, help="steps between two frames that are sampled (default: 10)")
    own.add_argument(
        "--max-temperature",
        type=float,
        default=LIMITS.max_temperature,
        help=f"of the free atoms in K; more where few atoms get there by chance (default: {LIMITS.max_temperature:g})",
    )
    own.add_argument(
        "--max-force",
        type=float,
        default=LIMITS.max_force,
        help=f"on a free atom in eV/A (default: {LIMITS.max_force:g})",
    )
    own.add_argument(
        "--min-distance",
        type=float,
        default=LIMITS.min_distance,
        help=f"of two atoms, in sums of their covalent radii (default: {LIMITS.min_distance:g})",
    )
    own.add_argument("--seed", type=int, default=0, help="of velocities and noise, the same for all models (default: 0)")
    own.add_argument("--cpu", action="store_true", help="run on the CPU even if there is a GPU")
    add_import_and_trust(own)
    own.add_argument("--output", type=Path, metavar="FILE.json", help="write all figures, of every start")
    return own
