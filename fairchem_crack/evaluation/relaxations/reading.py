"""Systems, relaxed positions, energies and reference forces, from the files of fairchem, of ASE, and from a calculator."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator
from ase.io import iread, write
from torch_geometric.data import Data

from fairchem_crack.evaluation.relaxations.metrics import System, largest_distance
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.io.datasets import Records
from fairchem_crack.io.files import write_text
from fairchem_crack.training.config_checks import ASE_SUFFIXES

ONE_STEP = 0.2  # A: a trajectory ends at most one step before the relaxed positions, and no step is that long
SAME_PLACE = 1e-3  # A: positions that went through a file with few digits
NAMED = 5  # systems of a note or an error that are listed


def read_systems(source: Path, key_mapping: Mapping[str, str]) -> dict[str, System]:
    """The systems of a directory or file of OC20's LMDBs, by their ids as `run-relaxations` writes them.

    Args:
        key_mapping: as fairchem's option; the energy is `y_relaxed`, or `energy_relaxed` as run-relaxations wants it.

    Raises:
        FileNotFoundError: there is no LMDB.
        ValueError: it is no IS2RE dataset.
    """
    if not source.exists() or (source.is_dir() and not any(source.glob("*.lmdb"))):
        raise FileNotFoundError(f"--data {source}: no .lmdb file (looked in {Path.cwd()}). Give OC20's IS2RE LMDBs.")
    if source.suffix in ASE_SUFFIXES:
        raise ValueError(f"--data {source}: an ASE database. Expected LMDBs with pos_relaxed and y_relaxed, as in OC20.")
    systems: dict[str, System] = {}
    with Records({"src": str(source), "key_mapping": dict(key_mapping)}) as records:
        for index in range(len(records)):
            sid, system = _system(records[index], f"--data {source}: system {index}")
            if sid in systems:
                raise ValueError(
                    f"--data {source}: sid {sid} occurs twice. Expected one initial structure per system, as in IS2RE."
                )
            systems[sid] = system
    return systems


def _system(record: Data, where: str) -> tuple[str, System]:
    """A record's id and system; ValueError, beginning with `where`, for one that cannot have been relaxed."""
    if lacking := [name for name in ("sid", "fixed", "tags") if name not in record]:
        raise ValueError(f"{where} has no {', '.join(lacking)}, which fairchem needs for a relaxation.")
    sid = str(record.sid.item() if hasattr(record.sid, "item") else record.sid)
    free = record.fixed.numpy() == 0
    if not free.any():
        raise ValueError(f"{where} (sid {sid}) has no free atom, so it cannot relax.")
    energy = getattr(record, "y_relaxed", None)
    energy = getattr(record, "energy_relaxed", None) if energy is None else energy
    positions = getattr(record, "pos_relaxed", None)
    return sid, System(
        to_atoms(record),
        free,
        None if positions is None else positions.double().numpy(),
        None if energy is None else float(energy),
    )


def read_arrays(file: Path, key: str) -> dict[str, np.ndarray]:
    """The rows of each system in an .npz file of fairchem's: `ids` (B,), `key` (sum N, 3), `chunk_idx` (B - 1,) its cuts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file.
    """
    try:
        with np.load(file) as content:
            ids, rows, cuts = (content[name] for name in ("ids", key, "chunk_idx"))
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: expected an .npz with ids, {key} and chunk_idx, as fairchem writes; {error}") from error
    parts = np.split(rows, cuts)
    if len(parts) != len(ids) or rows.shape[1:] != (3,):
        raise ValueError(
            f"{file}: {len(ids)} ids, {len(parts)} chunks of shape {rows.shape[1:]}. Expected one of (3,) of each id."
        )
    return {str(sid): part.astype(float) for sid, part in zip(ids, parts)}


def check_ids(file: Path, rows_of_ids: Mapping[str, np.ndarray], systems: Mapping[str, System]) -> None:
    """Raise ValueError when a file has systems that the dataset has not, or of another size."""
    if unknown := [sid for sid in rows_of_ids if sid not in systems]:
        raise ValueError(
            f"{file}: {listed(unknown, len(rows_of_ids))} are not in --data, whose first is {next(iter(systems))}. "
            "Give the dataset that was relaxed."
        )
    for sid, rows in rows_of_ids.items():
        if len(rows) != len(systems[sid].atoms):
            raise ValueError(
                f"{file}: system {sid} has {len(rows)} atoms, in --data {len(systems[sid].atoms)}. "
                "Give the dataset that was relaxed."
            )


