"""`fairchem-crack`: the commands that fairchem does not have."""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext

from fairchem_crack import __version__
from fairchem_crack.io.locks import LockedError
from fairchem_crack.io.trust import trusting
from fairchem_crack.training.compiled import check_built_for_cuda, check_installed

COMMANDS = {  # of each: where it is, and what it does
    "init": (
        "fairchem_crack.commands.init.command:init",
        "write a first YAML for data of your own, a student and a teacher, from a look at them",
    ),
    "train": (
        "fairchem_crack.commands.train:train",
        "fairchem --mode train, which then knows `trainer: crack_distill`; takes fairchem's flags",
    ),
    "progress": (
        "fairchem_crack.commands.progress:progress",
        "how far a training is, how long the rest takes, and its losses, from its log on standard input",
    ),
    "check": (
        "fairchem_crack.commands.check.command:check",
        "print what training would do, and list all problems; takes fairchem's flags",
    ),
    "cache-teacher": (
        "fairchem_crack.commands.cache_teacher.command:cache_teacher",
        "run the teacher over the training data once; takes fairchem's flags and its own",
    ),
    "export-data": (
        "fairchem_crack.commands.export_data:export_data",
        "a dataset as an ASE database, for a teacher of another framework; takes fairchem's flags and its own",
    ),
    "cache-finish": (
        "fairchem_crack.commands.cache_finish:cache_finish",
        "finish a teacher cache whose records another program wrote",
    ),
    "generate": (
        "fairchem_crack.commands.generate:generate",
        "new systems from the training data, labelled by the teacher, with their teacher cache; takes fairchem's flags",
    ),
    "explore": (
        "fairchem_crack.commands.explore:explore",
        "train a student on frames of its own dynamics, labelled by its teacher, in rounds; takes fairchem's flags",
    ),
    "fit-scales": (
        "fairchem_crack.commands.fit_scales:fit_scales",
        "fit the student's scale factors into --output FILE; takes fairchem's flags",
    ),
    "references": (
        "fairchem_crack.commands.references:references",
        "fit element references and a normalizer into --output FILE; takes fairchem's flags",
    ),
    "evaluate": (
        "fairchem_crack.evaluation.s2ef.command:evaluate",
        "S2EF metrics of checkpoints side by side; a submission to OC20's leaderboard",
    ),
    "evaluate-relaxations": (
        "fairchem_crack.evaluation.relaxations.command:evaluate_relaxations",
        "IS2RE and IS2RS metrics of relaxations made by run-relaxations",
    ),
    "report": (
        "fairchem_crack.evaluation.report.command:report",
        "one page about a training: errors, curves, embeddings, relations",
    ),
    "bench": (
        "fairchem_crack.evaluation.speed.command:bench",
        "atoms/s, memory, ns/day and relaxations/hour of checkpoints",
    ),
    "card": (
        "fairchem_crack.evaluation.card.command:card",
        "a model card of a checkpoint: training, errors, speed, hash",
    ),
    "stability": (
        "fairchem_crack.evaluation.stability.command:stability",
        "molecular dynamics with checkpoints: ps until failure, drift, what is sampled beside the teacher",
    ),
    "export": (
        "fairchem_crack.commands.export:export",
        "a PaiNN student as one file for simulation engines, which needs torch only",
    ),
    "configs": (
        "fairchem_crack.commands.configs:configs",
        "list, print or copy the YAMLs that come with the package",
    ),
    "prepare-demo": ("fairchem_crack.commands.demo:prepare", "write the demo's splits as OC20-format LMDBs"),
}
OPTIONS = {  # of commands that take seconds to import: their options, which are parsed before
    "evaluate": "fairchem_crack.evaluation.s2ef.options",
    "evaluate-relaxations": "fairchem_crack.evaluation.relaxations.options",
    "bench": "fairchem_crack.evaluation.speed.options",
    "stability": "fairchem_crack.evaluation.stability.options",
    "export": "fairchem_crack.commands.export",
    "card": "fairchem_crack.evaluation.card.options",
}
REFUSALS = (ValueError, OSError, LockedError)  # of what a command was given: their message is enough
WITHOUT_MODEL = (  # they use no GPU
    *("init", "cache-finish", "card", "evaluate-relaxations", "export"),
    *("export-data", "configs", "prepare-demo", "progress"),
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `fairchem-crack` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    if name not in COMMANDS:
        _parser().parse_args(arguments)  # help, or an error
        return
    runs_models = name not in WITHOUT_MODEL and not {"-h", "--help"} & set(arguments)
    try:
        check_installed()
        if runs_models and "--cpu" not in arguments:
            check_built_for_cuda()
    except (ModuleNotFoundError, RuntimeError) as error:
        sys.exit(f"fairchem-crack {name}: {error}")
    if name != "train":  # which warns as fairchem does; elsewhere the deprecations in its imports are no news
        warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    if name in OPTIONS:
        importlib.import_module(OPTIONS[name]).parser().parse_args(arguments[1:])  # help, or an error, without the wait
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        command = getattr(importlib.import_module(module), function)
        with trusting("--trust" in arguments), _without_denormals() if runs_models else nullcontext():
            command(arguments[1:])
    except REFUSALS as error:
        if name == "train":  # beyond its own refusals, an error of a training keeps its traceback
            raise
        sys.exit(f"fairchem-crack {name}: {error}")


def _without_denormals() -> AbstractContextManager:
    from fairchem_crack.io.denormals import without_denormals  # which needs torch

    return without_denormals()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fairchem-crack", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fairchem-crack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, help_text) in COMMANDS.items():
        commands.add_parser(name, help=help_text)
    return parser


if __name__ == "__main__":
    main()
