"""Time, memory and error of the CRACK loss: the dense published formula, plain tiling, `fairchem_crack.crack_loss`.

    python -m benchmarks.crack_loss                    # CPU, 2 threads, about 15 minutes
    python -m benchmarks.crack_loss --device cuda      # about a minute

Forward and backward; on a CPU each case in a process of its own. Needs only torch and matplotlib. Writes crack_loss.json,
crack_loss.md and crack_loss.png, on a GPU crack_loss_gpu.*, to docs/benchmarks/.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.crack_loss.cases import fits, run_case, tf32_rate
from benchmarks.crack_loss.methods import METHODS
from benchmarks.crack_loss.report import SIZES, draw, report


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
            if method == "dense" and not fits(pairs, device):
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
