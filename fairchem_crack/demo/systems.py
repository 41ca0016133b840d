"""Small adsorbate-on-slab systems labelled with ASE's EMT potential.

The demo's stand-in for OC20: the same kind of system (a metal slab with fixed bottom layer, one adsorbate, periodic cell,
tags 0/1/2), the same kind of label (adsorption energy, forces), from a potential that costs milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from ase import Atoms
from ase.build import bcc100, bcc110, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.optimize import BFGS

# Lattice constants of the fcc metals that EMT is fitted to, in A (ase.calculators.emt reproduces them to 1 %).
LATTICE_CONSTANTS = {"Al": 4.05, "Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}
# Same volume per atom in bcc (2 atoms per cube) as in fcc (4 per cube).
BCC_PER_FCC = 0.5 ** (1 / 3)
FACETS = {"fcc111": fcc111, "fcc100": fcc100, "bcc110": bcc110, "bcc100": bcc100}
SLAB_SIZE = (2, 2, 3)
VACUUM = 7.0  # A on each side of the slab

# Metals seen in training, pure or alloyed; the held-out ones appear in training only inside alloys (see `catalysts`).
HELD_OUT_METALS = ("Pd", "Au")
ADSORBATES = ("H", "C", "N", "O", "CH", "NH", "OH", "CO", "N2", "CH2", "H2O", "CH3")
HELD_OUT_ADSORBATES = ("NO", "NH2", "HCO")
G2_NAMES = {"CH2": "CH2_s3B1d"}  # where ase.build.molecule calls it otherwise

MAX_FORCE = 8.0  # eV/A on a free atom; beyond it a rattled start is unphysical and drawn again
MAX_ENERGY = 12.0  # eV, absolute adsorption energy; the same


@dataclass(frozen=True)
class Catalyst:
    """One surface: `composition` is a metal ("Cu") or an ordered alloy ("Cu3Pt", "CuPt"), `facet` a key of FACETS."""

    composition: str
    major: str
    minor: str | None
    per_layer_minor: int
    facet: str


def catalysts(*, held_out: bool) -> list[Catalyst]:
    """The surfaces of the training and in-domain splits, or those of the out-of-domain ("cat") splits.

    Held out are the pure metals of HELD_OUT_METALS and their alloy with each other. Each of these elements still occurs in
    training as the minor component of alloys, as in OC20, whose out-of-domain catalysts are unseen compositions of seen
    elements: an element that no training system contains would leave its embedding untrained in student and teacher alike.
    """
    surfaces = []
    for metal in LATTICE_CONSTANTS:
        if (metal in HELD_OUT_METALS) is held_out:
            surfaces += [Catalyst(metal, metal, None, 0, facet) for facet in FACETS]
    for first, second in combinations(LATTICE_CONSTANTS, 2):
        if {first, second} <= set(HELD_OUT_METALS):
            orders = [(first, second), (second, first)] if held_out else []
        elif held_out:
            orders = []
        else:  # a held-out metal is never the major component
            orders = [pair for pair in ((first, second), (second, first)) if pair[0] not in HELD_OUT_METALS]
        for major, minor in orders:
            surfaces += [Catalyst(f"{major}3{minor}", major, minor, 1, facet) for facet in FACETS]
        if len(orders) == 2:
            surfaces += [Catalyst(first + second, first, second, 2, facet) for facet in FACETS]
    return surfaces


@cache
def clean_slab(catalyst: Catalyst) -> tuple[Atoms, float]:
    """The relaxed slab without adsorbate and its EMT energy in eV."""
    lattice_constant = LATTICE_CONSTANTS[catalyst.major]
    if catalyst.minor is not None:  # Vegard's law
        fraction = catalyst.per_layer_minor / 4
        lattice_constant += fraction * (LATTICE_CONSTANTS[catalyst.minor] - lattice_constant)
    if catalyst.facet.startswith("bcc"):
        lattice_constant *= BCC_PER_FCC
    slab = FACETS[catalyst.facet](catalyst.major, size=SLAB_SIZE, a=lattice_constant, vacuum=VACUUM)
    slab.pbc = True
    if catalyst.minor is not None:
        symbols = np.array(slab.get_chemical_symbols(), dtype=object)
        minor = np.zeros(len(slab), dtype=bool)
        for layer in np.unique(slab.get_tags()):  # ase.build numbers layers from the top
            sites = np.flatnonzero(slab.get_tags() == layer)
            # shift the pattern from layer to layer, so that minor atoms do not sit on top of each other
            minor[np.roll(sites, layer)[: catalyst.per_layer_minor]] = True
        symbols[minor] = catalyst.minor
        slab.set_chemical_symbols(list(symbols))
    is_bottom = slab.get_tags() == SLAB_SIZE[2]
    slab.set_tags(np.where(is_bottom, 0, 1))
    slab.set_constraint(FixAtoms(mask=is_bottom))
    slab.calc = EMT()
    BFGS(slab, logfile=None).run(fmax=0.03, steps=60)
    return slab, slab.get_potential_energy()


@cache
def gas_molecule(name: str) -> tuple[Atoms, float]:
    """The molecule relaxed in the gas phase and its EMT energy in eV."""
    atoms = Atoms(name) if len(name) == 1 else molecule(G2_NAMES.get(name, name))
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=0.03, steps=200)
    return atoms, atoms.get_potential_energy()


@cache
def reference_energy(symbol: str) -> float:
    """Gas-phase energy of one adsorbate atom in eV, from H2, H2O, CO and N2 as OC20 does (Chanussot et al. 2021)."""
    if symbol == "H":
        return gas_molecule("H2")[1] / 2
    if symbol == "N":
        return gas_molecule("N2")[1] / 2
    if symbol == "O":
        return gas_molecule("H2O")[1] - gas_molecule("H2")[1]
    if symbol == "C":
        return gas_molecule("CO")[1] - reference_energy("O")
    raise KeyError(f"No gas-phase reference for element {symbol}; known are H, C, N, O.")


def draw_system(rng: np.random.Generator, surfaces: list[Catalyst], adsorbates: tuple[str, ...]) -> Atoms:
    """Draw one rattled, partly relaxed adsorbate-slab system, labelled.

    E_ads = E(slab + adsorbate) - E(relaxed clean slab) - sum over adsorbate atoms of their gas-phase reference.

    Returns:
        Atoms with energy (eV) and forces (eV/A) in a SinglePointCalculator, tags 0 (fixed), 1 (free slab), 2 (adsorbate),
        and in `info`: `catalyst`, `facet`, `adsorbate`, and `frame`, the number of relaxation steps taken.
    """
    while True:
        catalyst = surfaces[rng.integers(len(surfaces))]
        adsorbate = adsorbates[rng.integers(len(adsorbates))]
        system = _place(rng, catalyst, adsorbate)
        slab_energy = clean_slab(catalyst)[1]
        reference = slab_energy + sum(map(reference_energy, system[system.get_tags() == 2].get_chemical_symbols()))
        system.calc = EMT()
        frame = int(rng.integers(0, 9))
        BFGS(system, logfile=None, maxstep=0.1).run(fmax=0.02, steps=frame)
        energy = system.get_potential_energy() - reference
        forces = system.get_forces(apply_constraint=False)
        free = system.get_tags() > 0
        if np.abs(forces[free]).max() < MAX_FORCE and abs(energy) < MAX_ENERGY:
            system.calc = SinglePointCalculator(system, energy=energy, forces=forces)
            system.info = {"catalyst": catalyst.composition, "facet": catalyst.facet, "adsorbate": adsorbate, "frame": frame}
            return system


def _place(rng: np.random.Generator, catalyst: Catalyst, name: str) -> Atoms:
    """Put a randomly turned adsorbate over a random point of the surface and rattle every free atom."""
    slab = clean_slab(catalyst)[0].copy()
    adsorbate = gas_molecule(name)[0].copy()
    adsorbate.euler_rotate(*rng.uniform(0, 360, size=3), center="COM")
    adsorbate.set_tags(2)
    lateral = rng.uniform(size=2) @ np.asarray(slab.cell)[:2, :2]
    adsorbate.translate([*lateral, 0.0] - adsorbate.get_center_of_mass())
    adsorbate.translate([0, 0, slab.positions[:, 2].max() + _clearance(slab, adsorbate) * rng.uniform(0.9, 1.15)])
    system = slab + adsorbate
    free = system.get_tags() > 0
    system.positions[free] += rng.normal(scale=rng.uniform(0.02, 0.12), size=(free.sum(), 3))
    system.wrap(pbc=[True, True, False])
    return system


def _clearance(slab: Atoms, adsorbate: Atoms) -> float:
    """Height in A of the adsorbate's centre over the top layer at which its closest atom touches a slab atom."""
    top = slab[slab.positions[:, 2] > slab.positions[:, 2].max() - 0.5]
    shifts = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ np.asarray(slab.cell)[:2, :2]
    lateral = adsorbate.positions[:, None, None, :2] - (top.positions[None, :, None, :2] + shifts)
    touch = covalent_radii[adsorbate.numbers][:, None, None] + covalent_radii[top.numbers][None, :, None]
    height = np.sqrt(np.clip(touch**2 - (lateral**2).sum(-1), 0.25, None)) - adsorbate.positions[:, 2][:, None, None]
    return float(height.max())
