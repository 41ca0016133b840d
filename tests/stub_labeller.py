"""Teachers of no framework: outputs that are simple functions of the distances, for tests of labelling."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list

from fairchem_crack.teacher.label import Labeller, Outputs, pairs_of

CUTOFF = 4.0
CALLS = "STUB_LABELLER_CALLS"  # in the environment: a file that gets a line for each system
DIES = "STUB_LABELLER_DIES"  # a file; where there is none, `Dying` makes it and is killed


def outputs_of(atoms: Atoms) -> Outputs:
    """E_i = sum_j (1 - d_ij / 4 A)^2 of its neighbors, vectors of the same weights, four embedding channels."""
    first, second, lengths, vectors = neighbor_list("ijdD", atoms, CUTOFF)
    weight, count = 1 - lengths / CUTOFF, len(atoms)
    energies, forces, vector = np.zeros(count), np.zeros((count, 3)), np.zeros((count, 3, 2))
    np.add.at(energies, first, weight**2)
    np.add.at(forces, first, -4 / CUTOFF * (weight / lengths)[:, None] * vectors)
    np.add.at(vector, first, weight[:, None, None] ** np.array([2, 3]) * vectors[:, :, None])
    embedding = np.stack([energies, energies**2, np.cos(energies), np.sin(energies)], axis=1)
    return Outputs(float(energies.sum()), forces, energies, embedding, vector, pairs_of(np.stack([first, second])))


class Stub(Labeller):
    """Knows elements up to copper."""

    fingerprint, cutoff, elements, identity = "stub", CUTOFF, range(1, 30), {"stub": "1.0"}

    def __call__(self, systems):
        if CALLS in os.environ:
            with Path(os.environ[CALLS]).open("a") as file:
                file.writelines(f"{atoms.get_chemical_formula()}\n" for atoms in systems)
        return [outputs_of(atoms) for atoms in systems]


class OtherTask(Stub):
    """The same weights."""

    fingerprint, identity = "stub", {**Stub.identity, "task": "omat"}


class Dying(Stub):
    """Killed once, before its fourth call; knows any element."""

    elements = None

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, systems):
        self.calls += 1
        died = Path(os.environ[DIES])
        if self.calls == 4 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(systems)


class Failing(Stub):
    """Fails for copy 2 of parent 0, and gives no number for parent 1."""

    elements = None

    def __call__(self, systems):
        ids = [(atoms.info["parent"], atoms.info["copy_number"]) for atoms in systems]
        if (0, 2) in ids:
            raise RuntimeError("cannot")
        made = super().__call__(systems)
        return [replace(each, energy=np.nan) if place == (1, 0) else each for each, place in zip(made, ids)]


class Turning(Stub):
    """Its embedding depends on how a system lies."""

    def __call__(self, systems):
        return [
            Outputs(**{**vars(each), "node_embedding": each.node_embedding + atoms.positions[:, :1]})
            for each, atoms in zip(super().__call__(systems), systems)
        ]


class Wrong(Stub):
    """Spoils the outputs for systems with a nitrogen."""

    elements = None

    def __init__(self, name: str, value) -> None:
        self.name, self.value = name, value

    def __call__(self, systems):
        if self.name == "raises" and any(7 in atoms.numbers for atoms in systems):
            raise KeyError("N")
        made = super().__call__(systems)
        return [
            Outputs(**{**vars(each), self.name: self.value}) if 7 in atoms.numbers else each
            for each, atoms in zip(made, systems)
        ]


def raises() -> Wrong:
    return Wrong("raises", None)


def raises_always():
    def function(systems):
        raise KeyError("all")

    return function


def not_finite() -> Wrong:
    return Wrong("forces", np.full((2, 3), np.nan))


def unlike_its_sum() -> Wrong:
    return Wrong("energy", 7.0)


def without_embedding() -> Wrong:
    return Wrong("node_embedding", None)


def misshapen() -> Wrong:
    return Wrong("node_embedding", np.zeros((3, 4)))


def fails_to_load():
    raise OSError("no weights")


def without_list():
    return lambda systems: None


def tuples():
    return lambda systems: [(0.0, np.zeros((len(atoms), 3))) for atoms in systems]


def words():
    return lambda systems: [Outputs("low", np.zeros((len(atoms), 3))) for atoms in systems]


def no_array():
    class Tensor:
        def __array__(self, *args, **kwargs):
            raise RuntimeError("requires grad")

    return lambda systems: [Outputs(Tensor(), np.zeros((len(atoms), 3))) for atoms in systems]


def with_edges():
    return lambda systems: [Outputs(0.0, np.zeros((len(atoms), 3)), pairs=np.array([[0, 1], [1, 0]])) for atoms in systems]


def emt() -> EMT:
    return EMT()


def function():
    return lambda systems: [outputs_of(atoms) for atoms in systems]


def lists():
    """No arrays; and forces in one buffer, which each system overwrites."""
    buffer = np.zeros((100, 3))

    def of_lists(atoms):
        made = outputs_of(atoms)
        forces = buffer[: len(atoms)]
        forces[:] = made.forces
        rest = {name: getattr(made, name).tolist() for name in ("atom_energies", "node_embedding", "pairs")}
        return Outputs(made.energy, forces, **rest)

    return lambda systems: [of_lists(atoms) for atoms in systems]


def charged():
    return lambda systems: [Outputs(3.0 * atoms.info["charge"] - 400, np.zeros((len(atoms), 3))) for atoms in systems]


def a_class():
    return Stub


def a_number():
    return 7


def random():
    """As a model whose dropout is active."""
    rng = np.random.default_rng(0)

    def noisy(atoms):
        made = outputs_of(atoms)
        return replace(made, node_embedding=made.node_embedding * rng.normal(1, 0.1, (len(atoms), 4)))

    return lambda systems: [noisy(atoms) for atoms in systems]


def with_more():
    def function(systems):
        made = [outputs_of(atoms) for atoms in systems]
        return [
            each if 7 in atoms.numbers else replace(each, atom_energies=None, pairs=None)
            for each, atoms in zip(made, systems)
        ]

    return function
