"""The models' outputs for the systems, and how fast."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.adapters import architecture
from fairchem_crack.config import TeacherConfig
from fairchem_crack.evaluation.report.request import ROLES
from fairchem_crack.evaluation.report.systems import Split, batches
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.evaluation.teacher_caches import TeacherCaches
from fairchem_crack.evaluation.time_and_memory import measure_throughput
from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.loss.relations import unordered_pairs
from fairchem_crack.teacher.channels import ChannelStatistics
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.training.projection import projection_of
from fairchem_crack.training.projection_state import upgraded

SPEED_REPEATS = 5

TITLES = {
    "painn": "PaiNN",
    "gemnet_t": "GemNet-T",
    "gemnet_oc": "GemNet-OC",
    "equiformer_v2": "EquiformerV2",
    "escn": "eSCN",
    "esen": "eSEN",
    "schnet": "SchNet",
    "dimenetplusplus": "DimeNet++",
}


@dataclass(frozen=True)
class Prediction:
    """Energies (S,) in eV and forces (N, 3) in eV/A of the systems of a split."""

    energy: np.ndarray
    forces: np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """Node embeddings of N atoms by both models, and the pairs among them.

    Attributes:
        atomic_numbers: (N,).
        teacher: (N, D), standardised as in the training; as it is where `projection` is missing.
        student: (N, D), projected; (N, D_s) as it is where `projection` is missing; None without a training checkpoint.
        pairs: (2, P) long, of the teacher's graph.
        lacking: why there is no projected student; empty where there is one.
    """

    atomic_numbers: np.ndarray
    teacher: Tensor
    student: Optional[Tensor]
    pairs: Tensor
    lacking: str


def load_model(role: str, checkpoint: str, device: torch.device, *, use_ema: bool = True) -> Teacher:
    """A frozen model of whatever role: a `Teacher` runs every fairchem checkpoint, published ones too.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it cannot be read, or its architecture has no adapter.
    """
    try:
        return load_teacher(TeacherConfig(checkpoint=checkpoint, use_ema=use_ema), device)
    except (ValueError, OSError) as error:
        raise type(error)(f"{_called(role)} {checkpoint}: {error}") from error


def _called(role: str) -> str:
    """The start of a message: the role of a model, or --also."""
    return f"The {role}" if role in ROLES else "--also"


class AsFairchem(CheckpointEvaluator):
    """A student, or a further model, as fairchem's own trainer runs it.

    A `Teacher` breaks ties among equally distant neighbors in its own way, which moves a student's errors by some 0.3 %;
    fairchem's move by some 0.1 % with the size of the batch.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._trainer.ema:  # of a training checkpoint; others hold only the averaged weights
            self._trainer.ema.copy_to()

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Energy (B, 1) in eV and forces (N, 3) in eV/A."""
        trainer = self._trainer
        trainer.model.eval()
        with torch.no_grad():
            outputs = trainer._forward(batch)
            return {name: trainer._denorm_preds(name, outputs[name], batch) for name in (keys.ENERGY, keys.FORCES)}


AnyModel = Union[Teacher, TeacherCaches]  # the second, of a teacher that is not run


def runner(role: str, model: AnyModel, batch_size: int, device: torch.device) -> Callable[[Batch], Any]:
    """What turns a batch into energy and forces: the teacher as distillation runs it; others as fairchem does.

    Raises:
        ValueError: another's checkpoint that fairchem's trainer would not take.
    """
    if role == "teacher" or isinstance(model, TeacherCaches):
        return partial(model, requested=(keys.ENERGY, keys.FORCES))
    try:
        return AsFairchem(model.checkpoint, {}, batch_size=batch_size, cpu=device.type == "cpu")
    except KeyError as error:
        raise ValueError(
            f"{_called(role)} {model.checkpoint}: its config has no {error}; expected a checkpoint that fairchem 1.10's "
            "trainer wrote."
        ) from error
    except ValueError as error:  # which begins with the checkpoint
        raise ValueError(f"{_called(role)} {error}") from error


def title(model: AnyModel) -> str:
    """The name of an architecture in tables and pictures."""
    if isinstance(model, TeacherCaches):
        return TITLES.get(model.name, model.name)
    name = architecture(model.model).removesuffix("_backbone")
    if name == "gemnet_t" and getattr(model.features.backbone, "direct_forces", False):
        return "GemNet-dT"
    return TITLES.get(name, name)


def predict(
    role: str, model: AnyModel, run: Callable[[Batch], Any], split: Split, *, batch_size: int, device: torch.device
) -> Prediction:
    """Energies and forces of every system of a split, by the `runner` of a model.

    Raises:
        ValueError: an element that the model cannot represent.
    """
    largest = int(split.atomic_numbers.max())
    if largest > model.max_atomic_number:
        raise ValueError(
            f"{split.name}: holds an atom of atomic number {largest}; the {role} knows elements up to "
            f"{model.max_atomic_number}. Leave such systems out."
        )
    outputs = [run(batch) for batch in batches(split.systems, batch_size, device)]
    energy, forces = (
        torch.cat([output[name].detach() for output in outputs]).float().cpu() for name in (keys.ENERGY, keys.FORCES)
    )
    return Prediction(energy.view(-1).numpy(), forces.view(-1, 3).numpy())


def atoms_per_second(models: Mapping[str, Teacher], systems: list[Data], device: torch.device) -> dict[str, float]:
    """Median atoms per second on one batch, of each model as it stands, without what makes a `Teacher` reproducible."""
    batch = next(batches(systems, len(systems), device))
    forwards = {role: partial(_forward, model) for role, model in models.items()}
    measured = measure_throughput(forwards, dict.fromkeys(models, batch), device, repeats=SPEED_REPEATS)
    return {role: statistics.median(throughput["atoms_per_second"]) for role, throughput in measured.items()}


def _forward(model: Teacher, batch: Batch) -> None:
    with torch.set_grad_enabled(model.features.has_gradient_forces):
        model.model(batch)
    model.features.clear()


def embed(
    teacher: AnyModel, training: str | None, systems: list[Data], *, batch_size: int, device: torch.device
) -> Embeddings:
    """Node embeddings by the teacher, and by the student as the last training step left it, with its projection.

    Args:
        training: the training checkpoint; its own weights, not their average, are those that the projection was trained
            with.
    """
    student, projection, statistics, lacking = _training_student(teacher, training, device)
    numbers, of_teacher, of_student, pairs, offset = [], [], [], [], 0
    for batch in batches(systems, batch_size, device):
        outputs = teacher(batch)
        numbers.append(batch.atomic_numbers.long().cpu().numpy())
        of_teacher.append(statistics.standardize(outputs.node_embedding).cpu())
        pairs.append(unordered_pairs(outputs.edge_index, batch.num_nodes).cpu() + offset)
        offset += batch.num_nodes
        if student is not None:
            with torch.no_grad():
                of_student.append(projection(student(batch).node_embedding).cpu())
    return Embeddings(
        atomic_numbers=np.concatenate(numbers),
        teacher=torch.cat(of_teacher),
        student=torch.cat(of_student) if of_student else None,
        pairs=torch.cat(pairs, dim=1),
        lacking=lacking,
    )


def _training_student(
    teacher: AnyModel, training: str | None, device: torch.device
) -> tuple[Teacher | None, nn.Module, ChannelStatistics, str]:
    """Student, projection (`Identity` where there is none), how the teacher was standardised, and why there is none."""
    no_projection = nn.Identity(), ChannelStatistics.of_own_units(teacher.width, device)
    if training is None:
        lacking = "the run has no training checkpoint `checkpoint.pt`, which would hold the projection"
        return None, *no_projection, lacking
    student = load_model("student", training, device, use_ema=False)
    kept = read_checkpoint(student.checkpoint).get(keys.CHECKPOINT_KEY) or {}
    if not kept.get(keys.PROJECTION):
        lacking = f"{training} has no projection: no term of its training compares node embeddings"
        return student, *no_projection, lacking
    if kept.get(keys.TEACHER_FINGERPRINT) not in (None, teacher.fingerprint()):
        lacking = f"{training} was distilled from another teacher than {teacher.checkpoint}: their fingerprints differ"
        return student, *no_projection, lacking
    state = upgraded(kept, ChannelStatistics.of_own_units(teacher.width, torch.device("cpu")))
    projection = projection_of(state[keys.PROJECTION]).to(device).eval()
    return student, projection, ChannelStatistics.from_state(state[keys.CHANNEL_STATISTICS], device), ""
