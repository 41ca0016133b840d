"""How long a cached training step waits for its batch, read in the step itself and read ahead by a thread.

    python -m benchmarks.read_ahead --data data/demo/train --cache data/demo-cache-equiformer_v2    # about 5 minutes

The demo's PaiNN in fairchem's training loop, without loader workers, as `--num-gpus` forces it. Both ways are interleaved,
one epoch on the same batches, in alternating order. Writes read_ahead.json and read_ahead.md to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shlex
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
from fairchem.core.common.utils import load_config, setup_imports

from benchmarks import ROOT
from benchmarks.step.runs import begin, build_trainer, take_step
from fairchem_crack.teacher.read_ahead import ReadAhead
from fairchem_crack.training.trainer import CrackDistillTrainer

CONFIGS = ROOT / "configs/oc20/demo"
WAYS = {"in the step": "read in the step", "ahead": "read ahead"}


def trainer_of(student: str, options: argparse.Namespace) -> CrackDistillTrainer:
    """The demo's distilled student at the beginning of a training."""
    config = load_config(str(CONFIGS / f"{student}_crack.yml"))[0]
    config["dataset"] = {"train": {**config["dataset"]["train"], "src": str(options.data)}}
    config["optim"].update(batch_size=options.batch_size, num_workers=0)
    config["task"]["distill"]["teacher"] = {"cache": str(options.cache)}
    trainer = build_trainer(config, options.device)
    assert isinstance(trainer, CrackDistillTrainer)
    trainer.metrics = {}
    begin(trainer)
    return trainer


def epoch_of(trainer: CrackDistillTrainer, loader, epoch: int) -> list[dict[str, float]]:
    """Seconds of each step of an epoch, and of its wait for the batch; of fairchem's `OCPTrainer.train`."""
    trainer.train_sampler.set_epoch_and_start_iteration(epoch, 0)
    batches, steps = iter(loader), []
    for _ in range(len(loader)):
        start = time.perf_counter()
        _, waited = take_step(trainer, batches)
        steps.append({"step": time.perf_counter() - start, "waiting": waited["wall"]})
    return steps


def measure(student: str, options: argparse.Namespace) -> dict:
    """Median seconds of a step, and of its wait, in each epoch and way; the first step of an epoch is not counted."""
    trainer = trainer_of(student, options)
    ahead = trainer.train_loader
    assert isinstance(ahead, ReadAhead)
    loaders, medians = {"in the step": ahead.loader, "ahead": ahead}, {way: [] for way in WAYS}
    for number in range(options.rounds + 1):
        for way in list(loaders)[:: -1 if number % 2 else 1]:
            steps = epoch_of(trainer, loaders[way], number)[1:]
            if number:
                medians[way].append({name: statistics.median(step[name] for step in steps) for name in steps[0]})
    return {"steps": len(ahead), "rounds": medians}


def report(content: dict) -> str:
    """The table, as markdown."""
    lines = [
        "# Reading ahead: how long a cached step waits for its batch",
        "",
        f"{content['machine']}. The demo's {content['student']}, distilled from its cache, batches of "
        f"{content['batch_size']} systems, no loader workers. Both ways are interleaved, one epoch at a time, on the same "
        "batches, in alternating order; an epoch gives the median of its steps, the first of which is not "
        "counted. Figures are medians over the epochs, of the ratios too, in brackets quartiles. "
        f"Load of the machine before it began: {content['load']:.1f}. `{content['command']}` makes this "
        "page and `read_ahead.json`.",
        "",
        "| | epochs | waiting, ms | step, ms | waiting / step, % | step / step that reads |",
        "|---|---|---|---|---|---|",
    ]
    base = content["rounds"]["in the step"]
    for way, name in WAYS.items():
        rounds = content["rounds"][way]
        cells = [name, str(len(rounds))]
        cells += [_quartiles([1000 * epoch[part] for epoch in rounds]) for part in ("waiting", "step")]
        cells.append(_quartiles([100 * epoch["waiting"] / epoch["step"] for epoch in rounds]))
        cells.append(_quartiles([epoch["step"] / base_epoch["step"] for epoch, base_epoch in zip(rounds, base)], digits=3))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "On a CPU the thread takes from the step what it saves, unless a core is idle; where a GPU computes the step, the "
        "host is idle most of the time. That was not measured.",
        "",
    ]
    return "\n".join(lines)


def _quartiles(values: list[float], digits: int = 2) -> str:
    low, median, high = (f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4))
    return f"{median} [{low}, {high}]"


def main() -> None:
    """Measure, and write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the demo's training data")
    parser.add_argument("--cache", type=Path, required=True, help="the teacher cache of these")
    parser.add_argument("--student", default="painn", choices=["painn", "gemnet_dT"])
    parser.add_argument("--rounds", type=int, default=10, help="epochs of each way")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    setup_imports()
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {platform.machine()}"
    threads = f"{options.threads} thread{'s' * (options.threads > 1)} of {os.cpu_count()} cores"
    content = {
        "machine": f"{device}, {threads}, torch {torch.__version__}",
        "load": os.getloadavg()[0],
        "command": shlex.join(["python", "-m", "benchmarks.read_ahead", *sys.argv[1:]]),
        "batch_size": options.batch_size,
        "student": options.student,
        **measure(options.student, options),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "read_ahead.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "read_ahead.md").write_text(report(content), encoding="utf-8")
    print(report(content))


if __name__ == "__main__":
    main()