def read_energies(directory: Path, positions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Energy in eV of the last frame of each system's trajectory; a system with an empty one is left out.

    fairchem 1.10 writes no frame of a system in the step in which it converges: the last frame is then the one
    before, at which the energy differs by some meV.

    Raises:
        FileNotFoundError: a system has no trajectory.
        ValueError: a trajectory ends elsewhere.
    """
    energies = {}
    for sid, ends in positions.items():
        file = directory / f"{sid}.traj"
        if not (frames := frames_of(file, "-1:")):
            continue
        last = frames[0]
        if len(last) != len(ends) or largest_distance(last.positions, ends, last.cell.array, last.pbc) > ONE_STEP:
            raise ValueError(
                f"{file}: its last frame differs from the relaxed positions of {sid}. Give the trajectories of that run."
            )
        energies[sid] = float(last.get_potential_energy())
    return energies


def reference_forces(
    calculator: Calculator, positions: Mapping[str, np.ndarray], systems: Mapping[str, System]
) -> dict[str, np.ndarray]:
    """(N, 3) forces in eV/A of each system at its relaxed positions; infinite where it fails or they are not finite.

    Raises:
        ValueError: the calculator does not do such systems.
    """
    forces = {}
    for sid, ends in positions.items():
        atoms = systems[sid].atoms.copy()
        atoms.set_constraint()
        atoms.positions = ends
        atoms.calc = calculator
        forces[sid] = np.full_like(ends, math.inf)
        if np.isfinite(ends).all():
            try:
                forces[sid] = atoms.get_forces()
            except CalculationFailed:
                pass  # counts as DFT that does not converge
            except Exception as error:
                raise ValueError(f"--calculator: system {sid}, {atoms.get_chemical_formula()}: {error!r}") from error
    return forces


def read_forces(file: Path, positions: Mapping[str, np.ndarray], systems: Mapping[str, System]) -> dict[str, np.ndarray]:
    """Forces of each system in an .npz (`ids`, `forces`, `chunk_idx`, of all atoms), or in frames with `info["sid"]`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of other systems, or of other positions.
    """
    if file.suffix == ".npz":
        forces_of_ids = read_arrays(file, "forces")
        check_ids(file, forces_of_ids, systems)
        return {sid: forces for sid, forces in forces_of_ids.items() if sid in positions}
    frames = frames_of(file)
    if lacking := [index for index, frame in enumerate(frames) if "sid" not in frame.info]:
        raise ValueError(
            f'{file}: frame {lacking[0]} has no info["sid"]. Expected the id of its system, as in relaxed_positions.'
        )
    by_sid = {str(frame.info["sid"]): frame for frame in frames}
    check_ids(file, {sid: frame.positions for sid, frame in by_sid.items()}, systems)
    forces = {}
    for sid, frame in ((sid, frame) for sid, frame in by_sid.items() if sid in positions):
        atoms = systems[sid].atoms
        if largest_distance(frame.positions, positions[sid], atoms.cell.array, atoms.pbc) > SAME_PLACE:
            raise ValueError(f"{file}: system {sid} is not at its relaxed positions. Give the forces there.")
        if frame.calc is None or "forces" not in frame.calc.results:
            raise ValueError(f"{file}: no forces of system {sid}. Calculate them before you write the file.")
        forces[sid] = frame.get_forces(apply_constraint=False)
    return forces


def write_structures(file: Path, positions: Mapping[str, np.ndarray], systems: Mapping[str, System]) -> None:
    """The relaxed structures, each with its fixed atoms and `info["sid"]`: with forces they are a file of `read_forces`."""
    frames = []
    for sid, ends in positions.items():
        frames.append(systems[sid].atoms.copy())
        frames[-1].positions = ends
        frames[-1].info["sid"] = sid
    file.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    write(text, frames, format="extxyz", columns=["symbols", "positions", "tags", "move_mask"])
    write_text(file, text.getvalue())
    print(f"Written: {file}")


def frames_of(file: Path, index: str = ":") -> list[Atoms]:
    """Frames of a file that ASE reads; none of an empty trajectory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ASE cannot read it.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist (looked in {Path.cwd()}). Trajectories are task.relax_opt.traj_dir.")
    try:
        return list(iread(file, index))
    except Exception as error:  # each of ASE's formats raises what it likes
        raise ValueError(f"{file}: ASE cannot read it; {type(error).__name__}: {error}") from error


def listed(names: Sequence[str], of: int) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"{len(names)} of {of} systems ({shown})"
