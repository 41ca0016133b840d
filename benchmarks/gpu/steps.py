"""Training steps of PaiNN h512 and GemNet-dT at the official batch size, with the 31M EquiformerV2 teacher.

Undistilled, from a teacher cache and with the teacher online, interleaved on the same batches; one row for each round, and
one for the sizes of a student. Data, teacher (random weights) and cache are made once in `--directory`.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import traceback
import warnings
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer

from benchmarks import ROOT
from benchmarks.gpu import json_lines

sys.path.insert(0, str(ROOT / "tests/tools"))

import make_published_checkpoint

from benchmarks.step.report import KINDS, TEACHER
from benchmarks.step.runs import CACHE, Clock, begin, build_trainer, endless, take_step, training_config, write_dataset
from fairchem_crack.commands.cache_teacher.job import Job, write_chunks
from fairchem_crack.evaluation.speed.systems import make_systems
from fairchem_crack.evaluation.time_and_memory import peak_growth
from fairchem_crack.teacher.cache import finish, start

STUDENTS = ("painn", "gemnet_dT")
BATCH = 32  # of both students' recipes
ATOMS = 73  # of a system, near the mean of OC20
BATCHES = 2  # of different systems
TOY_TEACHER = {
    **{"num_layers": 1, "lmax_list": [1], "mmax_list": [1], "max_radius": 5.0},
    **{"sphere_channels": 16, "attn_hidden_channels": 8, "num_heads": 2, "attn_alpha_channels": 8},
    **{"attn_value_channels": 8, "ffn_hidden_channels": 16, "edge_channels": 16, "num_distance_basis": 16},
}
TOY_STUDENTS = {
    "painn": {"hidden_channels": 32, "num_layers": 2, "cutoff": 5.0},
    "gemnet_dT": {"emb_size_edge": 32, "emb_size_atom": 32, "num_blocks": 1, "num_radial": 8, "cutoff": 4.0},
}


def prepare(options: argparse.Namespace) -> None:
    """Write teacher, data and cache, unless they are there."""
    directory, atoms = options.directory, 13 if options.toy else ATOMS
    if (directory / "done").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    toy = TOY_TEACHER if options.toy else {}
    make_published_checkpoint.write_published_checkpoint(TEACHER, directory / f"{TEACHER}.pt", **toy)
    sizes = write_dataset(make_systems(atoms, BATCHES * options.batch_size), directory / "train")
    written = clock.read()["wall"]
    config = training_config("painn", "online", directory, options.batch_size)
    cpu = options.device == "cpu"
    job = Job(config, directory / CACHE, has_vectors=True, chunk=options.batch_size, cpu=cpu)  # as PaiNN's terms need
    source, plan = job.source(0, job.dataset())
    loaded = clock.read()["wall"]
    job.directory.mkdir()
    start(job.directory, plan)
    chunks = lambda: sum(write_chunks(job.directory, source, plan, range(plan.chunks), 0))  # noqa: E731
    _, growth = peak_growth(chunks, torch.device(options.device))
    finish(job.directory, plan)
    (directory / "done").touch()
    row = {"written": written, "loaded": loaded, "seconds": clock.read()["wall"], "growth": growth}
    json_lines.append(options.rows, what="cache", systems=len(sizes), atoms=sum(sizes), **row)


def trainer_of(student: str, kind: str, options: argparse.Namespace) -> OCPTrainer:
    """A trainer that has taken its first steps, in which PaiNN's torch.jit compiles."""
    config = training_config(student, kind, options.directory, options.batch_size)
    if options.toy:
        config["model"].update(TOY_STUDENTS[student])
    trainer = build_trainer(config, options.device, amp=options.precision == "amp")
    trainer.metrics = {}
    take_step(trainer, endless(trainer))
    begin(trainer)
    take_step(trainer, endless(trainer))
    return trainer


def measure(student: str, options: argparse.Namespace) -> None:
    """Write the rows of one student."""
    common = {"student": student, "precision": options.precision}
    trainers, resident, growth = {}, {}, {}
    for kind in KINDS:
        before = allocated()
        trainers[kind] = trainer_of(student, kind, options)
        resident[kind] = allocated() - before
    batches = {kind: endless(trainer) for kind, trainer in trainers.items()}
    for number in range(options.rounds):
        seconds = {}
        for kind in KINDS if number % 2 else KINDS[::-1]:
            reset_peak()
            before = allocated()
            take_step(trainers[kind], batches[kind])  # not timed: the steps of a training follow steps of their own kind
            growth[kind] = peak() - before
            clock = Clock()
            batch, loading = take_step(trainers[kind], batches[kind])
            seconds[kind], seconds[f"{kind} loading"] = clock.read()["wall"], loading["wall"]
        teacher = trainers["online"]._distillation.teacher
        clock = Clock()
        teacher(batch)
        seconds["teacher"] = clock.read()["wall"]
        json_lines.append(options.rows, what="round", **common, seconds=seconds)
        print(student, options.precision, {kind: round(value, 4) for kind, value in seconds.items()}, flush=True)
    model = trainers["undistilled"]._unwrapped_model
    json_lines.append(
        options.rows,
        what="sizes",
        **common,
        batch_size=options.batch_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pairs=int(trainers["cached"]._readout.numbers["pairs"]),
        atoms=int(batch.natoms.sum()),
        resident=resident,
        growth=growth,
    )


def allocated() -> int:
    """Bytes that torch's tensors take on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def peak() -> int:
    """The most of them since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


def reset_peak() -> None:
    """From here on `peak` counts."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Measure the students; one that fails does not keep the next from being measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "amp"])
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--toy", action="store_true", help="small models, batches of 2: a dry run")
    options = parser.parse_args()
    if options.toy:
        options.batch_size, options.rounds = 2, 2
    warnings.filterwarnings("ignore", module="fairchem|torch")
    logging.disable(logging.WARNING)
    setup_imports()
    prepare(options)
    failed = []
    for student in options.students:
        try:
            measure(student, options)
        except Exception as error:
            traceback.print_exc()
            json_lines.append(
                options.rows, what="error", student=student, precision=options.precision, error=str(error)[-500:]
            )
            failed.append(student)
        gc.collect()  # closes the LMDBs, which a process opens only once, and frees the trainers' memory
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    sys.exit(f"Failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
