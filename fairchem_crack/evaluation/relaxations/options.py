"""The options of `fairchem-crack evaluate-relaxations`."""

from __future__ import annotations

import argparse
from pathlib import Path

import fairchem_crack.evaluation.relaxations
from fairchem_crack.io.arguments import CALCULATOR


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack evaluate-relaxations",
        description=fairchem_crack.evaluation.relaxations.__doc__,
        allow_abbrev=False,
    )
    own.add_argument(
        "--positions", nargs="+", required=True, metavar="NAME=FILE", help="relaxed_positions.npz of one or several models"
    )
    own.add_argument("--data", type=Path, required=True, help="the LMDBs that they were relaxed from, such as OC20's IS2RE")
    own.add_argument(
        "--key-mapping",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help="fields to rename to y_relaxed, pos_relaxed, as in the YAML",
    )
    own.add_argument(
        "--trajectories", nargs="+", default=[], metavar="NAME=DIR", help="task.relax_opt.traj_dir, for the relaxed energies"
    )
    own.add_argument("--calculator", help=f"calculator of the reference forces: {CALCULATOR}")
    own.add_argument(
        "--forces", nargs="+", default=[], metavar="NAME=FILE", help="reference forces: .npz, or a file that ASE reads"
    )
    own.add_argument(
        "--within",
        type=float,
        metavar="A",
        help="in FbT and AFbT, accept only systems this close to the dataset's, on average",
    )
    own.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.csv")
    own.add_argument(
        "--structures", type=Path, metavar="DIR", help="write DIR/NAME.extxyz of each model, for DFT to start from"
    )
    return own
