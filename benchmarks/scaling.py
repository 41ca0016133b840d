"""What distillation costs in multi-rank efficiency: 1 against 2 ranks (gloo, CPU, one thread each), weak scaling.

    python -m benchmarks.scaling                                # PaiNN of the demo, about 5 minutes on 2 idle cores
    python -m benchmarks.scaling --student gemnet_dT --rounds 10

Every rank trains the demo's student on batches of the same systems. Efficiency is the time of a step on one rank over that
on two; what distillation loses of it is 1 - efficiency(distilled) / efficiency(undistilled). All processes live from the
start to the end, each with a trainer of every kind; their steps are interleaved, a few at a time, and they sleep in between.
Beside one rank and two ranks, two runs of one rank each are timed together: the machine is as busy, and nothing is sent.
Writes scaling.json and scaling.md to docs/benchmarks/, or scaling_gemnet_dT.json and .md.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.trainers.ocp_trainer import OCPTrainer
from scipy.stats import binom
from torch import distributed as dist

from benchmarks import ROOT
from benchmarks.step.runs import begin, build_trainer, take_step
from fairchem_crack import keys
from fairchem_crack.commands.cache_teacher.job import Job, cache_teacher
from fairchem_crack.config import split_loss_functions
from fairchem_crack.demo.prepare import METADATA_FILE, prepare_demo

CONFIGS = ROOT / "configs/oc20/demo"
TEACHER = CONFIGS / "teacher_equiformer_v2.pt"
STUDENTS = {"painn": 40, "gemnet_dT": 20}  # and how many rounds it is measured for
PLAIN, AGAIN = "undistilled", "undistilled again"  # the second shows what is measured where there is no difference
DISTILLED = ("cached", "online", "world")
KINDS = {
    PLAIN: "undistilled",
    AGAIN: "undistilled, once more",
    "cached": "distilled, teacher cache",
    "online": "distilled, online teacher",
    "world": "distilled, teacher cache, `negatives: world`",
}
ONE, TWO, APART = "1 rank", "2 ranks", "2 runs"
BATCH_SIZE = 16  # the demo's
STEPS = 5  # of a group; the first, for which a process wakes, is not timed
MOST_LOST = 0.03  # the target
CONFIDENCE = 0.95  # of the interval in which the median lies
FEWEST = 6  # rounds that have such an interval


class Rank:
    """A process with a trainer of every kind, one rank of a run of `world_size`, on one core; it trains on demand."""

    def __init__(self, run: str, rank: int, world_size: int, *, core: int, student: str, directory: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        arguments = (end, f"file://{directory / run}", rank, world_size, core, student, directory)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        end.close()

    def result(self) -> Any:
        """The result of the process; exits where it failed."""
        try:
            return self.pipe.recv()
        except EOFError:
            sys.exit("A rank failed; see above.")


def serve(pipe: Any, meeting_point: str, rank: int, world_size: int, core: int, student: str, directory: Path) -> None:
    """Take the turns that come through the pipe, until there is a None."""
    os.sched_setaffinity(0, {core})  # so that the ranks, which wake each other, never share one
    be_quiet()
    setup_imports()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=world_size)
    trainers = {kind: ready_trainer(student, kind, directory) for kind in KINDS}
    pipe.send("ready")
    for kind in iter(pipe.recv, None):
        pipe.send(train(trainers[kind]))
    dist.barrier()
    os._exit(0)  # gloo's threads abort some processes that end as usual


def be_quiet() -> None:
    """Show neither fairchem's log nor its warnings."""
    warnings.filterwarnings("ignore", module="fairchem|torch")
    logging.disable(logging.WARNING)


