"""A look at a dataset: its format, size, elements and labels, and what a normalizer of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from ase.data import chemical_symbols
from torch import Tensor
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.commands.check.energies import FAR, FEWEST
from fairchem_crack.io.boundaries import as_pbc
from fairchem_crack.io.datasets import close_unused, open_dataset
from fairchem_crack.io.labels import read_unlabelled
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import look_up
from fairchem_crack.training.config_checks import ASE_SUFFIXES
from fairchem_crack.training.reference_fit import fit_references
from fairchem_crack.training.references import References

RENAMED = {"y": keys.ENERGY, "force": keys.FORCES}  # as OC20's LMDBs have them
LABELS = (keys.ENERGY, keys.FORCES)
CACHE_OF = {"--dataset": "--teacher", "--val": "--val-cache"}  # the option that gives the teacher's cache of the data
Labels = tuple[float, np.ndarray]  # eV; (N, 3) eV/A
ADVICE = "An extxyz file becomes a database by `ase convert FILE.extxyz FILE.db`."


@dataclass(frozen=True)
class DataSummary:
    """What was seen of a dataset.

    Attributes:
        options: fairchem's, that read it.
        systems: how many there are; the rest is of a sample of them.
        atoms: of a system, in the mean.
        elements: by their symbols.
        labels: whose they are, as `task.distill.labels` has it: `data`, `fill` or `teacher`.
        energy: eV, mean and standard deviation.
        force_size: eV/A, root mean square of the components on free atoms.
        references: of the elements, where the energies are far from each other without them.
        has_several_pbc: systems differ in pbc.
    """

    options: dict[str, Any]
    systems: int
    atoms: float
    elements: tuple[str, ...]
    labels: str
    energy: tuple[float, float]
    force_size: float
    references: Optional[References]
    has_several_pbc: bool

    @property
    def summary(self) -> str:
        """In words."""
        kind = "ASE database" if self.options["format"] == "ase_db" else "LMDB"
        return f"{kind} of {self.systems} systems, {self.atoms:.0f} atoms in the mean, {', '.join(self.elements)}"


def look_at(
    path: Path, at_most: int, cache: Optional[TeacherCache], *, option: str = "--dataset", whose: Optional[str] = None
) -> DataSummary:
    """Read a sample of a dataset.

    Args:
        at_most: systems to read, evenly spaced.
        cache: of the teacher, whose labels count where the data have none.
        option: that gave the path, for errors.
        whose: "teacher" for its labels in place of those of the data.

    Raises:
        FileNotFoundError: there are no such data.
        ValueError: another format, no system, or none with energy and forces.
    """
    options = options_of(path, option)
    systems, sample, cached = _read(options, at_most, cache)
    if not sample:
        raise ValueError(f"{option} {path}: holds no system.")
    renamed = {before: name for before, name in RENAMED.items() if before in sample[0] and name not in sample[0]}
    if renamed:
        options["key_mapping"] = renamed
    own = [None if whose == "teacher" else _labels_of(system, renamed) for system in sample]
    known = sum(labels is not None for labels in own)
    labels = "data" if known == len(own) else "fill" if known else "teacher"
    filled = own if labels == "data" else [given or of_teacher for given, of_teacher in zip(own, cached)]
    labelled = [(system, given) for system, given in zip(sample, filled) if given is not None]
    if not labelled:
        what = "the teacher's energy and forces" if whose else "an energy and forces"
        raise ValueError(
            f"{option} {path}: no system of a sample of {len(sample)} has {what}, and no cache has them. "
            f"Write the teacher's cache of these systems first (docs/teachers.md), and give it as {CACHE_OF[option]}."
        )
    return _summary(options, systems, labels, [system for system, _ in labelled], [given for _, given in labelled])


def _read(
    options: dict[str, Any], at_most: int, cache: Optional[TeacherCache]
) -> tuple[int, list[Data], list[Optional[Labels]]]:
    """How many systems there are, some of them, and the teacher's labels of these."""
    close_unused()
    dataset: Any = open_dataset({**options, "no_shuffle": True})
    read_unlabelled(dataset)
    indices, systems = evenly_spaced(len(dataset), at_most), len(dataset)
    sample = [dataset[index] for index in indices]
    cached = [_of_cache(system, index, dataset, cache) for system, index in zip(sample, indices)]
    del dataset
    close_unused()
    return systems, sample, cached


