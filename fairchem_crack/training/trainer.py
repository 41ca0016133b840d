"""`CrackDistillTrainer`: fairchem's OCP trainer plus the distillation terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, read_options, refuse
from fairchem_crack.io.batches import to_device
from fairchem_crack.io.checkpoints import reading_safely
from fairchem_crack.io.denormals import without_denormals
from fairchem_crack.io.labels import OptionalLabels
from fairchem_crack.io.named_records import NAMED, NamedRecords, listed
from fairchem_crack.io.samples import evenly_spaced
from fairchem_crack.io.trust import trusts
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, open_cache
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.labels import TeacherLabels, validation_labels
from fairchem_crack.teacher.read_ahead import read_ahead
from fairchem_crack.training.block_shuffle import BlockSampler
from fairchem_crack.training.checked_trainer import CheckedTrainer, training_split
from fairchem_crack.training.compiled import check_built_for_cuda
from fairchem_crack.training.config_checks import check_no_graph_parallelism, check_run_dir
from fairchem_crack.training.continuation import compare
from fairchem_crack.training.distillation import Distillation, Student, TeacherStep
from fairchem_crack.training.guard import (
    SkippedSteps,
    compared,
    drop_unless_finite,
    faults,
    from_all_ranks,
    nonfinite_on_all_ranks,
)
from fairchem_crack.training.host_options import (
    check_free_atoms,
    label_faults,
    own_loss_faults,
    shuffle_faults,
    term_loss_faults,
    transform_faults,
)
from fairchem_crack.training.identity import content_of, joined, of_distillation, of_training
from fairchem_crack.training.init_from_teacher import copy_weights
from fairchem_crack.training.labels import LabelWeights, labelled_outputs
from fairchem_crack.training.learning_rates import LearningRates
from fairchem_crack.training.readout import Readout
from fairchem_crack.training.reduction import Number
from fairchem_crack.training.scale_factors import with_inline_scales
from fairchem_crack.training.terms import requested_fields

NONFINITE = "nonfinite"  # tensors of a step on all ranks; not logged
SAMPLE_SYSTEMS = 16  # of the training data, looked at before the first step


@registry.register_trainer("crack_distill")
class CrackDistillTrainer(CheckedTrainer):
    """Trains a student with its own loss functions and, only while training, the distillation terms.

    It reads `task.distill` and the distillation terms of `loss_functions`, and hands everything else to fairchem's
    trainer, whose config, model, optimizer, EMA and checkpoints know nothing of the teacher. Without a distillation term,
    on the data's labels, it is that trainer, step for step. The teacher is loaded when training starts: validation,
    prediction and relaxation need none.

    Raises:
        ValueError: `task.distill` or a distillation term is not understood; the message names the option.
        FileNotFoundError: a dataset or the teacher's checkpoint is missing.
    """

    def __init__(self, *, task: dict, loss_functions: list[dict], **fairchem_arguments: Any) -> None:
        check_built_for_cuda(fairchem_arguments.get("cpu", False))
        load_plugins(imports_of(task))
        names = self.name_faults({"task": task, "optim": fairchem_arguments.get("optimizer"), **fairchem_arguments})
        options = read_options(task, loss_functions)
        outputs, data = fairchem_arguments["outputs"], training_split(fairchem_arguments["dataset"])
        of_data = (
            [] if options.distill is None else [*label_faults(options.distill, data), *shuffle_faults(options.distill, data)]
        )
        of_losses, of_transforms = own_loss_faults(options.own_losses, outputs), transform_faults(data, outputs)
        refuse(names, options.faults, of_losses, term_loss_faults(options.terms), of_transforms, of_data)
        self._terms = [term for term in options.terms if term.coefficient > 0]
        for term in options.terms:
            if term not in self._terms:
                logging.info(f"loss_functions: `{term.key}` is left out, its coefficient is 0.")
        self._distill_config = options.distill
        if self._distill_config is not None:
            check_no_graph_parallelism(fairchem_arguments.get("gp_gpus"))
        elif task.get("distill") is not None:
            logging.warning("task.distill is given, but loss_functions has no distillation term: plain training.")
        self._distillation: Distillation | None = None
        self._teacher_step: TeacherStep | None = None  # of the training step in progress
        self._spoiled: list[str] = []  # of an evaluation, what is not finite
        self._skipped = SkippedSteps((self._distill_config or DistillConfig).max_skipped_steps)
        check_run_dir(fairchem_arguments.get("run_dir"))
        self._trusts_files, model = trusts(task), fairchem_arguments["model"]
        with reading_safely(model, trust=self._trusts_files):
            fairchem_arguments["model"] = with_inline_scales(model)
        super().__init__(
            task={key: value for key, value in task.items() if key != "distill"},
            loss_functions=options.own_losses,
            **fairchem_arguments,
        )

    def load_loss(self) -> None:
        """The student's own losses, in which labels of the data may have a weight of their own."""
        super().load_loss()
        self._label_weights = LabelWeights(self.loss_functions, (self._distill_config or DistillConfig).data_label_weight)

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Load the teacher, check it against data and student, then train as fairchem does; the only training of its run."""
        with self._only_training(), without_denormals():
            self._train(disable_eval_tqdm)

    def _train(self, disable_eval_tqdm: bool) -> None:
        self.check_training()
        if self._distill_config is None:
            self._compare_with_checkpoint(of_training(self.config, ranks=distutils.get_world_size()))
            self._take_steps(disable_eval_tqdm)
            return
        self._take_validation_labels()
        self._distillation = self.build_distillation(self._distill_config)
        try:
            self._begin_distillation(self._distillation, self._distill_config)
            rates = LearningRates(self._unwrapped_model, self.optimizer, self._distill_config.learning_rates)
            with self._resumable(), closing(rates):
                self._take_steps(disable_eval_tqdm)
        finally:
            self._distillation.close()
            self._distillation = self._teacher_step = None

    def _begin_distillation(self, distillation: Distillation, config: DistillConfig) -> None:
        """Bring student and projection to where the first step begins, or where the checkpoint left them."""
        sample = self._sample_of_training_data()
        self._identity = self._identity_with(sample)
        if config.resume == "all":
            self._compare_with_checkpoint(self._identity)
        if config.init_from_teacher is not None and self._has_fresh_weights:
            self._start_from_teacher(config.init_from_teacher.blocks)
        distillation.preflight(sample)  # which measures the student's embedding as it is in the first step
        if self._resumed_state is not None and config.resume == "all":
            distillation.load_state_dict(self._resumed_state)
        elif self.step > 0:
            logging.warning("The projection starts anew: the checkpoint has none, or task.distill.resume is `student`.")

    def _identity_with(self, sample: Batch) -> dict[str, Any]:
        """What decides the result of this training, see `identity`."""
        assert self._distillation is not None and self._distill_config is not None
        teacher = self._distillation.teacher
        cache = teacher.cache.plan.dtype if isinstance(teacher, CachedTeacher) else None
        content = content_of(sample, len(self.train_dataset))
        student = of_training(self.config, ranks=distutils.get_world_size(), content=content)
        return joined(student, of_distillation(self._distill_config, self._terms, cache=cache))

    def _compare_with_checkpoint(self, identity: dict[str, Any]) -> None:
        if self._resumed is not None:
            compare(self._resumed, identity, steps_per_epoch=len(self.train_loader))

    def _take_steps(self, disable_eval_tqdm: bool) -> None:
        """fairchem's training, without the steps that are not finite and with the end of the last one."""
        guard, began_at = self.optimizer.register_step_pre_hook(self._drop_nonfinite_gradients), self.step
        try:
            self._complete_step(is_last=False, disable_tqdm=disable_eval_tqdm)
            super().train(disable_eval_tqdm)
            self._skipped.conclude(began_at=began_at)
            self._complete_step(is_last=True, disable_tqdm=disable_eval_tqdm)
        finally:
            guard.remove()

    def build_distillation(self, config: DistillConfig) -> Distillation:
        """All that a training step has beyond the student's own; what `train` begins with."""
        return Distillation(
            config,
            self._terms,
            self._open_teacher(config),
            Student(self._unwrapped_model, self.model_outputs(), self.optimizer, self.device),
            total_steps=self.total_steps,
            seed=self.config["cmd"]["seed"] or 0,
        )

    def model_outputs(self) -> ModelOutputs:
        """The student's outputs, and the unit in which its own terms compare them."""
        return ModelOutputs("outputs", self.config["outputs"], self.normalizers, self.elementrefs)

    def _open_teacher(self, config: DistillConfig) -> Teacher | CachedTeacher:
        """The teacher itself; or its cache, whose records the loader then attaches to the training data."""
        dataset: Dataset = NamedRecords(self.train_dataset, "dataset.train")
        if config.labels != "data":
            dataset = OptionalLabels(dataset, labelled_outputs(self.model_outputs()))
        if config.teacher.cache is None:
            if config.labels != "data":
                self.train_loader = self.get_dataloader(dataset, self.train_sampler)
            return load_teacher(config.teacher, self.device)
        cache = open_cache(config.teacher, self.device)
        dataset = CachedDataset(dataset, cache, "dataset.train", requested_fields(config, self._terms))
        self.train_loader = read_ahead(self.get_dataloader(dataset, self.train_sampler))
        return CachedTeacher(cache)

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        """fairchem's, in blocks where `task.distill.shuffle` says so and `shuffle`, for the training data, is true."""
        batches = super().get_sampler(dataset, batch_size, shuffle)
        if shuffle and self._distill_config is not None and self._distill_config.shuffle is not None:
            batches.sampler = BlockSampler(batches.sampler, self._distill_config.shuffle)
        return batches

    def _take_validation_labels(self) -> None:
        """Let the validation data have the labels of the teacher's cache, with `task.distill.teacher.val_cache`."""
        config, loader = self._distill_config, getattr(self, "val_loader", None)
        if config is None or config.teacher.val_cache is None or loader is None or isinstance(loader.dataset, TeacherLabels):
            return
        dataset = validation_labels(config, loader.dataset, labelled_outputs(self.model_outputs()))
        self.val_loader = self.get_dataloader(dataset, self.val_sampler)

    def _start_from_teacher(self, blocks: tuple[int, ...]) -> None:
        assert self._distillation is not None and self._distill_config is not None
        teacher = self._distillation.teacher
        if not isinstance(teacher, Teacher):
            teacher = load_teacher(self._distill_config.teacher, self.device)
        copy_weights(teacher.model, self._unwrapped_model, blocks)
        if self.ema:
            self.ema = ExponentialMovingAverage(self.model.parameters(), self.ema_decay)

    @property
    def _active(self) -> Distillation | None:
        """The distillation in a training step, None in an evaluation."""
        return self._distillation if self.model.training else None

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        distillation, self._teacher_step = self._active, None
        if distillation is not None:
            distillation.check_batch(batch)
        if self.model.training:
            batch = to_device(batch, self.device)
        if distillation is not None:
            self._teacher_step = distillation.run_teacher(batch, self.step)
            torch.manual_seed(self._teacher_step.seed)  # dropout, and the frames that some models draw for edges
        return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        where, targets = f"dataset.{'train' if self.model.training else 'val'}", self.output_targets
        check_free_atoms(batch, targets, is_training=self.model.training, where=where)
        if not self.model.training:
            loss = super()._compute_loss(out, batch)
            self._spoiled += faults(compared(targets, targets, "eval_on_free_atoms", out, batch), batch)
            return loss
        trained_on = [name for name, own in self.loss_functions if own["coefficient"]]
        self._batch, self._rows = batch, compared(targets, trained_on, "train_on_free_atoms", out, batch)
        with self._label_weights.of(self._rows, self._teacher_step.replaced if self._teacher_step else {}):
            loss = super()._compute_loss(out, batch)
        numbers: dict[str, Number] = {**self._own_losses}
        if self._active is not None and self._teacher_step is not None:
            losses = self._active.loss(self._teacher_step, out)
            loss = loss + losses.total
            numbers.update(losses.log)
        nonfinite = nonfinite_on_all_ranks([loss, *(rows.prediction for rows in self._rows.values())])
        self._readout = Readout({**numbers, NONFINITE: nonfinite})
        return loss

    def _compute_metrics(self, out: dict, batch: Batch, evaluator: Any, metrics: dict | None = None) -> dict:
        if self.model.training:  # a step that was skipped does not spoil the means of those that follow
            metrics = {name: value for name, value in (metrics or {}).items() if math.isfinite(value["total"])}
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        if self._active is not None:
            for name, value in self._logged().items():
                metrics = evaluator.update(name, value, metrics)
        return metrics

    def _logged(self) -> dict[str, float]:
        """The unweighted value of each term of this step, and the diagnostics."""
        return {name: value for name, value in self._readout.numbers.items() if name != NONFINITE}

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict:
        """Validate as fairchem does, and name what is not finite."""
        self._spoiled = []
        if split == "val":
            self._take_validation_labels()
        metrics = super().validate(split, disable_tqdm)
        if self._spoiled:
            logging.warning(
                f"dataset.{split} at step {self.step}: not finite are the {'; '.join(self._spoiled[:NAMED])}. A metric "
                "that is not finite makes no checkpoint the best one."
            )
        return metrics

    def _own_state(self) -> dict | None:
        if self._distillation is None:
            return None
        return {**self._distillation.state_dict(), keys.DISTILL_CONFIG: self._identity}

    def _has_own_state(self) -> bool:
        return self._distill_config is not None

    def _backward(self, loss: Tensor) -> None:
        if self._readout.numbers[NONFINITE]:  # on any rank: none has the backward pass, in which all would have to take part
            self._skip("a loss that is", loss_scale=None)
        else:
            self._has_finite_gradients = False  # and stays so where the scaler skips the student's update
            super()._backward(loss)
            if self._has_finite_gradients:
                self._skipped.count_taken()
                if self._distillation is not None:
                    self._distillation.update_projection(self.scheduler.get_lr(), max_norm=self.clip_grad_norm)
            else:
                self._skip("gradients that are", loss_scale=self.scaler.get_scale() if self.scaler else None)
        self._end_update()

    def _drop_nonfinite_gradients(self, student: torch.optim.Optimizer, *_: Any) -> None:
        """Before each step of the student's optimizer: student and projection are updated together, or not at all."""
        self._begin_update()
        projection = None if self._distillation is None else self._distillation.projection_training.optimizer
        if self.scaler and projection:
            self.scaler.unscale_(projection)  # whose overflow lowers the scale, too
        self._has_finite_gradients = drop_unless_finite(student, *([projection] if projection else []))

    def _skip(self, what: str, *, loss_scale: float | None) -> None:
        """Name the systems and terms of a step that is not taken, and count it."""
        numbers = self._logged()
        replaced: Mapping[str, Tensor] = {}
        of_teacher: list[str] = []
        if self._distillation is not None and self._teacher_step is not None:
            self._distillation.projection_training.drop_gradients()
            replaced = self._teacher_step.replaced
            of_teacher = self._distillation.faults(self._teacher_step, numbers)
        terms = [f"{name} = {value}" for name, value in numbers.items() if not math.isfinite(value)]
        details = [*faults(self._rows, self._batch, replaced), *of_teacher, *terms]
        named = "; ".join(details) or "every term of the loss is finite on this rank"
        where = from_all_ranks(f"systems of {listed(self._batch)} of dataset.train ({named})")
        self._skipped.count_skipped(f"Step {self.step}: {what} not finite, from {where}.", loss_scale=loss_scale)

    def _sample_of_training_data(self) -> Batch:
        if self.train_loader is None:
            raise ValueError("dataset.train.src: missing; training needs data.")
        dataset = self.train_loader.dataset  # with the records of the teacher's cache, if there is one
        systems = [dataset[index] for index in evenly_spaced(len(dataset), SAMPLE_SYSTEMS)]
        return data_list_collater(systems, otf_graph=self.config["model"].get("otf_graph", False))
