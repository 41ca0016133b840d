"""A teacher whose outputs are made up, for tests of what a training step makes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TeacherConfig, TermConfig
from fairchem_crack.teacher.force_jacobian import JacobianRows, draw_coordinates
from fairchem_crack.teacher.frozen import TeacherOutputs
from fairchem_crack.training.distillation import Distillation, Student


class StubTeacher:
    """Normally distributed outputs, the same for the same atoms.

    Args:
        mean: (D,) of the node embedding's channels.
        std: (D,) of the node embedding's channels, and of the components of the vector embedding's.
    """

    name, checkpoint, max_atomic_number, cutoff, use_pbc, lmax = "stub", Path("stub.pt"), 118, None, True, 1

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std
        self.width = self.vector_width = len(std)

    def __call__(self, batch, requested=(), seed: int = 0) -> TeacherOutputs:
        generator = torch.Generator().manual_seed(batch.num_nodes)
        atoms, systems, device = batch.num_nodes, len(batch.natoms), batch.pos.device

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device)

        edges = torch.stack((torch.arange(atoms - 1), torch.arange(1, atoms))).to(device)
        edges = edges[:, batch.batch[edges[0]] == batch.batch[edges[1]]]
        mean, std = self.mean.to(device), self.std.to(device)
        nodes, vectors = mean + std * draw(atoms, self.width), std * draw(atoms, 3, self.width)
        energies, forces, rows = draw(atoms), draw(atoms, 3), draw(atoms, 3)
        energy = torch.zeros(systems, device=device).index_add(0, batch.batch, energies)
        jacobian = JacobianRows(draw_coordinates(batch, seed), rows)
        return TeacherOutputs(edges, nodes, vectors, energies, energy, forces, jacobian)

    def fingerprint(self) -> str:
        return "stub"

    def settings(self) -> dict:
        return {"graph": {"cutoff": self.cutoff}}

    def close(self) -> None:
        pass


def plain_teacher(width: int = 8) -> StubTeacher:
    return StubTeacher(torch.zeros(width), torch.ones(width))


def distillation_of(
    student, teacher, terms: list[TermConfig], *, outputs: ModelOutputs | None = None, device="cpu", **options
) -> Distillation:
    """The distillation of a step, before its preflight; `options` are of `task.distill`."""
    return Distillation(
        DistillConfig(TeacherConfig("stub.pt"), **options),
        terms,
        teacher,
        Student(
            student,
            outputs or ModelOutputs("outputs"),
            torch.optim.AdamW(student.parameters(), lr=1e-3),
            torch.device(device),
        ),
        total_steps=10,
        seed=0,
    )


def terms_of(features) -> list[TermConfig]:
    """All terms that a student has the outputs for, each with coefficient 1."""
    fns = {
        keys.RELATIONS: "crack",
        keys.NODE_EMBEDDINGS: "mse",
        keys.NODE_CONTRAST: "info_nce",
        keys.RELATION_VECTORS: "mse",
        keys.RELATION_LENGTHS: "huber",
        keys.SYSTEM_EMBEDDING: "mse",
        keys.ATOM_ENERGIES: "mae",
        keys.TEACHER_ENERGY: "mae",
        keys.TEACHER_FORCES: "l2mae",
    }
    if features.vector_width:
        fns[keys.VECTOR_EMBEDDINGS] = "l2mae"
    if features.has_position_gradients:
        fns |= {keys.ENERGY_GRADIENT: "l2mae", keys.FORCE_JACOBIAN: "mse"}
    lmax = int(bool(features.vector_width))
    return [TermConfig(key, fn, 1.0, lmax=lmax if key == keys.RELATIONS else 0) for key, fn in fns.items()]
