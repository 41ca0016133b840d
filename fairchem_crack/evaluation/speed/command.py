"""`fairchem-crack bench`: how fast checkpoints are at what they are used for, next to each other.

Models are interleaved within each repeat, so that a machine that becomes slower does so for all of them; a ratio is the
median of the ratios of the single repeats.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import asdict
from typing import Any, Callable

import torch

from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.speed.measure import (
    measure_dynamics,
    measure_latency,
    measure_relaxation,
    ratios,
    throughput_by_size,
)
from fairchem_crack.evaluation.speed.options import ATOMS, QUANTITIES, parser
from fairchem_crack.evaluation.speed.runs import RELAXES_IN_BATCHES, Model
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems
from fairchem_crack.evaluation.speed.tables import report
from fairchem_crack.evaluation.tables import print_and_write
from fairchem_crack.io.arguments import check_at_least, check_positive
from fairchem_crack.plugins import load_plugins


def bench(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack bench`: print the tables, and write them as JSON where --output is given."""
    options = parser().parse_args(arguments)
    load_plugins(options.imports, "--import")
    _check(options)
    content = run(options)
    print_and_write(report(content), content, options.output)


def _check(options: argparse.Namespace) -> None:
    counts = ("repeats", "md_steps", "relax_batch_size", "relax_steps", "batch_sizes")
    check_at_least(options, dict.fromkeys(counts, 1))
    check_positive(options, ("time_step", "fmax"))
    if options.reference is not None and options.reference not in options.checkpoint:
        options.checkpoint.append(options.reference)
    if len(set(options.checkpoint)) < len(options.checkpoint):
        raise ValueError("--checkpoint: the same file twice.")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take the measurements that the options of `parser` select; the content of the JSON file."""
    most = max(*options.batch_sizes, options.relax_batch_size)
    systems = read_systems(options.data, most) if options.data else make_systems(options.atoms or ATOMS, most)
    names = list(short_names(options.checkpoint).values())
    models = {name: Model(path, cpu=options.cpu) for name, path in zip(names, options.checkpoint)}
    reference = names[options.checkpoint.index(options.reference)] if options.reference else names[-1]
    measured: dict[str, dict[str, Any]] = {name: {} for name in names}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput_by_size(models, systems, options.batch_sizes, options.repeats),
        "latency": lambda: measure_latency(models, systems[0], options.repeats),
        "dynamics": lambda: measure_dynamics(models, systems[0], options),
        "relaxation": lambda: measure_relaxation(models, systems, options),
    }
    for quantity in QUANTITIES:
        if quantity in options.only:
            for name, values in measures[quantity]().items():
                measured[name][quantity] = values
    device = next(iter(models.values())).device
    return {
        "machine": machine(device),
        "systems": {
            "source": str(options.data) if options.data else "generated",
            "atoms": [len(system) for system in systems],
        },
        "options": {
            "repeats": options.repeats,
            "time_step_fs": options.time_step,
            "md_steps": options.md_steps,
            "relax_batch_size": options.relax_batch_size,
            "relax_steps": options.relax_steps,
            "fmax_ev_per_angstrom": options.fmax,
            "relaxes_in_batches": RELAXES_IN_BATCHES,
        },
        "reference": reference,
        "checkpoints": {
            name: {
                "path": str(model.checkpoint),
                "architecture": model.architecture,
                "parameters": model.parameters,
                **asdict(model.progress),
                **measured[name],
                "ratios": ratios(measured[name], measured[reference]),
            }
            for name, model in models.items()
        },
    }


def machine(device: torch.device) -> str:
    """Where it was measured, in words."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        place = f"CPU, {platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    return f"{place}, torch {torch.__version__}, ase {importlib.metadata.version('ase')}"
