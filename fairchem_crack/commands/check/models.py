"""The sections of `fairchem-crack check` that make something: student, optimizer, teacher."""

from __future__ import annotations

from typing import Optional

import torch
from torch import nn

from fairchem_crack import keys
from fairchem_crack.adapters import attach_features
from fairchem_crack.commands.check.context import Check
from fairchem_crack.config import DistillConfig, TeacherConfig
from fairchem_crack.evaluation.time_and_memory import megabytes
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, open_cache
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.training.distillation import Distillation, Student
from fairchem_crack.training.host_options import label_faults
from fairchem_crack.training.init_from_teacher import copy_weights
from fairchem_crack.training.learning_rates import LearningRates
from fairchem_crack.training.scale_factors import scale_factors
from fairchem_crack.training.schedule import check_length, schedule_notes
from fairchem_crack.training.terms import requested_fields


def examine_student(check: Check) -> str:
    """Built with random weights, as training starts it."""
    trainer = check.need("trainer")
    with check.collecting("model"):
        trainer.load_model()
        check.student = trainer._unwrapped_model
    student, width = check.need("student"), None
    if check.terms or check.takes_labels:
        with check.collecting():
            features = attach_features(student, "student", trainer.model_outputs().names(keys.ENERGY))
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
    training_data = (check.config.get("dataset") or {}).get("train") or {}
    is_fitted_to_other_labels = check.distill is not None and any(label_faults(check.distill, training_data))
    if check.samples.get("train") and not is_fitted_to_other_labels:
        with check.collecting("dataset.train.transforms"):
            trainer.load_references_and_normalizers()
    with check.collecting("optim"):
        trainer.load_optimizer()
        trainer.load_extras()
        check.optimizer = None if check.student is None else trainer.optimizer
    ranks = f"{check.ranks} rank{'s'[: check.ranks > 1]}"
    line = f"{config.get('max_epochs')} epochs, batches of {check.batch_size} systems per rank, {ranks}"
    line += (", mixed precision" if trainer.scaler else "") + _end(check)
    if check.optimizer is None or check.steps is None:
        return line
    with check.collecting():
        check_length(trainer.scheduler, check.steps)
        line += f"\n{'':<9} ".join(["", *schedule_notes(trainer.scheduler, check.steps)])
    return line


def _end(check: Check) -> str:
    """How many steps there are; whether the last one is a multiple of `eval_every` and `checkpoint_every`."""
    config = check.config.get("optim") or {}
    if check.steps is None or not isinstance(config.get("max_epochs"), int):
        return ""
    of_epoch = check.steps // config["max_epochs"] or 1
    eval_every = config.get("eval_every") or of_epoch
    checkpoint_every = config.get("checkpoint_every") or eval_every
    intervals = {"validated": eval_every, "saved": of_epoch if checkpoint_every == -1 else checkpoint_every}
    beyond = [f"{done} every {interval}" for done, interval in intervals.items() if check.steps % interval]
    return f"; {check.steps} steps" + (f", {' and '.join(beyond)} and after the last one, too" if beyond else "")


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
    teacher = _open_teacher(check.need("teacher_config"), check.need("trainer").device)
    if isinstance(teacher, CachedTeacher) and check.samples.get("train"):
        check.take_sample("train", _with_records(check, teacher))
    check.teacher = teacher
    if check.distill and check.student_has_adapter and check.optimizer is not None:
        check.distillation = _distillation_of(check, check.distill, teacher, check.optimizer)
        with check.collecting():
            _start_from_teacher(check.need("student"), teacher, check.distill)
        with check.collecting():
            LearningRates(check.need("student"), check.optimizer, check.distill.learning_rates).close()
    return _cache_facts(teacher) if isinstance(teacher, CachedTeacher) else _teacher_facts(teacher)


def _open_teacher(config: TeacherConfig, device: torch.device) -> Teacher | CachedTeacher:
    return CachedTeacher(open_cache(config, device)) if config.cache else load_teacher(config, device)


def _with_records(check: Check, teacher: CachedTeacher) -> CachedDataset:
    """The training data with the records that the terms and the other sections read."""
    fields = requested_fields(check.distill, check.terms) if check.distill else set()
    fields |= {keys.ENERGY, keys.FORCES} & set(teacher.cache.plan.fields)
    return CachedDataset(check.need("training_data"), teacher.cache, "dataset.train", fields)


def _distillation_of(
    check: Check, config: DistillConfig, teacher: Teacher | CachedTeacher, optimizer: torch.optim.Optimizer
) -> Distillation:
    trainer = check.need("trainer")
    student = Student(check.need("student"), trainer.model_outputs(), optimizer, trainer.device)
    return Distillation(config, check.terms, teacher, student, total_steps=1, seed=check.config.get("seed") or 0)


def _start_from_teacher(student: nn.Module, teacher: Teacher | CachedTeacher, config: DistillConfig) -> None:
    if config.init_from_teacher is None:
        return
    if isinstance(teacher, CachedTeacher):
        teacher = load_teacher(config.teacher, next(student.parameters()).device)
    copy_weights(teacher.model, student, config.init_from_teacher.blocks)


def _cache_facts(teacher: CachedTeacher) -> str:
    plan, size = teacher.cache.plan, sum(file.stat().st_size for file in teacher.checkpoint.iterdir())
    content = f"{plan.systems} systems, {plan.dtype}, {megabytes(size)}"
    return f"{teacher.name}, D = {teacher.width}, from the cache {teacher.checkpoint} ({content}; a sample of it is sound)"


def _teacher_facts(teacher: Teacher) -> str:
    return f"{_facts(teacher.name, teacher.model, 'D', teacher.width)}, from {teacher.checkpoint}"


def _facts(name: str, model: nn.Module, letter: str, width: Optional[int]) -> str:
    weight = next(model.parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths = "" if width is None else f"{letter} = {width}, "
    return (
        f"{name}, {parameters / 1e6:.3f}M parameters, {widths}{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
    )
