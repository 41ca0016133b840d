"""The work of `screening.py`: surfaces with an adsorbate, their relaxation, and molecular dynamics at constant energy."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from scipy.stats import spearmanr

from fairchem_crack.demo.systems import Catalyst, catalysts, clean_slab, reference_energy
from fairchem_crack.evaluation.speed.runs import Model, forward_seconds, relax, warm_up
from fairchem_crack.evaluation.stability import drift
from fairchem_crack.evaluation.stability.limits import NO_LIMITS
from fairchem_crack.io.samples import evenly_spaced

# Heights in A at which the adsorbate starts over the top layer, by the coordination of the site.
SITES = {
    "fcc111": {"ontop": 1.7, "bridge": 1.4, "fcc": 1.2, "hcp": 1.2},
    "fcc100": {"ontop": 1.7, "bridge": 1.3, "hollow": 0.9},
    "bcc110": {"ontop": 1.7, "longbridge": 1.2, "shortbridge": 1.4, "hollow": 1.2},
}
OFFSETS = ((0, 0), (1, 0))  # cells of the (2, 2) surface in which a site is tried: in an alloy they differ
TEMPERATURE = 300.0  # K
FRICTION = 0.02  # 1/fs, of the thermostat
TIME_STEP = 2.0  # fs
HOT = 2000.0  # K: a run that gets there has left what the models describe, and its drift says nothing
REPLICATES = 2000  # of the bootstrap over surfaces


@dataclass(frozen=True)
class Candidate:
    """One start of a relaxation: `system` with the adsorbate on a site of the surface called `surface`."""

    surface: str
    site: str
    system: Atoms
    reference: float  # eV, EMT energy of the clean slab and the gas-phase adsorbate


def surfaces(count: int) -> list[Catalyst]:
    """The demo's catalysts with facets of `SITES`, those held out of its training too; `count` of them, spread over all."""
    known = [catalyst for held_out in (False, True) for catalyst in catalysts(held_out=held_out) if catalyst.facet in SITES]
    return [known[index] for index in evenly_spaced(len(known), count)]


def candidates(chosen: list[Catalyst], adsorbate: str) -> list[Candidate]:
    """Every site of every surface; pure metals have the same sites in every cell, and get one offset."""
    return [
        _candidate(catalyst, site, height, offset, adsorbate)
        for catalyst in chosen
        for site, height in SITES[catalyst.facet].items()
        for offset in (OFFSETS if catalyst.minor else OFFSETS[:1])
    ]


def _candidate(catalyst: Catalyst, site: str, height: float, offset: tuple[int, int], adsorbate: str) -> Candidate:
    slab, energy = clean_slab(catalyst)
    system = slab.copy()
    add_adsorbate(system, adsorbate, height, site, offset=offset)
    system.set_tags([*slab.get_tags(), 2])
    name = f"{site}+{offset[0]}{offset[1]}"
    return Candidate(f"{catalyst.composition} {catalyst.facet}", name, system, energy + reference_energy(adsorbate))


def relax_emt(starts: list[Candidate], *, fmax: float, most_steps: int) -> dict[str, list]:
    """Adsorption energy in eV of each start relaxed with the potential that labelled the data, steps, and convergence."""
    relaxed: dict[str, list] = {"energy": [], "steps": [], "converged": []}
    for start in starts:
        system = start.system.copy()
        system.calc = EMT()
        optimizer = BFGS(system, logfile=None)
        relaxed["converged"].append(bool(optimizer.run(fmax=fmax, steps=most_steps)))
        relaxed["steps"].append(optimizer.nsteps)
        relaxed["energy"].append(system.get_potential_energy() - start.reference)
    return relaxed


def relax_all(
    models: dict[str, Model], starts: list[Candidate], *, batch_size: int, fmax: float, most_steps: int
) -> dict[str, dict[str, list]]:
    """Every start with every model, models interleaved batch by batch.

    Returns:
        Of each model: `energy` (eV), `steps`, `converged` of each start; `seconds` and `cpu_seconds` of each batch.
    """
    names = ("energy", "steps", "converged", "seconds", "cpu_seconds")
    relaxed: dict[str, dict[str, list]] = {model: {name: [] for name in names} for model in models}
    order = np.random.default_rng(0).permutation(len(starts))  # batches alike, so that each speed-up is of the same kind
    for model in models.values():
        warm_up(model, model.batch([starts[index].system for index in order[:batch_size]]))
    batches = [order[begin : begin + batch_size] for begin in range(0, len(starts), batch_size)]
    for number, batch in enumerate(batches):
        for name in sorted(models, reverse=bool(number % 2)):
            batch_result = relax(models[name], [starts[index].system for index in batch], fmax=fmax, most_steps=most_steps)
            for key in ("energy", "steps", "converged"):
                relaxed[name][key] += getattr(batch_result, key).tolist()
            relaxed[name]["seconds"].append(batch_result.seconds)
            relaxed[name]["cpu_seconds"].append(batch_result.cpu_seconds)
        spent = "  ".join(f"{name} {relaxed[name]['seconds'][-1]:.1f}" for name in models)
        print(f"batch {number + 1} of {len(batches)}: {spent} s", flush=True)
    for values in relaxed.values():  # back into the order of the starts
        for key in ("energy", "steps", "converged"):
            values[key] = [values[key][position] for position in np.argsort(order)]
    return relaxed


