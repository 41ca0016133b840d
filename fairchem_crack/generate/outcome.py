"""Write what was made: a dataset of fairchem, its teacher cache, the manifest."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import lmdb
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.generate.energies import Energies
from fairchem_crack.generate.records import COPY, LABELS, PARENT, label_names, labelled, origins, to_bytes
from fairchem_crack.generate.staging import MAP_SIZE
from fairchem_crack.generate.unit import Kept, with_digest
from fairchem_crack.io.atoms import INFO, to_atoms
from fairchem_crack.io.datasets import Records, close_unused, load_split
from fairchem_crack.io.files import whole
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cache import CacheWriter, Plan, finish
from fairchem_crack.teacher.cache_sources import sample_digest
from fairchem_crack.teacher.cached import digest_of

DATA, CACHE, MANIFEST = "data", "cache", "manifest.jsonl"
FILES = {"lmdb": "data.0000.lmdb", "ase_db": "data.db"}
METADATA = "metadata.npz"
COMMIT = 200  # systems between two commits


def dataset_options(
    parents: Mapping[str, Any], source: Path, output_format: str, names: Mapping[str, str]
) -> dict[str, Any]:
    """fairchem's options of the dataset that is written, from those of the parents.

    Args:
        names: of the labels in a training, by property.
    """
    options = {name: parents[name] for name in ("key_mapping", "transforms") if parents.get(name)}
    if output_format == "ase_db":
        others = [name for name in (parents.get("a2g_args") or {}).get("r_data_keys") or () if name in INFO]
        options["a2g_args"] = {"r_energy": True, "r_forces": True, "r_data_keys": [*keys.OF_TEACHER.values(), *others]}
        options["atoms_transform_args"] = {"skip_always": True}  # the tags are the parents', also where all are 0
        options["key_mapping"] = dict(names)
    return {"format": output_format, "src": str(source), **options}


def write_dataset(directory: Path, systems: Iterable[Kept], options: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Write the dataset that `options` read, of the systems in their order.

    Args:
        names: of the labels in a training, by property.
    """
    directory.mkdir()
    names = _names_in_file(options.get("key_mapping") or {}, names)
    natoms = []
    with _WRITERS[options["format"]](directory / FILES[options["format"]], names) as write:
        for kept in systems:
            write(kept)
            natoms.append(len(kept.system.pos))
    np.savez(directory / METADATA, natoms=np.array(natoms))


def _names_in_file(key_mapping: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Name of each label in the file, by property."""
    before = {
        name: in_file for in_file, after in key_mapping.items() for name in ([after] if isinstance(after, str) else after)
    }
    return {property_: before.get(name, name) for property_, name in names.items()}


Write = Callable[[Kept], None]


@contextmanager
def _lmdb_writer(file: Path, names: Mapping[str, str]) -> Iterator[Write]:
    environment = lmdb.open(str(file), map_size=MAP_SIZE, subdir=False, lock=False)
    pending: list[Data] = []
    count = 0

    def commit() -> None:
        nonlocal count
        with environment.begin(write=True) as transaction:
            for record in pending:
                transaction.put(str(count).encode(), to_bytes(record))
                count += 1
            transaction.put(b"length", pickle.dumps(count))
        pending.clear()

    def write(kept: Kept) -> None:
        record = labelled(kept.system, kept.labels, names)
        for name, value in origins(kept.row["labels"]).items():
            record[name] = value
        pending.append(record)
        if len(pending) == COMMIT:
            commit()

    try:
        yield write
        commit()
    finally:
        environment.close()


@contextmanager
def _ase_writer(file: Path, _: Mapping[str, str]) -> Iterator[Write]:
    """Labels are a calculator's results, as in any ASE database; the rest is in each row's `data`."""
    with connect(file) as database:

        def write(kept: Kept) -> None:
            atoms = to_atoms(kept.system)
            energy, forces = (kept.labels[name] for name in LABELS)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces.numpy().astype(float))
            data = {name: kept.row[name] for name in ("sid", "fid", PARENT, COPY) if name in kept.row}
            data.update(origins(kept.row["labels"]))
            database.write(atoms, data={**data, **{name: atoms.info[name] for name in INFO if name in atoms.info}})

        yield write


_WRITERS = {"lmdb": _lmdb_writer, "ase_db": _ase_writer}


def write_outcome(
    directory: Path, unfinished: Path, systems: Sequence[Kept], config: dict, plan: Plan, output_format: str
) -> dict[str, Any]:
    """Write data, cache and manifest of these systems, each beside its final place, and rename them.

    Args:
        unfinished: a directory on the same file system.
        config: of the training whose `dataset.train` the systems come from.
        plan: of the cache; its systems and their sample are the dataset's.

    Returns:
        The options of fairchem that read the dataset.
    """
    for name in (DATA, CACHE):
        for place in (unfinished / name, directory / name):  # of a run that was killed here
            shutil.rmtree(place, ignore_errors=True)
    names = label_names(config)
    options = dataset_options(config["dataset"]["train"], unfinished / DATA, output_format, names)
    write_dataset(unfinished / DATA, tqdm(systems, desc="data", unit=" systems"), options, names)
    write_cache(unfinished / CACHE, systems, {**config, "dataset": {"train": copy.deepcopy(options)}}, plan)
    energies = Energies()
    with whole(directory / MANIFEST) as partial, partial.open("w", encoding="utf-8") as file:
        for index, kept in enumerate(systems):
            file.write(manifest_line(index, kept))
            energies.add(kept)
    if config["task"]["distill"].get("labels") != "teacher":
        energies.warn_of_another_zero()
    for name in (DATA, CACHE):
        os.replace(unfinished / name, directory / name)
    return {**options, "src": str(directory / DATA)}


def write_cache(directory: Path, systems: Sequence[Kept], config: dict, plan: Plan) -> None:
    """Fill the teacher cache of a dataset just written, from the outputs that are there, in the order of a training.

    Args:
        config: of a training, whose `dataset.train` reads it.
        plan: of the cache; its systems and their sample are the dataset's.
    """
    number_of: dict[bytes, int] = {}
    with Records(config["dataset"]["train"]) as records:
        in_order = NamedRecords(records, DATA)
        for index in range(len(systems)):
            number_of[digest_of(in_order[index])] = index
    dataset = NamedRecords(load_split(config, "train"), DATA)
    plan = replace(plan, systems=len(dataset), sample=sample_digest(dataset))
    writer = CacheWriter(directory, plan)
    try:
        for chunk in tqdm(range(plan.chunks), desc="cache", unit=" chunks"):
            indices = range(chunk * plan.chunk, min((chunk + 1) * plan.chunk, plan.systems))
            digests = [digest_of(dataset[index]) for index in indices]
            writer.write(chunk, [with_digest(systems[number_of[digest]].record, digest) for digest in digests])
    finally:
        writer.close()
    finish(directory, plan)
    del dataset
    close_unused()


def manifest_line(index: int, kept: Kept) -> str:
    """A line of the manifest: where the system is in the dataset, and how it was made."""
    return json.dumps({"index": index, **kept.row}) + "\n"
