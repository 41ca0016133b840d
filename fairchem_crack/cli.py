"""`fairchem-crack`: the commands that fairchem does not have."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import logging
import os
import sys
import warnings
from pathlib import Path

JACOBIAN_ROWS = 4  # of each system, where a term reads them and no flag says how many


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `fairchem-crack` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _require_compiled_packages()
    if arguments and arguments[0] in COMMANDS:  # whose flags argparse would want listed here
        COMMANDS[arguments[0]](arguments[1:])
        return
    parser = argparse.ArgumentParser(prog="fairchem-crack", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="fairchem --mode train, with `trainer: crack_distill` known; takes fairchem's flags")
    commands.add_parser("check", help="say what training would do, and every problem at once; takes fairchem's flags")
    commands.add_parser(
        "cache-teacher", help="run the teacher over the training data once; takes fairchem's flags and its own"
    )
    commands.add_parser("fit-scales", help="fit the student's scale factors into --output FILE; takes fairchem's flags")
    commands.add_parser("evaluate", help="the S2EF leaderboard of checkpoints, side by side; a submission to OC20's")
    commands.add_parser("evaluate-relaxations", help="IS2RE and IS2RS metrics of what run-relaxations wrote")
    commands.add_parser("report", help="one page about a training: errors, curves, embeddings, relations")
    commands.add_parser("bench", help="atoms/s, memory, ns/day and relaxations/hour of checkpoints")

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


def _flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of `fairchem --mode train`, and the overrides of the YAML."""
    from fairchem.core.common.flags import flags

    return flags.get_parser().parse_known_args(["--mode", "train", *arguments])


def train(arguments: list[str]) -> None:
    """Run `fairchem --mode train` with this package registered.

    A short `trainer: crack_distill` is handed on as dotted path, because the processes that `--num-gpus` starts import
    fairchem alone. They meet on a free port: fairchem names none, and torch's default is one for the whole machine, on
    which a second training dies when the first ends.
    """
    import fairchem.core._cli
    from fairchem.core.common.utils import build_config
    from torch.distributed.launcher.api import LaunchConfig

    import fairchem_crack.trainer  # noqa: F401, registers trainer and loss
    from fairchem_crack.checks import check_gpus

    options, overrides = _flags(arguments)
    if not options.submit:
        try:
            check_gpus(options.num_gpus, cpu=options.cpu)
        except ValueError as error:
            sys.exit(f"fairchem-crack train: {error}")
    if build_config(options, overrides).get("trainer") == "crack_distill":
        overrides.append("--trainer=fairchem_crack.CrackDistillTrainer")
    fairchem.core._cli.LaunchConfig = functools.partial(LaunchConfig, rdzv_endpoint="localhost:0")
    fairchem.core._cli.main(options, overrides)


def check(arguments: list[str]) -> None:
    """Print what training would do; exit with status 1 and the list of all problems if there is one."""
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: "fairchem_crack" in record.pathname)  # fairchem's warnings come when training
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[handler])
    from fairchem.core.common.utils import build_config

    from fairchem_crack.check.command import check_config

    options, overrides = _flags(arguments)
    try:
        config = build_config(options, overrides)
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack check: {error}")
    problems = check_config(config, str(options.config_yml))
    if not problems:
        print("\nNo problem found.")
        return
    print(f"\n{len(problems)} problem{'s'[: len(problems) > 1]}:")
    for problem in problems:
        print(f"- {problem}")
    sys.exit(1)