def options_of(path: Path, option: str) -> dict[str, Any]:
    """fairchem's options of a dataset, by what lies at its path; labels have the names of the file."""
    if not path.exists():
        raise FileNotFoundError(f"{option} {path}: does not exist (looked in {Path.cwd()}).")
    names = [path.name] if path.is_file() else sorted(file.name for file in path.iterdir())
    if any(name.endswith(ASE_SUFFIXES) for name in names):
        return {"format": "ase_db", "src": str(path), "a2g_args": {"r_energy": True, "r_forces": True}}
    if any(name.endswith(".lmdb") for name in names):
        return {"format": "lmdb", "src": str(path)}
    raise ValueError(f"{option} {path}: expected an ASE database (*.db, *.aselmdb), or a directory of *.lmdb. {ADVICE}")


def _labels_of(system: Data, renamed: dict[str, str]) -> Optional[Labels]:
    """Energy and forces of a record, None unless it has both."""
    names = {name: before for before, name in renamed.items()}
    energy, forces = (system.get(names.get(name, name)) for name in LABELS)
    if energy is None or not isinstance(forces, Tensor) or not np.isfinite(float(energy)):
        return None
    values = forces.double().numpy()
    return (float(energy), values) if np.isfinite(values).all() else None


def _of_cache(system: Data, index: int, dataset: Any, cache: Optional[TeacherCache]) -> Optional[Labels]:
    if cache is None or not set(LABELS) <= set(cache.plan.fields):
        return None
    record = look_up(cache, system, index, dataset, LABELS)
    if record is None or not record.atoms:  # the teacher failed for it
        return None
    return float(record.values[keys.ENERGY]), record.values[keys.FORCES].astype(float)


def _summary(
    options: dict[str, Any], systems: int, labels: str, sample: Sequence[Data], given: Sequence[Labels]
) -> DataSummary:
    energies = np.array([energy for energy, _ in given])
    free = [forces[_free(system)] for system, (_, forces) in zip(sample, given)]
    components = np.concatenate([forces.ravel() for forces in free])
    size = float(np.sqrt(np.square(components).mean())) if components.size else 0.0
    elements, references = _references(sample, energies, size)
    return DataSummary(
        options=options,
        systems=systems,
        atoms=float(np.mean([len(system.pos) for system in sample])),
        elements=tuple(chemical_symbols[number] for number in elements),
        labels=labels,
        energy=(float(energies.mean()), float(energies.std())),
        force_size=size,
        references=references,
        has_several_pbc=len({tuple(as_pbc(system.pbc).tolist()) for system in sample if "pbc" in system}) > 1,
    )


def _free(system: Data) -> np.ndarray:
    """(N,) bool."""
    return (system.fixed == 0).numpy() if "fixed" in system else np.ones(len(system.pos), bool)


def _references(sample: Sequence[Data], energies: np.ndarray, force_size: float) -> tuple[np.ndarray, Optional[References]]:
    """The elements, and their references where `check` would advise to fit some."""
    numbers = [system.atomic_numbers.long().numpy() for system in sample]
    elements = np.unique(np.concatenate(numbers))
    counts = np.array([[np.count_nonzero(of_system == element) for element in elements] for of_system in numbers])
    fit = fit_references(counts, elements, energies)
    is_needed = len(sample) >= FEWEST and fit.left_out is not None and fit.deviation > FAR * fit.left_out
    names, prior = {name: name for name in LABELS}, "mean energy per atom"
    references = References(fit, names, "of a sample", prior, force_size, has_direct_forces=True)  # as `recipe` has them
    return elements, references if is_needed else None