def ready_trainer(student: str, kind: str, directory: Path) -> OCPTrainer:
    """A trainer before its first step, whose loader gives every rank the same batches."""
    trainer = build_trainer(training_config(student, kind, directory), "cpu")
    trainer.metrics = {}
    indices = range(len(trainer.train_dataset))
    trainer.train_sampler = [list(indices[first : first + BATCH_SIZE]) for first in indices[::BATCH_SIZE]]
    trainer.train_loader = trainer.get_dataloader(trainer.train_dataset, trainer.train_sampler)
    begin(trainer)
    return trainer


def training_config(student: str, kind: str, directory: Path) -> dict:
    """The demo's YAML, on a data set and a cache of its own: a process opens an LMDB only once."""
    config = load_config(str(CONFIGS / (f"{student}_crack.yml" if kind in DISTILLED else f"{student}.yml")))[0]
    config.setdefault("task", {})
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(directory / "train" / kind)}}
    if kind in DISTILLED:
        own_cache = {"cache": str(directory / "cache" / kind)}
        config["task"]["distill"]["teacher"] = {"checkpoint": str(TEACHER)} if kind == "online" else own_cache
        config["task"]["distill"]["relations"]["negatives"] = "world" if kind == "world" else "batch"
        own, _ = split_loss_functions(config["loss_functions"])
        config["loss_functions"] = [*own, {keys.RELATIONS: {"fn": "crack", "coefficient": 40}}]  # only CRACK
    return config


def train(trainer: OCPTrainer) -> list[float]:
    """Seconds of each step through the loader, but for the first; the same batches in every turn."""
    batches, seconds = iter(trainer.train_loader), []
    for _ in range(STEPS):
        start = time.perf_counter()
        take_step(trainer, batches)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def prepare(directory: Path) -> list[int]:
    """Write data sets and caches, one for each kind; how many atoms each batch has."""
    prepare_demo(directory / "demo", sizes={"train": STEPS * BATCH_SIZE}, seed=0, workers=2)
    for kind in KINDS:
        shutil.copytree(directory / "demo" / "train", directory / "train" / kind)
    config = training_config("painn", "online", directory)
    (directory / "cache").mkdir()
    cache_teacher(Job(config, directory / "cache" / "online", cpu=True)).close()
    for kind in ("cached", "world"):
        shutil.copytree(directory / "cache" / "online", directory / "cache" / kind)
    natoms = np.load(directory / "demo" / "train" / METADATA_FILE)["natoms"]
    return natoms.reshape(STEPS, BATCH_SIZE).sum(axis=1).tolist()


