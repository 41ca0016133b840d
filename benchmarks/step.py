"""Time of a training step at true size: undistilled, distilled from a teacher cache, distilled with the teacher online.

    python benchmarks/step.py                             # CPU, both students, about 10 minutes
    python benchmarks/step.py painn --repeats 10
    python benchmarks/step.py --device cuda --batch-size 8

The shipped YAMLs, fairchem's trainer and ours, an eqV2_31M with random weights in the published format, slabs with random
energies and forces. The three kinds of step, and the teacher alone, take turns on the same batches, so that a machine that
becomes slower does so for all of them. Writes step.json and step.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import pickle
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer
from step_report import KINDS, TEACHER, cache_ratios, missed, report, summary
from torch_geometric.data import Batch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "tools"))

import make_published_checkpoint

from fairchem_crack import keys
from fairchem_crack.bench.systems import make_systems, read_systems
from fairchem_crack.cache import CacheWriter, Plan, Record, TeacherCache, finish, start
from fairchem_crack.cache_teacher import Job, write_chunks
from fairchem_crack.cached import CachedDataset
from fairchem_crack.config import split_loss_functions
from fairchem_crack.demo.prepare import DATA_FILE, MAP_SIZE, METADATA_FILE, oc20_record
from fairchem_crack.measure import peak_growth
from fairchem_crack.teacher import Teacher
from fairchem_crack.trainer import CrackDistillTrainer

STUDENTS = {"painn": 5, "gemnet_dT": 3}  # and how many rounds it is measured for
CONFIG = str(Path(__file__).resolve().parents[1] / "configs/oc20/s2ef/200k/{}_from_eqV2-31M.yml")
SYSTEMS, ATOMS = 8, 73  # of about so many atoms each, near the mean of OC20
RECORDS = 1024  # of the cache whose size and speed are measured; the records of the systems over and over
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CACHE = "cache"


class Clock:
    """Seconds since it was made, or last read, by each of `CLOCKS`; on a GPU, once its work is done."""

    def __init__(self) -> None:
        self._start: dict[str, float] = {}
        self.read()

    def read(self) -> dict[str, float]:
        """The seconds; from here on the next ones count."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = {name: clock() for name, clock in CLOCKS.items()}
        passed = {name: now[name] - self._start.get(name, 0.0) for name in now}
        self._start = now
        return passed


@contextmanager
def teacher_clock(method: str) -> Iterator[dict[str, float]]:
    """The seconds that this method of `Teacher` takes within a `with` block."""
    seconds: dict[str, float] = defaultdict(float)
    original = getattr(Teacher, method)

    def clocked(self: Teacher, batch: Batch, *options: Any) -> Any:
        clock = Clock()
        result = original(self, batch, *options)
        for name, passed in clock.read().items():
            seconds[name] += passed
        return result

    setattr(Teacher, method, clocked)
    try:
        yield seconds
    finally:
        setattr(Teacher, method, original)


def write_dataset(systems: list[Atoms], directory: Path) -> list[int]:
    """Write systems as OC20's LMDBs, energies (eV) and forces (eV/A) random; returns how many atoms they have."""
    random = np.random.default_rng(0)
    directory.mkdir(parents=True)
    environment = lmdb.open(str(directory / DATA_FILE), map_size=MAP_SIZE, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index, system in enumerate(systems):
            labels = {"energy": random.normal(), "forces": random.normal(size=(len(system), 3))}
            system.calc = SinglePointCalculator(system, **labels)
            transaction.put(str(index).encode(), pickle.dumps(oc20_record(system, sid=index, fid=0), protocol=-1))
        transaction.put(b"length", pickle.dumps(len(systems)))
    environment.close()
    sizes = [len(system) for system in systems]
    np.savez(directory / METADATA_FILE, natoms=np.array(sizes))
    return sizes


def training_config(student: str, kind: str, directory: Path, batch_size: int) -> dict:
    """The shipped YAML of a student, on a data set of its own: a process opens an LMDB only once."""
    config = load_config(CONFIG.format(student))[0]
    source = directory / f"train-{kind}"
    if not source.exists():
        shutil.copytree(directory / "train", source)
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(source)}}
    config["optim"].update(batch_size=batch_size, eval_batch_size=batch_size, num_workers=0)
    teacher = {"checkpoint": str(directory / f"{TEACHER}.pt")} if kind == "online" else {"cache": str(directory / CACHE)}
    config["task"]["distill"]["teacher"] = teacher
    if kind == "undistilled":
        config["task"] = {}
        config["loss_functions"] = split_loss_functions(config["loss_functions"])[0]
    return config


