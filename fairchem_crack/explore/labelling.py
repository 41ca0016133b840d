"""The frames of a round: those that add most, labelled by the teacher, and the student's errors on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.generate.limits import check_outputs
from fairchem_crack.generate.moves import ADSORBATE
from fairchem_crack.generate.selection import farthest, system_embedding
from fairchem_crack.generate.settings import Settings, ThrownOut
from fairchem_crack.generate.unit import Candidate, Unit, kept_of, outputs_of
from fairchem_crack.io.atoms import to_atoms
from fairchem_crack.teacher.cache import Plan, Record
from fairchem_crack.teacher.cache_sources import TeacherSource

ENERGY_ERROR, FORCE_ERROR = "student_energy_error", "student_forces_error"  # of a row, eV and eV/A


def student_plan(width: int, chunk: int) -> Plan:
    """What of a student's outputs is computed of frames."""
    fields = (keys.ENERGY, keys.FORCES, keys.NODE_EMBEDDING)
    return Plan("student", "", 0, "", width, chunk=chunk, fields=fields)


def select(
    candidates: Sequence[Sequence[Candidate]], present: Sequence[Data], count: int, student: TeacherSource
) -> list[list[int]]:
    """Choose the candidates that are farthest from what is there and from each other, by the student's embeddings.

    By the student's: the teacher then runs on those that are chosen only.

    Args:
        candidates: of each start.
        present: systems that are trained on already.
        count: how many to choose; of fewer, all.

    Returns:
        Indices, of each start.
    """
    places = [(start, index) for start, group in enumerate(candidates) for index in range(len(group))]
    embeddings = _embeddings(student, [candidates[start][index].system for start, index in places])
    chosen = {places[index] for index in farthest(embeddings, min(count, len(places)), _embeddings(student, present))}
    return [[index for index in range(len(group)) if (start, index) in chosen] for start, group in enumerate(candidates)]


def _embeddings(student: TeacherSource, systems: Sequence[Data]) -> np.ndarray:
    records = outputs_of(student, list(systems))
    rows = [system_embedding(record, _tags(system) == ADSORBATE) for system, record in zip(systems, records)]
    return np.array(rows).reshape(len(systems), -1)


def _tags(system: Data) -> np.ndarray:
    return to_atoms(system).get_tags()


def label(
    candidates: Sequence[Candidate], records: Sequence[Record], parent: Record, student: TeacherSource, limits: Settings
) -> Unit:
    """Keep the candidates of a start that are within the limits, labelled by the teacher, with the student's errors.

    Args:
        records: the teacher's outputs for the candidates.
        parent: those for the start.
    """
    thrown_out, kept = Counter[tuple[str, str]](), []
    of_students = outputs_of(student, [candidate.system for candidate in candidates])
    for candidate, record, of_student in zip(candidates, records, of_students):
        try:
            check_outputs(record, parent, to_atoms(candidate.system), limits)
        except ThrownOut as thrown:
            thrown_out[candidate.made["strategy"], thrown.reason] += 1
        else:
            errors = _errors(candidate.system, record, of_student)
            kept.append(kept_of(Candidate(candidate.system, {**candidate.made, **errors}), record, {}))
    return Unit(kept, thrown_out)


def _errors(system: Data, teacher: Record, student: Record) -> dict[str, Any]:
    """Absolute errors: of the energy, and the mean over the components of the forces on free atoms."""
    free = system.fixed.numpy() == 0
    energy, forces = (np.abs(student.values[name] - teacher.values[name]) for name in (keys.ENERGY, keys.FORCES))
    return {ENERGY_ERROR: float(energy), FORCE_ERROR: float(forces[free].mean()), "free_atoms": int(free.sum())}


def mean_errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """MAE of the energy (eV) over frames, and of the forces (eV/A) over the components on their free atoms."""
    if not rows:
        return {}
    energy = np.mean([row[ENERGY_ERROR] for row in rows])
    forces = np.average([row[FORCE_ERROR] for row in rows], weights=[row["free_atoms"] for row in rows])
    return {"energy_mae": float(energy), "forces_mae": float(forces)}
