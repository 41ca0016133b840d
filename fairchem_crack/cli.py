"""`fairchem-crack`: the commands that fairchem does not have."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `fairchem-crack` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _require_compiled_packages()
    if arguments[:1] == ["train"]:  # takes fairchem's flags, which argparse would want listed here
        train(arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="fairchem-crack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fairchem --mode train, with `trainer: crack_distill` known; takes fairchem's flags")

    prepare = commands.add_parser("prepare-demo", help="write the demo's splits as OC20-format LMDBs")
    prepare.add_argument("directory", type=Path)
    prepare.add_argument("--train", type=int, default=300, help="systems in train (default: 300)")
    prepare.add_argument("--val", type=int, default=200, help="systems in each validation split (default: 200)")
    prepare.add_argument("--seed", type=int, default=0)
    prepare.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")

    summarize = commands.add_parser("summarize-demo", help="evaluate the demo's models: table, picture, summary.json")
    summarize.add_argument("run_dir", type=Path, help="the --run-dir of the trainings")
    summarize.add_argument("--data", type=Path, default=Path("data/demo"))
    summarize.add_argument("--teacher", type=Path, required=True)
    summarize.add_argument("--seeds", type=int, nargs="+", default=[0])

    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")  # deprecations, which are theirs to heed
    try:
        if options.command == "prepare-demo":
            from fairchem_crack.demo.prepare import SPLITS, prepare_demo

            sizes = {split: options.train if split == "train" else options.val for split in SPLITS}
            prepare_demo(options.directory, sizes=sizes, seed=options.seed, workers=options.workers)
        else:
            from fairchem_crack.demo.summary import summarize_demo

            summarize_demo(options.run_dir, data=options.data, teacher=options.teacher, seeds=options.seeds)
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack {options.command}: {error}")


def _require_compiled_packages() -> None:
    missing = [name for name in ("torch_scatter", "torch_sparse") if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        sys.exit(
            f"fairchem needs {names}, which must be compiled against the installed torch. Run:\n"
            f"  pip install wheel 'setuptools<81'\n  pip install --no-build-isolation {names}"
        )


def train(arguments: list[str]) -> None:
    """Run `fairchem --mode train` with this package registered.

    A short `trainer: crack_distill` is handed on as dotted path, because the processes that `--num-gpus` starts import
    fairchem alone.
    """
    import fairchem.core._cli
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config

    import fairchem_crack.trainer  # noqa: F401, registers trainer and loss

    options, overrides = flags.get_parser().parse_known_args(["--mode", "train", *arguments])
    if build_config(options, overrides).get("trainer") == "crack_distill":
        overrides.append("--trainer=fairchem_crack.CrackDistillTrainer")
    fairchem.core._cli.main(options, overrides)


if __name__ == "__main__":
    main()
