"""What a process of `fairchem-crack explore` works with: the systems that are known, teacher and student on its device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Optional

import torch
from torch_geometric.data import Data

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig, parse
from fairchem_crack.explore.known import Known
from fairchem_crack.explore.labelling import student_plan
from fairchem_crack.explore.settings import OF_THE_END, Settings
from fairchem_crack.explore.student import load_student
from fairchem_crack.generate.records import label_names
from fairchem_crack.generate.unit import outputs_of
from fairchem_crack.io.datasets import close_unused, load_split
from fairchem_crack.io.labels import read_unlabelled
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.teacher.cache import Record, TeacherCache
from fairchem_crack.teacher.cache_sources import TeacherSource
from fairchem_crack.teacher.cached import open_cache
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.process import TeacherProcess
from fairchem_crack.training.identity import of_training

STUDENT = "student.pt"  # of a round
WITHOUT_EFFECT = ("teacher", "resume", "max_skipped_steps")  # of task.distill; the teacher is compared by its plan


@dataclass(frozen=True)
class Job:
    """What every process needs to know; it is sent to them.

    Attributes:
        config: of the trainings, as `build_config` makes it; its `dataset.train` has a teacher cache.
        cpu: even where there is a GPU.
        ranks: processes, and those of a training.

    Raises:
        ValueError: the config has no teacher cache, or nothing that runs the teacher.
    """

    config: dict[str, Any]
    settings: Settings
    cpu: bool = False
    ranks: int = 1

    def __post_init__(self) -> None:
        teacher = self._teacher()
        if teacher.cache is None:
            raise ValueError(
                "task.distill.teacher.cache: missing. Each round trains on the systems of dataset.train too, with the "
                "teacher's outputs in its cache: write it with `fairchem-crack cache-teacher --config-yml ...`."
            )
        if teacher.checkpoint is None and teacher.command is None:
            raise ValueError(
                "task.distill.teacher.checkpoint: missing; the teacher labels the frames. For one in another environment, "
                "give its `command`."
            )

    def _teacher(self) -> TeacherConfig:
        distill = (self.config.get("task") or {}).get("distill") or {}
        return parse(TeacherConfig, distill.get("teacher") or {}, "task.distill.teacher")

    def device(self, rank: int) -> torch.device:
        """Of a rank."""
        if self.cpu or not torch.cuda.is_available():
            return torch.device("cpu")
        torch.cuda.set_device(rank)  # of what names no device
        return torch.device(f"cuda:{rank}")

    def cache(self) -> TeacherCache:
        """Of dataset.train."""
        return TeacherCache(Path(str(self._teacher().cache)))

    def known(self) -> Known:
        """The systems of dataset.train."""
        dataset = NamedRecords(load_split(self.config, "train"), "dataset.train")
        read_unlabelled(dataset)
        return Known(dataset, self.cache(), label_names(self.config))

    @property
    def process(self) -> Optional[TeacherProcess]:
        """The teacher where it runs in another environment; it gives what the cache of dataset.train holds."""
        command, plan = self._teacher().command, self.cache().plan
        if not command:
            return None
        return TeacherProcess(
            command, plan.dtype, keys.VECTOR_EMBEDDING in plan.fields, plan.chunk, keys.FORCE_RESPONSE in plan.fields
        )

    def teacher(self, device: torch.device) -> Teacher:
        """The one that has filled the cache.

        Raises:
            CacheError: it is another one.
        """
        open_cache(self._teacher(), device)
        return load_teacher(replace(self._teacher(), cache=None), device)

    def made_with(self, student: str) -> dict[str, Any]:
        """All that decides the outcome, as JSON has it.

        Args:
            student: fingerprint of the first student.
        """
        options = {name: value for name, value in asdict(self.settings).items() if name not in OF_THE_END}
        data = {name: value for name, value in self.config["dataset"]["train"].items() if name != "src"}
        with_data = {**self.config, "dataset": data, "cmd": {"seed": self.config.get("seed")}}
        distill = {name: value for name, value in self.config["task"]["distill"].items() if name not in WITHOUT_EFFECT}
        training = {**of_training(with_data, ranks=self.ranks), "task": {"distill": distill}}
        teacher = {**asdict(self.cache().plan)}
        content = {"options": options, "student": {"student": student}, "teacher": teacher, "training": training}
        return json.loads(json.dumps(content))


class Tools:
    """The data of one process in a round, and the models, which are loaded when they are needed."""

    def __init__(self, job: Job, student: Path, rank: int = 0) -> None:
        close_unused()
        self.job, self._checkpoint, self.device, self.known = job, student, job.device(rank), job.known()
        self.starts = self.known.starts(job.settings.starts)

    def __enter__(self) -> Tools:
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()
        del self.known
        close_unused()

    @cached_property
    def student(self) -> TeacherSource:
        """The student of the round, for energies, forces and node embeddings."""
        model = load_student(self._checkpoint, self.job.config, self.device)
        plan = student_plan(model.width, self.known.plan.chunk)
        return TeacherSource(model, self.known.dataset, self.device, plan)

    def outputs(self, frames: list[Data], labelling: Path) -> list[Record]:
        """The teacher's outputs for frames, with what its cache has.

        Args:
            labelling: directory in which a teacher in another environment has labelled them.
        """
        process = self.job.process
        if not frames:
            return []
        return outputs_of(self.teacher, frames) if process is None else process.labelled(labelling)(frames)

    @cached_property
    def teacher(self) -> TeacherSource:
        """The teacher, for what its cache has."""
        return TeacherSource(self.job.teacher(self.device), self.known.dataset, self.device, self.known.plan)

    def release(self) -> None:
        """Give back the memory of the models."""
        for name in ("student", "teacher"):
            if name in self.__dict__:
                self.__dict__.pop(name).teacher.close()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
