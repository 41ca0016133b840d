"""The options of `fairchem-crack bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_crack.io.arguments import add_import_and_trust

QUANTITIES = ("throughput", "latency", "dynamics", "relaxation")
ATOMS = 73  # of a generated system: near the mean of OC20


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack bench",
        allow_abbrev=False,
        description="Speed of checkpoints, ours or any of fairchem's: atoms/s and memory of batches, latency of a single "
        "point, ns/day of molecular dynamics, relaxations/hour.",
    )
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE")
    own.add_argument(
        "--reference", type=Path, metavar="FILE", help="the checkpoint that ratios refer to (default: the last one)"
    )
    add_systems(own)
    own.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="systems per batch (default: 1 8 32)"
    )
    own.add_argument("--cpu", action="store_true", help="run on the CPU even if there is a GPU")
    own.add_argument("--repeats", type=int, default=5, help="of each measurement (default: 5)")
    own.add_argument("--only", nargs="+", choices=QUANTITIES, default=list(QUANTITIES), help="measure only these")
    own.add_argument("--time-step", type=float, default=2.0, help="time step of molecular dynamics in fs (default: 2)")
    own.add_argument("--md-steps", type=int, default=20, help="timed steps of molecular dynamics (default: 20)")
    own.add_argument("--relax-batch-size", type=int, default=8, help="systems relaxed together (default: 8)")
    own.add_argument("--relax-steps", type=int, default=100, help="maximum number of steps of a relaxation (default: 100)")
    own.add_argument(
        "--fmax", type=float, default=0.05, help="maximum force of a converged relaxation in eV/A (default: 0.05)"
    )
    add_import_and_trust(own)
    own.add_argument("--output", type=Path, metavar="FILE.json", help="write all figures, including every repeat")
    return own


def add_systems(parser: argparse.ArgumentParser) -> None:
    """The systems that models run on: given, or generated."""
    systems = parser.add_mutually_exclusive_group()
    systems.add_argument("--data", type=Path, help="directory of OC20's LMDBs, or a file that ASE reads")
    systems.add_argument("--atoms", type=int, help=f"approximate size of generated slabs (default: {ATOMS})")
