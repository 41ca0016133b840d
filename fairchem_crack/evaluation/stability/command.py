"""`fairchem-crack stability`: whether molecular dynamics with checkpoints can be trusted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ase import Atoms
from tqdm import tqdm

from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.speed.command import machine
from fairchem_crack.evaluation.speed.options import ATOMS
from fairchem_crack.evaluation.speed.runs import Model
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems
from fairchem_crack.evaluation.stability.limits import Limits
from fairchem_crack.evaluation.stability.measure import ModelRuns, Settings, check_starts, figures, run_model
from fairchem_crack.evaluation.stability.options import parser
from fairchem_crack.evaluation.stability.tables import report
from fairchem_crack.evaluation.tables import print_and_write
from fairchem_crack.io.arguments import check_positive
from fairchem_crack.io.atoms import free_mask
from fairchem_crack.plugins import load_plugins


def stability(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack stability`: print the tables, and write them as JSON where --output is given."""
    options = parser().parse_args(arguments)
    load_plugins(options.imports, "--import")
    content = run(options, settings_of(options))
    print_and_write(report(content), content, options.output)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings that the options ask for.

    Raises:
        ValueError: one is out of bounds; the message begins with its name.
    """
    check_positive(options, ("starts", "every", "ps", "time_step", "friction", "temperatures"))
    check_positive(options, ("drift_ps", "seed"), or_zero=True)
    if options.teacher is not None and options.teacher not in options.checkpoint:
        options.checkpoint.append(options.teacher)
    for name in ("checkpoint", "temperatures"):
        if len({*getattr(options, name)}) < len(getattr(options, name)):
            raise ValueError(f"--{name}: the same twice.")
    if options.every > 1e3 * options.ps / options.time_step:
        raise ValueError(f"--every {options.every}: expected a number of steps within the {options.ps:g} ps of a run.")
    limits = Limits(options.max_temperature, options.max_force, options.min_distance)
    return Settings(
        ps=options.ps,
        drift_ps=options.drift_ps,
        every=options.every,
        time_step=options.time_step,
        friction=options.friction,
        seed=options.seed,
        limits=limits,
    )


def run(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Run the models; the content of the JSON file."""
    starts = (
        read_systems(options.data, options.starts) if options.data else make_systems(options.atoms or ATOMS, options.starts)
    )
    check_starts(starts, f"--data {options.data}")
    names = list(short_names(options.checkpoint).values())
    models = {name: Model(path, cpu=options.cpu) for name, path in zip(names, options.checkpoint)}
    teacher = None if options.teacher is None else names[options.checkpoint.index(options.teacher)]
    runs = _run_models(models, starts, options.temperatures, settings)
    return {
        "machine": machine(next(iter(models.values())).device),
        "starts": {
            "source": str(options.data) if options.data else "generated",
            "atoms": [len(start) for start in starts],
            "free_atoms": [int(free_mask(start).sum()) for start in starts],
        },
        "options": {
            "temperatures": options.temperatures,
            "ps": settings.ps,
            "drift_ps": settings.drift_ps,
            "every": settings.every,
            "time_step_fs": settings.time_step,
            "friction_per_fs": settings.friction,
            "seed": settings.seed,
            "limits": asdict(settings.limits),
        },
        "teacher": teacher,
        "checkpoints": {
            name: {
                "path": str(model.checkpoint),
                "architecture": model.architecture,
                "parameters": model.parameters,
                **asdict(model.progress),
                **figures(runs[name], None if teacher is None else runs[teacher]),
            }
            for name, model in models.items()
        },
    }


def _run_models(
    models: dict[str, Model], starts: Sequence[Atoms], temperatures: Sequence[float], settings: Settings
) -> dict[str, ModelRuns]:
    steps = len(models) * len(starts) * (len(temperatures) * settings.steps + settings.drift_steps)
    runs = {}
    with tqdm(total=steps, unit=" steps") as bar:
        for name, model in models.items():
            bar.set_description(name)
            runs[name] = run_model(model.calculator, starts, temperatures, settings, bar.update)
    return runs
