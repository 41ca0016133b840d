"""Memory to load a teacher of the published size, and the time of one distillation step with it on the CPU.

    python -m benchmarks.true_size                          # all four teachers, about 12 minutes
    python -m benchmarks.true_size eqV2_31M --threads 2

Each teacher runs in a process of its own: its checkpoint is written (random weights, published format and size, with EMA),
loaded, and distils one step into a PaiNN h512 on two slabs. Writes true_size.json and true_size.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fairchem.core.common.utils import setup_imports
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.loss import DDPLoss
from fairchem.core.preprocessing import AtomsToGraphs
from torch_geometric.data import Batch

from benchmarks import ROOT

sys.path.insert(0, str(ROOT / "tests/tools"))

import make_published_checkpoint

from fairchem_crack import crack_loss, keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TeacherConfig, parse, split_loss_functions
from fairchem_crack.evaluation.speed.systems import make_systems
from fairchem_crack.teacher.frozen import load_teacher
from fairchem_crack.training.distillation import Distillation, Student

TEACHERS = ("eqV2_31M", "eqV2_83M", "eqV2_153M", "escn_L6_M3_Lay20")
STUDENT = "painn_h512"
ATOMS = 73  # of each of the two systems: near the mean of OC20
ENERGY, FORCES = 4.0, 100.0  # coefficients of the student's own losses, those of Lim et al. 2025
TERMS = [{"relations": {"fn": "crack", "coefficient": 10}}, {"node_embeddings": {"fn": "mse", "coefficient": 10}}]
SAMPLE_EVERY = 0.01  # s
LARGEST_RATIO = 2.2  # accepted: peak memory of loading over the size of the file
PARTS = {
    "teacher": "teacher forward",
    "student": "student forward",
    "losses": "projection, losses",
    "backward": "backward",
    "optimizer": "optimizers",
}


def _status() -> dict[str, int]:
    """This process's entries of /proc/self/status that are sizes, bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


class PeakMemory:
    """Peak resident memory within a `with` block, and at its start and end, bytes.

    `resident` is anonymous and file pages together, from the kernel's own high-water mark VmHWM. It counts the pages of
    the memory-mapped checkpoint that have been touched, which are page cache: the kernel drops them when it needs room.
    `anonymous` is what cannot be dropped. The kernel keeps no high-water mark of it, so a thread samples RssAnon.
    """

    def __enter__(self) -> PeakMemory:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS
        self.start = self._now()
        self.peak = dict(self.start)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()
        self.peak["resident"] = _status()["VmHWM"]
        gc.collect()
        self.end = self._now()

    def _sample(self) -> None:
        while not self._done.wait(SAMPLE_EVERY):
            self.peak["anonymous"] = max(self.peak["anonymous"], self._now()["anonymous"])

    @staticmethod
    def _now() -> dict[str, int]:
        status = _status()
        return {"resident": status["VmRSS"], "anonymous": status["RssAnon"]}


@contextmanager
def _clock(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[part] += time.perf_counter() - start


def two_slabs() -> Batch:
    """A batch of two systems of about `ATOMS` atoms, with random energies (eV) and forces (eV/A)."""
    systems = make_systems(ATOMS, 2)
    to_graph = AtomsToGraphs(r_edges=False, r_pbc=True)
    batch = data_list_collater([to_graph.convert(atoms, sid=sid) for sid, atoms in enumerate(systems)], otf_graph=True)
    generator = torch.Generator().manual_seed(0)
    batch.energy = torch.randn(len(systems), generator=generator)
    batch.forces = torch.randn(batch.pos.shape, generator=generator)
    return batch


def measure_load(checkpoint: Path) -> dict:
    """Seconds and memory of `load_teacher`, and the size of the file, bytes."""
    seconds: dict[str, float] = defaultdict(float)
    with PeakMemory() as memory, _clock(seconds, "load"):
        teacher = load_teacher(TeacherConfig(checkpoint=str(checkpoint)), torch.device("cpu"))
    return {
        "parameters": sum(parameter.numel() for parameter in teacher.model.parameters()),
        "file": checkpoint.stat().st_size,
        "seconds": seconds["load"],
        **{f"peak_{kind}": memory.peak[kind] - memory.start[kind] for kind in memory.peak},
        **{f"kept_{kind}": memory.end[kind] - memory.start[kind] for kind in memory.end},
    }


def measure_step(checkpoint: Path) -> dict:
    """Seconds of each part of one distillation step, and the memory of the whole process, bytes."""
    batch = two_slabs()
    student = make_published_checkpoint.published_model(STUDENT).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, amsgrad=True)
    distillation = Distillation(
        parse(DistillConfig, {"teacher": {"checkpoint": str(checkpoint)}}, "task.distill"),
        split_loss_functions(TERMS)[1],
        load_teacher(TeacherConfig(checkpoint=str(checkpoint)), torch.device("cpu")),
        Student(student, ModelOutputs("outputs"), optimizer, torch.device("cpu")),
        total_steps=1,
        seed=0,
    )
    distillation.preflight(batch)
    seconds: dict[str, float] = defaultdict(float)
    _clock_forward(distillation.teacher.model, seconds)
    mae, l2mae = DDPLoss("mae", reduction="mean"), DDPLoss("l2mae", reduction="mean")
    with PeakMemory() as memory:
        cpu_start = time.process_time()
        teacher_step = distillation.run_teacher(batch, 1)
        with _clock(seconds, "student"):
            out = student(batch)
        with _clock(seconds, "losses"):
            loss = ENERGY * mae(out["energy"].view(-1), batch.energy, natoms=batch.natoms)
            loss = loss + FORCES * l2mae(out["forces"], batch.forces, natoms=batch.natoms)
            distilled = distillation.loss(teacher_step, out)
            loss = loss + distilled.total
        with _clock(seconds, "backward"):
            loss.backward()
        with _clock(seconds, "optimizer"):
            optimizer.step()
            distillation.update_projection(1e-4, max_norm=None)
        cpu_seconds = time.process_time() - cpu_start
    return {
        "atoms": batch.natoms.tolist(),
        "pairs": int(distilled.log[keys.NUM_PAIRS]),
        "loss": loss.item(),
        "seconds": {part: seconds[part] for part in PARTS},
        "cpu_seconds": cpu_seconds,
        "peak_resident": memory.peak["resident"],
        "peak_anonymous": memory.peak["anonymous"],
    }


