"""Label the systems of a dataset with a teacher, and keep its outputs in a teacher cache."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np

from fairchem_crack.io.processes import values_from
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cache import PAIRS, CacheError, Plan, Record, TeacherCache, empty_record
from fairchem_crack.teacher.cache.fill import begin, filled, systems_of, write_chunks
from fairchem_crack.teacher.label.protocol import EQUAL, Labeller, Outputs, deviations, fault_of
from fairchem_crack.teacher.label.responses import displaced, with_response
from fairchem_crack.teacher.label.systems import System, Systems
from fairchem_crack.teacher.label.teachers import labeller_of

SAMPLE = 64  # systems of which the plan has a digest
NAMED = 8  # systems that a message lists
EVERY = 10.0  # s between two lines of progress
THREADS = "OMP_NUM_THREADS"
RESPONSE = "force_response"
Run = Callable[[Sequence[System]], Sequence[Optional[Outputs]]]


@dataclass(frozen=True)
class Job:
    """What every process needs to know.

    Attributes:
        teacher: as `labeller_of` takes it.
        data: files that ASE reads.
        directory: of the cache.
        dtype: of the embeddings.
        has_vectors: keep the l=1 embedding too.
        has_response: keep the response of the forces to a displacement of each system, by a second run of the teacher.
        chunk: systems that go through the teacher together.
        devices: of torch, taken by the processes in turn; empty lets the framework choose.
        data_keys: see `Systems`; so has `is_untagged`.
        keeps_going: a system that the teacher fails for gets an empty record, and ends nothing.
    """

    teacher: str
    data: tuple[Path, ...]
    directory: Path
    dtype: str = "float16"
    has_vectors: bool = False
    has_response: bool = False
    chunk: int = 16
    devices: tuple[str, ...] = ()
    data_keys: tuple[str, ...] = ()
    is_untagged: bool = False
    keeps_going: bool = False

    def systems(self) -> Systems:
        """The systems to label."""
        return Systems(self.data, self.data_keys, is_untagged=self.is_untagged)

    def labeller(self, process: int = 0) -> Labeller:
        """The teacher, on the device of a process."""
        return labeller_of(self.teacher, self.devices[process % len(self.devices)] if self.devices else None)

    def plan(self, systems: Systems, labeller: Labeller) -> Plan:
        """Of the cache; the teacher's outputs for the first system say what it holds.

        Raises:
            CacheError: the teacher fails for it, or for all systems if it `keeps_going`, or gives others when called again.
        """
        outputs = self._first_outputs(systems, labeller)
        width, vectors = outputs.node_embedding, outputs.vector_embedding
        if self.has_vectors and vectors is None:
            raise ValueError(f"--vectors: the teacher {self.teacher} gives no l=1 embedding.")
        digests = b"".join(systems[index].digest for index in evenly_spaced(len(systems), SAMPLE))
        return Plan(
            teacher=self.teacher,
            fingerprint=labeller.fingerprint,
            systems=len(systems),
            sample=hashlib.blake2b(digests, digest_size=16).hexdigest(),
            width=0 if width is None else width.shape[1],
            vector_width=vectors.shape[2] if self.has_vectors and vectors is not None else 0,
            dtype=self.dtype,
            chunk=self.chunk,
            fields=(
                *(name for name in outputs.fields if name != "vector_embedding" or self.has_vectors),
                *([RESPONSE] if self.has_response else []),
            ),
            has_pairs=outputs.pairs is not None,
            graph={} if labeller.cutoff is None else {"cutoff": float(labeller.cutoff)},
            identity=dict(labeller.identity),
        )

    def _first_outputs(self, systems: Systems, labeller: Labeller) -> Outputs:
        for system in systems:
            (outputs,) = (attempted if self.keeps_going else outputs_of)(labeller, [system])
            if outputs is not None:
                _check_repeated(labeller, system, outputs)
                return outputs
        raise CacheError(f"--teacher {self.teacher}: fails for all {len(systems)} systems. {SEE_ABOVE}")

    def maker(self, systems: Systems, labeller: Labeller, plan: Plan) -> Callable[[Sequence[int]], list[Record]]:
        """What makes the records of these systems."""
        run = attempted if self.keeps_going else outputs_of
        return lambda indices: records_of([systems[index] for index in indices], partial(run, labeller), plan)


def label(job: Job, *, processes: int = 1, is_repair: bool = False) -> TeacherCache:
    """Fill the cache, or what is missing of it, and finish it.

    Args:
        is_repair: read what is there first, and label damaged chunks again.

    Raises:
        CacheError: the directory holds another cache, another process writes it, a system cannot be labelled.
        ValueError: there is no such teacher, or no such data.
    """
    systems, labeller = job.systems(), job.labeller()
    check_elements(systems, labeller, job.teacher)
    plan = job.plan(systems, labeller)
    with filled(job.directory, plan, is_repair=is_repair) as is_to_write:
        if is_to_write:
            make = job.maker(systems, labeller, plan)
            todo = begin(job.directory, make, plan)
            if processes == 1 or len(todo) < processes:
                written = write_chunks(job.directory, make, plan, todo, 0)
            else:
                os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // processes)))
                shares = [(job, plan, todo[process::processes], process) for process in range(processes)]
                written = values_from(_label_share, shares)
            show_progress(written, sum(len(systems_of(plan, chunk)) for chunk in todo), plan.systems)
    return TeacherCache(job.directory)


def _label_share(job: Job, plan: Plan, chunks: list[int], process: int, put: Callable[[int], None]) -> None:
    make = job.maker(job.systems(), job.labeller(process), plan)
    for written in write_chunks(job.directory, make, plan, chunks, process):
        put(written)


def show_progress(written: Iterator[int], missing: int, total: int) -> None:
    """A line now and then: how far, how fast, how long still.

    Args:
        written: how many systems are, each time.
        missing: those of the `total` that it writes.
    """
    began = shown = time.monotonic()
    left = missing
    for count in written:
        left -= count
        now = time.monotonic()
        if now - shown >= EVERY:
            shown, pace = now, (now - began) / (missing - left)
            minutes = left * pace / 60
            print(f"{total - left} of {total} systems, {pace:.2g} s each, about {minutes:.0f} min left", flush=True)


def check_elements(systems: Systems, labeller: Labeller, teacher: str) -> None:
    """Raise ValueError for systems with an element that the teacher does not know."""
    if labeller.elements is None:
        return
    known, strange = set(labeller.elements), []
    for system in systems:
        others = sorted(set(system.atoms.numbers.tolist()) - known)
        if others:
            strange.append(f"{system.name} (atomic number {', '.join(map(str, others))})")
    if strange:
        more = f" and {len(strange) - NAMED} more" if len(strange) > NAMED else ""
        raise ValueError(
            f"--teacher {teacher}: does not know an element of {len(strange)} of {len(systems)} systems: "
            f"{'; '.join(strange[:NAMED])}{more}. Leave them out of the data and of the training, or take another teacher."
        )


def _check_repeated(labeller: Labeller, system: System, outputs: Outputs) -> None:
    """Raise CacheError where a teacher's outputs for a system are others when it is called again."""
    worst, field = max(deviations([outputs], outputs_of(labeller, [system])))
    if worst > EQUAL:
        raise CacheError(
            f"{system.name}: the teacher's {field} changed by {worst:.1e} of the largest when it was called again. A cache "
            "keeps what stays the same: is the model in training mode, with dropout for example?"
        )