def best_sites(starts: list[Candidate], energies: list[float]) -> dict[str, tuple[float, str]]:
    """Lowest energy in eV of each surface, and the site whose start led there."""
    best: dict[str, tuple[float, str]] = {}
    for start, energy in zip(starts, energies):
        if start.surface not in best or energy < best[start.surface][0]:
            best[start.surface] = (energy, start.site)
    return best


def agreement(ours: np.ndarray, theirs: np.ndarray, *, top: int, seed: int = 0) -> dict[str, Any]:
    """How two models rank the same surfaces, (S,) energies in eV each.

    Returns:
        `spearman` and its 95 % interval of a bootstrap over surfaces; `overlap`, the fraction that the `top` most strongly
        binding surfaces of both share, and by chance `overlap_by_chance`; `mae` and mean `offset`, eV.
    """
    random = np.random.default_rng(seed)
    count = len(ours)
    drawn = [random.integers(count, size=count) for _ in range(REPLICATES)]
    replicates = [spearmanr(ours[rows], theirs[rows])[0] for rows in drawn if np.ptp(ours[rows]) and np.ptp(theirs[rows])]
    shared = set(np.argsort(ours)[:top].tolist()) & set(np.argsort(theirs)[:top].tolist())
    return {
        "spearman": float(spearmanr(ours, theirs)[0]),
        "spearman_interval": [float(end) for end in np.quantile(replicates, [0.025, 0.975])],
        "overlap": len(shared) / top,
        "overlap_by_chance": top / count,
        "mae": float(np.abs(ours - theirs).mean()),
        "offset": float((ours - theirs).mean()),
    }


def rank_difference(ours: np.ndarray, others: np.ndarray, truth: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """How much better the first ranks than the second: difference of their Spearman with `truth`, and its 95 % interval.

    The bootstrap over surfaces draws the same ones for both.
    """
    random = np.random.default_rng(seed)

    def difference(rows: Any) -> float:
        return float(spearmanr(ours[rows], truth[rows])[0] - spearmanr(others[rows], truth[rows])[0])

    replicates = [difference(random.integers(len(truth), size=len(truth))) for _ in range(REPLICATES)]
    return {"difference": difference(slice(None)), "interval": np.nanquantile(replicates, [0.025, 0.975]).tolist()}


def thermalised(start: Candidate, *, steps: int, seed: int) -> Atoms:
    """The system relaxed and then held at 300 K by a Langevin thermostat, with EMT; it keeps its velocities."""
    system = start.system.copy()
    system.calc = EMT()
    BFGS(system, logfile=None).run(fmax=0.05, steps=100)
    random = np.random.RandomState(seed)
    # twice the temperature, half of which becomes potential energy
    MaxwellBoltzmannDistribution(system, temperature_K=2 * TEMPERATURE, rng=random)
    thermostat = {"temperature_K": TEMPERATURE, "friction": FRICTION / units.fs, "rng": random}
    Langevin(system, TIME_STEP * units.fs, **thermostat).run(steps)
    return system


def constant_energy(start: Atoms, calculator: Calculator, *, steps: int) -> dict[str, Any]:
    """Velocity Verlet from positions and velocities of `start`, whatever becomes of it.

    Returns:
        `energy`, `drift`, `fluctuation` and `temperature` of `fairchem_crack.evaluation.stability.drift.Course`, and
        `seconds_per_step`.
    """
    system = start.copy()
    system.calc = calculator
    system.get_forces()  # calculated before the time begins
    begin = time.perf_counter()
    options = {"temperature": TEMPERATURE, "limits": NO_LIMITS, "time_step": TIME_STEP}
    course = drift.constant_energy(system, ps=1e-3 * TIME_STEP * steps, **options)
    return {
        "energy": course.energy.tolist(),
        "drift": course.drift,
        "fluctuation": course.fluctuation,
        "temperature": course.temperature,
        "seconds_per_step": (time.perf_counter() - begin) / steps,
    }


def forwards(models: dict[str, Model], systems: list[Atoms], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Of each model: wall-clock and CPU `seconds` of a forward of these systems as one batch, interleaved."""
    times: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "cpu_seconds": []} for name in models}
    batches = {name: model.batch(systems) for name, model in models.items()}
    for name, model in models.items():
        warm_up(model, batches[name])
    for repeat in range(repeats):
        for name, model in models.items():
            start = time.process_time()
            times[name]["seconds"].append(forward_seconds(model, batches[name]))
            times[name]["cpu_seconds"].append(time.process_time() - start)
        shown = "  ".join(f"{name} {values['seconds'][-1]:.2f}" for name, values in times.items())
        print(f"round {repeat + 1} of {repeats}: {shown} s", flush=True)
    return times
