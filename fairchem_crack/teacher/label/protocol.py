"""What a teacher of another framework is: a function of ASE's Atoms, and a few words about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Optional

import numpy as np
from ase import Atoms

from fairchem_crack.teacher.cache.comparison import smallest_scale

EQUAL = 1e-3  # of a field's largest entry: float32 through many layers, and far below any error of a teacher
SUM = 1e-4  # of the sizes of the atom energies: within it their sum is the energy, in float32


@dataclass(frozen=True)
class Outputs:
    """A teacher's outputs for one system of N atoms; None where the teacher has none.

    Attributes:
        energy: eV.
        forces: (N, 3) eV/A.
        atom_energies: (N,) eV, whose sum is the energy.
        node_embedding: (N, D) invariant under rotation, dimensionless.
        vector_embedding: (N, 3, D_v) l=1 embedding, components x, y, z, which rotate with the system.
        pairs: (2, P) atoms that share an edge of the teacher's graph, i < j, each pair once; see `pairs_of`.
        force_response: (N, 6) A and eV/A^2, no teacher's own: see `responses.with_response`.
    """

    energy: float
    forces: np.ndarray
    atom_energies: Optional[np.ndarray] = None
    node_embedding: Optional[np.ndarray] = None
    vector_embedding: Optional[np.ndarray] = None
    pairs: Optional[np.ndarray] = None
    force_response: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        for name in ("forces", "atom_energies", "node_embedding", "vector_embedding", "pairs"):
            if getattr(self, name) is not None:  # a copy: some frameworks write to the same array again
                object.__setattr__(self, name, np.array(getattr(self, name)))

    @property
    def fields(self) -> dict[str, np.ndarray]:
        """What a record keeps, by name and without the pairs."""
        names = ("energy", "forces", "atom_energies", "node_embedding", "vector_embedding", "force_response")
        return {name: np.asarray(getattr(self, name)) for name in names if getattr(self, name) is not None}


class Labeller(ABC):
    """A teacher of another framework. A subclass sets what it knows of these attributes.

    Attributes:
        fingerprint: of the weights: a cache that was begun with others is not resumed.
        cutoff: of the graph in A; None where there is none.
        elements: atomic numbers that the teacher knows; None where it does not say.
        is_invariant: False for one that has learned only, and so only nearly, how its outputs turn with a system.
        identity: what else decides the outputs, plain values by name: versions, the level of theory.
    """

    fingerprint: str = ""
    cutoff: Optional[float] = None
    elements: Optional[Collection[int]] = None
    is_invariant: bool = True
    identity: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def __call__(self, systems: Sequence[Atoms]) -> list[Outputs]:
        """The outputs for these systems, run together where the framework can.

        A system has the positions that a training reads, no constraints and no calculator.
        """


def pairs_of(edges: np.ndarray) -> np.ndarray:
    """(2, P) pairs i < j, each once, of (2, E) directed edges; an atom's edges to its own images are left out."""
    ordered = np.sort(np.asarray(edges), axis=0)
    return np.unique(ordered[:, ordered[0] < ordered[1]], axis=1)


def deviations(expected: Sequence[Outputs], actual: Sequence[Outputs]) -> Iterator[tuple[float, str]]:
    """The largest difference of each field, of its largest entry; of the pairs, the share of those that differ."""
    for name in expected[0].fields:
        values = [(first.fields[name], second.fields.get(name)) for first, second in zip(expected, actual)]
        scale = max(smallest_scale(name, each.fields) for each in expected)
        scale = max([scale, *(float(np.abs(first).max()) for first, _ in values)])
        yield max(_largest_difference(first, second) for first, second in values) / scale, name
    if expected[0].pairs is not None:
        sets = [(_set_of(first.pairs), _set_of(second.pairs)) for first, second in zip(expected, actual)]
        yield sum(len(first ^ second) for first, second in sets) / max(1, sum(len(first) for first, _ in sets)), "pairs"


def _largest_difference(first: np.ndarray, second: Optional[np.ndarray]) -> float:
    if second is None or second.shape != first.shape:
        return np.inf
    return float(np.abs(first.astype(np.float64) - second).max())


def _set_of(pairs: Optional[np.ndarray]) -> set[tuple[int, int]]:
    return set() if pairs is None else {*zip(*pairs.tolist())}


def fault_of(outputs: Outputs, atoms: Atoms) -> str:
    """What is wrong with outputs for a system; empty where nothing is."""
    count = len(atoms)
    for name, value in outputs.fields.items():
        if value.dtype.kind not in "fiu":
            return f"{name} of type {value.dtype}, expected numbers"
        shape = {"energy": (), "forces": (count, 3), "atom_energies": (count,), "force_response": (count, 6)}.get(name)
        if shape is not None and value.shape != shape:
            return f"{name} of shape {value.shape}, expected {shape}"
        if shape is None and (value.ndim != (2 if name == "node_embedding" else 3) or len(value) != count or not value.size):
            expected = "(N, D)" if name == "node_embedding" else "(N, 3, D_v)"
            return f"{name} of shape {value.shape}, expected {expected} with N = {count}"
        if not np.isfinite(value).all():
            return f"{name} not finite"
    if outputs.pairs is not None and not _are_pairs(np.asarray(outputs.pairs), count):
        return f"pairs that are not whole numbers (2, P) with 0 <= i < j < {count}, each pair once: see pairs_of"
    if outputs.atom_energies is not None:
        energies = outputs.atom_energies.astype(np.float64)
        difference = abs(float(energies.sum()) - float(outputs.energy))
        if difference > SUM * max(1.0, float(np.abs(energies).sum())):
            return f"atom_energies whose sum is {energies.sum():.6g} eV, and the energy is {outputs.energy:.6g} eV"
    return ""


def _are_pairs(pairs: np.ndarray, count: int) -> bool:
    if pairs.ndim != 2 or len(pairs) != 2 or pairs.dtype.kind not in "iu":
        return False
    first, second = pairs.astype(np.int64)
    is_ordered = bool((first < second).all()) and first.min(initial=0) >= 0 and second.max(initial=0) < max(count, 1)
    return is_ordered and len(np.unique(first * count + second)) == len(first)
