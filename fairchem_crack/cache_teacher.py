"""`fairchem-crack cache-teacher`: run a teacher once over a dataset, on any number of ranks, and keep what it says.

The systems of a chunk always go through the teacher together, whichever rank runs it and however often the command was
interrupted: a record depends on the teacher and the dataset alone. fairchem's balanced sampler would put other systems
together with another number of ranks.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import create_dataset
from torch.utils.data import Dataset
from torch_geometric.data import Data
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.cache import (
    HEADER,
    CacheError,
    CacheWriter,
    Plan,
    Record,
    TeacherCache,
    encode,
    finish,
    start,
    written_chunks,
)
from fairchem_crack.cached import SAMPLE, digest_of
from fairchem_crack.config import TeacherConfig, parse, split_loss_functions
from fairchem_crack.jacobian import to_keep
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.relations import unordered_pairs
from fairchem_crack.teacher import Teacher, load_teacher
from fairchem_crack.terms import wanted

SAMPLE_CHUNKS = 2  # run before the start, to estimate the cache's size
FREE = 1.1  # of the estimated size must be free on the disk
EQUAL = {"float16": 2e-3, "float32": 1e-5, "float64": 1e-5}  # accepted deviation of a recomputed field, of its largest entry

OF_ATOMS = (keys.FORCES, keys.ATOM_ENERGIES, keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING)  # one row for each atom

Source = Callable[[list[Data]], list[Record]]


@dataclass(frozen=True)
class Job:
    """What every rank needs to know; it is sent to processes.

    Attributes:
        config: of the training, as `build_config` makes it.
        directory: of the cache.
        split: of the config's dataset.
        dtype: of the embeddings.
        has_vectors: keep the l=1 embedding too.
        jacobian_rows: rows of the Jacobian of the forces to keep of each system; each costs two runs of the teacher.
        chunk: systems that go through the teacher together, and are read together.
        calculator: "module:function" that makes an ASE calculator, in the teacher's place.
        cpu: even where there is a GPU.
    """

    config: dict
    directory: Path
    split: str = "train"
    dtype: str = "float16"
    has_vectors: bool = False
    chunk: int = 16
    calculator: Optional[str] = None
    cpu: bool = False
    jacobian_rows: int = 0

    def dataset(self) -> Dataset:
        """The split as training loads it."""
        setup_imports()
        options = dict(self.config["dataset"].get("train") or {})
        if self.split != "train":
            own = self.config["dataset"].get(self.split)
            if not own:
                raise ValueError(f"dataset.{self.split}: missing.")
            options = {**options, **own} if own.get("use_train_settings", True) else dict(own)
        if not options.get("src"):
            raise ValueError(f"dataset.{self.split}.src: missing.")
        return create_dataset(options, self.split)

    def source(self, rank: int, dataset: Dataset) -> tuple[Source, Plan]:
        """What makes the records, and the plan of their cache."""
        if self.calculator is not None:
            return _calculator_source(self.calculator, dataset)
        device = torch.device("cpu" if self.cpu or not torch.cuda.is_available() else f"cuda:{rank}")
        given = parse(TeacherConfig, self.config["task"]["distill"]["teacher"], "task.distill.teacher")
        teacher = load_teacher(replace(given, cache=None), device)
        return self._teacher_source(teacher, device, dataset)

    def _teacher_source(self, teacher: Teacher, device: torch.device, dataset: Dataset) -> tuple[Source, Plan]:
        fields: tuple[str, ...] = (keys.ENERGY, keys.FORCES, keys.ATOM_ENERGIES, keys.NODE_EMBEDDING)
        if self.has_vectors:
            if not teacher.vector_width:
                raise ValueError(f"the teacher, `{teacher.name}`, has no l=1 embedding, for --vectors or a term.")
            fields += (keys.VECTOR_EMBEDDING,)
        if self.jacobian_rows:
            fields += (keys.FORCE_JACOBIAN,)
        plan = Plan(
            teacher=teacher.name,
            fingerprint=teacher.fingerprint(),
            systems=len(dataset),  # type: ignore[arg-type]
            sample=_sample_digest(dataset),
            width=teacher.width,
            vector_width=teacher.vector_width if self.has_vectors else 0,
            max_atomic_number=teacher.max_atomic_number,
            dtype=self.dtype,
            chunk=self.chunk,
            fields=fields,
            jacobian_rows=self.jacobian_rows,
            precision="float32" if teacher.precision == "auto" else teacher.precision,
            graph=teacher.graph_settings(),
        )
        return lambda systems: teacher_records(teacher, systems, device, plan), plan


def teacher_records(teacher: Teacher, systems: list[Data], device: torch.device, plan: Plan) -> list[Record]:
    """What the teacher says of the systems, run together: the fields of the plan."""
    batch = data_list_collater([system.clone() for system in systems], otf_graph=True).to(device)
    said = teacher(batch, set(plan.fields) - {keys.FORCE_JACOBIAN})
    pairs = unordered_pairs(said.edge_index, batch.num_nodes).cpu()
    sizes = batch.natoms.tolist()
    values = {name: _split(said[name], sizes) for name in plan.fields if name in OF_ATOMS}
    values[keys.ENERGY] = list(said[keys.ENERGY].cpu().numpy())
    if plan.jacobian_rows:
        rows = [teacher(batch, {keys.FORCE_JACOBIAN}, seed)[keys.FORCE_JACOBIAN] for seed in range(plan.jacobian_rows)]
        values[keys.FORCE_JACOBIAN] = _split(torch.stack([to_keep(row, batch) for row in rows], dim=1), sizes)
    records, owner, first = [], batch.batch.cpu()[pairs[0]], 0
    for index, (system, atoms) in enumerate(zip(systems, sizes)):
        own = (pairs[:, owner == index] - first).numpy()
        records.append(Record(digest_of(system), atoms, {name: value[index] for name, value in values.items()}, own))
        first += atoms
    return records


def _sample_digest(dataset: Dataset) -> str:
    digest, size = hashlib.blake2b(digest_size=16), len(dataset)  # type: ignore[arg-type]
    for index in sorted({number * size // SAMPLE for number in range(SAMPLE)}):
        digest.update(digest_of(dataset[index]))
    return digest.hexdigest()


def _split(values: torch.Tensor, sizes: list[int]) -> list[np.ndarray]:
    return [part.numpy() for part in values.cpu().split(sizes)]


def _calculator_source(name: str, dataset: Dataset) -> tuple[Source, Plan]:
    """Energies and forces of an ASE calculator."""
    module, _, function = name.partition(":")
    try:
        calculator = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--calculator {name}: expected module:function that returns an ASE calculator; {error}") from error
    settings = f"{name} {sorted(getattr(calculator, 'parameters', {}).items())}"
    fingerprint = hashlib.sha256(settings.encode()).hexdigest()
    size = len(dataset)  # type: ignore[arg-type]
    plan = Plan(name, fingerprint, size, _sample_digest(dataset), width=0, fields=("energy", "forces"), has_pairs=False)

    def records(systems: list[Data]) -> list[Record]:
        found = []
        for system, atoms in zip(systems, batch_to_atoms(data_list_collater(systems, otf_graph=True))):
            atoms.set_constraint()  # a label is the force on every atom
            atoms.calc = calculator
            values = {"energy": np.float64(atoms.get_potential_energy()), "forces": atoms.get_forces()}
            found.append(Record(digest_of(system), len(atoms), values, np.zeros((2, 0), dtype=int)))
        return found

    return records, plan


def _chunk(dataset: Dataset, plan: Plan, chunk: int) -> list[Data]:
    first = chunk * plan.chunk
    return [dataset[index] for index in range(first, min(first + plan.chunk, plan.systems))]


def needs_of_terms(config: dict) -> set[str]:
    """What the distillation terms of a training's config read from a cache, fields of `TeacherOutputs`."""
    _, terms = split_loss_functions(config.get("loss_functions") or [])
    return set().union(*(wanted(term) for term in terms if term.coefficient > 0))