def _clock_forward(model: torch.nn.Module, seconds: dict[str, float]) -> None:
    """Add the time of each forward of the teacher's model to `seconds`."""
    started: list[float] = []
    model.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))
    # always_call: a teacher leaves its forward by an exception once everything has been read
    model.register_forward_hook(
        lambda *_: seconds.update(teacher=seconds["teacher"] + time.perf_counter() - started.pop()), always_call=True
    )


def run_case(name: str, directory: Path, threads: int) -> dict:
    """Measure one teacher in this process; its file is written by another, which leaves no memory behind here."""
    torch.set_num_threads(threads)
    checkpoint = directory / f"{name}.pt"
    try:
        tool = make_published_checkpoint.__file__
        subprocess.run([sys.executable, tool, name, str(checkpoint)], check=True, capture_output=True)
        setup_imports()  # the modules of all models count neither as memory nor as time of loading
        random = torch.randn(8, 4, requires_grad=True)
        crack_loss(student=random, teacher=torch.randn(8, 4), pairs=torch.tensor([[0, 1], [2, 3]])).backward()  # compiles
        return {"name": name, "load": measure_load(checkpoint), "step": measure_step(checkpoint)}
    finally:
        checkpoint.unlink(missing_ok=True)


def report(results: list[dict], machine: str) -> str:
    """The tables, as markdown."""
    mib = 2**20
    lines = [
        "# Teachers of the published size: memory to load, time of a step",
        "",
        f"CPU, {machine}. Random weights in the published OC20 format, written with EMA weights; one fresh process each. "
        "`python -m benchmarks.true_size` makes this page and `true_size.json`.",
        "",
        "## Loading",
        "",
        "Peak memory beyond what the process had just before, as a multiple of the file's size. Resident counts the pages "
        "of the memory-mapped file, which the kernel can drop; anonymous is what it cannot drop. Kept is resident memory "
        f"after loading. Target: at most {LARGEST_RATIO} resident.",
        "",
        "| teacher | parameters | file, MiB | seconds | peak resident, MiB | / file | peak anonymous, MiB | / file "
        "| kept, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        load = row["load"]
        cells = [f"{load['parameters'] / 1e6:.1f}M", f"{load['file'] / mib:.0f}", f"{load['seconds']:.1f}"]
        for kind in ("resident", "anonymous"):
            peak = load[f"peak_{kind}"]
            cells += [f"{peak / mib:.0f}", f"{peak / load['file']:.2f}"]
        lines.append(f"| {row['name']} | " + " | ".join([*cells, f"{load['kept_resident'] / mib:.0f}"]) + " |")
    lines += [
        "",
        "## One distillation step",
        "",
        f"A PaiNN h512 (20.1M) on two slabs of {' and '.join(map(str, results[0]['step']['atoms']))} atoms, online teacher, "
        "crack and mse terms, one run, not repeated. Seconds on the wall clock, and for the whole step those of the CPU, "
        "which other work on the machine lengthens less; peak memory is that of the whole process.",
        "",
        "| teacher | pairs | " + " | ".join(PARTS.values()) + " | whole step | its CPU seconds | peak resident, MiB | "
        "peak anonymous, MiB |",
        "|---" * (len(PARTS) + 6) + "|",
    ]
    for row in results:
        step = row["step"]
        seconds = [step["seconds"][part] for part in PARTS]
        cells = [str(step["pairs"]), *(f"{value:.2f}" for value in [*seconds, sum(seconds), step["cpu_seconds"]])]
        cells += [f"{step[kind] / mib:.0f}" for kind in ("peak_resident", "peak_anonymous")]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Run all teachers, one process each, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="*", default=list(TEACHERS), help=f"of {', '.join(TEACHERS)}; all by default")
    parser.add_argument("--directory", type=Path, help="where checkpoints are written, up to 1.6 GB, one at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.teachers[0], options.directory, options.threads)))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        command = [sys.executable, "-m", "benchmarks.true_size", "--case", "--directory", directory]
        for name in options.teachers:
            done = subprocess.run([*command, "--threads", str(options.threads), name], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            load, step = results[-1]["load"], results[-1]["step"]
            ratio, whole = load["peak_resident"] / load["file"], sum(step["seconds"].values())
            print(f"{name:18s} load {load['seconds']:5.1f} s, {ratio:.2f} x file;  step {whole:6.1f} s", flush=True)
    machine = f"{platform.machine()}, {options.threads} thread{'s' * (options.threads > 1)}, torch {torch.__version__}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "true_size.json").write_text(json.dumps({"machine": machine, "results": results}, indent=1))
    (options.out / "true_size.md").write_text(report(results, machine), encoding="utf-8")
    print(report(results, machine))
    too_large = [row["name"] for row in results if row["load"]["peak_resident"] > LARGEST_RATIO * row["load"]["file"]]
    if too_large:
        sys.exit(f"Loading took more than {LARGEST_RATIO} times the file's size: {', '.join(too_large)}.")


if __name__ == "__main__":
    main()
