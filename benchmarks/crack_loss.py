"""Time, memory and error of the CRACK loss: the dense published formula, plain tiling, `fairchem_crack.crack_loss`.

    python -m benchmarks.crack_loss                    # CPU, 2 threads, about 15 minutes
    python -m benchmarks.crack_loss --device cuda      # about a minute

Forward and backward; on a CPU each case in a process of its own. Needs only torch and matplotlib. Writes crack_loss.json,
crack_loss.md and crack_loss.png, on a GPU crack_loss_gpu.*, to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fairchem_crack import crack_loss
from fairchem_crack.loss import tiles, triton_sums

WIDTH, TEMPERATURE = 128, 0.15
ATOMS_PER_SYSTEM, PAIRS_PER_ATOM = 80, 12.5
SIZES = {"cpu": (1000, 2000, 4000, 8000, 16000, 32000), "cuda": (2000, 4000, 8000, 16000, 32000, 64000)}
REPEATS = {"cpu": 5, "cuda": 20}
# P x P x D products of kernels that multiply relations: logits forward and backward, their gradient; each three of TF32.
KERNEL_PRODUCTS = 3 * 3
# Matrices of (2P)^2 that the dense formula holds at its peak: logits, their log-softmax, its gradient.
DENSE_MATRICES = 3
LABELS = {
    "dense": "dense, 2P x 2P",
    "tiled": "tiled, D-long dot products",
    "unfused": "ours, torch operations",
    "ours": "ours, fused",
}


def batch(pairs: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings (N, D) of student and teacher, and P random pairs inside systems of 80 atoms."""
    generator = torch.Generator().manual_seed(pairs)
    atoms = round(pairs / PAIRS_PER_ATOM)
    student, teacher = (torch.randn(atoms, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    student = 0.7 * teacher + 0.7 * student  # correlated, as in training
    system = torch.arange(atoms) // ATOMS_PER_SYSTEM
    # within a system, close in number: every atom has the same expected number of pairs
    first, second = torch.combinations(torch.arange(atoms)).T if atoms <= 400 else _near(atoms)
    inside = torch.stack((first, second))[:, system[first] == system[second]]
    chosen = torch.randperm(inside.shape[1], generator=generator)[:pairs].sort().values
    return student.to(device, dtype), teacher.to(device, dtype), inside[:, chosen].to(device)


def _near(atoms: int) -> tuple[Tensor, Tensor]:
    first = torch.arange(atoms).repeat_interleave(ATOMS_PER_SYSTEM - 1)
    second = first + torch.arange(1, ATOMS_PER_SYSTEM).repeat(atoms)
    return first[second < atoms], second[second < atoms]


def relations(embedding: Tensor, pairs: Tensor) -> Tensor:
    """(2P, D) unit relations of both directions, as published."""
    unit = normalize(embedding, dim=-1)
    forward = normalize(unit[pairs[0]] - unit[pairs[1]], dim=-1)
    return torch.cat((forward, -forward))


def dense(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The published formula: InfoNCE over a 2P x 2P matrix."""
    logits = relations(student, pairs) @ relations(teacher, pairs).T / TEMPERATURE
    return cross_entropy(logits, torch.arange(logits.shape[0], device=logits.device))


class _TiledLogSum(torch.autograd.Function):
    """log sum over the columns of exp(s t^T / tau), tile by tile, with dot products of length D."""

    ENTRIES = 1 << 22

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor) -> Tensor:
        rows = max(1, _TiledLogSum.ENTRIES // teacher.shape[0])
        sums = [torch.logsumexp(part @ teacher.T / TEMPERATURE, dim=1) for part in student.split(rows)]
        ctx.save_for_backward(student, teacher, torch.cat(sums))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        student, teacher, sums = ctx.saved_tensors
        rows = max(1, _TiledLogSum.ENTRIES // teacher.shape[0])
        parts = zip(student.split(rows), sums.split(rows), grad.split(rows))
        weights = ((part @ teacher.T / TEMPERATURE - total[:, None]).exp_() * g[:, None] for part, total, g in parts)
        return torch.cat([weight @ teacher / TEMPERATURE for weight in weights]), None


def tiled(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The dense formula in tiles, without the two identities."""
    s, t = relations(student, pairs), relations(teacher, pairs)
    return (_TiledLogSum.apply(s, t) - (s * t).sum(-1) / TEMPERATURE).mean()


def ours(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The package's loss."""
    return crack_loss(student=student, teacher=teacher, pairs=pairs, temperature=TEMPERATURE)


def unfused(student: Tensor, teacher: Tensor, pairs: Tensor) -> Tensor:
    """The package's loss by torch's own operations."""
    kernels = mock.patch.object(tiles, "fused_kernels", lambda: None), mock.patch.object(triton_sums, "DEVICE_TYPES", ())
    with kernels[0], kernels[1]:
        return ours(student, teacher, pairs)


METHODS = {"dense": dense, "tiled": tiled, "unfused": unfused, "ours": ours}


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


def _fits(pairs: int, device: str) -> bool:
    need = DENSE_MATRICES * (2 * pairs) ** 2 * 4
    if device == "cuda":
        return need < 0.9 * torch.cuda.mem_get_info()[0]
    available = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return available is not None and need < 0.7 * 1024 * int(available[1])


def exponent(rows: list[dict], quantity: str) -> float:
    """Slope of log quantity over log P at the three largest sizes."""
    points = [(math.log(row["pairs"]), math.log(row[quantity])) for row in rows[-3:]]
    x, y = (statistics.mean(values) for values in zip(*points))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


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


def report(document: dict) -> str:
    """The page, as markdown."""
    results, machine, device = document["results"], document["machine"], document.get("device", "cpu")
    by_case = {(row["method"], row["pairs"]): row for row in results}
    name = "crack_loss" if device == "cpu" else "crack_loss_gpu"
    command = "python -m benchmarks.crack_loss" + ("" if device == "cpu" else f" --device {device}")
    lines = [
        "# The CRACK loss: time, memory, error" + ("" if device == "cpu" else ", on a GPU"),
        "",
        f"Forward and backward, float32, D = {WIDTH}, N = P / {PAIRS_PER_ATOM}, systems of {ATOMS_PER_SYSTEM} atoms, "
        f"one run side by side: {machine}. Seconds are the median, in brackets the range. Peak memory is beyond inputs.",
        f"`{command}` makes this page, `{name}.json` and the picture.",
        "",
        "| P | " + " | ".join(f"{LABELS[m]}: s | MB" for m in METHODS) + " | dense / ours | tiled / ours | unfused / ours |",
        "|---" * (3 * len(METHODS)) + "|",
    ]
    for pairs in SIZES[device]:
        cells, ratios = [], []
        for method in METHODS:
            row = by_case.get((method, pairs))
            cells.append(
                f"{row['median']:.3g} [{min(row['seconds']):.3g}, {max(row['seconds']):.3g}] | {row['peak_mb']:.0f}"
                if row
                else "does not fit | "
            )
            if method != "ours":
                ratios.append(f"{row['median'] / by_case['ours', pairs]['median']:.1f}" if row else "")
        lines.append(f"| {pairs} | " + " | ".join(cells + ratios) + " |")
    mine = [row for row in results if row["method"] == "ours"]
    lines += [
        "",
        f"Ours grows as P^{exponent(mine, 'median'):.2f} in time and P^{exponent(mine, 'peak_mb'):.2f} in memory "
        "(fit of the three largest sizes).",
        *(bound_lines(mine, document["tf32_rate"]) if "tf32_rate" in document else ()),
        "",
        "| P | relative error of the loss | of the gradient (against dense float64) |",
        "|---|---|---|",
        *(
            f"| {row['pairs']} | {row['loss_error']:.1e} | {row['gradient_error']:.1e} |"
            for row in mine
            if "loss_error" in row
        ),
        "",
        f"![time and memory]({name}.png)",
        "",
    ]
    return "\n".join(lines)


def bound_lines(rows: list[dict], rate: float) -> list[str]:
    """Against kernels that would multiply the relations themselves, which need tensor cores."""
    return [
        "",
        f"Kernels that multiply the relations themselves, in three products (of the logits forward and backward, of their "
        f"gradient) and each TF32 in three parts, cannot be faster than {KERNEL_PRODUCTS} P x P x D at this GPU's rate: "
        f"{rate / 1e12:.0f} TFLOP/s for 8192 x 8192 matrices in TF32. Ours multiply atoms and relations, P / N times less, "
        "in float32.",
        "",
        "| P | ours, ms | bound of such kernels, ms | ours / bound |",
        "|---|---|---|---|",
        *(
            f"| {row['pairs']} | {1e3 * row['median']:.2f} | {1e3 * shortest:.2f} | {row['median'] / shortest:.1f} |"
            for row, shortest in ((row, bound(row, rate)) for row in rows)
        ),
    ]


def bound(row: dict, rate: float) -> float:
    """Seconds of the products of relations."""
    return KERNEL_PRODUCTS * 2 * row["pairs"] ** 2 * WIDTH / rate


def draw(results: list[dict], file: Path) -> None:
    """Log-log picture of time and memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    colors = {"dense": "#9aa5b1", "tiled": "#457b9d", "unfused": "#e9a23b", "ours": "#d1495b"}
    for method in METHODS:
        rows = [row for row in results if row["method"] == method]
        pairs = [row["pairs"] for row in rows]
        axes[0].loglog(pairs, [row["median"] for row in rows], "o-", color=colors[method], label=LABELS[method])
        axes[1].loglog(pairs, [row["peak_mb"] for row in rows], "o-", color=colors[method])
    for axis, title in zip(axes, ("forward + backward [s]", "peak extra memory [MB]")):
        axis.set(xlabel="pairs P", title=title)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run all cases and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--case", nargs=2, metavar=("METHOD", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        method, pairs = options.case[0], int(options.case[1])
        check = method == "ours" and pairs <= 4000
        print(json.dumps(run_case(method, pairs, options.device, options.threads, check)))
        return
    device = options.device
    results = []
    for pairs in SIZES[device]:
        for method in METHODS:
            if method == "dense" and not _fits(pairs, device):
                continue
            row = _in_own_process(method, pairs, options.threads) if device == "cpu" else _on_gpu(method, pairs)
            print(f"P = {pairs:6d}  {method:7s} {row['median']:9.4f} s  {row['peak_mb']:8.0f} MB", flush=True)
            results.append(row)
    versions = f"torch {torch.__version__}"
    document = {"machine": f"{platform.machine()}, {options.threads} threads, {versions}", "results": results}
    if device == "cuda":
        document = {
            "machine": f"{torch.cuda.get_device_name()}, {versions}",
            "device": device,
            "tf32_rate": tf32_rate(),
            "results": results,
        }
    name = "crack_loss" if device == "cpu" else "crack_loss_gpu"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1))
    (options.out / f"{name}.md").write_text(report(document), encoding="utf-8")
    draw(results, options.out / f"{name}.png")
    print(report(document))


def _in_own_process(method: str, pairs: int, threads: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.crack_loss", "--threads", str(threads), "--case", method, str(pairs)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{method} at P = {pairs} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _on_gpu(method: str, pairs: int) -> dict:
    """In this process: torch counts the memory, and what an earlier case left is returned first."""
    torch.cuda.empty_cache()
    return run_case(method, pairs, "cuda", torch.get_num_threads(), check=method == "ours" and pairs <= 8000)


if __name__ == "__main__":
    main()
