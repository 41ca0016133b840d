"""Page and picture of `screening.py`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median, pstdev
from typing import Any

TARGET = 11.9  # times the throughput of the 153M teacher, at least
LARGE, MIDDLE = "eqV2_153M", "eqV2_31M"
ORDER = ("student", "undistilled", "teacher")
COLORS = {"student": "#d1495b", "undistilled": "#9aa5b1", "teacher": "#1d3557", "EMT": "#7a9e7e"}


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Median, min and max."""
    return f"{median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of each turn."""
    return [numerator / denominator for numerator, denominator in zip(above, below)]


def report(content: dict[str, Any]) -> str:
    """What has been measured so far, as markdown."""
    lines = [
        "# Screening with a student instead of its teacher",
        "",
        "Medians, in brackets min and max. CPU time is disturbed less by other work on the machine.",
        "",
        "## Verdicts",
        "",
        *(f"- {verdict}" for verdict in verdicts(content)),
    ]
    if "demo" in content:
        lines += ["", *_demo(content["demo"], content["hot"])]
    if "true_size" in content:
        lines += ["", *_true_size(content["true_size"])]
    return "\n".join([*lines, ""])


def verdicts(content: dict[str, Any]) -> list[str]:
    """What the figures show, unwelcome results included."""
    sentences = []
    if "demo" in content:
        demo = content["demo"]
        speed = ratio(demo["relaxed"]["teacher"]["seconds"], demo["relaxed"]["student"]["seconds"])
        sentences.append(f"The student screens {cell(speed)} times as fast as the demo's teacher, batch by batch.")
        ours, teachers = (demo["agreement"][f"{name}, EMT"] for name in ("student", "teacher"))
        sentences.append(
            f"Against EMT it ranks the surfaces with a Spearman correlation of {_interval(ours)}, the teacher with "
            f"{_interval(teachers)}; of the {demo['top']} most strongly binding surfaces it finds {ours['overlap']:.0%}, "
            f"the teacher {teachers['overlap']:.0%} (by chance {ours['overlap_by_chance']:.0%})."
        )
        if demo["rank_difference"]:
            sentences.append(_distillation(demo["rank_difference"]))
        sentences.append(_drift(demo["dynamics"], content["hot"]))
        unconverged = [
            f"{name} {1 - sum(values['converged']) / len(values['converged']):.0%}"
            for name, values in demo["relaxed"].items()
        ]
        sentences.append(
            f"Not converged within {demo['most_steps']} steps, and used as they were: {', '.join(unconverged)}."
        )
    if "true_size" in content:
        sentences += _throughput_verdicts(content["true_size"])
    return sentences


def _interval(agreement: dict[str, Any]) -> str:
    low, high = agreement["spearman_interval"]
    return f"{agreement['spearman']:.3f} [{low:.3f}, {high:.3f}]"


def _distillation(difference: dict[str, Any]) -> str:
    low, high = difference["interval"]
    effect = "no visible effect" if low <= 0 <= high else ("a gain" if low > 0 else "a loss")
    return (
        f"Distillation: {effect} in the ranking; Spearman with EMT, student minus undistilled, "
        f"{difference['difference']:+.3f} [{low:+.3f}, {high:+.3f}] (95 % of a bootstrap over surfaces; of this one pair of "
        "trainings)."
    )


def _drift(dynamics: dict[str, list[dict]], hot: float) -> str:
    parts = []
    for name, runs in dynamics.items():
        whole = [abs(run["drift"]) for run in runs if run["temperature"] < hot]
        left = f", {len(runs) - len(whole)} of {len(runs)} runs left for above {hot:.0f} K" if len(whole) < len(runs) else ""
        parts.append(f"{name} {cell(whole)}{left}" if whole else f"{name}{left}")
    return f"Energy drift at constant energy, absolute, meV/atom/ps: {'; '.join(parts)}."


def _throughput_verdicts(part: dict[str, Any]) -> list[str]:
    times, student = part["forwards"], part["student"]
    sentences = []
    if LARGE in times:
        speed = ratio(times[LARGE]["seconds"], times[student]["seconds"])
        outcome = "reached" if median(speed) >= TARGET else "MISSED"
        shaky = ", though not in every round" if min(speed) < TARGET <= median(speed) else ""
        sentences.append(
            f"{student} has {cell(speed, 1)} times the throughput of {LARGE}; target {TARGET}: {outcome}{shaky}."
        )
    if MIDDLE in times:
        speed = ratio(times[MIDDLE]["seconds"], times[student]["seconds"])
        sentences.append(f"{student} has {cell(speed, 1)} times the throughput of {MIDDLE} (no target).")
    return sentences


