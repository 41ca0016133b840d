"""The teacher's speed: what fixing its edge frames costs, bfloat16 in error and time, and what torch.compile makes of it.

    python -m benchmarks.teacher --data data/demo/val_id                    # the demo's EquiformerV2, about 10 minutes
    python -m benchmarks.teacher --data data/demo/val_id --without-compile

All kinds of forward are interleaved on the same batches, in alternating order. Writes teacher.json and teacher.md to
docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from fairchem.core.common.registry import registry
from fairchem.core.common.utils import load_config, setup_imports
from fairchem.core.datasets import data_list_collater
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_geometric.data import Batch

from benchmarks import ROOT
from benchmarks.teacher.report import COMPILED, report
from fairchem_crack import keys
from fairchem_crack.adapters.outputs import predicted
from fairchem_crack.config import TeacherConfig
from fairchem_crack.io.datasets import Records
from fairchem_crack.loss.relations import relation_vectors, unordered_pairs
from fairchem_crack.teacher.frozen import Teacher, TeacherOutputs, _BatchIndependent, load_teacher, own

CONFIGS = ROOT / "configs/oc20/demo"
TEACHER = CONFIGS / "teacher_equiformer_v2.pt"
ALL = (keys.ENERGY, keys.FORCES, keys.NODE_EMBEDDING)
SMALL, LARGE = 1, 16  # systems in a batch
LONGEST = 600  # s, after which a compilation is given up


class Calls(TorchFunctionMode):
    """Counts the calls of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def teacher_in(precision: str) -> Teacher:
    """The demo's, in this precision."""
    return load_teacher(TeacherConfig(checkpoint=str(TEACHER), precision=precision), torch.device("cpu"))


def interleaved(kinds: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind in each round, after one that is not timed; every other round in the opposite order."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 1):
        for name in list(kinds)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            kinds[name]()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_edges(batches: dict[int, Batch], rounds: int) -> dict:
    """Seconds of a forward whose edges only are settled, of one that is settled in all of it, and of the model itself."""
    only_edges, everywhere = teacher_in("float32"), teacher_in("float32")
    everywhere.features.makes_edges = ()
    model = teacher_in("float32").model
    counts, sizes = {}, {}
    with Calls() as calls:
        only_edges(batches[SMALL], ALL)
    counts["all"] = calls.count
    counts["detour"], original = 0, _BatchIndependent.__torch_function__

    def counting(mode, *arguments, **options):
        counts["detour"] += 1
        return original(mode, *arguments, **options)

    _BatchIndependent.__torch_function__ = counting
    only_edges(batches[SMALL], ALL)
    _BatchIndependent.__torch_function__ = original

    def run_model(batch: Batch) -> None:
        with torch.no_grad():
            model(own(batch))

    for systems, batch in batches.items():
        kinds = {
            "model": lambda batch=batch: run_model(batch),
            "edges": lambda batch=batch: only_edges(batch, ALL),
            "everywhere": lambda batch=batch: everywhere(batch, ALL),
        }
        times = interleaved(kinds, rounds if systems == SMALL else rounds // 4)
        sizes[str(systems)] = {"atoms": batch.num_nodes, "seconds": times}
    return {"calls": counts, "batches": sizes}


def relations_of(outputs: TeacherOutputs, batch: Batch) -> Tensor:
    """(P, D) of the teacher's pairs."""
    return relation_vectors(outputs.node_embedding, unordered_pairs(outputs.edge_index, batch.num_nodes))


def measure_precision(batches: list[Batch], rounds: int) -> dict:
    """Errors of bfloat16 against float32, of both against the labels, and the seconds of both on the first batch."""
    exact, rough, rounded = teacher_in("float32"), teacher_in("bfloat16"), teacher_in("bfloat16")
    rounded.features.makes_edges = rounded.features.rotations = ()
    errors: dict[str, list[Tensor]] = {}

    def add(name: str, values: Tensor) -> None:
        errors.setdefault(name, []).append(values.flatten())

    for batch in batches:
        float32, bfloat16, before = exact(batch, ALL), rough(batch, ALL), rounded(batch, ALL)
        free = batch.fixed == 0
        for name, outputs in (("float32", float32), ("bfloat16", bfloat16)):
            add(f"energy {name} labels", (outputs.energy - batch.energy).abs())
            add(f"forces {name} labels", (outputs.forces - batch.forces)[free].abs())
        add("energy", (float32.energy - bfloat16.energy).abs())
        add("forces", (float32.forces - bfloat16.forces)[free].abs())
        add("energy rounded", (float32.energy - before.energy).abs())
        add("forces rounded", (float32.forces - before.forces)[free].abs())
        add("embedding", (float32.node_embedding - bfloat16.node_embedding).norm(dim=1) / float32.node_embedding.norm(dim=1))
        pairs = unordered_pairs(float32.edge_index, batch.num_nodes)
        assert torch.equal(pairs, unordered_pairs(bfloat16.edge_index, batch.num_nodes)), "the edges differ"
        add("cosine", (relations_of(float32, batch) * relations_of(bfloat16, batch)).sum(dim=1))
    joined = {name: torch.cat(values).double() for name, values in errors.items()}
    kinds = {"float32": lambda: exact(batches[0], ALL), "bfloat16": lambda: rough(batches[0], ALL)}
    return {
        "systems": sum(len(batch.natoms) for batch in batches),
        "mean": {name: float(values.mean()) for name, values in joined.items()},
        "max": {name: float(values.max()) for name, values in joined.items()},
        "cosine": {"mean": float(joined["cosine"].mean()), "min": float(joined["cosine"].min())},
        "atoms": batches[0].num_nodes,
        "seconds": interleaved(kinds, rounds),
    }


def model_of(name: str) -> nn.Module:
    """The demo's teacher, or a student of its config with random weights."""
    if name == COMPILED[0]:
        return teacher_in("float32").model
    attributes = load_config(str(CONFIGS / f"{name}.yml"))[0]["model"]
    attributes.pop("scale_file", None)
    torch.manual_seed(0)
    return registry.get_model_class(attributes.pop("name"))(**attributes).eval()


def measure_compile(name: str, batch: Batch, rounds: int) -> dict:
    """Graphs and breaks of one forward, what broke them, and the seconds of a forward with and without torch.compile.

    `error`: of a compilation that must compile all that it takes up.
    """
    model = model_of(name)

    def run(compiled: Callable) -> Tensor:
        with torch.no_grad():
            return predicted(compiled(own(batch)), keys.FORCES, keys.FORCES)

    def error_of(call: Callable[[], object]) -> str:
        try:
            call()
        except Exception as error:
            return _first_line(error)
        return ""

    expected, example = run(model), own(batch)
    case = {"error": error_of(lambda: run(torch.compile(copy.deepcopy(model))))}
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = True  # functions that cannot be compiled run as they are
    with torch.no_grad():
        explained = torch._dynamo.explain(model)(example)
    case["graphs"], case["breaks"] = explained.graph_count, explained.graph_break_count
    case["reasons"] = Counter(_first_line(reason.reason) for reason in explained.break_reasons).most_common(3)
    print(json.dumps(case), flush=True)  # what is known when it takes too long
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model))
    start = time.perf_counter()
    for _ in range(3):  # the second may compile again, for shapes that change
        deviation = float((run(compiled) - expected).abs().max() / expected.abs().max())
    return {
        **case,
        "compiling": time.perf_counter() - start,
        "deviation": deviation,
        "seconds": interleaved({"eager": lambda: run(model), "compiled": lambda: run(compiled)}, rounds),
    }


