"""Element references and normalizer of a training: fitted to the labels that its student is trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import setup_imports
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, read_options, refuse
from fairchem_crack.io.checkpoints import reading_safely
from fairchem_crack.io.datasets import load_split
from fairchem_crack.io.files import whole
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.io.trust import trusts
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.cached import open_cache, record_of
from fairchem_crack.teacher.labels import TeacherLabels
from fairchem_crack.training.labels import labelled_outputs
from fairchem_crack.training.reference_fit import ReferenceFit, fit_references

SMALLEST_FORCE = 1e-6  # eV/A: below, forces are those of atoms by themselves or of rounding
LARGEST = 118  # atomic number; fairchem's LinearReferences have one number for each up to it


@dataclass(frozen=True)
class References:
    """The references of a training.

    Attributes:
        names: of the outputs, by property.
        source: whose labels they were fitted to.
        prior: what a reference is, as far as the labels do not determine it.
        force_size: eV/A, root mean square of the components of the forces on free atoms; None without forces.
        has_direct_forces: the student predicts forces beside the energy, and not as its gradient.
    """

    fit: ReferenceFit
    names: Mapping[str, str]
    source: str
    prior: str
    force_size: Optional[float]
    has_direct_forces: bool = False

    @property
    def mean(self) -> float:
        """Of the energies minus references, eV."""
        return float(self.fit.residuals.mean())

    @property
    def stdev(self) -> float:
        """Of the energies minus references, eV."""
        return float(self.fit.residuals.std())

    @property
    def has_own_force_scale(self) -> bool:
        """Whether forces are divided by their own size: direct ones are, unless all of them vanish."""
        return self.has_direct_forces and self.force_size is not None and self.force_size > SMALLEST_FORCE

    @property
    def force_scale(self) -> float:
        """By which forces are divided, eV/A.

        Direct forces have their own root mean square: the labels then weigh as much beside distillation terms, which are
        standardised, as in any other data. Forces that are the gradient of the energy have the energy's stdev: with another,
        they would be the gradient of another energy.
        """
        return self.force_size if self.has_own_force_scale and self.force_size else self.stdev

    def transforms(self, file: Path) -> dict[str, Any]:
        """What `dataset.train.transforms` takes."""
        energy, forces = (self.names.get(property_) for property_ in (keys.ENERGY, keys.FORCES))
        normalizer: dict[str, Any] = {str(energy): {"file": str(file)}}
        if forces is not None:
            normalizer[forces] = {"mean": 0.0, "stdev": float(f"{self.force_scale:.6g}")}
        return {"element_references": {str(energy): {"file": str(file)}}, "normalizer": normalizer}

    def write(self, file: Path) -> None:
        """Write what fairchem reads of a `file`, as element references and as a normalizer; whole or not at all."""
        references = np.zeros(LARGEST + 1, np.float32)
        references[self.fit.elements] = self.fit.references
        with whole(file) as partial:
            np.savez(partial, element_references=references, mean=np.float32(self.mean), rmsd=np.float32(self.stdev))


def fit_training_references(config: dict[str, Any], systems: int) -> References:
    """Fit references to the labels of `dataset.train`, or of the teacher cache with `task.distill.labels`.

    Args:
        config: of the training, as of `build_config`.
        systems: at most so many, evenly spaced.

    Raises:
        ValueError: an option has a fault, the student cannot be made, a system has no label, or the labels do not differ.
    """
    options = read_options(config.get("task") or {}, config.get("loss_functions"))
    refuse(options.faults)
    names = labelled_outputs(ModelOutputs("outputs", config.get("outputs") or {}))
    if keys.ENERGY not in names:
        raise ValueError("outputs: no output has the property `energy`; element references are those of an energy.")
    is_direct = keys.FORCES in names and has_direct_forces(config)
    dataset: Dataset = NamedRecords(load_split(config, "train"), "dataset.train")
    cache, source = None, "of dataset.train"
    if options.distill is not None and options.distill.labels != "data":
        cache = cache_of_labels(options.distill)
        dataset = TeacherLabels(dataset, cache, names, "dataset.train", options.distill.labels)
        source = f"of the teacher cache {cache.directory}"
        source = source if options.distill.labels == "teacher" else f"of dataset.train, filled from {source[3:]}"
    return replace(_fit(dataset, names, source, cache, systems), has_direct_forces=is_direct)


def has_direct_forces(config: Mapping[str, Any]) -> bool:
    """Whether the student has `direct_forces`, by its options, its class's default, or a head; it is made to see that.

    False too for architectures without the option, SchNet for example.

    Raises:
        ValueError: it cannot be made.
    """
    attributes = copy.deepcopy(dict(config.get("model") or {}))
    for part in (attributes, attributes.get("backbone") or {}):
        part.pop("scale_file", None)  # which may be fitted later
    setup_imports()
    try:
        name = attributes.pop("name")
        with torch.random.fork_rng([]), reading_safely(attributes, trust=trusts(config.get("task"))):
            model = registry.get_model_class(name)(**attributes)
    except Exception as error:  # fairchem's, of options that it cannot use
        raise ValueError(
            f"model: cannot be made ({type(error).__name__}: {error}). `fairchem-crack check` says what is wrong with the "
            "config."
        ) from error
    return bool(getattr(getattr(model, "backbone", model), "direct_forces", False))


def cache_of_labels(config: DistillConfig) -> TeacherCache:
    """The cache whose labels a training takes.

    Raises:
        ValueError: there is none, and a teacher would have to be run.
    """
    if config.teacher.cache is None:
        raise ValueError(
            f"task.distill.teacher.cache: missing. With task.distill.labels: {config.labels} the labels are the teacher's; "
            "write its cache first, with `fairchem-crack cache-teacher`."
        )
    return open_cache(replace(config.teacher, checkpoint=None), torch.device("cpu"))


def _fit(dataset: Dataset, names: Mapping[str, str], source: str, cache: Optional[TeacherCache], systems: int) -> References:
    chosen = evenly_spaced(len(dataset), systems)  # type: ignore[arg-type]
    has_atom_energies = cache is not None and keys.ATOM_ENERGIES in cache.plan.fields
    counts, energies = np.zeros((len(chosen), LARGEST + 1), np.uint16), np.zeros(len(chosen))
    sums, forces = np.zeros(LARGEST + 1), np.zeros(2)
    for row, index in enumerate(tqdm(chosen, unit=" systems")):
        system = dataset[index]
        numbers = system.atomic_numbers.long().numpy()
        counts[row] = np.bincount(numbers, minlength=LARGEST + 1)
        energies[row] = _label(system, names[keys.ENERGY], index)
        if keys.FORCES in names and isinstance(system.get(names[keys.FORCES]), Tensor):
            squares = np.square(system[names[keys.FORCES]][system.fixed == 0].double().numpy())
            forces += squares.sum(), squares.size
        if has_atom_energies:
            assert cache is not None
            record = record_of(cache, system, index, "dataset.train", dataset, (keys.ATOM_ENERGIES,))
            sums += np.bincount(numbers, record.values[keys.ATOM_ENERGIES], LARGEST + 1)
    elements = np.flatnonzero(counts.any(axis=0))
    counts = counts[:, elements]
    prior = sums[elements] / counts.sum(axis=0) if has_atom_energies else None
    fit = fit_references(counts, elements, energies, prior)
    made = References(
        fit,
        names,
        source,
        "mean of the teacher's atom energies" if has_atom_energies else "mean energy per atom of all systems",
        math.sqrt(forces[0] / forces[1]) if forces[1] else None,
    )
    if not made.stdev > np.finfo(np.float32).eps * np.abs(energies).max():
        raise ValueError(
            f"dataset.train: the references leave no differences of the energies of {len(chosen)} systems "
            f"({fit.compositions} compositions): there are too few systems, or their energies do not differ."
        )
    return made


def _label(system: Data, name: str, index: int) -> float:
    """The energy of a system; ValueError where it has none."""
    energy = float(system[name]) if name in system and system[name] is not None else math.nan
    if not math.isfinite(energy):
        raise ValueError(
            f"dataset.train: system {index} has no finite `{name}` to fit references to. Leave it out, or take the "
            "teacher's (task.distill.labels: teacher, or fill)."
        )
    return energy
