"""From the teacher's cache to what its students are trained on: LMDBs of the systems within the limits, references."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch_geometric.data import Data

from benchmarks import ROOT
from benchmarks.accuracy.plan import Plan
from benchmarks.accuracy.training import SPLITS, Workspace, student_options
from benchmarks.foundation.systems import LIMITS
from fairchem_crack import keys
from fairchem_crack.demo.prepare import DATA_FILE, METADATA_FILE, oc20_record
from fairchem_crack.generate.limits import check_forces
from fairchem_crack.generate.settings import ThrownOut
from fairchem_crack.io.files import write_text
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.label.systems import Systems
from fairchem_crack.training.references import fit_training_references

TRANSFORMS = "transforms.yml"  # beside the data to train on: its element references and normalizer
LABELS = "labels"  # table: eV, what the references leave; eV/A, root mean square of the components on free atoms
MAP_SIZE = 1 << 30  # upper limit of an LMDB in bytes


def labelled(candidates: Path, cache: TeacherCache) -> Iterator[Data]:
    """The systems whose forces on free atoms are within the limits, in their order, with the teacher's labels."""
    for number, system in enumerate(Systems([candidates])):
        record, atoms = cache.get(system.digest), system.atoms
        if record is None:
            raise ValueError(f"{cache.directory}: no record of {system.name}. Label {candidates} with the same teacher.")
        is_fixed, forces = atoms.get_tags() == 0, record.values[keys.FORCES]
        try:
            check_forces(forces, ~is_fixed, LIMITS)
        except ThrownOut:
            continue
        atoms.set_constraint(FixAtoms(mask=is_fixed))
        atoms.calc = SinglePointCalculator(atoms, energy=float(record.values[keys.ENERGY]), forces=forces)
        yield oc20_record(atoms, sid=number, fid=0)


def write_systems(systems: list[Data], directory: Path) -> None:
    """Write systems as OC20's LMDBs."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{DATA_FILE}.partial"
    partial.unlink(missing_ok=True)
    with lmdb.open(str(partial), subdir=False, lock=False, map_size=MAP_SIZE) as data, data.begin(write=True) as file:
        for number, system in enumerate(systems):
            file.put(str(number).encode(), pickle.dumps(system, protocol=-1))
        file.put(b"length", pickle.dumps(len(systems)))
    np.savez(directory / METADATA_FILE, natoms=np.array([system.natoms for system in systems]))
    partial.rename(directory / DATA_FILE)


def collect(plan: Plan, workspace: Workspace) -> None:
    """Write the LMDBs that the plan's runs need, and the references of each size of the training data.

    Raises:
        ValueError: too few systems are within the limits.
    """
    sizes = sorted({run.train_systems for table in plan.tables for run in plan.runs(table, {}) if run.train_systems})
    (teacher,) = plan.teachers  # the labels are this one's: another teacher takes another directory
    counts = {"train": sizes, **{split: [plan.validation_systems] for split in SPLITS}}
    for split, of_split in counts.items():
        is_train = split == "train"
        cache = TeacherCache(workspace.directory / "caches" / (teacher if is_train else f"{teacher}-validation"))
        candidates = workspace.directory / "candidates" / f"{split}.db"
        systems, candidate_count = list(labelled(candidates, cache)), len(Systems([candidates]))
        print(f"{split}: {len(systems)} of {candidate_count} systems are within the limits.")
        if len(systems) < of_split[-1]:
            raise ValueError(f"{split}: {len(systems)} systems are within the limits, {of_split[-1]} are needed.")
        for size in of_split:
            directory = workspace.data(size if is_train else None, split)
            write_systems(systems[:size], directory)
            if is_train:
                write_references(plan, workspace, directory)


def write_references(plan: Plan, workspace: Workspace, data: Path) -> None:
    """Fit element references to the data, as `fairchem-crack references` does, and write what the YAML takes."""
    config = dict(student_options(ROOT / next(iter(plan.students.values()))))
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(data)}}
    fitted, file = fit_training_references(config, 1_000_000), data / "references.npz"
    fitted.write(file)
    row = {"data": workspace.relative(data), "energy_stdev": fitted.stdev, "force_size": fitted.force_size}
    workspace.table(LABELS).append([row])
    write_text(data / TRANSFORMS, yaml.safe_dump(fitted.transforms(Path(workspace.relative(file)))))
