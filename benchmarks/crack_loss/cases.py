"""One method at one size: seconds, memory, and error."""

from __future__ import annotations

import os
import re
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.crack_loss.methods import METHODS, batch, dense

REPEATS = {"cpu": 5, "cuda": 20}
# Matrices of (2P)^2 that the dense formula holds at its peak: logits, their log-softmax, its gradient.
DENSE_MATRICES = 3


def run_case(method: str, pairs: int, device: str, threads: int, check: bool) -> dict:
    """Measure one method at one size in this process."""
    torch.set_num_threads(threads)
    student, teacher, chosen = batch(pairs, device, torch.float32)
    student.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        loss = METHODS[method](student, teacher, chosen)
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    METHODS[method](*(x[:200] for x in (student, teacher)), chosen[:, (chosen < 200).all(0)][:, :50]).backward()  # warm up
    if device == "cuda":
        step()
    before = _memory(device)
    step()
    peak = _memory(device, peak=True) - before
    seconds = []
    for _ in range(REPEATS[device] if pairs <= 8000 or method == "ours" else 2):
        _synchronize(device)
        start = time.perf_counter()
        loss, gradient = step()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    result = {
        "method": method,
        "pairs": pairs,
        "seconds": seconds,
        "median": statistics.median(seconds),
        "peak_mb": peak / 2**20,
    }
    if check:
        exact, exact_gradient = _exact(pairs, device)
        result["loss_error"] = abs(float(loss.double() - exact) / float(exact))
        result["gradient_error"] = float((gradient.double() - exact_gradient).norm() / exact_gradient.norm())
    return result


def _exact(pairs: int, device: str) -> tuple[Tensor, Tensor]:
    student, teacher, chosen = batch(pairs, device, torch.float32)
    student = student.double().requires_grad_()
    loss = dense(student, teacher.double(), chosen)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


def _memory(device: str, *, peak: bool = False) -> int:
    if device == "cuda":
        if not peak:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def fits(pairs: int, device: str) -> bool:
    """Whether the dense formula of so many pairs has room in what memory is free now."""
    need = DENSE_MATRICES * (2 * pairs) ** 2 * 4
    if device == "cuda":
        return need < 0.9 * torch.cuda.mem_get_info()[0]
    available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return available is not None and need < 0.7 * 1024 * int(available[1])


def tf32_rate() -> float:
    """Floating-point operations a second of this GPU's TF32 matrix products, on random data."""
    matrix = torch.randn(8192, 8192, device="cuda")
    permitted, times = torch.get_float32_matmul_precision(), []
    torch.set_float32_matmul_precision("high")
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        matrix @ matrix
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    torch.set_float32_matmul_precision(permitted)
    return 2 * 8192**3 / statistics.median(times[2:])