def build_trainer(config: dict, device: str) -> OCPTrainer:
    """fairchem's own trainer, or ours where there is something to distil; it writes no files."""
    names = ("task", "model", "outputs", "dataset", "loss_functions", "evaluation_metrics")
    return (CrackDistillTrainer if config["task"] else OCPTrainer)(
        **copy.deepcopy({name: config[name] for name in names}),
        optimizer=config["optim"],
        identifier="",
        local_rank=0,
        is_debug=True,
        seed=0,
        cpu=device == "cpu",
    )


def begin(trainer: OCPTrainer) -> None:
    """What `CrackDistillTrainer.train` does before its first step, but for the checks of a sample."""
    if isinstance(trainer, CrackDistillTrainer):
        trainer._distillation = trainer.build_distillation(trainer._distill_config)


def endless(trainer: OCPTrainer) -> Iterator[Batch]:
    """The batches of the trainer's loader, epoch after epoch; the same for all trainers."""
    for epoch in range(1 << 30):
        trainer.train_sampler.set_epoch_and_start_iteration(epoch, 0)
        yield from trainer.train_loader


def take_step(trainer: OCPTrainer, batches: Iterator[Batch]) -> tuple[Batch, dict[str, float]]:
    """One turn of the loop of fairchem's `OCPTrainer.train`, and the seconds its batch took to load."""
    trainer.step += 1
    trainer.model.train()
    clock = Clock()
    batch = next(batches)
    loading = clock.read()
    out = trainer._forward(batch)
    loss = trainer._compute_loss(out, batch)
    metrics = trainer._compute_metrics(out, batch, trainer.evaluator, {})
    trainer.metrics = trainer.evaluator.update("loss", loss.item(), metrics)
    trainer._backward(loss)
    return batch, loading


def measure_steps(student: str, directory: Path, *, repeats: int, batch_size: int, device: str) -> dict:
    """Seconds of each kind of step, of the teacher alone and of loading, one for each round."""
    trainers = {kind: build_trainer(training_config(student, kind, directory, batch_size), device) for kind in KINDS}
    for trainer in trainers.values():
        trainer.metrics = {}
        take_step(trainer, endless(trainer))  # torch.jit, which PaiNN uses, compiles in its first two runs
        begin(trainer)
    batches = {kind: endless(trainer) for kind, trainer in trainers.items()}
    settling = {kind: endless(trainer) for kind, trainer in trainers.items()}
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(repeats + 1):
        first, second = ("undistilled", "cached") if number % 2 else ("cached", "undistilled")
        if number:  # after the teacher alone a step takes longer; in a training it follows a step, so do the timed ones
            take_step(trainers[second], settling[second])
        seconds: dict[str, dict[str, float]] = {}
        for kind in (first, second, "online"):
            with teacher_clock("__call__") as within:
                clock = Clock()
                batch, loading = take_step(trainers[kind], batches[kind])
                seconds[kind], seconds[f"{kind} loading"] = clock.read(), loading
        if number == 0:
            continue
        seconds["teacher within online"] = dict(within)
        clock = Clock()
        trainers["online"]._distillation.teacher(batch)
        seconds["teacher"] = clock.read()
        rounds.append(seconds)
        shown = "  ".join(f"{kind} {seconds[kind]['wall']:.2f}" for kind in (*KINDS, "teacher"))
        print(f"{student}, round {number}: {shown} s", flush=True)
    model = trainers["undistilled"]._unwrapped_model
    return {
        "student": student,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "pairs": int(trainers["cached"]._distillation.log["pairs"]),
        "rounds": rounds,
    }


def measure_cache(directory: Path, *, device: str) -> dict:
    """Seconds to write the cache of the systems and what of it is the teacher; size and speed of a larger one."""
    config = training_config("painn", "online", directory, 1)
    job = Job(config, directory / CACHE, has_vectors=True, cpu=device == "cpu")  # which PaiNN's terms need
    dataset = job.dataset()
    source, plan = job.source(0, dataset)
    job.directory.mkdir()
    start(job.directory, plan)
    with teacher_clock("__call__") as inference:
        clock = Clock()
        _, peak = peak_growth(
            lambda: sum(write_chunks(job.directory, source, dataset, plan, range(plan.chunks), 0)), torch.device(device)
        )
        finish(job.directory, plan)
        whole = clock.read()
    cache = TeacherCache(job.directory)
    records = [cache[index] for index in range(len(cache))]
    print(f"cache: {whole['wall']:.2f} s, of which teacher {inference['wall']:.2f} s", flush=True)
    return {
        "systems": len(cache),
        "writing": whole,
        "inference": dict(inference),
        "peak_memory": peak,
        "bytes_on_disk": _size(job.directory),
        "bytes_of_arrays": sum(map(_array_bytes, records)),
        "large": measure_large_cache(directory / "large", plan, records),
        "attaching": measure_attaching(dataset, cache),
    }


