"""Time and memory of a piece of work, throughput of models, and the memory that the CRACK loss will take."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch.cuda import OutOfMemoryError
from torch_geometric.data import Batch

from fairchem_crack.loss.tiles import COLUMN_BLOCK, TILE_ENTRIES

WARM_UP = 2  # torch.jit, which PaiNN uses, compiles in the first two runs
REPEATS = 3  # timed runs after them

# Copies of a (P, D) or (N, D) array alive at the loss's peak, fitted to crack_loss.json and crack_loss_gpu.json of the docs.
EMBEDDING_COPIES = {"cpu": 7, "cuda": 5}
# And of a tile.
TILE_COPIES = {"cpu": 4, "cuda": 4}


def loss_bytes(*, pairs: float, atoms: float, width: int, device: str = "cpu", fused: bool = True) -> float:
    """Peak memory of the CRACK loss in float32, forward and backward, estimated; linear in pairs and atoms.

    Args:
        pairs: P, of one batch.
        atoms: N, of one batch.
        width: D.
        device: "cpu" or "cuda", whose tiles differ.
        fused: by the kernels, which store no tile; on CUDA their blocks of columns are smaller than what is free by then.
    """
    embeddings = EMBEDDING_COPIES[device] * (pairs + atoms) * width
    if fused and device == "cuda":
        return 4 * embeddings
    block = min(COLUMN_BLOCK[device], pairs)
    tile = 0 if fused else TILE_COPIES[device] * min(TILE_ENTRIES[device], pairs * block)
    return 4 * (embeddings + 2 * atoms * block + tile)


def now(device: torch.device) -> float:
    """Seconds of the clock, once the device's work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def elapsed(work: Callable[..., Any], device: torch.device, *arguments: Any) -> float:
    """Seconds of `work(*arguments)`."""
    start = now(device)
    work(*arguments)
    return now(device) - start


def seconds(work: Callable[..., Any], device: torch.device, *, prepare: Optional[Callable[[], Any]] = None) -> float:
    """Median time of `work()`; of `work(prepare())`, without the time of that, where `prepare` is given."""
    times = [elapsed(work, device, *([] if prepare is None else [prepare()])) for _ in range(WARM_UP + REPEATS)]
    return statistics.median(times[WARM_UP:])


def warm_up(work: Callable[[], Any], device: torch.device) -> Optional[int]:
    """Run `work()` as often as torch.jit needs to settle; by how many bytes memory grew in the last run, if known."""
    for _ in range(WARM_UP - 1):
        work()
    return peak_growth(work, device)[1]


Throughput = dict[str, Any]


def measure_throughput(
    models: Mapping[str, Callable[[Batch], Any]], batches: Mapping[str, Batch], device: torch.device, *, repeats: int
) -> dict[str, Throughput]:
    """How many atoms per second each model takes, and how much memory.

    The models are interleaved within each repeat: a machine that becomes slower does so for all of them.

    Args:
        models: a forward each, which may move its batch to the device.
        batches: the same systems for each model.

    Returns:
        Of each model `atoms_per_second` of each repeat, and `peak_bytes` beyond what was there before, None where it is not
        known. Empty for a model whose batch does not fit into the GPU's memory.
    """
    measured: dict[str, Throughput] = {}
    for name, model in models.items():
        try:
            peak = warm_up(lambda model=model, batch=batches[name]: model(batch.clone()), device)  # type: ignore[misc]
            measured[name] = {"atoms_per_second": [], "peak_bytes": peak}
        except OutOfMemoryError:
            measured[name] = {}
            torch.cuda.empty_cache()
    for _ in range(repeats):
        for name in (name for name in models if measured[name]):
            batch = batches[name].clone()
            measured[name]["atoms_per_second"].append(batch.num_nodes / elapsed(models[name], device, batch))
    return measured


def peak_growth(work: Callable[[], Any], device: torch.device) -> tuple[Any, Optional[int]]:
    """What `work()` returns, and by how many bytes memory grew meanwhile, at its peak.

    On CUDA of the memory that torch allocates; on CPU of the resident memory, None where the system does not report it.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = work()
        return result, torch.cuda.max_memory_allocated(device) - before
    _return_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
        resident = _resident("VmRSS")
    except (OSError, AttributeError):
        return work(), None
    result = work()
    return result, max(0, _resident("VmHWM") - resident)


def megabytes(size: float) -> str:
    """Bytes as text, with decimals where there are few."""
    return f"{size / 2**20:.{0 if size >= 10 * 2**20 else 2}f} MB"


def _return_freed_memory() -> None:
    """Hand the allocator's spare pages back to Linux: what they hold would not count as growth."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(entry: str) -> int:
    matched = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(matched[1]) * 1024  # type: ignore[index]
