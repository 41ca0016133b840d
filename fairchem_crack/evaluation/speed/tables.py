"""The figures of `fairchem-crack bench` as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from fairchem_crack.io.progress import Progress

HOT = 2000.0  # K: molecular dynamics that begin at 300 K and get there have left what the model describes
MIB = 2**20


def report(content: dict[str, Any]) -> str:
    """The tables: medians, in brackets min and max of the repeats."""
    checkpoints = content["checkpoints"]
    options = content["options"]
    atoms = content["systems"]["atoms"]
    spread = f"{min(atoms)}" if min(atoms) == max(atoms) else f"{min(atoms)} to {max(atoms)}"
    lines = [
        f"{content['machine']}. Systems: {content['systems']['source']}, {spread} atoms.",
        f"Median [least, largest] of {options['repeats']} repeats; x is times as fast as {content['reference']}.",
        "",
        *_table(
            ["checkpoint", "architecture", "parameters", "trained to"],
            [
                [name, one["architecture"], f"{one['parameters'] / 1e6:.3f}M", str(Progress(one["step"], one["epoch"]))]
                for name, one in checkpoints.items()
            ],
        ),
        *(f"WARNING: {name} is of step 0, untrained." for name, one in checkpoints.items() if one["step"] == 0),
    ]
    for quantity, section in SECTIONS.items():
        if all(quantity in one for one in checkpoints.values()):
            lines += ["", *section(checkpoints, options)]
    return "\n".join(lines)


def cell(values: Sequence[float], digits: int = 3) -> str:
    """Median, min and max to so many significant digits."""
    return f"{number(median(values), digits)} [{number(min(values), digits)}, {number(max(values), digits)}]"


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits, without exponent: 12300, 1.23, 0.00123."""
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:,.{decimals}f}"


def _speed(ratios: Sequence[float]) -> str:
    """Of the reference, whose ratios are exactly 1, and of what did not fit into memory: nothing."""
    return "" if all(ratio == 1 for ratio in ratios) else f"{cell(ratios)} x"


def _throughput(checkpoints: dict[str, Any], options: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in checkpoints.items():
        for size, found in one["throughput"].items():
            rate = cell(found["atoms_per_second"]) if found else "out of memory"
            peak = found.get("peak_bytes")
            ratio = one["ratios"]["throughput"][size]
            rows.append([name, size, rate, "" if peak is None else f"{peak / MIB:,.0f}", _speed(ratio)])
    title = "Batches: energy and forces, edges on the fly. Memory: growth beyond the loaded model, at its peak."
    return [title, *_table(["checkpoint", "batch", "atoms/s", "peak MiB", "speed"], rows)]


def _latency(checkpoints: dict[str, Any], options: dict[str, Any]) -> list[str]:
    rows = [
        [name, cell([1e3 * value for value in one["latency"]["seconds"]]), _speed(one["ratios"]["latency"])]
        for name, one in checkpoints.items()
    ]
    return ["A single point through OCPCalculator, one system.", *_table(["checkpoint", "ms", "speed"], rows)]


def _dynamics(checkpoints: dict[str, Any], options: dict[str, Any]) -> list[str]:
    rows, hot = [], []
    for name, one in checkpoints.items():
        found = one["dynamics"]
        seconds = [1e3 * value for value in found["seconds_per_step"]]
        rows.append([name, cell(found["ns_per_day"]), cell(seconds), _speed(one["ratios"]["dynamics"])])
        if not max(found["temperature"]) < HOT:  # NaN too
            hot.append(f"{name} reached {max(found['temperature']):,.0f} K within {options['md_steps']} steps.")
    step = f"{options['time_step_fs']:g} fs"
    title = f"Molecular dynamics: {options['md_steps']} steps of {step} with ASE's VelocityVerlet from 300 K, one system."
    return [title, *_table(["checkpoint", "ns/day", "ms/step", "speed"], rows), *hot]


def _relaxation(checkpoints: dict[str, Any], options: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            cell(one["relaxation"]["per_hour"]),
            cell(one["relaxation"]["steps"]),
            f"{sum(one['relaxation']['converged']) / len(one['relaxation']['converged']):.0%}",
            cell(one["relaxation"]["steps_per_second"]),
            _speed(one["ratios"]["relaxation"]),
        ]
        for name, one in checkpoints.items()
    ]
    batched = f"batches of {options['relax_batch_size']} with fairchem's LBFGS"
    single = "one by one with ASE's FIRE (fairchem's batched relaxation needs ase < 3.26)"
    title = (
        f"Relaxations: {batched if options['relaxes_in_batches'] else single}, to {options['fmax_ev_per_angstrom']:g} eV/A, "
        f"at most {options['relax_steps']} steps. Not converged ones count as done."
    )
    heads = ["checkpoint", "per hour", "steps of each", "converged", "steps/s, all systems", "speed"]
    return [title, *_table(heads, rows)]


SECTIONS = {"throughput": _throughput, "latency": _latency, "dynamics": _dynamics, "relaxation": _relaxation}


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (heads, *rows)]
