"""The systems that `fairchem-crack bench` measures on: read from a dataset, or made."""

from __future__ import annotations

from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.constraints import FixAtoms
from ase.io import read
from ase.io.formats import UnknownFileTypeError

from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import Records

METALS = ("Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au")  # fcc, with the lattice constants that ASE has
SITES = ("fcc", "hcp", "bridge", "ontop")
HEIGHT = 1.3  # A of the adsorbate over the top layer, near O's on all of these metals
VACUUM = 10.0  # A on each side: at OC20's cutoff of 12 A a slab does not see its image
RATTLE = 0.05  # A, standard deviation: about that of 300 K
LAYERS = range(3, 7)
MOST_REPEATS = 12  # of the primitive surface cell along each side


def read_systems(source: Path, count: int) -> list[Atoms]:
    """At most `count` systems, the first ones, of a directory or file of OC20's LMDBs, or of anything that ASE reads.

    Raises:
        FileNotFoundError: there is no such file or directory.
        ValueError: no system could be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"--data {source}: no such file or directory (looked in {Path.cwd()}).")
    if source.is_dir() or source.suffix == ".lmdb":
        if source.is_dir() and not any(source.glob("*.lmdb")):
            raise ValueError(
                f"--data {source}: no .lmdb file in it. Give a directory of OC20's LMDBs, or a file that ASE reads."
            )
        with Records({"src": str(source)}) as records:
            systems = [to_atoms(record) for record in records.first(count)]
    else:
        try:
            systems = list(islice(read(source, ":"), count))
        except (UnknownFileTypeError, ValueError, OSError) as error:
            raise ValueError(f"--data {source}: ASE cannot read it: {error}") from error
    if not systems:
        raise ValueError(f"--data {source} holds no system.")
    return systems


def make_systems(atoms: int, count: int) -> list[Atoms]:
    """`count` slabs of about `atoms` atoms: oxygen on the (111) surface of fcc metals, rattled, the lower half fixed.

    Metals and sites go round; the same `atoms` and `count` give the same systems.

    Raises:
        ValueError: fewer than 13 atoms, which is the smallest slab.
    """
    size = slab_size(atoms)
    kinds = islice(cycle(product(SITES, METALS)), count)
    return [_slab(metal, site, size, np.random.default_rng(index)) for index, (site, metal) in enumerate(kinds)]


def slab_size(atoms: int) -> tuple[int, int, int]:
    """Repeats (x, y, layers) of the slab that with one atom more comes nearest to `atoms`; the squarest of these.

    Raises:
        ValueError: fewer than 13 atoms.
    """
    if atoms < 13:
        raise ValueError(f"--atoms {atoms}: the smallest slab has 13 atoms.")
    sides = range(2, MOST_REPEATS + 1)
    sizes = ((x, y, layers) for x in sides for y in range(x, min(x + 2, MOST_REPEATS) + 1) for layers in LAYERS)
    return min(sizes, key=lambda size: (abs(size[0] * size[1] * size[2] + 1 - atoms), size[1] - size[0]))


def _slab(metal: str, site: str, size: tuple[int, int, int], random: np.random.Generator) -> Atoms:
    slab = fcc111(metal, size=size, vacuum=VACUUM)
    is_fixed = slab.get_tags() > (size[2] + 1) / 2  # ase.build numbers layers from the top
    add_adsorbate(slab, "O", HEIGHT, site)
    slab.pbc = True
    slab.set_tags([*np.where(is_fixed, 0, 1), 2])
    free = slab.get_tags() > 0
    slab.positions[free] += random.normal(scale=RATTLE, size=(free.sum(), 3))
    slab.set_constraint(FixAtoms(mask=~free))
    return slab


def take(systems: list[Atoms], count: int, turn: int = 0) -> list[Atoms]:
    """`count` systems, cycling through the list; the `turn`-th call begins where the one before ended."""
    return [systems[(turn * count + index) % len(systems)] for index in range(count)]