def fit_scales(arguments: list[str]) -> None:
    """Fit the student's scale factors on its training data and write them to `--output`."""
    parser = argparse.ArgumentParser(prog="fairchem-crack fit-scales", add_help=False)
    parser.add_argument("--output", type=Path, required=True)
    own, others = parser.parse_known_args(arguments)
    from fairchem.core.common.utils import build_config

    from fairchem_crack.files import write_text
    from fairchem_crack.scales import fit_scale_factors

    try:
        if own.output.suffix != ".json":
            raise ValueError(f"--output {own.output}: expected the name of a .json file.")
        factors = fit_scale_factors(build_config(*_flags(others)))
        own.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(own.output, json.dumps(factors, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack fit-scales: {error}")
    print(f"{len(factors)} scale factors written. Set model.scale_file: {own.output}")


def cache_teacher(arguments: list[str]) -> None:
    """Write a teacher cache, or verify one."""
    parser = argparse.ArgumentParser(prog="fairchem-crack cache-teacher", description="Takes fairchem's flags too.")
    parser.add_argument("--config-yml", type=Path, required=True, help="the YAML of the training")
    parser.add_argument("--output", type=Path, help="directory of the cache (default: task.distill.teacher.cache)")
    parser.add_argument("--split", default="train", help="of the YAML's dataset (default: train)")
    parser.add_argument("--dtype", default="float16", choices=["float16", "float32"], help="of the embeddings")
    parser.add_argument("--chunk", type=int, default=16, help="systems in a teacher's batch; fewer take less memory (16)")
    parser.add_argument(
        "--vectors", action="store_true", help="keep the l=1 embedding too (by itself where a term of the YAML reads it)"
    )
    parser.add_argument(
        "--jacobian-rows",
        type=int,
        metavar="N",
        help=f"keep N rows of the Jacobian of the forces (default: {JACOBIAN_ROWS} where a term of the YAML reads them)",
    )
    parser.add_argument("--calculator", help="module:function that makes an ASE calculator: its energies and forces")
    parser.add_argument("--verify", type=int, metavar="N", help="recompute N records of a finished cache and compare")
    own, others = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    from fairchem.core.common.utils import build_config

    from fairchem_crack import keys
    from fairchem_crack.cache_teacher import Job, cache_teacher, needs_of_terms, verify

    try:
        flags, overrides = _flags(["--config-yml", str(own.config_yml), *others])
        config = build_config(flags, overrides)
        teacher = ((config.get("task") or {}).get("distill") or {}).get("teacher") or {}
        directory = own.output or teacher.get("cache")
        if directory is None:
            raise ValueError("where to write? Give task.distill.teacher.cache in the YAML, or --output DIR.")
        if own.calculator is None and not teacher.get("checkpoint"):
            raise ValueError("task.distill.teacher.checkpoint: missing; it is the teacher to run.")
        needs = needs_of_terms(config) if own.calculator is None else set()
        rows = JACOBIAN_ROWS if keys.FORCE_JACOBIAN in needs else 0
        job = Job(
            config,
            Path(directory),
            own.split,
            own.dtype,
            has_vectors=own.vectors or keys.VECTOR_EMBEDDING in needs,
            chunk=own.chunk,
            calculator=own.calculator,
            cpu=flags.cpu,
            jacobian_rows=rows if own.jacobian_rows is None else own.jacobian_rows,
        )
        if own.verify is not None:
            print(f"{own.verify} records recomputed: they differ by at most {verify(job, own.verify):.1e} of the largest.")
            return
        cache = cache_teacher(job, ranks=flags.num_gpus)
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack cache-teacher: {error}")
    size = sum(file.stat().st_size for file in Path(directory).iterdir())
    print(f"{len(cache)} systems, {size / 2**20:,.1f} MB. Train with task.distill.teacher.cache: {directory}")


def evaluate(arguments: list[str]) -> None:
    """The S2EF leaderboard of some checkpoints."""
    from fairchem_crack.evaluate import evaluate

    evaluate(arguments)


def evaluate_relaxations(arguments: list[str]) -> None:
    """The IS2RE and IS2RS metrics of some relaxations."""
    from fairchem_crack.relaxations.command import evaluate_relaxations

    evaluate_relaxations(arguments)


def report(arguments: list[str]) -> None:
    """A page about a training."""
    from fairchem_crack.report.command import report

    report(arguments)


def bench(arguments: list[str]) -> None:
    """Speed and memory of some checkpoints."""
    from fairchem_crack.bench.command import bench

    bench(arguments)


COMMANDS = {  # that parse their own arguments; the first four take fairchem's flags too
    "train": train,
    "check": check,
    "fit-scales": fit_scales,
    "cache-teacher": cache_teacher,
    "evaluate": evaluate,
    "evaluate-relaxations": evaluate_relaxations,
    "report": report,
    "bench": bench,
}


if __name__ == "__main__":
    main()
