"""`fairchem-crack cache-teacher`: run a teacher once over a dataset, on any number of ranks, and keep its outputs.

The systems of a chunk always go through the teacher together, whichever rank runs it and however often the command was
interrupted: a record depends only on the teacher and the dataset. fairchem's balanced sampler would put other systems
together with another number of ranks.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from tqdm import tqdm

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig, parse, split_loss_functions
from fairchem_crack.io.arguments import check_at_least
from fairchem_crack.io.datasets import load_split
from fairchem_crack.io.denormals import without_denormals
from fairchem_crack.io.labels import read_unlabelled
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.processes import values_from
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cache import Plan, TeacherCache
from fairchem_crack.teacher.cache.fill import begin, filled, write_chunks
from fairchem_crack.teacher.cache_sources import CalculatorSource, Source, TeacherSource, sample_digest
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.process import TeacherProcess
from fairchem_crack.training.config_checks import check_gpus
from fairchem_crack.training.terms import teacher_fields


@dataclass(frozen=True)
class Job:
    """What every rank needs to know; it is sent to processes.

    Attributes:
        config: of the training, as `build_config` makes it.
        directory: of the cache.
        split: of the config's dataset.
        dtype: of the embeddings.
        has_vectors: keep the l=1 embedding too.
        has_all_degrees: keep the embeddings of all degrees l.
        responses: of `keys.RESPONSES`, those to keep, to one displacement of each system; two runs of the teacher for all.
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
    has_all_degrees: bool = False
    responses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_at_least(self, {"chunk": 1, "jacobian_rows": 0})

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
            ValueError: what it does not give is to be kept.
        """
        command = self._teacher_options.get("command")
        if command is None:
            return None
        not_given = {
            "force_jacobian needs rows of the teacher's Jacobian": self.jacobian_rows,
            "embedding_response needs the response of the teacher's embedding": keys.EMBEDDING_RESPONSE in self.responses,
            "a term with `lmax: all` needs the teacher's embeddings of l > 1": self.has_all_degrees,
        }
        for needed in (needed for needed, is_needed in not_given.items() if is_needed):
            raise ValueError(
                f"{needed}, which task.distill.teacher.command does not give. Leave the term or the flag out, or give a "
                "teacher by its `checkpoint`."
            )
        return TeacherProcess(command, self.dtype, self.has_vectors, self.chunk, keys.FORCE_RESPONSE in self.responses)

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
        has_vectors = self.has_vectors or self.has_all_degrees
        if has_vectors:
            if not teacher.vector_width:
                flag = "--all-degrees" if self.has_all_degrees else "--vectors"
                raise ValueError(f"the teacher, `{teacher.name}`, has no l=1 embedding, for {flag} or a term.")
            fields += (keys.VECTOR_EMBEDDING,)
        if self.has_all_degrees:
            if not teacher.features.higher_lmax:
                raise ValueError(
                    f"the teacher, `{teacher.name}`, has no embedding of l > 1, for --all-degrees or a term. "
                    "Take --vectors, or `lmax: 1` in the term."
                )
            fields += (keys.HIGHER_EMBEDDING,)
        fields += self.responses
        if self.jacobian_rows:
            fields += (keys.FORCE_JACOBIAN,)
        return Plan(
            teacher=teacher.name,
            fingerprint=teacher.fingerprint(),
            systems=len(dataset),
            sample=sample_digest(dataset),
            width=teacher.width,
            vector_width=teacher.vector_width if has_vectors else 0,
            higher_rows=(teacher.lmax + 1) ** 2 - 4 if self.has_all_degrees else 0,
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
    with filled(job.directory, plan, is_repair=is_repair) as is_to_write:
        if is_to_write:
            todo = begin(job.directory, source, plan)
            if ranks == 1 or len(todo) < ranks:
                written: Iterator[int] = write_chunks(job.directory, source, plan, todo, 0)
            else:
                del dataset, source  # each process opens its own
                gc.collect()  # a teacher's hooks are in cycles with it
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                # ranks share the chunks in turn, large systems and small
                written = values_from(_rank, [(job, todo[rank::ranks], rank) for rank in range(ranks)])
            there = min((plan.chunks - len(todo)) * plan.chunk, plan.systems)
            with tqdm(total=plan.systems, initial=there, unit=" systems") as bar:
                for systems in written:
                    bar.update(systems)
    return TeacherCache(job.directory)


@without_denormals()
def _rank(job: Job, chunks: list[int], rank: int, put: Callable[[int], None]) -> None:
    logging.basicConfig(level=logging.WARNING)
    load_plugins(imports_of(job.config.get("task")))
    source, plan = job.source(rank, job.dataset())
    for written in write_chunks(job.directory, source, plan, chunks, rank):
        put(written)
