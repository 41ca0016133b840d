"""Of the table `relations`: the error of a student's embedding, its part common to the atoms of a system, and the rest."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks import ROOT
from benchmarks.accuracy.plan import TEACHER, Plan, Run
from benchmarks.accuracy.training import Workspace

TABLE, OF_TABLE, SPLIT = "embeddings", "relations", "val_id"
BATCH = 20  # systems


def measure_embeddings(plan: Plan, workspace: Workspace, options: argparse.Namespace) -> None:
    """Append the row of each run of `relations` that has none and whose training checkpoint is there."""
    from fairchem_crack.config import TeacherConfig
    from fairchem_crack.evaluation.report.predict import embed
    from fairchem_crack.evaluation.report.systems import load_split
    from fairchem_crack.evaluation.s2ef.data import FORMATS
    from fairchem_crack.teacher.frozen import load_teacher

    table, device = workspace.table(TABLE), torch.device(options.device)
    trained = {Run.of(row) for row in workspace.table(OF_TABLE).rows()} - {Run.of(row) for row in table.rows()}
    data = {"format": "lmdb", **FORMATS["lmdb"], "src": str(workspace.data(None, SPLIT))}
    split = load_split(SPLIT, data, systems=plan.validation_systems, free_atoms_only=True)
    teachers: dict[str, Any] = {}
    for run in (run for run in plan.runs(OF_TABLE, options.only) if run in trained and run.method != TEACHER):
        checkpoint = workspace.checkpoint(run, "checkpoint.pt")  # which has the projection
        if not checkpoint.exists():
            continue
        name = run.teacher or next(iter(plan.teachers))  # of an undistilled student
        if name not in teachers:
            teachers[name] = load_teacher(TeacherConfig(str(ROOT / plan.teachers[name])), device)
        made = embed(teachers[name], str(checkpoint), split.systems, batch_size=BATCH, device=device)
        assert made.student is not None
        errors = dict(zip(("system_fitted", "within_fitted"), fitted_parts(made.student, made.teacher, split.natoms)))
        if not made.lacking:
            errors |= zip(("system", "within"), parts(made.student - made.teacher, torch.as_tensor(split.natoms)))
        table.append([{**asdict(run), "system": "", "within": "", **errors}])
        print(run.name, errors, flush=True)


def parts(error: Tensor, natoms: Tensor) -> tuple[float, float]:
    """Mean square of an embedding's error e as the sum of two: of its mean over each system, and of the rest.

    sum_i |m_i|^2 / N D and sum_i |e_i - m_i|^2 / N D, m_i the mean of e over the system of atom i. The first is of what no
    relation sees.

    Args:
        error: (N, D).
        natoms: (B,), which sum to N.
    """
    systems = torch.repeat_interleave(natoms)
    means = error.new_zeros(len(natoms), error.shape[1]).index_add(0, systems, error) / natoms[:, None]
    common = means[systems]
    return float(common.square().mean()), float((error - common).square().mean())


def fitted_parts(student: Tensor, teacher: Tensor, natoms: Any) -> tuple[float, float]:
    """`parts` of the error that the best affine map leaves, which no scale or shift of the projection changes.

    It maps the student's embedding to the teacher's, of unit variance in each channel, by least squares on one half of the
    systems, and is evaluated on the other half: the mean of both ways.

    Args:
        student: (N, D_s).
        teacher: (N, D).
    """
    natoms = torch.as_tensor(natoms)
    is_first = torch.arange(len(natoms)) % 2 == 0
    of_first = is_first.repeat_interleave(natoms)
    inputs = torch.cat((student.double(), student.new_ones(len(student), 1).double()), dim=1)
    target = (teacher.double() - teacher.double().mean(dim=0)) / teacher.double().std(dim=0)
    both = []
    for fitted, chosen in ((of_first, ~is_first), (~of_first, is_first)):
        weights = torch.linalg.lstsq(inputs[fitted], target[fitted], driver="gelsd").solution
        both.append(parts(inputs[~fitted] @ weights - target[~fitted], natoms[chosen]))
    return tuple(sum(part) / 2 for part in zip(*both))  # type: ignore[return-value]
