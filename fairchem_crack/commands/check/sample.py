"""The sections of `fairchem-crack check` that run the models on a sample: relations, agreement with the labels, cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.commands.check.context import Check, LeftOut, TrainerParts
from fairchem_crack.evaluation.time_and_memory import REPEATS, loss_bytes, megabytes, peak_growth, seconds
from fairchem_crack.io.labels import is_missing, is_of_teacher
from fairchem_crack.io.named_records import free_atoms
from fairchem_crack.loss import partition
from fairchem_crack.teacher.cached import CachedTeacher
from fairchem_crack.training.agreement import energy_agreement, explanation
from fairchem_crack.training.distillation import Distillation, TeacherStep
from fairchem_crack.training.preflight import check_elements, check_neighbors
from fairchem_crack.training.terms import teacher_fields


def examine_pairs(check: Check) -> str:
    """The relation graph of the sample, and whether both models can represent its systems."""
    distillation, batch, before = check.need("distillation"), check.batch(), len(check.problems)
    models = distillation.student_features, distillation.teacher
    with check.collecting():
        check_elements(batch.atomic_numbers, *models, "dataset.train")
    with check.collecting():
        check_neighbors(batch, *models)
    if len(check.problems) > before:
        return ""
    with check.collecting("teacher"):
        _, growth = peak_growth(lambda: distillation.teacher(batch, distillation.requested), distillation.device)
    with check.collecting("student"), torch.no_grad():
        distillation.student.eval()(batch)
    if len(check.problems) > before:
        return ""
    systems, graph = len(batch.natoms), distillation.config.relations.graph
    check.pairs_per_system = distillation.preflight(batch) / systems
    check.activations = None if growth is None else growth / systems
    return (
        f"{check.pairs_per_system:.1f} per system, {check.pairs_per_system * check.batch_size:.0f} per batch of "
        f"{check.batch_size} (the {graph}'s graph, mean over a sample of {systems} systems)"
    )


def examine_agreement(check: Check) -> str:
    """The teacher against the labels of the sample: a teacher of other data has little to teach."""
    teacher, batch, outputs = check.need("teacher"), check.batch(), check.need("trainer").model_outputs()
    labels = {property_: outputs.names(property_) for property_ in (keys.ENERGY, keys.FORCES)}
    known = {
        property_: ~(is_missing(batch, names[0], property_) | is_of_teacher(batch, property_))  # (B,)
        for property_, names in labels.items()
        if len(names) == 1 and names[0] in batch
    }
    if not all(property_ in known and known[property_].any() for property_ in labels):
        raise LeftOut("the training data has no energies and forces")
    if isinstance(teacher, CachedTeacher) and not labels.keys() <= set(teacher.cache.plan.fields):
        raise LeftOut("the cache has no energies and forces")
    predictions = teacher(batch, {keys.ENERGY, keys.FORCES})
    is_compared = free_atoms(batch) & known[keys.FORCES][batch.batch]  # (N,)
    forces = batch[labels[keys.FORCES][0]][is_compared]
    error, size = (predictions[keys.FORCES][is_compared] - forces).abs().mean().item(), forces.abs().mean().item()
    energy = batch[labels[keys.ENERGY][0]].view(-1).masked_fill(~known[keys.ENERGY], math.nan)
    energies = energy_agreement(energy, predictions[keys.ENERGY], batch)
    line = f"teacher on the labels of the sample: energy MAE {energies.error:.3g} eV, force MAE {error:.3g} eV/A"
    if error < size:
        line += f" (zero forces have {size:.3g})"
    learned = check.distill if check.distill and check.distill.labels == "teacher" else None
    if not energies.is_plausible and learned:
        shows = "and is validated on them" if learned.teacher.val_cache else "so that validation shows the difference"
        line += f"; the student learns the teacher's energies, {shows}"
    if error >= size:
        line += _warning(f"zero forces have {size:.3g}. Was the teacher trained on data of this kind, in this unit?")
    if not energies.is_plausible and not learned:
        compared = [term.key for term in check.terms if keys.ENERGY in teacher_fields(term)]
        line += _warning(explanation(energies, compared))
    return line


def _warning(text: str) -> str:
    return f"\n{'':<9} WARNING: {text}"


def examine_memory(check: Check) -> str:
    """The loss by arithmetic, the teacher's weights by counting, its activations by measuring."""
    pairs, teacher, batch = check.need("pairs_per_system"), check.need("teacher"), check.batch()
    device = check.need("trainer").device.type
    threshold = check.need("distill").relations.false_negative_threshold
    loss = loss_bytes(
        pairs=pairs * check.batch_size,
        atoms=batch.num_nodes / len(batch.natoms) * check.batch_size,
        width=teacher.width,
        device=device,
        fused=partition.is_fused(check.need("trainer").device, excludes=threshold is not None),
    )
    how = "peak on the GPU" if device == "cuda" else "growth of the resident memory"
    activations = (
        "not measured" if check.activations is None else f"{megabytes(check.activations * check.batch_size)} ({how})"
    )
    has_relations = any(term.key in keys.OF_PAIRS for term in check.terms)
    relations = f"loss of the relations {megabytes(loss)} (estimate), " if has_relations else ""
    if isinstance(teacher, CachedTeacher):
        return f"{relations}no teacher is run"
    weights = sum(x.numel() * x.element_size() for x in (*teacher.model.parameters(), *teacher.model.buffers()))
    return f"{relations}teacher's weights {megabytes(weights)}, its activations {activations}"


def time_step(check: Check) -> str:
    """Seconds of the parts of a training step; optimizer and data loading are not among them."""
    if check.problems:
        raise LeftOut("only a config without problems is timed")
    trainer, distillation = check.need("trainer"), check.distillation
    batch = check.batch(check.batch_size)
    systems = len(batch.natoms)
    scale = check.batch_size / systems
    trainer.model.train()
    if distillation is not None:
        teacher_step = distillation.run_teacher(batch, 1)  # which may give the labels
    parts = {"student": scale * seconds(lambda: _student_step(trainer, batch), trainer.device)}
    if distillation is not None:
        parts["teacher"] = scale * seconds(lambda: distillation.run_teacher(batch, 1), trainer.device)
    if distillation is not None and distillation.terms:
        # every relation is compared with all others, of the batch or of its system
        power = 2 if distillation.config.relations.negatives == "batch" else 1
        parts["distillation terms"] = scale**power * seconds(
            lambda outputs: _terms_step(trainer, distillation, teacher_step, outputs),
            trainer.device,
            prepare=lambda: trainer._forward(batch),
        )
    line = f"{sum(parts.values()):.3g} s: " + ", ".join(f"{name} {value:.3g}" for name, value in parts.items())
    scaled = "" if systems == check.batch_size else f", scaled from {systems} systems"
    return f"{line} (median of {REPEATS}{scaled}; without optimizer and data loading)"


def _student_step(trainer: TrainerParts, batch: Batch) -> None:
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        loss = trainer._compute_loss(trainer._forward(batch), batch)
    loss.backward()
    trainer.model.zero_grad()


def _terms_step(
    trainer: TrainerParts, distillation: Distillation, teacher_step: TeacherStep, outputs: dict[str, Tensor]
) -> None:
    """Back to what is read of the student and no further: the rest of its backward is in the student's time."""
    compared = [distillation.student_features.node_embedding, *outputs.values()]
    with torch.autocast("cuda", enabled=trainer.scaler is not None):
        loss = distillation.loss(teacher_step, outputs).total
    torch.autograd.grad(loss, [*compared, *distillation.projections.parameters()], allow_unused=True)
