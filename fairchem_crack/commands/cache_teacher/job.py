"""`fairchem-crack cache-teacher`: run a teacher once over a dataset, on any number of ranks, and keep its outputs.

The systems of a chunk always go through the teacher together, whichever rank runs it and however often the command was
interrupted: a record depends only on the teacher and the dataset. fairchem's balanced sampler would put other systems
together with another number of ranks.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import torch
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig, parse, split_loss_functions
from fairchem_crack.io.datasets import load_split
from fairchem_crack.io.labels import read_unlabelled
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.processes import end_with_parent
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cache import (
    HEADER,
    CacheError,
    Plan,
    TeacherCache,
    explained,
    finish,
    only_writer,
    repair,
    start,
)
from fairchem_crack.teacher.cache.fill import begin, systems_of, write_chunks
from fairchem_crack.teacher.cache_sources import CalculatorSource, Source, TeacherSource, sample_digest
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.process import TeacherProcess
from fairchem_crack.training.config_checks import check_gpus
from fairchem_crack.training.terms import teacher_fields

LOCK = "lock"  # file of the cache, held by the command until the cache is finished
LISTED = 8  # chunks that a message names


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

    def __post_init__(self) -> None:
        for option, value, least in (("--chunk", self.chunk, 1), ("--jacobian-rows", self.jacobian_rows, 0)):
            if value < least:
                raise ValueError(f"{option} {value}: expected at least {least}.")

    def dataset(self) -> NamedRecords:
        """The split as training loads it; its systems need no labels."""
        dataset = NamedRecords(load_split(self.config, self.split), f"dataset.{self.split}")
        read_unlabelled(dataset)
        if not len(dataset):
            raise ValueError(f"dataset.{self.split}: holds no system.")
        return dataset

    @property
    def process(self) -> Optional[TeacherProcess]:
        """The teacher where it runs in another environment.

        Raises:
            ValueError: rows of the Jacobian are to be kept, which it does not give.
        """
        command = self._teacher_options.get("command")
        if command is None:
            return None
        if self.jacobian_rows:
            raise ValueError(
                "force_jacobian needs rows of the teacher's Jacobian, which task.distill.teacher.command does not give. "
                "Leave the term out, or give a teacher by its `checkpoint`."
            )
        return TeacherProcess(command, self.dtype, self.has_vectors, self.chunk)

    @property
    def _teacher_options(self) -> dict[str, Any]:
        return ((self.config.get("task") or {}).get("distill") or {}).get("teacher") or {}

    def source(self, rank: int, dataset: NamedRecords) -> tuple[Source, Plan]:
        """What makes the records, and the plan of their cache."""
        if self.calculator is not None:
            calculator = CalculatorSource(self.calculator, dataset)
            return calculator, calculator.plan()
        device = torch.device("cpu" if self.cpu or not torch.cuda.is_available() else f"cuda:{rank}")
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of what names no device, and of the context that it opens
        given = parse(TeacherConfig, self._teacher_options, "task.distill.teacher")
        teacher = load_teacher(replace(given, cache=None), device)
        plan = self._plan(teacher, dataset, given.cache_precision)
        return TeacherSource(teacher, dataset, device, plan), plan

    def _plan(self, teacher: Teacher, dataset: NamedRecords, precision: str) -> Plan:
        fields: tuple[str, ...] = (keys.ENERGY, keys.FORCES, keys.ATOM_ENERGIES, keys.NODE_EMBEDDING)
        if self.has_vectors:
            if not teacher.vector_width:
                raise ValueError(f"the teacher, `{teacher.name}`, has no l=1 embedding, for --vectors or a term.")
            fields += (keys.VECTOR_EMBEDDING,)
        if self.jacobian_rows:
            fields += (keys.FORCE_JACOBIAN,)
        return Plan(
            teacher=teacher.name,
            fingerprint=teacher.fingerprint(),
            systems=len(dataset),
            sample=sample_digest(dataset),
            width=teacher.width,
            vector_width=teacher.vector_width if self.has_vectors else 0,
            max_atomic_number=teacher.max_atomic_number,
            dtype=self.dtype,
            chunk=self.chunk,
            fields=fields,
            jacobian_rows=self.jacobian_rows,
            precision=precision,
            graph=teacher.graph_settings(),
            identity=teacher.identity(),
        )


def needs_of_terms(config: dict) -> set[str]:
    """What the distillation terms of a training's config read from a cache, fields of `TeacherOutputs`."""
    _, terms = split_loss_functions(config.get("loss_functions") or [])
    return set().union(*(teacher_fields(term) for term in terms if term.coefficient > 0))


def cache_teacher(job: Job, *, ranks: int = 1, is_repair: bool = False) -> TeacherCache:
    """Fill the cache, or what is missing of it, and finish it.

    Args:
        is_repair: read what is there first, and run the teacher on damaged chunks again.

    Raises:
        CacheError: the directory holds another cache, another process writes it, the disk cannot hold it, or a record is
            not finite.
        ValueError: there is no such data, or there are fewer GPUs than ranks.
    """
    if job.calculator is None:
        check_gpus(ranks, cpu=job.cpu)
    dataset = job.dataset()
    source, plan = job.source(0, dataset)
    with explained(job.directory):
        job.directory.mkdir(parents=True, exist_ok=True)
        start(job.directory, plan)
    if (job.directory / HEADER).is_file() and not is_repair:
        print(f"Teacher cache {job.directory} is complete; nothing to do.")
        return TeacherCache(job.directory)
    with only_writer(job.directory / LOCK):
        if is_repair:
            missing = repair(job.directory, plan)
            print(f"{len(missing)} of {plan.chunks} chunks are damaged or missing{_listed(missing, plan)}.", flush=True)
        todo = begin(job.directory, source, plan)
        if ranks == 1 or len(todo) < ranks:
            written = write_chunks(job.directory, source, plan, todo, 0)
        else:
            del dataset, source  # each process opens its own
            gc.collect()  # a teacher's hooks are in cycles with it
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            written = _in_processes(job, plan, todo, ranks)
        there = min((plan.chunks - len(todo)) * plan.chunk, plan.systems)
        with tqdm(total=plan.systems, initial=there, unit=" systems") as bar:
            for systems in written:
                bar.update(systems)
        finish(job.directory, plan)
    return TeacherCache(job.directory)


def _listed(chunks: list[int], plan: Plan) -> str:
    """The first few, and their systems."""
    shown = [f"{chunk} (systems {systems_of(plan, chunk)[0]} to {systems_of(plan, chunk)[-1]})" for chunk in chunks[:LISTED]]
    return (": " if shown else "") + ", ".join(shown) + (", ..." if len(chunks) > LISTED else "")


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
                written = counts.get()
                if isinstance(written, str):
                    raise CacheError(written)
                yield written
            if any(process.exitcode for process in processes):
                raise CacheError(f"Teacher cache {job.directory}: a rank failed; see above. What is written is kept.")
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _rank(job: Job, chunks: list[int], rank: int, counts: Any) -> None:
    logging.basicConfig(level=logging.WARNING)
    end_with_parent()
    try:
        load_plugins(imports_of(job.config.get("task")))
        source, plan = job.source(rank, job.dataset())
        for written in write_chunks(job.directory, source, plan, chunks, rank):
            counts.put(written)
    except (ValueError, OSError) as error:
        counts.put(str(error))
