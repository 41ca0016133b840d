"""`fairchem-crack evaluate`: checkpoints side by side on labelled splits, as the S2EF leaderboard has them.

The figures are those of fairchem's own `--mode validate`; intervals come from a bootstrap over the systems.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fairchem_crack.io.arguments import CACHE_HELP, LABELS_HELP, add_import_and_trust


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(prog="fairchem-crack evaluate", description=__doc__, allow_abbrev=False)
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="students: any fairchem checkpoints")
    teacher = own.add_mutually_exclusive_group()
    teacher.add_argument("--teacher", type=Path, help="its checkpoint")
    teacher.add_argument("--teacher-cache", type=Path, nargs="+", default=[], metavar="DIR", help=CACHE_HELP)
    own.add_argument("--labels", choices=["teacher"], help=LABELS_HELP)
    own.add_argument(
        "--undistilled",
        type=Path,
        nargs="+",
        default=[],
        help="students trained on labels only: with --teacher, for the gap closed",
    )
    own.add_argument(
        "--seeds",
        action="store_true",
        help="the checkpoints are one student with several seeds, and so are the undistilled ones, in the same order: print "
        "means over the seeds; the interval of the gap closed then covers the seeds too",
    )
    own.add_argument("--data", nargs="+", required=True, metavar="SPLIT=PATH", help="labelled splits; with --labels, any")
    own.add_argument(
        "--format", help="of the data, as in dataset.val.format (default: ase_db for *.db and *.aselmdb, otherwise lmdb)"
    )
    own.add_argument(
        "--dataset",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="options of the data, such as a2g_args, key_mapping; the values are YAML (default: those of the first "
        "checkpoint's training, if its data had this format)",
    )
    own.add_argument(
        "--atoms",
        choices=("free", "all"),
        help="atoms whose forces are compared (default: each checkpoint's eval_on_free_atoms)",
    )
    add_import_and_trust(own)
    own.add_argument("--batch-size", type=int, default=32, help="systems per batch (default: 32)")
    own.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32], help="for speed and memory (default: 1 8 32)")
    own.add_argument("--num-gpus", type=int, default=1, help="evaluate models and splits in parallel, one on each GPU")
    own.add_argument("--cpu", action="store_true", help="run on the CPU; --num-gpus is then the number of processes")
    own.add_argument("--output", type=Path, help="write OUTPUT.json, OUTPUT.csv and OUTPUT.png")
    own.add_argument(
        "--require",
        nargs="+",
        default=[],
        metavar="[SPLIT.]NAME=NUMBER",
        help="exit with status 1 unless every student meets each of these, by the estimate, not its interval: at most this "
        "energy_mae [eV], forces_mae [eV/A]; at least this forces_cosine_similarity, energy_forces_within_threshold, "
        "gap_closed.energy, gap_closed.forces (0.8 is 80 percent). Without a split, on each; `average.` is over the splits. "
        "stable_ps runs molecular dynamics with every student: none may leave its limits before",
    )
    own.add_argument(
        "--stability-starts",
        type=int,
        default=5,
        help="for stable_ps: systems, the first ones of the first split (default: 5)",
    )
    own.add_argument("--temperature", type=float, default=500.0, help="for stable_ps: K (default: 500)")
    own.add_argument("--submission", type=Path, metavar="FILE", help="of the first checkpoint, for the OC20 leaderboard")
    own.add_argument("--test", nargs=4, metavar="SPLIT=PATH", help="with --submission: id, ood_ads, ood_cat, ood_both")
    return own
