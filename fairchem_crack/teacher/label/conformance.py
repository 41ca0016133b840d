"""What a teacher promises, tried on some systems: `python -m fairchem_crack.teacher.label --check`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import Sums
from fairchem_crack.teacher.label.job import outputs_of
from fairchem_crack.teacher.label.protocol import EQUAL, SUM, Labeller, Outputs, deviations
from fairchem_crack.teacher.label.systems import System, Systems

SYSTEMS = 4
REPEATED = 1e-5  # the same, of two runs on the same system
STEP = 1e-2  # A, to both sides: the difference of the energies gives a force
LARGEST = 65504.0  # that float16 holds
TURN = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0]
TURN *= np.linalg.det(TURN)  # a rotation, no reflection


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        is_met: None for what is reported only.
    """

    name: str
    result: str
    expected: str
    is_met: Optional[bool]


def check(labeller: Labeller, systems: Systems) -> list[Row]:
    """Try a teacher on a few of these systems.

    Raises:
        CacheError: its outputs have the wrong shapes, are not finite, or do not add up.
    """
    chosen = [systems[index] for index in evenly_spaced(len(systems), SYSTEMS)]
    outputs = outputs_of(labeller, chosen)
    return [
        *_of_repetition(labeller, chosen, outputs),
        *_of_symmetry(labeller, chosen, outputs),
        *_of_numbers(outputs),
        *_of_pairs(labeller, chosen, outputs),
        _of_forces(labeller, chosen, outputs),
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows, in columns."""
    words = {True: "pass", False: "FAIL", None: ""}
    cells = [("check", "result", "expected", "")] + [(*row[:3], words[row.is_met]) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def _of_repetition(labeller: Labeller, systems: list[System], outputs: list[Outputs]) -> Iterator[Row]:
    began = time.perf_counter()
    again = outputs_of(labeller, systems)
    seconds = (time.perf_counter() - began) / len(systems)
    yield Row("time of a system", f"{seconds:.2g} s", f"reported: {len(systems)} together", None)
    yield _compared("the same again", outputs, again, REPEATED)
    yield _compared("each by itself", outputs, [outputs_of(labeller, [system])[0] for system in systems], EQUAL)


def _of_symmetry(labeller: Labeller, systems: list[System], outputs: list[Outputs]) -> Iterator[Row]:
    def after(change: str) -> list[Outputs]:
        return outputs_of(labeller, [system._replace(atoms=CHANGES[change](system.atoms)) for system in systems])

    turned = _compared("turned", [_turned(each) for each in outputs], after("turned"), EQUAL)
    yield turned if labeller.is_invariant else turned._replace(expected="reported: learned only", is_met=None)
    yield _compared("moved", outputs, after("moved"), EQUAL)
    yield _compared("atoms in another order", [_reversed(each) for each in outputs], after("reversed"), EQUAL)


def _rotated(atoms: Atoms) -> Atoms:
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ TURN.T)
    turned.set_positions(atoms.positions @ TURN.T)
    return turned


def _shifted(atoms: Atoms) -> Atoms:
    """Moved, and its atoms in other cells."""
    moved = atoms.copy()
    moved.positions += 0.37
    moved.positions[::2] += atoms.cell.array[0] * atoms.pbc[0]
    return moved


CHANGES = {"turned": _rotated, "moved": _shifted, "reversed": lambda atoms: atoms[::-1]}


def _turned(outputs: Outputs) -> Outputs:
    """What a teacher should say of the turned system."""
    vectors = outputs.vector_embedding
    return Outputs(
        outputs.energy,
        outputs.forces @ TURN.T,
        outputs.atom_energies,
        outputs.node_embedding,
        None if vectors is None else np.einsum("ij,njc->nic", TURN, vectors),
        outputs.pairs,
    )


def _reversed(outputs: Outputs) -> Outputs:
    values = {name: value[::-1] for name, value in outputs.fields.items() if name != "energy"}
    pairs = None if outputs.pairs is None else len(outputs.forces) - 1 - outputs.pairs[::-1]
    return Outputs(outputs.energy, **values, pairs=pairs)


def _compared(name: str, expected: list[Outputs], actual: list[Outputs], limit: float) -> Row:
    worst, field = max(deviations(expected, actual))
    return Row(name, f"{worst:.1e} ({field})", f"at most {limit:.0e}", worst <= limit)


def _of_numbers(outputs: list[Outputs]) -> Iterator[Row]:
    energies = [(each.energy, each.atom_energies) for each in outputs if each.atom_energies is not None]
    if energies:
        totals = [(float(parts.astype(np.float64).sum()), float(np.abs(parts).sum())) for _, parts in energies]
        worst = max(abs(total - energy) / max(1.0, size) for (energy, _), (total, size) in zip(energies, totals))
        yield Row("sum of the atom energies", f"{worst:.1e}", f"at most {SUM:.0e}", worst <= SUM)
    embeddings = [each.node_embedding for each in outputs if each.node_embedding is not None]
    if embeddings:
        largest, sums = max(float(np.abs(each).max()) for each in embeddings), Sums(embeddings[0].shape[1])
        for each in embeddings:
            sums.add(each)
        lost = sums.lost_in("float16")
        is_safe = largest < LARGEST and not lost
        yield Row("embedding in float16", f"at most {largest:.3g}, {lost} channels lost", "else --dtype float32", is_safe)
        stds = sums.std[sums.std > 0]
        spread = f"{stds.min():.2g} to {stds.max():.2g}" if len(stds) else "constant"
        yield Row("standard deviation of the channels", spread, "reported", None)


def _of_pairs(labeller: Labeller, systems: list[System], outputs: list[Outputs]) -> Iterator[Row]:
    numbers = [(system.atoms, each.pairs) for system, each in zip(systems, outputs) if each.pairs is not None]
    if not numbers:
        return
    mean = np.mean([pairs.shape[1] for _, pairs in numbers])
    is_sorted = all(
        (pairs[0] < pairs[1]).all() and np.unique(pairs, axis=1).shape == pairs.shape and pairs.max(initial=0) < len(atoms)
        for atoms, pairs in numbers
    )
    yield Row("pairs i < j, each once", f"{mean:.0f} a system", "", is_sorted)
    if labeller.cutoff is not None and is_sorted:
        longest, cutoff = max(float(_lengths(*each).max(initial=0.0)) for each in numbers), labeller.cutoff
        yield Row("their distance", f"{longest:.3f} A", f"at most {cutoff:.3f} A", longest <= cutoff * (1 + EQUAL))


def _lengths(atoms: Atoms, pairs: np.ndarray) -> np.ndarray:
    """(P,) distance of the nearest images of each pair, A."""
    return find_mic(atoms.positions[pairs[1]] - atoms.positions[pairs[0]], atoms.get_cell(complete=True), atoms.pbc)[1]


def _of_forces(labeller: Labeller, systems: list[System], outputs: list[Outputs]) -> Row:
    """A component of the force on an atom of each system, and the slope of the energy along it."""
    rng, moved, picked = np.random.default_rng(0), [], []
    for system in systems:
        atom, axis = int(rng.integers(len(system.atoms))), int(rng.integers(3))
        picked.append((atom, axis))
        for sign in (-1, 1):
            atoms = system.atoms.copy()
            atoms.positions[atom, axis] += sign * STEP
            moved.append(system._replace(atoms=atoms))
    energies = np.array([each.energy for each in outputs_of(labeller, moved)]).reshape(-1, 2)
    slopes = (energies[:, 0] - energies[:, 1]) / (2 * STEP)
    forces = np.array([each.forces[place] for each, place in zip(outputs, picked)])
    result = f"differ by {np.abs(slopes - forces).max():.1e} of {np.abs(forces).max():.2g} eV/A"
    return Row("forces and -dE/dx", result, "reported: direct forces differ", None)
