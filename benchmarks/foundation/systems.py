"""Adsorbates on metals and ordered binary alloys, as in OC20: what the benchmark's teacher labels.

Cells are small so that a CPU can label and learn them: 16 atoms of a metal, the lower half of them fixed, and an adsorbate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from ase.db import connect

from fairchem_crack.demo.prepare import SPLITS
from fairchem_crack.demo.systems import G2_NAMES
from fairchem_crack.generate import moves
from fairchem_crack.generate.limits import check_geometry
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.io.files import whole

VOLUMES = {  # A^3 per atom, of the element's own phase (ase.data.reference_states); alloys by Vegard's law
    **{"Al": 16.61, "Cr": 11.94, "Ni": 10.90, "Nb": 17.97, "Mo": 15.63, "Rh": 13.72, "In": 26.13, "Pt": 15.06},
}
BCC_METALS = ("Cr", "Nb", "Mo")
ADSORBATES = ("H", "C", "N", "O", "CH", "NH", "OH", "CO", "NO", "CH2", "H2O", "CH3")
HELD_OUT_ADSORBATES = ("NH2", "HCO", "H2CO")
HELD_OUT_COMPOSITIONS, HELD_OUT_SEED = 16, 0  # of the 84 alloys
CANDIDATES = {"train": 2000, **dict.fromkeys(list(SPLITS)[1:], 160)}  # to label; those with large forces are left out
FCC, BCC = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) / 2, np.array([[0, 0, 0], [1, 1, 1]]) / 2
PROTOTYPES = {"A1": (FCC, "AAAA"), "L1_2": (FCC, "BAAA"), "L1_0": (FCC, "AABB"), "A2": (BCC, "AA"), "B2": (BCC, "AB")}
# Two lattice vectors of the surface, in lattice constants, and the number of atomic planes.
FCC_FACETS = {"111": ((1, -1, 0), (0, 1, -1), 4), "100": ((1, 1, 0), (1, -1, 0), 4), "211": ((0, 1, -1), (1, -1, -1), 8)}
BCC_FACETS = {"110": ((1, -1, 1), (-1, 1, 1), 4), "100": ((2, 0, 0), (0, 2, 0), 4)}
VACUUM = 16.0  # A between the periodic images of a slab
INSIDE = (0.05, 0.05, 0.05)  # by what the ideal sites are moved off the faces of the cell: processors wrap these either way
ABOVE = 2.5  # A over the surface, from where an adsorbate is put elsewhere
# Every system is its surface strained, with its adsorbate at a random place and all free atoms rattled. The teacher's forces
# decide with `max_force` which systems are kept, once they are labelled.
MOVES = ("strain", "displace", "rattle")
LIMITS = Settings({"+".join(MOVES): 1}, sigma=(0.01, 0.08), strain=0.01, min_distance=0.7, max_force=10.0)


@dataclass(frozen=True)
class Surface:
    """A facet of a metal or of an alloy of A and B, whose name is its composition: Pt, PtNi, Pt3Ni."""

    prototype: str
    facet: str
    major: str
    minor: str

    @property
    def composition(self) -> str:
        """Of the bulk."""
        if self.major == self.minor:
            return self.major
        return f"{self.major}{3 if self.prototype == 'L1_2' else ''}{self.minor}"

    def slab(self) -> Atoms:
        """The unrelaxed slab: tags 0 (fixed) and 1, periodic in all directions."""
        places, occupation = PROTOTYPES[self.prototype]
        symbols = [self.major if site == "A" else self.minor for site in occupation]
        constant = sum(VOLUMES[symbol] for symbol in symbols) ** (1 / 3)  # A, of the cubic cell
        first, second, planes = (FCC_FACETS if places is FCC else BCC_FACETS)[self.facet]
        frame = np.array([first, second, np.cross(first, second)], float)
        shifts = np.array(list(product(range(-4, 5), repeat=3)))
        sites = (places[:, None] + shifts).reshape(-1, 3) @ np.linalg.inv(frame)  # in vectors of the frame
        symbols = np.repeat(symbols, len(shifts))
        heights = np.unique(sites[sites[:, 2] > -1e-6, 2].round(6))[:planes]
        is_inside = (sites[:, :2] > -1e-6).all(1) & (sites[:, :2] < 1 - 1e-6).all(1) & np.isin(sites[:, 2].round(6), heights)
        sites, symbols = sites[is_inside], symbols[is_inside]
        slab = Atoms(symbols, cell=constant * frame, scaled_positions=sites, pbc=True)
        slab.set_cell(slab.cell.standard_form()[0], scale_atoms=True)
        height = slab.positions[:, 2]
        is_bottom = height < np.median(height)
        slab.set_tags(np.where(is_bottom, 0, 1))
        slab.set_constraint(FixAtoms(mask=is_bottom))
        slab.cell[2] = [0, 0, np.ptp(height) + VACUUM]
        return slab


def surfaces() -> list[Surface]:
    """All of them: metals in their own lattice, A3B as L1_2, AB as L1_0 and B2."""
    bulks = [("A2" if metal in BCC_METALS else "A1", metal, metal) for metal in VOLUMES]
    for major, minor in product(VOLUMES, repeat=2):
        if major != minor:
            bulks.append(("L1_2", major, minor))
        if major < minor:
            bulks += [("L1_0", major, minor), ("B2", major, minor)]
    facets = {name: FCC_FACETS if places is FCC else BCC_FACETS for name, (places, _) in PROTOTYPES.items()}
    return [Surface(name, facet, major, minor) for name, major, minor in bulks for facet in facets[name]]


def held_out_compositions() -> set[str]:
    """Alloys that no system to train on has; all of their elements occur in others."""
    alloys = sorted({surface.composition for surface in surfaces() if surface.major != surface.minor})
    return set(np.random.default_rng(HELD_OUT_SEED).choice(alloys, HELD_OUT_COMPOSITIONS, replace=False).tolist())


def draw_system(
    rng: np.random.Generator, choices: list[Surface], adsorbates: tuple[str, ...], changes: tuple[str, ...] = MOVES
) -> Atoms:
    """A random system within the limits on distances; in `info` its composition, prototype, facet and adsorbate.

    Args:
        changes: the moves that make it of its ideal surface.
    """
    while True:
        surface, name = choices[rng.integers(len(choices))], adsorbates[rng.integers(len(adsorbates))]
        system, adsorbate = surface.slab(), Atoms(name) if len(name) == 1 else molecule(G2_NAMES.get(name, name))
        adsorbate.set_tags(2)
        adsorbate.translate([0, 0, system.positions[:, 2].max() + ABOVE - adsorbate.positions[:, 2].min()])
        system += adsorbate
        try:
            for move in changes:
                moves.BY_NAME[move](system, LIMITS, rng)
            check_geometry(system, LIMITS)
        except ThrownOut:
            continue
        system.positions += INSIDE @ system.cell.array
        system.wrap()
        system.info = {"composition": surface.composition, "prototype": surface.prototype, "facet": surface.facet}
        system.info["adsorbate"] = name
        return system


def draw_split(split: str, count: int) -> Iterator[Atoms]:
    """The systems of a split; the first n of more are the same."""
    number, new_adsorbates, new_compositions = SPLITS[split]
    held_out = held_out_compositions()
    choices = [surface for surface in surfaces() if (surface.composition in held_out) is new_compositions]
    for index in range(count):
        rng = np.random.default_rng([number, index])
        yield draw_system(rng, choices, HELD_OUT_ADSORBATES if new_adsorbates else ADSORBATES)


def write_candidates(file: Path, split: str, count: int) -> None:
    """Write the systems of a split, without labels, to an ASE database, unless it is there."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as partial, connect(partial, type="db") as database:
        for number, system in enumerate(draw_split(split, count)):
            database.write(system, data={"sid": number, **system.info})