def records_of(systems: Sequence[System], run: Run, plan: Plan) -> list[Record]:
    """The records of these systems.

    Args:
        run: the teacher, `outputs_of` or `attempted`.
    """
    outputs = run(systems)
    if RESPONSE in plan.fields:
        moved = run([displaced(system) for system in systems])
        outputs = [with_response(*each) for each in zip(systems, outputs, moved)]
    return [record_of(system, each, plan) for system, each in zip(systems, outputs)]


def record_of(system: System, outputs: Optional[Outputs], plan: Plan) -> Record:
    """The record of a system, an empty one without outputs; those for another system have said what it holds.

    Raises:
        CacheError: these have other fields.
    """
    if outputs is None:
        return empty_record(system.digest, plan)
    fields, pairs = outputs.fields, outputs.pairs
    given = [*fields, *([] if pairs is None else [PAIRS])]
    missing = [name for name in plan.parts if name not in given]
    if missing:
        raise CacheError(f"{system.name}: the teacher {plan.teacher} gives no {', '.join(missing)}, as it did for others.")
    added = [name for name in given if name not in plan.parts and name != "vector_embedding"]  # which is asked for
    if added:
        raise CacheError(f"{system.name}: the teacher {plan.teacher} gives {', '.join(added)}, and gave none for others.")
    values = {name: fields[name] for name in plan.fields}
    return Record(system.digest, len(system.atoms), values, np.zeros((2, 0), int) if pairs is None else pairs)


def outputs_of(labeller: Labeller, systems: Sequence[System]) -> list[Outputs]:
    """The teacher's outputs for these systems, checked.

    Raises:
        CacheError: names the system that the teacher fails for, or for which its outputs cannot be used.
    """
    atoms = [system.atoms.copy() for system in systems]
    try:
        outputs = labeller(atoms)
    except Exception as error:  # a framework raises anything
        if len(systems) > 1:
            for system in systems:
                outputs_of(labeller, [system])
            raise CacheError(
                f"{systems[0].name} to {systems[-1].name}: the teacher fails for them together, and not for each alone "
                f"({type(error).__name__}: {error}). Give a smaller --chunk, and another directory."
            ) from error
        raise CacheError(f"{systems[0].name}: the teacher fails ({type(error).__name__}: {error}). {LEAVE_OUT}") from error
    _check_kind(outputs, len(systems))
    for system, each in zip(systems, outputs):
        try:
            fault = fault_of(each, system.atoms)
        except (TypeError, ValueError, RuntimeError) as error:  # of a tensor that requires a gradient, for example
            fault = f"what is no array ({type(error).__name__}: {error})"
        if fault:
            raise CacheError(f"{system.name}: the teacher returned {fault}. {LEAVE_OUT}")
    return list(outputs)


def _check_kind(outputs: object, count: int) -> None:
    """Raise CacheError unless a teacher returned so many `Outputs`."""
    parts = outputs if isinstance(outputs, (list, tuple)) else []
    strange = [type(each).__name__ for each in parts if not isinstance(each, Outputs)]
    if strange or outputs is not parts:
        kind = f"a list with {strange[0]}" if strange else type(outputs).__name__
        raise CacheError(f"The teacher returned {kind}, expected a list of fairchem_crack.teacher.label.Outputs.")
    if len(parts) != count:
        raise CacheError(f"The teacher returned {len(parts)} outputs for {count} systems.")


def attempted(labeller: Labeller, systems: Sequence[System]) -> list[Optional[Outputs]]:
    """As `outputs_of`, but None for a system that the teacher fails for; it is named on the error output."""
    try:
        return [*outputs_of(labeller, systems)]
    except CacheError as error:
        if len(systems) > 1:
            return [attempted(labeller, [system])[0] for system in systems]
        logging.warning(f"No outputs. {error}")
        return [None]


SEE_ABOVE = "What each failed of is above."
LEAVE_OUT = "Leave the system out of the data and of the training, and give another --output."
