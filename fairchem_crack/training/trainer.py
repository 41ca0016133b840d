"""`CrackDistillTrainer`: fairchem's OCP trainer plus the distillation terms."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.common.registry import registry
from fairchem.core.datasets import data_list_collater
from fairchem.core.datasets.base_dataset import UnsupportedDatasetError
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from torch import Tensor
from torch_geometric.data import Batch

from fairchem_crack import keys
from fairchem_crack.adapters.outputs import ModelOutputs
from fairchem_crack.config import DistillConfig, TeacherConfig, parse, split_loss_functions
from fairchem_crack.io.batches import to_device
from fairchem_crack.io.checkpoints import reading_safely
from fairchem_crack.io.named_records import NAMED, NamedRecords, listed
from fairchem_crack.io.trust import trusts
from fairchem_crack.plugins import imports_of, load_plugins
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, open_cache
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.teacher.read_ahead import read_ahead
from fairchem_crack.training.compiled import check_built_for_cuda
from fairchem_crack.training.config_checks import (
    check_datasets,
    check_has_validation,
    check_metrics,
    check_no_graph_parallelism,
    check_normalizers,
    check_not_fitted_to_labels,
    check_own_terms,
    check_run_dir,
    check_warmup,
    missing_distill,
)
from fairchem_crack.training.continuation import compare
from fairchem_crack.training.distillation import Distillation, wanted_fields
from fairchem_crack.training.guard import (
    SkippedSteps,
    compared,
    drop_unless_finite,
    faults,
    from_all_ranks,
    nonfinite_on_all_ranks,
)
from fairchem_crack.training.host_options import check_free_atoms, check_lambda, check_optim, check_outputs, check_transforms
from fairchem_crack.training.identity import content_of, joined, of_distillation, of_training
from fairchem_crack.training.init_from_teacher import copy_weights
from fairchem_crack.training.readout import Readout
from fairchem_crack.training.resumable import ResumableTrainer
from fairchem_crack.training.scale_factors import with_inline_scales
from fairchem_crack.training.schedule import check_length
from fairchem_crack.training.spelling import misspelt_names

NONFINITE = "nonfinite"  # tensors of a step on all ranks; not logged
SAMPLE_SYSTEMS = 16  # of the training data, looked at before the first step


@registry.register_trainer("crack_distill")
class CrackDistillTrainer(ResumableTrainer):
    """Trains a student with its own loss functions and, while training only, the distillation terms.

    It reads `task.distill` and the distillation terms of `loss_functions`, and hands everything else to fairchem's
    trainer, whose config, model, optimizer, EMA and checkpoints know nothing of the teacher. Without a distillation term
    it is that trainer, step for step. The teacher is loaded when training starts: validation, prediction and relaxation
    need none.

    Raises:
        ValueError: `task.distill` or a distillation term is not understood; the message names the option.
        FileNotFoundError: a dataset or the teacher's checkpoint is missing.
    """

    def __init__(self, *, task: dict, loss_functions: list[dict], **fairchem_arguments: Any) -> None:
        check_built_for_cuda(fairchem_arguments.get("cpu", False))
        load_plugins(imports_of(task))
        self.check_names({"task": task, "optim": fairchem_arguments.get("optimizer"), **fairchem_arguments})
        own_losses, terms = split_loss_functions(loss_functions)
        if terms and not own_losses:
            raise ValueError("loss_functions: has distillation terms alone; the student needs its own too, `energy` say.")
        self._terms = [term for term in terms if term.coefficient > 0]
        for term in terms:
            if term not in self._terms:
                logging.info(f"loss_functions: `{term.key}` is left out, its coefficient is 0.")
        distill = task.get("distill")
        self._distill_config: DistillConfig | None = None
        if self._terms:
            if distill is None:
                raise ValueError(missing_distill(task))
            self._distill_config = parse(DistillConfig, distill, "task.distill")
            check_no_graph_parallelism(fairchem_arguments.get("gp_gpus"))
            check_not_fitted_to_labels(self._distill_config, _training_split(fairchem_arguments["dataset"]))
        elif distill is not None:
            logging.warning("task.distill is given, but loss_functions has no distillation term: plain training.")
        self._distillation: Distillation | None = None
        self._spoiled: list[str] = []  # of an evaluation, what is not finite
        self._skipped = SkippedSteps((self._distill_config or DistillConfig).max_skipped_steps)
        check_run_dir(fairchem_arguments.get("run_dir"))
        check_own_terms(own_losses, fairchem_arguments["outputs"])
        check_transforms(_training_split(fairchem_arguments["dataset"]), fairchem_arguments["outputs"])
        self._trusts_files = trusts(task)
        with reading_safely(fairchem_arguments["model"], trust=self._trusts_files):
            fairchem_arguments["model"] = with_inline_scales(fairchem_arguments["model"])
        super().__init__(
            task={key: value for key, value in task.items() if key != "distill"},
            loss_functions=own_losses,
            **fairchem_arguments,
        )

    def check_names(self, given: dict[str, Any]) -> None:
        """Raise ValueError for a misspelt name in what fairchem forwards of a YAML, and warn of what may be one."""
        blocks = ("task", "optim", "dataset", "evaluation_metrics", "outputs")
        problems, warnings = misspelt_names({name: given.get(name) for name in blocks})
        if problems:
            raise ValueError("\n".join(problems))
        for warning in warnings:
            logging.warning(warning)

    def load_datasets(self) -> None:
        """Fail on a missing dataset by the name of its option, then load as fairchem does."""
        check_datasets({name: self.config[f"{name}_dataset" if name else "dataset"] for name in ("", "val", "test")})
        super().load_datasets()

    def get_sampler(self, dataset: Any, batch_size: int, shuffle: bool) -> Any:
        """fairchem's; data without the number of atoms of each system cannot be balanced."""
        try:
            return super().get_sampler(dataset, batch_size, shuffle)
        except UnsupportedDatasetError as error:
            raise ValueError(
                f"optim.load_balancing: {error}. LMDBs have it in a metadata.npz; for other data, ASE databases say, set "
                "optim.load_balancing_on_error: warn_and_no_balance."
            ) from error

    def load_references_and_normalizers(self) -> None:
        """fairchem's, refused where they are not finite."""
        with reading_safely(self.config["dataset"], trust=self._trusts_files):
            super().load_references_and_normalizers()
        check_normalizers(self.normalizers, self.elementrefs)

    def load_model(self) -> None:
        """fairchem's; a config may name a checkpoint to start from, and a file of scale factors."""
        with reading_safely(self.config["model"], trust=self._trusts_files):
            super().load_model()

    def load_loss(self) -> None:
        """The student's own losses; each also reports its unweighted value."""
        super().load_loss()
        self._own_losses: dict[str, Tensor] = {}
        for name, loss in self.loss_functions:
            loss["fn"].register_forward_hook(
                lambda _, __, value, name=name: self._own_losses.update({keys.LOSS_PREFIX + name: value.detach()})
            )
            if not loss["coefficient"]:  # a label that is not finite is not trained on; 0 times it would be NaN
                loss["fn"].register_forward_pre_hook(lambda _, given: (given[0], torch.nan_to_num(given[1], 0.0, 0.0, 0.0)))

    def load_extras(self) -> None:
        """Also schedules in epochs (`scheduler_params.lambda_type`), which fairchem has for EquiformerV2 alone."""
        optim = self.config["optim"]
        if "lambda_type" not in optim.get("scheduler_params", {}):
            super().load_extras()
            return
        check_lambda(optim["scheduler_params"])
        if self.train_loader is not None:
            check_warmup(optim["scheduler_params"], len(self.train_loader))
        self.config["optim"] = copy.deepcopy(optim)  # fairchem turns its epochs into steps; a resubmitted run must not twice
        EquiformerV2ForcesTrainer.load_extras(self)  # type: ignore[arg-type]
        self.config["optim"] = optim

    def train(self, disable_eval_tqdm: bool = False) -> None:
        """Load the teacher, check it against data and student, then train as fairchem does; the only training of its run."""
        with self._only_training():
            self._train(disable_eval_tqdm)

    def _train(self, disable_eval_tqdm: bool) -> None:
        check_optim(self.config["optim"])
        check_outputs(self.output_targets)
        check_length(self.scheduler, self.config["optim"]["max_epochs"] * len(self.train_loader or ()))
        check_metrics(self.evaluation_metrics)
        check_has_validation(self.config["val_dataset"], self.config["optim"])
        if self._distill_config is None:
            self._compare_with_checkpoint(of_training(self.config, ranks=distutils.get_world_size()))
            self._take_steps(disable_eval_tqdm)
            return
        self._distillation = self.build_distillation(self._distill_config)
        try:
            sample = self._sample_of_training_data()
            self._identity = self._identity_with(sample)
            if self._distill_config.resume == "all":
                self._compare_with_checkpoint(self._identity)
            self._distillation.preflight(sample)
            if self._distill_config.init_from_teacher is not None and self._has_fresh_weights:
                self._start_from_teacher(self._distill_config.init_from_teacher.blocks)
            if self._resumed_state is not None and self._distill_config.resume == "all":
                self._distillation.load_state_dict(self._resumed_state)
            elif self.step > 0:
                logging.warning("The projection starts anew: the checkpoint has none, or task.distill.resume is `student`.")
            with self._resumable():
                self._take_steps(disable_eval_tqdm)
        finally:
            self._distillation.close()
            self._distillation = None

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
            teacher=self._open_teacher(config.teacher),
            student=self._unwrapped_model,
            optimizer=self.optimizer,
            outputs=self.model_outputs(),
            total_steps=self.config["optim"]["max_epochs"] * len(self.train_loader or ()),
            device=self.device,
            seed=self.config["cmd"]["seed"] or 0,
        )

    def model_outputs(self) -> ModelOutputs:
        """The student's outputs, and the unit in which its own terms compare them."""
        return ModelOutputs("outputs", self.config["outputs"], self.normalizers, self.elementrefs)

    def _open_teacher(self, config: TeacherConfig) -> Teacher | CachedTeacher:
        """The teacher itself; or its cache, whose records the loader then attaches to the training data."""
        if config.cache is None:
            return load_teacher(config, self.device)
        assert self._distill_config is not None
        cache = open_cache(config, self.device)
        fields = wanted_fields(self._distill_config, self._terms)
        dataset = CachedDataset(NamedRecords(self.train_dataset, "dataset.train"), cache, "dataset.train", fields)
        self.train_loader = read_ahead(self.get_dataloader(dataset, self.train_sampler))
        return CachedTeacher(cache)

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
        if self._active is not None:
            self._active.check_elements(batch.atomic_numbers, f"dataset.train, systems of {listed(batch)},")
        if self.model.training:
            batch = to_device(batch, self.device)
        if self._active is not None:
            self._active.ask(batch, self.step)
            torch.manual_seed(self._active.seed_of(self.step))  # dropout, and the frames that some models draw for edges
        return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        where = f"dataset.{'train' if self.model.training else 'val'}"
        check_free_atoms(batch, self.output_targets, is_training=self.model.training, where=where)
        loss = super()._compute_loss(out, batch)
        if not self.model.training:
            self._spoiled += faults(
                compared(self.output_targets, self.output_targets, "eval_on_free_atoms", out, batch), batch
            )
            return loss
        if self._active is not None:
            loss = loss + self._active.loss(batch, self.step, out)
        trained_on = [name for name, own in self.loss_functions if own["coefficient"]]
        self._batch, self._rows = batch, compared(self.output_targets, trained_on, "train_on_free_atoms", out, batch)
        nonfinite = nonfinite_on_all_ranks([loss, *(rows.prediction for rows in self._rows.values())])
        log = {} if self._active is None else self._active.log
        self._readout = Readout({**self._own_losses, **log, NONFINITE: nonfinite})
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
        return bool(self._terms)

    def _backward(self, loss: Tensor) -> None:
        if self._readout.numbers[NONFINITE]:  # on any rank: none has the backward pass, in which all would have to take part
            self._skip("a loss that is", loss_scale=None)
        else:
            self._has_finite_gradients = False  # and stays so where the scaler skips the student's update
            super()._backward(loss)
            if self._has_finite_gradients:
                self._skipped.count_taken()
                if self._distillation is not None:
                    self._distillation.step(self.scheduler.get_lr(), max_norm=self.clip_grad_norm)
            else:
                self._skip("gradients that are", loss_scale=self.scaler.get_scale() if self.scaler else None)
        self._end_update()

    def _drop_nonfinite_gradients(self, student: torch.optim.Optimizer, *_: Any) -> None:
        """Before each step of the student's optimizer: student and projection are updated together, or not at all."""
        self._begin_update()
        projection = None if self._distillation is None else self._distillation.optimizer
        if self.scaler and projection:
            self.scaler.unscale_(projection)  # whose overflow lowers the scale, too
        self._has_finite_gradients = drop_unless_finite(student, *([projection] if projection else []))

    def _skip(self, what: str, *, loss_scale: float | None) -> None:
        """Name the systems and terms of a step that is not taken, and count it."""
        labels, details = "label", []
        if self._distillation is not None:
            self._distillation.drop_gradients()
            labels = "label" if self._distillation.config.labels == "data" else "teacher's label"
            details = self._distillation.faults(self._batch)
        details = [*faults(self._rows, self._batch, labels), *details]
        details += [f"{name} = {value}" for name, value in self._logged().items() if not math.isfinite(value)]
        named = "; ".join(details) or "every term of the loss is finite on this rank"
        where = from_all_ranks(f"systems of {listed(self._batch)} of dataset.train ({named})")
        self._skipped.count_skipped(f"Step {self.step}: {what} not finite, from {where}.", loss_scale=loss_scale)

    def _sample_of_training_data(self) -> Batch:
        if self.train_loader is None:
            raise ValueError("dataset.train.src: missing; training needs data.")
        dataset = self.train_loader.dataset  # with the records of the teacher's cache, if there is one
        size = len(dataset)
        sample = min(SAMPLE_SYSTEMS, size)
        chosen = [index * size // sample for index in range(sample)]
        otf_graph = self.config["model"].get("otf_graph", False)
        return data_list_collater([dataset[index] for index in chosen], otf_graph=otf_graph)


def _training_split(dataset: Any) -> dict:
    """The options of the training data, in each form in which fairchem takes a dataset."""
    first = dataset[0] if isinstance(dataset, list) and dataset else dataset
    return (first.get("train") or {}) if isinstance(first, dict) else {}