def cache_teacher(job: Job, *, ranks: int = 1) -> TeacherCache:
    """Fill the cache, or what is missing of it, and finish it.

    Raises:
        CacheError: the directory holds another cache, or a record is not finite.
        OSError: the disk cannot hold it.
    """
    dataset = job.dataset()
    source, plan = job.source(0, dataset)
    job.directory.mkdir(parents=True, exist_ok=True)
    start(job.directory, plan)
    if (job.directory / HEADER).is_file():
        print(f"Teacher cache {job.directory} is complete; nothing to do.")
        return TeacherCache(job.directory)
    done = written_chunks(job.directory)
    todo = [chunk for chunk in range(plan.chunks) if chunk not in done]
    print(f"{plan.systems} systems in {plan.chunks} chunks, {len(done)} of them there. Kept: {plan.contents}.", flush=True)
    if todo:
        todo = _write_sample(job.directory, source, dataset, plan, todo)
    there = min((plan.chunks - len(todo)) * plan.chunk, plan.systems)
    with tqdm(total=plan.systems, initial=there, unit=" systems") as bar:
        if ranks == 1 or len(todo) < ranks:
            for written in write_chunks(job.directory, source, dataset, plan, todo, 0):
                bar.update(written)
        else:
            del dataset, source  # each process opens its own
            for written in _in_processes(job, plan, todo, ranks):
                bar.update(written)
    finish(job.directory, plan)
    return TeacherCache(job.directory)


