"""Where a step of StudentCalculator spends its time, and bounds of its forward by flops and bytes."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any, Callable

import numpy as np
import torch
from ase import Atoms

from fairchem_crack.calculator import StudentCalculator
from fairchem_crack.export.neighbors import Pairs

PASSES = 9  # a block of messages is read or written by: gather, filters, product, two sums, vectors, their gather, addition


def profile(student: Path, systems: list[Atoms], repeats: int) -> list[dict[str, Any]]:
    """One row for each system."""
    calculator = StudentCalculator(student)
    weights = {name: value.shape for name, value in torch.jit.load(str(student)).state_dict().items() if value.dim() == 2}
    return [_row(calculator, atoms, repeats, weights) for atoms in systems]


def _row(calculator: StudentCalculator, atoms: Atoms, repeats: int, weights: dict[str, torch.Size]) -> dict[str, Any]:
    atoms, random = atoms.copy(), np.random.default_rng(0)
    atoms.calc = calculator
    cell, count, kept = atoms.cell.complete().array, len(atoms), Pairs(calculator.student.info.rule)

    def step() -> None:
        atoms.positions += random.normal(scale=1e-4, size=(count, 3))
        atoms.get_forces()

    def cut() -> Any:
        return kept(atoms.positions, cell, atoms.pbc)

    pairs, shifts = cut()
    arrays = (atoms.numbers, atoms.positions, cell[None], pairs, shifts, np.zeros(count, int))
    tensors = [torch.from_numpy(array) for array in arrays]
    with torch.inference_mode():
        forward = _milliseconds(lambda: calculator.student.forward(*tensors), repeats)
    whole, cutting = _milliseconds(step, repeats), _milliseconds(cut, repeats)
    search = _milliseconds(lambda: Pairs(calculator.student.info.rule)(atoms.positions, cell, atoms.pbc), repeats)
    work, traffic = _work(weights, count, pairs.shape[1])
    flops, bytes_ = _flops_per_second(), _bytes_per_second()
    return {
        "atoms": count,
        "pairs": int(pairs.shape[1]),
        "milliseconds": {
            "whole step": whole,
            "forward": forward,
            "cutting the lists": cutting,
            "ASE and Python": max(whole - forward - cutting, 0.0),
            "a new search (every 20 to 200 steps)": search,
        },
        "flop_bound": 1e3 * work / flops,
        "byte_bound": 1e3 * traffic / bytes_,
        "flops_words": f"{work / 1e6:.0f} Mflop at {flops / 1e9:.0f} Gflop/s of a matrix product",
        "bytes_words": f"{traffic / 1e6:.1f} MB at {bytes_ / 1e9:.1f} GB/s of a copy",
    }


def _work(weights: dict[str, torch.Size], atoms: int, pairs: int) -> tuple[float, float]:
    """Flops of the matrix products, and bytes of messages."""
    flops = traffic = 0.0
    for name, (out, into) in weights.items():
        if name.startswith("embedding"):
            continue
        of_vectors = name.endswith(("vectors.weight", "norms.weight"))
        rows = pairs if "filters" in name else 3 * atoms if of_vectors else atoms
        flops += 2.0 * rows * out * into
        traffic += PASSES * 4.0 * 2 * pairs * out if "filters" in name else 0.0
    return flops, traffic


def _milliseconds(work: Callable[[], Any], repeats: int) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * median(times)


def _flops_per_second() -> float:
    first, second = torch.randn(1000, 64), torch.randn(64, 192)
    return 2 * first.numel() * 192 / (_milliseconds(lambda: first @ second, 50) / 1e3)


def _bytes_per_second() -> float:
    block = torch.randn(2**16)
    there = torch.empty_like(block)
    return 2 * 4 * block.numel() / (_milliseconds(lambda: there.copy_(block), 200) / 1e3)
