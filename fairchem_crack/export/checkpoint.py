"""A student of a fairchem checkpoint, without a file between."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch

from fairchem_crack.export.painn import ConservativePaiNN, GradientPaiNN, PaiNN
from fairchem_crack.export.student import Student, StudentInfo, frozen
from fairchem_crack.export.weights import load_painn


def student_of(path: Path, *, elements: Collection[int] = (), trust: bool = False) -> tuple[PaiNN, StudentInfo]:
    """The forward of a checkpoint and what is known about it.

    Args:
        elements: atomic numbers that it has learned; (): all that its embedding has.

    Raises:
        ValueError: the checkpoint cannot be read, is none of a PaiNN, or has no such elements.
    """
    painn, rule = load_painn(path, trust=trust)
    known = range(1, painn.embedding.num_embeddings + 1)
    if not set(elements) <= set(known):
        raise ValueError(
            f"{path} has embeddings of the atomic numbers 1-{known[-1]}, not of {sorted(set(elements) - set(known))}."
        )
    return painn, StudentInfo(
        cutoff=rule.cutoff,
        max_neighbors=max(rule.max_neighbors, 0),
        elements=tuple(sorted(set(elements) or known)),
        forces=forces_of(painn),
        checkpoint=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def forces_of(painn: PaiNN) -> str:
    """What its forces are, see `StudentInfo`."""
    if not isinstance(painn, GradientPaiNN):
        return "direct"
    has_one_scale = torch.equal(painn.force_scale, painn.energy_scale.to(painn.force_scale)) and not painn.force_mean
    return "conservative" if isinstance(painn, ConservativePaiNN) and has_one_scale else "gradient"


def scripted(path: Path, device: torch.device, *, trust: bool = False) -> Student:
    """A student that can be called, of a checkpoint."""
    painn, info = student_of(path, trust=trust)
    return Student(frozen(torch.jit.script(painn.to(device)), info), info)
