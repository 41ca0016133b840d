"""The sections of `fairchem-crack check` that make something: student, optimizer, teacher."""

from __future__ import annotations

from typing import Optional

from torch import nn

from fairchem_crack import keys
from fairchem_crack.cached import CachedDataset, CachedTeacher, open_cache
from fairchem_crack.check.context import Check
from fairchem_crack.config import TeacherConfig
from fairchem_crack.distillation import Distillation, wanted_fields
from fairchem_crack.features import attach_features
from fairchem_crack.initialization import copy_weights
from fairchem_crack.measure import megabytes
from fairchem_crack.named_records import NamedRecords
from fairchem_crack.scales import scale_factors
from fairchem_crack.teacher import Teacher, load_teacher


def examine_student(check: Check) -> str:
    """Built with random weights, as training starts it."""
    trainer = check.need("trainer")
    with check.collecting("model"):
        trainer.load_model()
        check.student = trainer._unwrapped_model
    student, width = check.need("student"), None
    if check.terms:
        with check.collecting():
            features = attach_features(student, "student")
            width, check.student_has_adapter = features.width, True
            features.close()
    return _facts(trainer.config["model"]["name"], student, "D_s", width)


def examine_training(check: Check) -> str:
    """fairchem's losses, normalizers, optimizer and schedule."""
    trainer, config = check.need("trainer"), check.config.get("optim") or {}
    if check.student is None:
        trainer.model = nn.Linear(1, 1)  # a stand-in: what is examined here does not depend on the student
    with check.collecting("loss_functions"):
        trainer.load_loss()
    if check.samples.get("train"):
        with check.collecting("dataset.train.transforms"):
            trainer.load_references_and_normalizers()
    with check.collecting("optim"):
        trainer.load_optimizer()
        trainer.load_extras()
        check.optimizer = None if check.student is None else trainer.optimizer
    ranks = max(check.config.get("world_size") or 1, 1)
    line = f"{config.get('max_epochs')} epochs, batches of {check.batch_size} systems on each of {ranks} ranks"
    return line + (", mixed precision" if trainer.scaler else "")


def examine_scales(check: Check) -> str:
    """Scale factors of the student: fitted ones come from `model.scale_file`."""
    factors = scale_factors(check.need("student"))
    unfitted = [name for name, factor in factors.items() if not factor.fitted]
    line = f"{len(factors) - len(unfitted)} of {len(factors)} scale factors fitted"
    if unfitted:
        names = ", ".join(unfitted[:3]) + (", ..." if len(unfitted) > 3 else "")
        flags = " --cpu" if check.config.get("cpu") else ""
        line += (
            f"\n{'':<9} WARNING: not fitted are {names}. Run\n"
            f"{'':<9}   fairchem-crack fit-scales --config-yml {check.config_yml} --output scale_factors.json{flags}\n"
            f"{'':<9} and set model.scale_file: scale_factors.json"
        )
    return line


def examine_teacher(check: Check) -> str:
    """Loaded once; if the student is sound, with all that a training step has beyond the student's own."""
    config, trainer = check.need("teacher_config"), check.need("trainer")
    teacher = check.teacher = _cached_teacher(check, config) if config.cache else load_teacher(config, trainer.device)
    if check.distill and check.terms and check.student_has_adapter and check.optimizer is not None:
        check.distillation = Distillation(
            check.distill,
            check.terms,
            teacher=teacher,
            student=check.need("student"),
            optimizer=check.optimizer,
            normalize=trainer._normalize,
            total_steps=1,
            device=trainer.device,
            seed=check.config.get("seed") or 0,
        )
        if check.distill.init_from_teacher is not None:
            with check.collecting():
                started = teacher if isinstance(teacher, Teacher) else load_teacher(config, trainer.device)
                copy_weights(started.model, check.need("student"), check.distill.init_from_teacher.blocks)
    if isinstance(teacher, CachedTeacher):
        plan, size = teacher.cache.plan, sum(file.stat().st_size for file in teacher.checkpoint.iterdir())
        kept = f"{plan.systems} systems, {plan.dtype}, {megabytes(size)}"
        return f"{teacher.name}, D = {teacher.width}, from the cache {teacher.checkpoint} ({kept}; a sample of it is sound)"
    return f"{_facts(teacher.name, teacher.model, 'D', teacher.width)}, from {teacher.checkpoint}"


def _cached_teacher(check: Check, config: TeacherConfig) -> CachedTeacher:
    trainer = check.need("trainer")
    cache = open_cache(config, trainer.device)
    if check.samples.get("train"):
        fields = wanted_fields(check.distill, check.terms) if check.distill else set()
        fields |= {keys.ENERGY, keys.FORCES} & set(cache.plan.fields)
        check.take_sample(
            "train", CachedDataset(NamedRecords(trainer.train_dataset, "dataset.train"), cache, "dataset.train", fields)
        )
    return CachedTeacher(cache)


def _facts(name: str, model: nn.Module, letter: str, width: Optional[int]) -> str:
    weight = next(model.parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = "" if width is None else f"{letter} = {width}, "
    return (
        f"{name}, {parameters / 1e6:.3f}M parameters, {widths}{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    )