def _demo(demo: dict[str, Any], hot: float) -> list[str]:
    way = f"batches of {demo['batch_size']} with fairchem's LBFGS" if demo["relaxes_in_batches"] else "one by one with FIRE"
    names = [name for name in ORDER if name in demo["checkpoints"]]
    lines = [
        "## The demo's models",
        "",
        f"{demo['machine']}. {demo['adsorbate']} on {len(demo['surfaces'])} surfaces, {demo['starts']} starts (each site of "
        f"each), relaxed in {way} to {demo['fmax']:g} eV/Å, at most {demo['most_steps']} steps; a surface's energy is that "
        "of its best site. EMT is the potential that labelled the demo's data, relaxed with BFGS from the same starts; its "
        f"energies scatter by {pstdev(demo['energies']['EMT']):.3f} eV (standard deviation over the surfaces). Models are "
        f"interleaved batch by batch. `{demo['command']}` makes this part.",
        "",
        "| model | architecture | parameters | relaxations/hour, all batches | speed-up, wall | speed-up, CPU | steps |",
        "|---" * 7 + "|",
    ]
    slow = demo["relaxed"]["teacher"]
    for name in names:
        _, architecture, parameters = demo["checkpoints"][name]
        own = demo["relaxed"][name]
        cells = [name, architecture, f"{parameters / 1e6:.2f}M", f"{3600 * demo['starts'] / sum(own['seconds']):,.0f}"]
        for clock in ("seconds", "cpu_seconds"):
            cells.append("" if name == "teacher" else cell(ratio(slow[clock], own[clock])))
        lines.append("| " + " | ".join([*cells, cell(own["steps"], 0)]) + " |")
    lines += [
        "",
        "Agreement of the surfaces' energies; in brackets 95 % of a bootstrap over surfaces.",
        "",
        f"| model | with | Spearman | shared of the {demo['top']} most strongly binding | MAE, eV | mean difference, eV |",
        "|---" * 6 + "|",
    ]
    for name in names:
        for reference in ("EMT", "teacher"):
            if name != reference:
                agreement = demo["agreement"][f"{name}, {reference}"]
                cells = [name, reference, _interval(agreement), f"{agreement['overlap']:.0%}", f"{agreement['mae']:.3f}"]
                lines.append("| " + " | ".join([*cells, f"{agreement['offset']:+.3f}"]) + " |")
    steps = len(demo["dynamics"]["EMT"][0]["energy"]) - 1
    lines += [
        "",
        f"Constant energy: {steps} steps of 2 fs from {len(demo['dynamics']['EMT'])} starts thermalised at 300 K with EMT, "
        "the same for all. Drift is the slope of the total energy; EMT's is that of the integrator. A model's "
        "forces are predicted, not derived from its energy; EquiformerV2's differ a little from call to call, too.",
        "",
        "| model | drift, meV/atom/ps | absolute drift | fluctuation, meV/atom | highest K | ms/step |",
        "|---" * 6 + "|",
    ]
    for name in (*names, "EMT"):
        runs = demo["dynamics"][name]
        columns = [[run[key] for run in runs] for key in ("drift", "fluctuation", "temperature", "seconds_per_step")]
        cells = [name, cell(columns[0]), cell([abs(value) for value in columns[0]]), cell(columns[1])]
        cells += [f"{max(columns[2]):.0f}", cell([1e3 * value for value in columns[3]], 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", "![screening](screening.png)"]


def _true_size(part: dict[str, Any]) -> list[str]:
    student, times, atoms = part["student"], part["forwards"], sum(part["atoms"])
    lines = [
        "## Models of the published sizes",
        "",
        f"{part['machine']}. Random weights, so geometries are not relaxed: forwards are timed, energy and forces with "
        f"edges on the fly, of one batch of {len(part['atoms'])} slabs of {min(part['atoms'])} atoms, models interleaved. A "
        f"step of a relaxation costs one forward. `{part['command']}` makes this part.",
        "",
        f"| model | parameters | seconds | CPU seconds | atoms/s | {student} is faster, wall | CPU |",
        "|---" * 7 + "|",
    ]
    for name, own in times.items():
        cells = [name, f"{part['parameters'][name] / 1e6:.1f}M", cell(own["seconds"]), cell(own["cpu_seconds"])]
        cells.append(cell([atoms / value for value in own["seconds"]], 1))
        for clock in ("seconds", "cpu_seconds"):
            cells.append("" if name == student else cell(ratio(own[clock], times[student][clock]), 1))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(demo: dict[str, Any], file: Path) -> None:
    """Energies against EMT's, relaxations per hour, and the course of the total energy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in ORDER if name in demo["checkpoints"]]
    figure, (parity, bars, courses) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    truth = demo["energies"]["EMT"]
    for name in reversed(names):
        label = f"{name}, Spearman {demo['agreement'][f'{name}, EMT']['spearman']:.2f}"
        parity.plot(truth, demo["energies"][name], ".", color=COLORS[name], label=label, alpha=0.7)
    parity.axline((truth[0], truth[0]), slope=1, color="black", linewidth=0.7)
    parity.set(xlabel=f"EMT adsorption energy of {demo['adsorbate']} [eV]", ylabel="model [eV]")
    parity.legend(frameon=False, fontsize=8)
    for place, name in enumerate(names):
        rate = 3600 * demo["starts"] / sum(demo["relaxed"][name]["seconds"])
        bars.bar(place, rate, color=COLORS[name])
        bars.annotate(f"{rate:,.0f}", (place, rate), ha="center", va="bottom")
    bars.set_xticks(range(len(names)), names)
    bars.set_ylabel("relaxations/hour")
    for name in (*names, "EMT"):
        for number, run in enumerate(demo["dynamics"][name]):
            at = [0.002 * step for step in range(len(run["energy"]))]
            courses.plot(at, run["energy"], color=COLORS[name], linewidth=0.8, label=None if number else name)
    courses.set(xlabel="ps at constant energy", ylabel="change of the total energy [meV/atom]")
    courses.legend(frameon=False, fontsize=8)
    for axis in (parity, bars, courses):
        axis.spines[["top", "right"]].set_visible(False)
    partial = file.with_suffix(".partial.png")
    figure.savefig(partial, dpi=150)
    pyplot.close(figure)
    os.replace(partial, file)
