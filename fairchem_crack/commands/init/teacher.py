"""What a teacher has for a student: by its checkpoint, or by the plan of its cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from fairchem.core.common.utils import setup_imports

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig
from fairchem_crack.teacher.cache import PLAN, TeacherCache
from fairchem_crack.teacher.frozen import load_teacher

OF_A_MODEL = (keys.ENERGY, keys.FORCES, keys.ATOM_ENERGIES, keys.NODE_EMBEDDING)


@dataclass(frozen=True)
class TeacherSummary:
    """A teacher, as `task.distill.teacher` names it.

    Attributes:
        name: of its architecture, or of a teacher of another framework.
        given: checkpoint, or directory of the cache.
        fields: of `TeacherOutputs`, those that it provides.
        cache: None for a checkpoint.
    """

    name: str
    given: str
    fields: frozenset[str]
    cache: Optional[TeacherCache] = None

    @property
    def summary(self) -> str:
        """In words."""
        what = "a checkpoint" if self.cache is None else f"a cache of {len(self.cache)} systems"
        return f"{self.name}, {what}, with {', '.join(sorted(self.fields))}"


def read_teacher(given: str, *, trust: bool = False) -> TeacherSummary:
    """Load a teacher, or open its cache.

    Raises:
        FileNotFoundError: neither a file nor the name of a pretrained model.
        ValueError: not a checkpoint with an adapter, or no finished cache.
    """
    directory = Path(given)
    if directory.is_dir():
        if not (directory / PLAN).is_file():
            raise ValueError(f"--teacher {given}: a directory without {PLAN}; expected a checkpoint, or a teacher cache.")
        cache = TeacherCache(directory)
        return TeacherSummary(cache.plan.teacher, given, frozenset(cache.plan.fields), cache)
    setup_imports()
    teacher = load_teacher(TeacherConfig(checkpoint=given, trust=trust), torch.device("cpu"))
    fields = {*OF_A_MODEL, *([keys.VECTOR_EMBEDDING] if teacher.vector_width else [])}
    teacher.close()
    return TeacherSummary(teacher.name, given, frozenset(fields))
