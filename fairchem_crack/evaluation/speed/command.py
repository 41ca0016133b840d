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
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import torch
from ase import Atoms
from torch.cuda import OutOfMemoryError

from fairchem_crack.evaluation.speed.runs import (
    RELAXES_IN_BATCHES,
    Model,
    forward_seconds,
    ns_per_day,
    relax,
    run_dynamics,
    single_point_seconds,
    warm_up,
)
from fairchem_crack.evaluation.speed.systems import make_systems, read_systems, take
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
    own.add_argument("--repeats", type=int, default=5, help="turns of each model (5)")
    own.add_argument("--only", nargs="+", choices=QUANTITIES, default=list(QUANTITIES), help="measure these alone")
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
    names = labels(options.checkpoint)
    models = {name: Model(path, cpu=options.cpu) for name, path in zip(names, options.checkpoint)}
    reference = names[options.checkpoint.index(options.reference)] if options.reference else names[-1]
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: measure_throughput(models, systems, options.batch_sizes, options.repeats),
        "latency": lambda: measure_latency(models, systems[0], options.repeats),
        "dynamics": lambda: measure_dynamics(models, systems[0], options),
        "relaxation": lambda: measure_relaxation(models, systems, options),
    }
    for quantity in QUANTITIES:
        if quantity in options.only:
            for name, values in measures[quantity]().items():
                found[name][quantity] = values
    device = next(iter(models.values())).device
    return {
        "machine": machine(device),
        "systems": {"source": str(options.data) if options.data else "generated", "atoms": [len(one) for one in systems]},
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
                **found[name],
                "ratios": ratios(found[name], found[reference]),
            }
            for name, model in models.items()
        },
    }


def measure_throughput(models: dict[str, Model], systems: list[Atoms], sizes: Sequence[int], repeats: int) -> dict[str, Any]:
    """Of each model and batch size: `atoms_per_second` of each repeat, and `peak_bytes` beyond the loaded model.

    A batch that does not fit into the GPU's memory has neither.
    """
    found: dict[str, Any] = {name: {} for name in models}
    for size in sizes:
        chosen = take(systems, size)
        atoms = sum(map(len, chosen))
        batches = {name: model.batch(chosen) for name, model in models.items()}
        for name, model in models.items():
            try:
                found[name][str(size)] = {"atoms_per_second": [], "peak_bytes": warm_up(model, batches[name])}
            except OutOfMemoryError:
                found[name][str(size)] = {}
                torch.cuda.empty_cache()
        for _ in range(repeats):
            for name, model in models.items():
                if found[name][str(size)]:
                    rate = atoms / forward_seconds(model, batches[name])
                    found[name][str(size)]["atoms_per_second"].append(rate)
    return found


def measure_latency(models: dict[str, Model], system: Atoms, repeats: int) -> dict[str, Any]:
    """Of each model, `seconds` of a single point of each repeat."""
    found: dict[str, Any] = {name: {"seconds": []} for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            seconds = single_point_seconds(model, system, repeat)
            if repeat:  # the first one warms up
                found[name]["seconds"].append(seconds)
    return found


def measure_dynamics(models: dict[str, Model], system: Atoms, options: argparse.Namespace) -> dict[str, Any]:
    """Of each model and repeat: `ns_per_day`, `seconds_per_step`, and the `temperature` in K that the last step had."""
    found: dict[str, Any] = {name: {"ns_per_day": [], "seconds_per_step": [], "temperature": []} for name in models}
    for repeat in range(options.repeats):
        for name, model in models.items():
            one = run_dynamics(model, system, steps=options.md_steps, time_step=options.time_step, seed=repeat)
            found[name]["ns_per_day"].append(ns_per_day(one.seconds_per_step, options.time_step))
            found[name]["seconds_per_step"].append(one.seconds_per_step)
            found[name]["temperature"].append(one.temperature)
    return found


def measure_relaxation(models: dict[str, Model], systems: list[Atoms], options: argparse.Namespace) -> dict[str, Any]:
    """Of each model and repeat: relaxations `per_hour`, mean `steps` of one, the fraction `converged`, `steps_per_second`.

    The systems of a repeat are the next ones of the list, the same for all models.
    """
    quantities = ("per_hour", "steps", "converged", "steps_per_second")
    found: dict[str, Any] = {name: {quantity: [] for quantity in quantities} for name in models}
    for repeat in range(options.repeats):
        chosen = take(systems, options.relax_batch_size, repeat)
        for name, model in models.items():
            if not repeat:
                warm_up(model, model.batch(chosen))
            one = relax(model, chosen, fmax=options.fmax, most_steps=options.relax_steps)
            found[name]["per_hour"].append(3600 * len(chosen) / one.seconds)
            found[name]["steps"].append(float(one.steps.mean()))
            found[name]["converged"].append(float(one.converged.mean()))
            found[name]["steps_per_second"].append(float(one.steps.sum()) / one.seconds)
    return found


def ratios(own: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast as the reference, of each repeat; above 1 is faster, for latencies too."""

    def divide(above: list[float], below: list[float]) -> list[float]:
        return [one / other for one, other in zip(above, below)]

    found: dict[str, Any] = {}
    if "throughput" in own:
        rates = [
            {size: one.get("atoms_per_second", []) for size, one in of["throughput"].items()} for of in (own, reference)
        ]
        found["throughput"] = {size: divide(rate, rates[1][size]) for size, rate in rates[0].items()}
    if "latency" in own:
        found["latency"] = divide(reference["latency"]["seconds"], own["latency"]["seconds"])
    if "dynamics" in own:
        found["dynamics"] = divide(own["dynamics"]["ns_per_day"], reference["dynamics"]["ns_per_day"])
    if "relaxation" in own:
        found["relaxation"] = divide(own["relaxation"]["per_hour"], reference["relaxation"]["per_hour"])
    return found


def labels(paths: Sequence[Path]) -> list[str]:
    """The end of each path, with as many of its directories as tell the paths apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        found = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(found)) == len(paths):
            return found
    return [str(path) for path in paths]


def machine(device: torch.device) -> str:
    """Where it was measured, in words."""
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        place = f"CPU, {platform.machine()}, {threads} thread{'s' * (threads > 1)}"
    return f"{place}, torch {torch.__version__}, ase {importlib.metadata.version('ase')}"