def _first_line(message: object) -> str:
    return re.split("[(;]", str(message).strip().splitlines()[0])[0][:100]


def compile_apart(name: str, options: argparse.Namespace) -> dict:
    """`measure_compile` in a process of its own, which is ended when it takes too long."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.teacher", "--data", str(options.data), "--case", name]
    command += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
    try:
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=LONGEST).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    lines = [line for line in output.decode().splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def main() -> None:
    """Measure, and write the page and its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a labelled split of the demo")
    parser.add_argument("--systems", type=int, default=64, help="of it, whose errors are measured")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-compile", action="store_true", help="keep what the last run found")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    setup_imports()
    with Records({"src": str(options.data), "key_mapping": {"y": "energy", "force": "forces"}}) as records:
        systems = sorted(records.first(options.systems), key=lambda system: -system.natoms)
    batches = [data_list_collater(systems[start : start + LARGE], otf_graph=True) for start in range(0, len(systems), LARGE)]
    if options.case:
        print(json.dumps(measure_compile(options.case, batches[0], options.rounds // 4)))
        return
    small = data_list_collater(systems[:SMALL], otf_graph=True)
    threads = f"{options.threads} thread{'s' * (options.threads > 1)}"
    last = options.out / "teacher.json"
    kept = json.loads(last.read_text())["compile"] if options.without_compile and last.is_file() else {}
    content = {
        "machine": f"CPU, {platform.machine()}, {threads}, torch {torch.__version__}",
        "bfloat16": _bfloat16_unit(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "command": shlex.join(["python", "-m", "benchmarks.teacher", *sys.argv[1:]]),
        "edges": measure_edges({SMALL: small, LARGE: batches[0]}, options.rounds),
        "precision": measure_precision(batches, options.rounds // 4),
        "longest": LONGEST,
        "compile": kept if options.without_compile else {name: compile_apart(name, options) for name in COMPILED},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "teacher.json").write_text(json.dumps(content, indent=1) + "\n")
    (options.out / "teacher.md").write_text(report(content), encoding="utf-8")
    print(report(content))


def _bfloat16_unit() -> bool:
    """Whether the processor has instructions for bfloat16."""
    file = Path("/proc/cpuinfo")
    return file.is_file() and any(flag in file.read_text() for flag in ("avx512_bf16", "amx_bf16"))


if __name__ == "__main__":
    main()
