"""The page of the engines, from its JSON."""

from __future__ import annotations

from statistics import median
from typing import Any

COMMANDS = {
    "ocp": "`OCPCalculator(checkpoint_path=...)`, ASE",
    "ase, checkpoint": "`StudentCalculator(checkpoint)`, ASE",
    "ase": "`StudentCalculator(exported)`, ASE",
    "torch-sim": "`StudentModel(exported)`, torch-sim",
    "lammps": "`examples/lammps/lammps_student.py`",
    "openmm": "`examples/openmm/openmm_student.py`",
}


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Engines",
        "",
        f"One PaiNN student ({content['student']}) in several engines: dynamics at constant energy, steps of 1 fs.",
        f"{content['machine']}. Written by `{content['command']}`; the engines are interleaved within each of",
        f"{content['repeats']} repeats, beside other work on the machine. Median [min, max].",
        "",
        f"Steps per second of {content.get('clock', 'wall time')}; 8 systems that take one step together are 8 steps.",
        "",
        "| engine | version | system | steps/s | x OCPCalculator | energy off by [meV] | forces off by [meV/A] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        rates = row["steps_per_second"]
        lines.append(
            f"| {COMMANDS[row['engine']]} | {row['version']} | {row['system']} | {_digits(median(rates))} "
            f"[{_digits(min(rates))}, {_digits(max(rates))}] | {median(row['speed']):.1f} [{min(row['speed']):.1f}, "
            f"{max(row['speed']):.1f}] | {row['energy_deviation']:.3f} | {row['force_deviation']:.3f} |"
        )
    lines += ["", "## Where the time of a step goes", "", *_profile(content["profile"])]
    return "\n".join(lines) + "\n"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _profile(profile: list[dict[str, Any]]) -> list[str]:
    parts = list(profile[0]["milliseconds"])
    lines = [f"| atoms | pairs | {' | '.join(f'{part} [ms]' for part in parts)} | bound: flops | bound: bytes |"]
    lines.append("|---" * (len(parts) + 4) + "|")
    for row in profile:
        values = " | ".join(f"{row['milliseconds'][part]:.2f}" for part in parts)
        lines.append(f"| {row['atoms']} | {row['pairs']} | {values} | {row['flop_bound']:.2f} | {row['byte_bound']:.2f} |")
    return [
        *lines,
        "",
        f"Bounds of the forward, ms; in the first row {profile[0]['flops_words']}, {profile[0]['bytes_words']}: matrix",
        "products, and messages in both directions, read or written once in each operation.",
    ]
