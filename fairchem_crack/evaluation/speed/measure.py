"""Latency, molecular dynamics, relaxations and throughput of several models, interleaved, over some repeats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ase import Atoms

from fairchem_crack.evaluation.speed.runs import Model, ns_per_day, relax, run_dynamics, single_point_seconds, warm_up
from fairchem_crack.evaluation.speed.systems import take
from fairchem_crack.evaluation.time_and_memory import Throughput, measure_throughput


def throughput_by_size(
    models: dict[str, Model], systems: list[Atoms], sizes: Sequence[int], repeats: int
) -> dict[str, dict[str, Throughput]]:
    """Of each model, `measure_throughput` at each batch size."""
    measured: dict[str, dict[str, Throughput]] = {name: {} for name in models}
    device = next(iter(models.values())).device
    for size in sizes:
        chosen = take(systems, size)
        forwards = {name: model.forward for name, model in models.items()}
        batches = {name: model.batch(chosen) for name, model in models.items()}
        for name, throughput in measure_throughput(forwards, batches, device, repeats=repeats).items():
            measured[name][str(size)] = throughput
    return measured


def measure_latency(models: dict[str, Model], system: Atoms, repeats: int) -> dict[str, Any]:
    """Of each model, `seconds` of a single point of each repeat."""
    measured: dict[str, Any] = {name: {"seconds": []} for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            seconds = single_point_seconds(model, system, repeat)
            if repeat:  # the first one warms up
                measured[name]["seconds"].append(seconds)
    return measured


def measure_dynamics(models: dict[str, Model], system: Atoms, options: argparse.Namespace) -> dict[str, Any]:
    """Of each model and repeat: `ns_per_day`, `seconds_per_step`, and the `temperature` in K that the last step had."""
    measured: dict[str, Any] = {name: {"ns_per_day": [], "seconds_per_step": [], "temperature": []} for name in models}
    for repeat in range(options.repeats):
        for name, model in models.items():
            dynamics = run_dynamics(model, system, steps=options.md_steps, time_step=options.time_step, seed=repeat)
            measured[name]["ns_per_day"].append(ns_per_day(dynamics.seconds_per_step, options.time_step))
            measured[name]["seconds_per_step"].append(dynamics.seconds_per_step)
            measured[name]["temperature"].append(dynamics.temperature)
    return measured


def measure_relaxation(models: dict[str, Model], systems: list[Atoms], options: argparse.Namespace) -> dict[str, Any]:
    """Of each model and repeat: relaxations `per_hour`, mean `steps` of one, the fraction `converged`, `steps_per_second`.

    The systems of a repeat are the next ones of the list, the same for all models.
    """
    quantities = ("per_hour", "steps", "converged", "steps_per_second")
    measured: dict[str, Any] = {name: {quantity: [] for quantity in quantities} for name in models}
    for repeat in range(options.repeats):
        chosen = take(systems, options.relax_batch_size, repeat)
        for name, model in models.items():
            if not repeat:
                warm_up(model, model.batch(chosen))
            relaxed = relax(model, chosen, fmax=options.fmax, most_steps=options.relax_steps)
            measured[name]["per_hour"].append(3600 * len(chosen) / relaxed.seconds)
            measured[name]["steps"].append(float(relaxed.steps.mean()))
            measured[name]["converged"].append(float(relaxed.converged.mean()))
            measured[name]["steps_per_second"].append(float(relaxed.steps.sum()) / relaxed.seconds)
    return measured


def ratios(own: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """How many times as fast as the reference, of each repeat; above 1 is faster, for latencies too."""

    def divide(numerators: list[float], denominators: list[float]) -> list[float]:
        return [numerator / denominator for numerator, denominator in zip(numerators, denominators)]

    of_quantities: dict[str, Any] = {}
    if "throughput" in own:
        rates = [
            {size: rate.get("atoms_per_second", []) for size, rate in model["throughput"].items()}
            for model in (own, reference)
        ]
        of_quantities["throughput"] = {size: divide(rate, rates[1][size]) for size, rate in rates[0].items()}
    if "latency" in own:
        of_quantities["latency"] = divide(reference["latency"]["seconds"], own["latency"]["seconds"])
    if "dynamics" in own:
        of_quantities["dynamics"] = divide(own["dynamics"]["ns_per_day"], reference["dynamics"]["ns_per_day"])
    if "relaxation" in own:
        of_quantities["relaxation"] = divide(own["relaxation"]["per_hour"], reference["relaxation"]["per_hour"])
    return of_quantities