def start_ranks(student: str, directory: Path) -> dict[str, list[Rank]]:
    """The processes of each mode, warmed up: torch.jit, which PaiNN uses, compiles in its first runs."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    given: dict[str, Any] = {"student": student, "directory": directory}
    single = [Rank(f"single-{number}", 0, 1, core=core, **given) for number, core in enumerate(cores)]
    together = [Rank("together", rank, 2, core=core, **given) for rank, core in enumerate(cores)]
    for rank in (*single, *together):
        rank.result()
    modes = {ONE: single[:1], TWO: together, APART: single}
    for kind in KINDS:
        for mode in (TWO, APART):
            take_turn(modes[mode], kind)
    return modes


def take_turn(ranks: Sequence[Rank], kind: str) -> float:
    """Median seconds of a step, each the mean over the ranks, which work at the same time."""
    for rank in ranks:
        rank.pipe.send(kind)
    seconds = [rank.result() for rank in ranks]  # (ranks, steps)
    return statistics.median(statistics.mean(step) for step in zip(*seconds))


def measure(student: str, directory: Path, rounds: int) -> list[dict[str, dict[str, float]]]:
    """Seconds of a step by mode and kind, one for each round; the order of kinds and modes changes from round to round."""
    modes, seconds_of_rounds = start_ranks(student, directory), []
    for number in range(rounds):
        direction = -1 if number % 2 else 1
        seconds: dict[str, dict[str, float]] = {mode: {} for mode in modes}
        for kind in list(KINDS)[::direction]:
            for mode in list(modes)[::direction]:
                seconds[mode][kind] = take_turn(modes[mode], kind)
        seconds_of_rounds.append(seconds)
        shown = "  ".join(f"{kind} {seconds[ONE][kind] * 1e3:.0f}/{seconds[TWO][kind] * 1e3:.0f}" for kind in KINDS)
        print(f"{student}, round {number + 1}, ms on 1/2 ranks: {shown}", flush=True)
    ranks = [*modes[TWO], *modes[APART]]
    for rank in ranks:
        rank.pipe.send(None)
    for rank in ranks:
        rank.process.join()
    return seconds_of_rounds


def statistics_of(values: list[float]) -> dict[str, Any]:
    """Median, quartiles, min and max, and the interval in which the true median lies, by order statistics."""
    ordered = sorted(values)
    outside = max(1, int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5)))  # from each end, the interval's last value
    return {
        "median": statistics.median(ordered),
        "quartiles": np.quantile(ordered, [0.25, 0.75]).tolist(),
        "spread": [ordered[0], ordered[-1]],
        "interval": [ordered[outside - 1], ordered[-outside]],
    }


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """By kind: the times, the efficiency, and what is lost of it against undistilled, over the rounds.

    `lost_busy` is `lost` with two separate runs at once in the place of one rank.
    """
    kinds = {}
    for kind in KINDS:
        of: dict[str, list[float]] = {f"seconds, {mode}": [row[mode][kind] for row in rounds] for mode in (ONE, TWO, APART)}
        for suffix, mode in (("", ONE), ("_busy", APART)):
            efficiency = [{name: row[mode][name] / row[TWO][name] for name in (PLAIN, kind)} for row in rounds]
            of[f"efficiency{suffix}"] = [row[kind] for row in efficiency]
            of[f"lost{suffix}"] = [1 - row[kind] / row[PLAIN] for row in efficiency]
        kinds[kind] = {name: statistics_of(values) for name, values in of.items()}
    return kinds


def verdict(kinds: dict[str, dict[str, Any]], kind: str, rounds: int) -> str:
    """Whether the target is met, and whether the measurement is sharp enough to tell."""
    if rounds < FEWEST:
        return "too few rounds to tell"
    if abs(kinds[AGAIN]["lost"]["median"]) > MOST_LOST:
        return "no verdict, as two undistilled trainers differ by as much: the machine was not quiet"
    lost = kinds[kind]["lost"]
    low, high = lost["interval"]
    if lost["median"] <= MOST_LOST:
        return "met" if high <= MOST_LOST else "met by the median, within the noise"
    return "missed" if low > MOST_LOST else "missed by the median, within the noise"


def report(content: dict) -> str:
    """The tables, as markdown."""
    kinds = content["kinds"]

    def cell(kind: str, name: str, brackets: str, unit: float, digits: int) -> str:
        values = (kinds[kind][name]["median"], *kinds[kind][name][brackets])
        median, low, high = (f"{value * unit:.{digits}f}" for value in values)
        return f"{median} [{low}, {high}]"

    lines = [
        "# Multi-rank efficiency: undistilled and distilled, 1 against 2 ranks",
        "",
        f"{content['machine']}. Weak scaling: the demo's {content['student']}, {BATCH_SIZE} systems "
        f"({min(content['atoms'])} to {max(content['atoms'])} atoms) on each rank, the same on both; gloo, one core and "
        "one thread per rank, DDP on one rank too, as fairchem has it. Efficiency is the time of a step on 1 rank over that "
        "on 2. Lost is 1 - efficiency / efficiency undistilled, of one round. All kinds and numbers of ranks are "
        "interleaved, in groups of "
        f"{STEPS - 1} timed steps on the same batches, in alternating order, {content['rounds']} times; a group gives its "
        "median step. Figures are medians over the rounds, of the ratios too, in brackets quartiles. Load of the machine "
        f"before it began: {content['load']:.2f}. `python -m benchmarks.scaling` makes this page and its JSON file.",
        "",
        "| | ms, 1 rank | ms, 2 ranks | efficiency |",
        "|---" * 4 + "|",
    ]
    for kind, title in KINDS.items():
        times = [cell(kind, f"seconds, {mode}", "quartiles", 1e3, 1) for mode in (ONE, TWO)]
        lines.append("| " + " | ".join([title, *times, cell(kind, "efficiency", "quartiles", 1, 3)]) + " |")
    lines += [
        "",
        "## Efficiency lost by distillation",
        "",
        f"Target: at most {MOST_LOST:.0%}. In brackets the {CONFIDENCE:.0%} interval of the median (min and max of "
        f"fewer than {FEWEST} rounds), in the third column min and max. The first row is a second undistilled run: "
        "what the measurement says where there is nothing to find.",
        "",
        "| | lost, % | min and max, % | target |",
        "|---" * 4 + "|",
    ]
    for kind in (AGAIN, *DISTILLED):
        low, high = (f"{100 * value:.1f}" for value in kinds[kind]["lost"]["spread"])
        verdict = content["verdicts"].get(kind, "")
        row = [KINDS[kind], cell(kind, "lost", "interval", 100, 2), f"{low} to {high}", verdict]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "`negatives: world` contrasts each relation with those of all ranks: on two ranks its loss is twice the work by its "
        "definition, which counts as lost here, beside what is sent.",
        "",
        "## What the machine has to do with it",
        "",
        "One rank has the memory and the caches for itself, two ranks share them, and a kind of step can suffer from that "
        "more than another. So the same against two separate runs of one rank each, at the same time: what is left is the "
        "communication, the wait for the other rank, and the larger loss of `world`. No target.",
        "",
        "| | ms, each of 2 runs | efficiency against 2 runs | lost, % |",
        "|---" * 4 + "|",
    ]
    for kind, title in KINDS.items():
        lost = "" if kind == PLAIN else cell(kind, "lost_busy", "interval", 100, 2)
        figures = [cell(kind, f"seconds, {APART}", "quartiles", 1e3, 1), cell(kind, "efficiency_busy", "quartiles", 1, 3)]
        lines.append("| " + " | ".join([title, *figures, lost]) + " |")
    return "\n".join([*lines, "", "## Target", "", *_sentences(content), ""])


def _sentences(content: dict) -> list[str]:
    kinds, verdicts = content["kinds"], content["verdicts"]
    if set(verdicts.values()) == {"met"}:
        return [f"Met by every kind: distillation loses at most {MOST_LOST:.0%} of the efficiency."]
    return [f"- {KINDS[kind]}: {kinds[kind]['lost']['median']:.1%} lost: {verdict}." for kind, verdict in verdicts.items()]


def main() -> None:
    """Write data and caches to a temporary directory, measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="painn", choices=list(STUDENTS))
    parser.add_argument("--rounds", type=int, help=f"turns of each kind and number of ranks (default: {STUDENTS})")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    rounds = STUDENTS[options.student] if options.rounds is None else options.rounds
    if rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {rounds}.")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("Two ranks need two cores; this process may use only one.")
    be_quiet()
    # for the processes to come; fairchem takes numba's threads, and warns while it is imported
    os.environ.update(OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        atoms = prepare(Path(directory))
        raw = measure(options.student, Path(directory), rounds)
    kinds = summary(raw)
    content = {
        "machine": f"CPU, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "student": options.student,
        "rounds": rounds,
        "load": load,
        "atoms": atoms,
        "kinds": kinds,
        "verdicts": {kind: verdict(kinds, kind, rounds) for kind in DISTILLED},
        "raw": raw,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = "scaling" if options.student == "painn" else f"scaling_{options.student}"
    (options.out / f"{name}.json").write_text(json.dumps(content, indent=1))
    (options.out / f"{name}.md").write_text(report(content), encoding="utf-8")
    print(report(content))


if __name__ == "__main__":
    main()
