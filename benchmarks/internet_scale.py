"""What distilling from all of OC20 would take, from measured rates: makes docs/internet-scale.md. Measures nothing itself.

python -m benchmarks.internet_scale
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.cache import report as cache_report
from fairchem_crack.teacher.cache import Plan, Record, encode
from fairchem_crack.teacher.cache.index import FILLED, PAGE, ROW

PAGE_FILE = "docs/internet-scale.md"
FRAMES = {"all + MD": 172_000_000, "2M": 2_000_000}
MEASURED_TEACHER = "eqV2_31M"  # on the GPU; the others by the ratio of their times on a CPU
TEACHERS = ("eqV2_31M", "eqV2_153M")
STUDENT = "painn"
WIDTH = 128  # D, and D_v
KINDS = ("undistilled", "cached", "online", "teacher")
EPOCHS = (1, 2, 5)
WEEK = 24 * 7
NO_PAIRS = {"has_pairs": False}  # `relations: {graph: student}`, or no relations
RECORDS: dict[str, dict[str, Any]] = {  # what a cache can keep
    "energy, forces, atom energies, embedding in float16, pairs": {},
    "the same in float32": {"dtype": "float32"},
    "the same in float16, without pairs": NO_PAIRS,
    "with l = 1 embeddings for `vector_embeddings`": {"vector_width": WIDTH},
    "energy and forces only": {**NO_PAIRS, "fields": ("energy", "forces")},
}


def figures(gpu: dict, true_size: dict, cache: dict) -> dict[str, Any]:
    """All numbers of the page.

    Args:
        gpu: docs/benchmarks/gpu.json, steps at the official batch size.
        true_size: docs/benchmarks/true_size.json, teachers on a CPU.
        cache: docs/benchmarks/cache.json.
    """
    rows = gpu["parts"]["steps"]["rows"]
    rounds = [row["seconds"] for row in rows if row["what"] == "round" and row["student"] == STUDENT]
    batch = next(row for row in rows if row["what"] == "sizes" and row["student"] == STUDENT)
    filled = next(row for row in rows if row["what"] == "cache")
    seconds = {kind: statistics.median(times[kind] for times in rounds) for kind in KINDS}
    rates = {kind: batch["batch_size"] / seconds[kind] for kind in KINDS}
    forward = {row["name"]: row["step"]["seconds"]["teacher"] for row in true_size["results"]}
    slower = {name: forward[name] / forward[MEASURED_TEACHER] for name in TEACHERS}
    systems = batch["batch_size"]
    atoms, pairs = round(batch["atoms"] / systems), round(batch["pairs"] / systems)
    largest = cache_report.by_shape(cache)[next(iter(cache_report.by_shape(cache)))][-1]
    return {
        "card": gpu["card"],
        "batch": systems,
        "atoms": atoms,
        "pairs": pairs,
        "rates": rates,
        "filling": filled["systems"] / filled["written"],
        "slower": slower,
        "record_bytes": {name: record_bytes(atoms, pairs, **options) for name, options in RECORDS.items()},
        "read_over_record": largest["cold"]["all fields"]["bytes"] / largest["record_bytes"],
        "expected": cache_report.expected(cache, FRAMES["all + MD"]),
    }


def record_bytes(atoms: int, pairs: int, *, vector_width: int = 0, **options: Any) -> float:
    """Bytes on disk of a system: record, row and its share of the index."""
    fields = ("energy", "forces", "atom_energies", "node_embedding", *(["vector_embedding"] if vector_width else []))
    plan = Plan("", "", 1, "", WIDTH, vector_width, **{"fields": fields, **options})
    values = {name: np.zeros(plan.shape(name, atoms)) for name in plan.fields}
    joined = np.stack(np.triu_indices(atoms, 1))[:, :pairs]
    record = Record(b"", atoms, values, joined if plan.has_pairs else joined[:, :0])
    return len(encode(record, plan)) + ROW.itemsize + PAGE / FILLED


def gpu_hours(frames: int, rate: float) -> float:
    """GPU hours for frames at a rate in frames per second of a GPU."""
    return frames / rate / 3600


def labelling(content: dict, teacher: str, frames: int) -> float:
    """GPU hours of running a teacher once."""
    return gpu_hours(frames, content["rates"]["teacher"] / content["slower"][teacher])


def training(content: dict, teacher: str, frames: int, epochs: int, *, is_cached: bool) -> float:
    """GPU hours of distilling, the filling of a cache included."""
    once = labelling(content, teacher, frames)
    if is_cached:
        return once + epochs * gpu_hours(frames, content["rates"]["cached"])
    beside_teacher = 1 / content["rates"]["online"] - 1 / content["rates"]["teacher"]
    return epochs * (once + frames * beside_teacher / 3600)


def report(content: dict) -> str:
    """The page, as markdown."""
    rates, sizes = content["rates"], content["record_bytes"]
    whole, default = FRAMES["all + MD"], next(iter(sizes.values()))
    bandwidth = rates["cached"] * default * content["read_over_record"] / 1e6
    expected = content["expected"]
    lines = [
        "# All of OC20: what it would take",
        "",
        "OC20's largest training set, S2EF All with the MD frames, has 172 million frames. Nobody has run this package on "
        "it. This page extrapolates from what was measured, and says what was assumed. "
        "`python -m benchmarks.internet_scale` makes it of the benchmarks' JSON.",
        "",
        "## Assumptions",
        f"- Frames of {content['atoms']} atoms and {content['pairs']} pairs, in batches of {content['batch']}; a PaiNN with "
        f"512 channels; float32. Rates are those of one {content['card']} ([measured](benchmarks/gpu.md)): "
        f"{rates['teacher']:.0f} frames a second through the 31M EquiformerV2, {rates['undistilled']:.0f} through a step of "
        f"the undistilled student, {rates['cached']:.0f} through a distilled step from a cache, {rates['online']:.0f} with "
        f"the teacher online. `cache-teacher` itself wrote 64 frames there at {content['filling']:.0f} a second, its first "
        "batch included; longer runs were not measured.",
        f"- The 153M teacher takes {content['slower']['eqV2_153M']:.1f} times the 31M teacher's time, as "
        "[on a CPU](benchmarks/true_size.md). That was not measured on a GPU.",
        "- N GPUs take one N-th of the time. Two ranks were measured on [a CPU](benchmarks/scaling.md), more were not.",
        f"- A cold random read of a record reads {content['read_over_record']:.2f} times its bytes "
        "([measured](benchmarks/cache.md) on a local disk).",
        "",
        "## GPU hours",
        "",
        "Labels are written once. Training from the cache includes writing it.",
        "",
        "| frames | teacher | labels | epochs | online | from a cache |",
        "|---|---|---|---|---|---|",
    ]
    for name, frames in FRAMES.items():
        for teacher in TEACHERS:
            for epochs in EPOCHS:
                hours = [training(content, teacher, frames, epochs, is_cached=is_cached) for is_cached in (False, True)]
                cells = [name, teacher, f"{labelling(content, teacher, frames):,.0f}", str(epochs)]
                lines.append(f"| {' | '.join([*cells, *(f'{value:,.0f}' for value in hours)])} |")
    epoch = gpu_hours(whole, rates["undistilled"])
    once = labelling(content, MEASURED_TEACHER, whole)
    lines += [
        "",
        f"An epoch of the undistilled student on all frames takes {epoch:,.0f} GPU hours. Labels and one epoch take a week "
        f"on {math.ceil((once + epoch) / WEEK)} GPUs.",
        "",
        "## Disk",
        "",
        "| a cache of | kB a frame | 2M, GB | all + MD, TB |",
        "|---|---|---|---|",
        *(
            f"| {name} | {size / 1e3:.1f} | {size * FRAMES['2M'] / 1e9:,.0f} | {size * whole / 1e12:.2f} |"
            for name, size in sizes.items()
        ),
        "",
        f"A GPU that trains from the cache reads {bandwidth:.0f} MB/s at random. Finishing the cache of all frames would "
        f"take {expected['finish_minutes']:.0f} minutes and {expected['finish_gb']:.0f} GB of memory, opening it "
        f"{1e3 * expected['open_seconds']:.0f} ms. The labelled data themselves are fairchem's LMDBs, and are not counted.",
        "",
        "## Which plan",
        "",
        *_advice(content),
        "",
    ]
    return "\n".join(lines)


def _advice(content: dict) -> list[str]:
    whole, two = FRAMES["all + MD"], FRAMES["2M"]
    online, cached = (training(content, MEASURED_TEACHER, whole, 1, is_cached=value) for value in (False, True))
    sizes = content["record_bytes"]
    default, vectors = (sizes[name] * whole / 1e12 for name in (next(iter(sizes)), list(sizes)[3]))
    return [
        f"1. **Begin with 2M frames and a cache**: {labelling(content, MEASURED_TEACHER, two):.0f} GPU hours of labels, and "
        "every further training, of another student or recipe, costs what an undistilled one costs.",
        f"2. **One epoch over all frames: online**, where the disk is short. It takes {online:,.0f} GPU hours against "
        f"{cached:,.0f} with a cache. From the second epoch on, or with a second student, the cache is far cheaper. It "
        f"needs {default:.1f} TB, or {vectors:.1f} TB with l = 1 embeddings.",
        "3. **If the disk is too small for a cache**: leave out l = 1 embeddings first; pairs cost little. Or cache a "
        "random part, and train for more epochs on it: whether more frames or more epochs help more at this scale was not "
        "measured.",
        "4. `--amp` brought the 31M teacher no time on this card, and `precision: bfloat16` was measured on a CPU only "
        "([table](benchmarks/teacher.md)): do not count on either.",
    ]


def load(name: str) -> dict:
    """A benchmark's JSON."""
    return json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())


def main() -> None:
    """Write the page."""
    Path(ROOT / PAGE_FILE).write_text(report(figures(*map(load, ("gpu", "true_size", "cache")))), encoding="utf-8")


if __name__ == "__main__":
    main()
