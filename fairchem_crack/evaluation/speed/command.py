"""`fairchem-crack bench`: how fast checkpoints are at what they are used for, next to each other.

Models are interleaved within each repeat, so that a machine that becomes slower does so for all of them; a ratio is the
median of the ratios of the single repeats.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
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
from fairchem_crack.evaluation.speed.runs import RELAXES_IN_BATCHES, Model
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems
from fairchem_crack.evaluation.speed.tables import report
from fairchem_crack.io.arguments import IMPORT_HELP
from fairchem_crack.io.files import write_json
from fairchem_crack.io.trust import TRUST_HELP
from fairchem_crack.plugins import load_plugins

QUANTITIES = ("throughput", "latency", "dynamics", "relaxation")
ATOMS = 73  # of a generated system: near the mean of OC20


def bench(arguments: list[str]) -> None:
    """Entry point of `fairchem-crack bench`: print the tables, and write them as JSON where asked to."""
    options = parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="fairchem|torch_geometric")
    try:
        load_plugins(options.imports, "--import")
        _check(options)
        content = run(options)
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.output, content)
    except (ValueError, OSError) as error:
        sys.exit(f"fairchem-crack bench: {error}")
    print(report(content))
    if options.output is not None:
        print(f"\nWritten: {options.output}")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    own = argparse.ArgumentParser(
        prog="fairchem-crack bench",
        allow_abbrev=False,
        description="Speed of checkpoints, ours or any of fairchem's: atoms/s and memory of batches, latency of a single "
        "point, ns/day of molecular dynamics, relaxations/hour.",
    )
    own.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE")
    own.add_argument("--reference", type=Path, metavar="FILE", help="what ratios are to (default: the last checkpoint)")
    systems = own.add_mutually_exclusive_group()
    systems.add_argument("--data", type=Path, help="directory of OC20's LMDBs, or a file that ASE reads")
    systems.add_argument("--atoms", type=int, help=f"of generated slabs, about (default: {ATOMS})")
    own.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="systems (1 8 32)")
    own.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    own.add_argument("--repeats", type=int, default=5, help="of each measurement (5)")
    own.add_argument("--only", nargs="+", choices=QUANTITIES, default=list(QUANTITIES), help="measure only these")
    own.add_argument("--time-step", type=float, default=2.0, help="of molecular dynamics, fs (2)")
    own.add_argument("--md-steps", type=int, default=20, help="of molecular dynamics that are timed (20)")
    own.add_argument("--relax-batch-size", type=int, default=8, help="systems relaxed together (8)")
    own.add_argument("--relax-steps", type=int, default=100, help="of a relaxation, at most (100)")
    own.add_argument("--fmax", type=float, default=0.05, help="where a relaxation is converged, eV/A (0.05)")
    own.add_argument("--import", dest="imports", nargs="+", default=[], metavar="MODULE", help=IMPORT_HELP)
    own.add_argument("--trust", action="store_true", help=TRUST_HELP)
    own.add_argument("--output", type=Path, metavar="FILE.json", help="write all figures, the single repeats too")
    return own


def _check(options: argparse.Namespace) -> None:
    counts = ("repeats", "md_steps", "relax_batch_size", "relax_steps", "time_step", "fmax")
    for name, value in [
        *((name, getattr(options, name)) for name in counts),
        *(("batch_sizes", b) for b in options.batch_sizes),
    ]:
        if value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected a number above 0.")
    if options.reference is not None and options.reference not in options.checkpoint:
        options.checkpoint.append(options.reference)
    if len(set(options.checkpoint)) < len(options.checkpoint):
        raise ValueError("--checkpoint: the same file twice.")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what the options of `parser` ask for; the content of the JSON file."""
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
