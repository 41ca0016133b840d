"""What the sections of `fairchem-crack check` share: the config, the parts made so far, and the problems found."""

from __future__ import annotations

import logging
import math
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from fairchem.core.datasets import data_list_collater
from torch import nn
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from fairchem_crack.config import DistillConfig, Fault, TeacherConfig, TermConfig
from fairchem_crack.io.datasets import only_split
from fairchem_crack.io.named_records import NamedRecords
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.teacher.cached import CachedTeacher
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.training.distillation import Distillation
from fairchem_crack.training.trainer import SAMPLE_SYSTEMS, CrackDistillTrainer

# How a section that is left out names what it lacks.
NAMES = {
    "teacher_config": "valid task.distill.teacher",
    "distillation": "sound student with a sound teacher",
    "pairs_per_system": "number of pairs",
    "training_data": "training data",
}


class LeftOut(Exception):
    """A section lacks what an earlier problem has kept from being made."""


class TrainerParts(CrackDistillTrainer):
    """The trainer, to be loaded part by part, so that a problem in one does not hide those of the next.

    `parts_of` makes the same of a user's own trainer.
    """

    config: dict

    def name_faults(self, given: dict[str, Any]) -> list[Fault]:
        """None: the command has named them."""
        return []

    def load(self, inference_only: bool) -> None:
        """Only what needs neither data nor model; `is_debug` makes the logger None."""
        self.load_seed_from_config()
        self.load_logger()
        self.load_task()
        self.train_loader = None

    def load_split(self, split: str) -> NamedRecords:
        """The dataset of one split, loaded as training loads it."""
        config, train_loader = self.config, self.train_loader
        self.config = only_split(config, split)
        try:
            self.load_datasets()
        finally:
            self.config = config
            self.train_loader = self.train_loader or train_loader
        return NamedRecords(getattr(self, f"{split}_dataset"), f"dataset.{split}")


def parts_of(trainer: type) -> type[TrainerParts]:
    """`TrainerParts` of a trainer: of ours for fairchem's own, which cannot distil; of a subclass with its methods."""
    if not issubclass(trainer, CrackDistillTrainer) or trainer is CrackDistillTrainer:
        return TrainerParts
    members = {name: member for name, member in vars(TrainerParts).items() if not name.startswith("__")}
    return typing.cast("type[TrainerParts]", type("TrainerParts", (trainer,), members))


@dataclass
class Check:
    """What the sections share: the config, the problems so far, and the parts made so far, None until then."""

    config: dict
    config_yml: str
    opens_data: bool = True
    section: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # of the section
    own_losses: list[dict] = field(default_factory=list)
    terms: list[TermConfig] = field(default_factory=list)
    samples: dict[str, list] = field(default_factory=dict)  # systems of each split
    unsound: set[str] = field(default_factory=set)  # splits whose systems have fields that no model takes
    trainer_class: type = CrackDistillTrainer  # that the config names
    trainer: Optional[TrainerParts] = None
    training_data: Optional[Dataset] = None
    distill: Optional[DistillConfig] = None
    teacher_config: Optional[TeacherConfig] = None
    student: Optional[nn.Module] = None
    student_has_adapter: bool = False
    optimizer: Optional[torch.optim.Optimizer] = None
    teacher: Optional[Teacher | CachedTeacher] = None
    distillation: Optional[Distillation] = None
    pairs_per_system: Optional[float] = None
    activations: Optional[float] = None  # bytes of the teacher's forward, per system

    @property
    def takes_labels(self) -> bool:
        """Whether the student trains on labels of the teacher."""
        return self.distill is not None and self.distill.labels != "data"

    def add(self, faults: Iterable[Fault]) -> None:
        """Each fault is a problem, but for one that is listed already."""
        self.problems += [line for line in map(str, faults) if line not in self.problems]

    def need(self, part: str) -> Any:
        """The part of this name; LeftOut ends the section where there is none."""
        if getattr(self, part) is None:
            raise LeftOut(f"there is no {NAMES.get(part, part)}")
        return getattr(self, part)

    @contextmanager
    def collecting(self, where: str = "") -> Iterator[None]:
        """Turn an error into a problem. Give `where` for errors of fairchem, which do not name the option."""
        try:
            yield
        except LeftOut:
            raise
        except Exception as error:
            logging.debug("", exc_info=True)
            names_option = not where and isinstance(error, (ValueError, OSError))
            reason = (
                f"{error} is not given (KeyError)" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            )
            problem = str(error) if names_option else f"{where or self.section}: {reason}"
            if problem not in self.problems:
                self.problems.append(problem)

    def batch(self, systems: int = SAMPLE_SYSTEMS, split: str = "train") -> Batch:
        """The first systems of the sample of a split, on the device."""
        if not self.samples.get(split):
            raise LeftOut("there is no training data" if self.opens_data else "the data are not opened")
        if split in self.unsound:
            raise LeftOut(f"the systems of dataset.{split} have fields that no model takes")
        trainer = self.need("trainer")
        otf_graph = trainer.config["model"].get("otf_graph", False)
        # clones: some models add to their batch
        chosen = [system.clone() for system in self.samples[split][:systems]]
        return data_list_collater(chosen, otf_graph=otf_graph).to(trainer.device)

    def take_sample(self, split: str, dataset: Any) -> None:
        """Keep evenly spaced systems of a dataset, for the sections that look at systems."""
        self.samples[split] = [dataset[index] for index in evenly_spaced(len(dataset), SAMPLE_SYSTEMS)]

    @property
    def ranks(self) -> int:
        """Processes of the training."""
        return max(self.config.get("world_size") or 1, 1)

    @property
    def steps(self) -> Optional[int]:
        """Of the whole training; None where that cannot be counted."""
        epochs = (self.config.get("optim") or {}).get("max_epochs")
        if self.trainer is None or self.trainer.train_dataset is None or not isinstance(epochs, int):
            return None
        systems = math.ceil(len(self.trainer.train_dataset) / self.ranks)  # of a rank, as torch's sampler deals them out
        return epochs * math.ceil(systems / self.batch_size)

    @property
    def batch_size(self) -> int:
        """Systems of a training batch on one rank."""
        return int((self.config.get("optim") or {}).get("batch_size", 1))
