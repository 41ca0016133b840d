"""What `fairchem-crack bench` prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.tables import Cell, cell, span, text_table
from fairchem_crack.io.progress import Progress

HOT = 2000.0  # K: molecular dynamics that begin at 300 K and get there have left what the model describes
MIB = 2**20


def report(content: dict[str, Any]) -> str:
    """The tables: medians, in brackets min and max of the repeats."""
    checkpoints, options, systems = content["checkpoints"], content["options"], content["systems"]
    parts = [
        f"{content['machine']}. Systems: {systems['source']}, {span(systems['atoms'])} atoms.\n"
        f"Median [min, max] of {options['repeats']} repeats; x is times as fast as {content['reference']}.",
        models_table(checkpoints),
    ]
    for quantity, section in SECTIONS.items():
        if all(quantity in model for model in checkpoints.values()):
            parts.append(section(checkpoints, options))
    return "\n\n".join(parts)


def models_table(checkpoints: dict[str, Any]) -> str:
    """Architecture, parameters and training of each, and a warning of those that are untrained."""
    rows = [
        [name, model["architecture"], f"{model['parameters'] / 1e6:.3f}M", Progress(model["step"], model["epoch"])]
        for name, model in checkpoints.items()
    ]
    untrained = [name for name, model in checkpoints.items() if model["step"] == 0]
    table = text_table(["checkpoint", "architecture", "parameters", "trained to"], rows)
    return "\n".join([table, *(f"WARNING: {name} is of step 0, untrained." for name in untrained)])


def repeats(values: Sequence[float]) -> Cell:
    """Median, min and max."""
    return cell(Interval(median(values), min(values), max(values)))


def _speed(ratios: Sequence[float]) -> str:
    """Of the reference, whose ratios are exactly 1, and of what did not fit into memory: nothing."""
    return "" if all(ratio == 1 for ratio in ratios) else f"{repeats(ratios)} x"


def _throughput(checkpoints: dict[str, Any], options: dict[str, Any]) -> str:
    rows = []
    for name, model in checkpoints.items():
        for size, measured in model["throughput"].items():
            rate = repeats(measured["atoms_per_second"]) if measured else "out of memory"
            peak = measured.get("peak_bytes")
            ratio = model["ratios"]["throughput"][size]
            rows.append([name, size, rate, "" if peak is None else f"{peak / MIB:,.0f}", _speed(ratio)])
    title = "Batches: energy and forces, edges on the fly. Memory: growth beyond the loaded model, at its peak."
    return f"{title}\n{text_table(['checkpoint', 'batch', 'atoms/s', 'peak MiB', 'speed'], rows)}"


def _latency(checkpoints: dict[str, Any], options: dict[str, Any]) -> str:
    rows = [
        [name, repeats([1e3 * value for value in model["latency"]["seconds"]]), _speed(model["ratios"]["latency"])]
        for name, model in checkpoints.items()
    ]
    return f"A single point through OCPCalculator, one system.\n{text_table(['checkpoint', 'ms', 'speed'], rows)}"


def _dynamics(checkpoints: dict[str, Any], options: dict[str, Any]) -> str:
    rows, hot = [], []
    for name, model in checkpoints.items():
        measured = model["dynamics"]
        milliseconds = [1e3 * value for value in measured["seconds_per_step"]]
        rows.append([name, repeats(measured["ns_per_day"]), repeats(milliseconds), _speed(model["ratios"]["dynamics"])])
        if not max(measured["temperature"]) < HOT:  # NaN too
            hot.append(f"\n{name} reached {max(measured['temperature']):,.0f} K within {options['md_steps']} steps.")
    step = f"{options['time_step_fs']:g} fs"
    title = f"Molecular dynamics: {options['md_steps']} steps of {step} with ASE's VelocityVerlet from 300 K, one system."
    return f"{title}\n{text_table(['checkpoint', 'ns/day', 'ms/step', 'speed'], rows)}{''.join(hot)}"


def _relaxation(checkpoints: dict[str, Any], options: dict[str, Any]) -> str:
    rows = []
    for name, model in checkpoints.items():
        measured = model["relaxation"]
        converged = f"{sum(measured['converged']) / len(measured['converged']):.0%}"
        counts = [repeats(measured[quantity]) for quantity in ("per_hour", "steps", "steps_per_second")]
        rows.append([name, *counts[:2], converged, counts[2], _speed(model["ratios"]["relaxation"])])
    batched = f"batches of {options['relax_batch_size']} with fairchem's LBFGS"
    single = "one by one with ASE's FIRE (fairchem's batched relaxation needs ase < 3.26)"
    title = (
        f"Relaxations: {batched if options['relaxes_in_batches'] else single}, to {options['fmax_ev_per_angstrom']:g} eV/A, "
        f"at most {options['relax_steps']} steps. Those that did not converge count as well."
    )
    headings = ["checkpoint", "per hour", "steps of each", "converged", "steps/s, all systems", "speed"]
    return f"{title}\n{text_table(headings, rows)}"


SECTIONS = {"throughput": _throughput, "latency": _latency, "dynamics": _dynamics, "relaxation": _relaxation}