def _write_sample(directory: Path, source: Source, dataset: Dataset, plan: Plan, todo: list[int]) -> list[int]:
    """Write some chunks, estimate the rest by them, raise OSError unless the disk can hold it; return the rest."""
    chosen = todo[:: max(1, len(todo) // SAMPLE_CHUNKS)][:SAMPLE_CHUNKS]
    writer, written, systems = CacheWriter(directory, plan, 0), 0, 0
    try:
        for chunk in chosen:
            records = source(_chunk(dataset, plan, chunk))
            writer.write(chunk, records)
            written, systems = written + sum(len(encode(record, plan, 0)) for record in records), systems + len(records)
    finally:
        writer.close()
    rest = [chunk for chunk in todo if chunk not in chosen]
    needed = written / systems * len(rest) * plan.chunk
    free = shutil.disk_usage(directory).free
    print(f"About {needed / 2**20:,.1f} MB more to write to {directory}; {free / 2**20:,.0f} MB are free.", flush=True)
    if needed * FREE > free:
        raise OSError(
            f"Teacher cache {directory}: about {needed / 2**30:.1f} GB are needed and {free / 2**30:.1f} GB are free. "
            "Give another directory, or make room."
        )
    return rest


def write_chunks(
    directory: Path, source: Source, dataset: Dataset, plan: Plan, chunks: Sequence[int], shard: int
) -> Iterator[int]:
    """Write these chunks to one shard; how many systems each has, as they are written."""
    writer = CacheWriter(directory, plan, shard)
    try:
        for chunk in chunks:
            systems = _chunk(dataset, plan, chunk)
            writer.write(chunk, source(systems))
            yield len(systems)
    finally:
        writer.close()


def _in_processes(job: Job, plan: Plan, todo: list[int], ranks: int) -> Iterator[int]:
    """Systems written, as they come; ranks share the chunks in turn, large systems and small."""
    context = multiprocessing.get_context("spawn")
    counts: Any = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(job, todo[rank::ranks], rank, counts)) for rank in range(ranks)]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes) or not counts.empty():
            while not counts.empty():
                yield counts.get()
            if any(process.exitcode for process in processes):
                raise CacheError(f"Teacher cache {job.directory}: a rank failed; see above. What is written is kept.")
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _rank(job: Job, chunks: list[int], rank: int, counts: Any) -> None:
    logging.basicConfig(level=logging.WARNING)
    load_plugins(imports_of(job.config.get("task")))
    dataset = job.dataset()
    source, plan = job.source(rank, dataset)
    for written in write_chunks(job.directory, source, dataset, plan, chunks, rank):
        counts.put(written)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():  # killed: somebody may start anew beside this rank
            return


def verify(job: Job, count: int, *, seed: int = 0) -> float:
    """Recompute `count` random records; the largest deviation of a field, relative to its largest entry.

    Raises:
        CacheError: a record differs by more than its type explains.
    """
    cache, dataset = TeacherCache(job.directory), job.dataset()
    source, plan = job.source(0, dataset)
    start(job.directory, plan)
    chosen = random.Random(seed).sample(range(plan.systems), min(count, plan.systems))
    worst = 0.0
    for index in tqdm(chosen, unit=" records"):
        chunk, slot = divmod(index, plan.chunk)
        fresh, kept = source(_chunk(dataset, plan, chunk))[slot], cache[index]
        cache.check_system(index, kept, fresh.atoms, fresh.digest, f"dataset.{job.split}")
        for name in plan.fields:
            scale = max(float(np.abs(fresh.values[name]).max()), 1e-6)
            deviation = float(np.abs(fresh.values[name] - kept.values[name].astype(np.float64)).max()) / scale
            if deviation > EQUAL[plan.type_of(name).name]:
                raise CacheError(
                    f"Teacher cache {job.directory}: record {index} differs from the teacher by {deviation:.1e} in {name}, "
                    f"expected at most {EQUAL[plan.type_of(name).name]:.0e}. Rebuild it."
                )
            worst = max(worst, deviation)
        if plan.has_pairs and not np.array_equal(fresh.pairs, kept.pairs):
            raise CacheError(f"Teacher cache {job.directory}: record {index} has other pairs than the teacher. Rebuild it.")
    return worst