def measure_large_cache(directory: Path, plan: Plan, records: list[Record]) -> dict:
    """Size, and median seconds of a record, of a cache of `RECORDS` records."""
    plan = Plan(**{**plan.__dict__, "systems": RECORDS})
    many = [records[index % len(records)] for index in range(RECORDS)]
    writer = CacheWriter(directory, plan)
    clock = Clock()
    for chunk in range(plan.chunks):
        writer.write(chunk, many[chunk * plan.chunk : (chunk + 1) * plan.chunk])
    writer.close()
    finish(directory, plan)
    writing = clock.read()
    cache = TeacherCache(directory)
    seconds = []
    for index in np.random.default_rng(0).permutation(RECORDS).tolist():
        clock = Clock()
        cache[index]
        seconds.append(clock.read()["wall"])
    cache.close()
    return {
        "systems": RECORDS,
        "bytes_on_disk": _size(directory),
        "bytes_of_arrays": sum(map(_array_bytes, many)),
        "writing_a_record": writing["cpu"] / RECORDS,
        "reading_a_record": statistics.median(seconds),
    }


def measure_attaching(dataset: Any, cache: TeacherCache) -> dict[str, float]:
    """Median seconds of a system from the data set, and of one with its record attached."""
    found = {}
    for name, one in (
        ("without", dataset),
        ("with", CachedDataset(dataset, cache, "dataset.train", [keys.NODE_EMBEDDING, keys.VECTOR_EMBEDDING])),
    ):
        seconds = []
        for index in np.random.default_rng(0).integers(len(dataset), size=200).tolist():
            clock = Clock()
            one[index]
            seconds.append(clock.read()["wall"])
        found[name] = statistics.median(seconds)
    return found


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _array_bytes(record: Record) -> int:
    return sum(value.nbytes for value in (*record.values.values(), record.pairs))


def run_case(options: argparse.Namespace) -> dict:
    """Measure the cache or one student in this process."""
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)
    setup_imports()
    if options.case == CACHE:
        return measure_cache(options.directory, device=options.device)
    repeats = options.repeats or STUDENTS[options.case]
    return measure_steps(
        options.case, options.directory, repeats=repeats, batch_size=options.batch_size, device=options.device
    )


def main() -> None:
    """Write teacher, data and cache, run each student in a process of its own, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", default=list(STUDENTS), help=f"of {', '.join(STUDENTS)}; both by default")
    parser.add_argument("--systems", type=Path, help=f"a file that ASE reads, its first {SYSTEMS}; else O on fcc(111)")
    parser.add_argument("--repeats", type=int, help=f"rounds (default: {STUDENTS})")
    parser.add_argument("--batch-size", type=int, default=2, help=f"systems per step, of {SYSTEMS}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--directory", type=Path, help="where the teacher, 240 MB, and the data are written for the time")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="fairchem|torch")
    if options.case:
        (options.directory / f"{options.case}.json").write_text(json.dumps(run_case(options)))
        return
    raw = {}
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        make_published_checkpoint.write_published_checkpoint(TEACHER, Path(directory) / f"{TEACHER}.pt")
        systems = read_systems(options.systems, SYSTEMS) if options.systems else make_systems(ATOMS, SYSTEMS)
        atoms = write_dataset(systems, Path(directory) / "train")
        command = [sys.executable, "-W", "ignore", __file__, *_passed_on(options), "--directory", directory]
        for case in (CACHE, *options.students):
            if subprocess.run([*command, "--case", case]).returncode != 0:
                sys.exit(f"{case} failed; see above.")
            raw[case] = json.loads((Path(directory) / f"{case}.json").read_text())
    students, cache = {name: summary(raw[name]) for name in options.students}, cache_ratios(raw[CACHE])
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {platform.machine()}"
    content = {
        "machine": f"{device}, {options.threads} thread{'s' * (options.threads > 1)}, torch {torch.__version__}",
        "command": shlex.join(["python", "benchmarks/step.py", *sys.argv[1:]]),
        "batch_size": options.batch_size,
        "atoms": atoms,
        "students": students,
        "cache": cache,
        "missed": missed(students, cache),
        "raw": raw,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "step.json").write_text(json.dumps(content, indent=1))
    (options.out / "step.md").write_text(report(content))
    print(report(content))


def _passed_on(options: argparse.Namespace) -> list[str]:
    names = ("repeats", "batch_size", "threads", "device")
    given = {name.replace("_", "-"): getattr(options, name) for name in names if getattr(options, name) is not None}
    return [part for name, value in given.items() for part in (f"--{name}", str(value))]


if __name__ == "__main__":
    main()
