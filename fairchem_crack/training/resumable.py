"""`ResumableTrainer`: a checkpoint at any moment, whole or not at all, from which a training resumes as if uninterrupted."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common.utils import load_state_dict, match_state_dict
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage

from fairchem_crack import keys
from fairchem_crack.io.checkpoints import read, read_checkpoint
from fairchem_crack.training.continuation import Resumed, foreign_state
from fairchem_crack.training.identity import of_training, recorded
from fairchem_crack.training.per_system import PerSystemTrainer
from fairchem_crack.training.run_files import only_training, writing

LAST = "checkpoint.pt"  # of a run, where it resumes


class ResumableTrainer(PerSystemTrainer):
    """fairchem's OCP trainer, whose training checkpoint has one more entry and can be requested at any moment.

    A scheduler that takes the machine away sends a signal, and fairchem's handler saves (`Runner.checkpoint`): in the middle
    of a step, between the updates of two optimizers, in an evaluation with averaged weights, or before training began. What
    is saved then is the last completed step. Within `_resumable`, a subclass says where an update begins and ends.
    """

    ema: ExponentialMovingAverage | None
    step: int
    epoch: float
    primary_metric: str | None
    best_val_metric: float | None
    # the state before `__init__`, in which fairchem loads the checkpoint
    _trusts_files = False  # `task.distill.teacher.trust`
    _resumed_state: dict | None = None  # the entry of ours in the checkpoint that was loaded
    _resumed: Resumed | None = None  # that checkpoint, where it is of a training that has begun
    _has_fresh_weights = True
    _is_training = _is_updating = _is_averaged = False
    _last_update = 0  # the last step whose update is complete
    _saved_step: int | None = None  # of the run's checkpoint.pt
    _validation: tuple[int, dict] | None = None  # the last step that was validated while training, and its metrics

    def _only_training(self) -> AbstractContextManager:
        """Context in which no other training writes the files of this run."""
        return nullcontext() if self.is_debug else only_training(self._checkpoint(LAST).parent)

    def _own_state(self) -> dict | None:
        """What a training checkpoint keeps under `keys.CHECKPOINT_KEY`; None for a stock one."""
        raise NotImplementedError

    def _has_own_state(self) -> bool:
        """Whether this is, or will be, a training whose checkpoints have an entry of ours."""
        raise NotImplementedError

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        """The steps of a training."""
        self._last_update, self._is_training = self.step, True
        try:
            if not self._checkpoint(LAST).is_file():
                self.save()  # for an interruption between the updates of the first steps
            yield
        finally:
            self._is_training = False

    def _begin_update(self) -> None:
        self._is_updating = True

    def _end_update(self) -> None:
        self._last_update, self._is_updating = self.step, False

    def _complete_step(self, *, is_last: bool, disable_tqdm: bool) -> None:
        """Validate and save the step at which the training stands, as far as that is due and has not been done.

        fairchem does either at multiples of `eval_every` and `checkpoint_every` only, which need not be the end; and an
        interruption may come between a step's checkpoint and its validation.

        Args:
            is_last: of the training, else the step of a checkpoint that is resumed.
        """
        evaluation_interval = self.config["optim"].get("eval_every", len(self.train_loader))
        if self.step == 0 or not (is_last or self.step % evaluation_interval == 0):
            return
        metric = self.evaluation_metrics.get("primary_metric", self.evaluator.task_primary_metric[self.name])
        if self.val_loader is not None and (self._validation is None or self._validation[0] != self.step):
            if self.primary_metric != metric:  # as fairchem does before its first step
                self.primary_metric, self.best_val_metric = metric, 1e9 if "mae" in metric else -1.0
            self.update_best(metric, self.validate(disable_tqdm=disable_tqdm), disable_eval_tqdm=disable_tqdm)
        if is_last and self._saved_step != self.step:
            self.save()
        is_plateau = self.scheduler.scheduler_type == "ReduceLROnPlateau"  # which counts the validations that it has seen
        if is_plateau and self._validation and self.scheduler.scheduler.last_epoch < self.step // evaluation_interval:
            self.scheduler.step(metrics=self._validation[1][metric]["metric"])

    def update_best(self, primary_metric: str, val_metrics: dict, disable_eval_tqdm: bool = True) -> None:
        """Keep the best checkpoint as fairchem does; and the result in the training checkpoint, if that is of this step.

        fairchem saves before it validates: a run resumed from there would take a worse checkpoint for the best.
        """
        super().update_best(primary_metric, val_metrics, disable_eval_tqdm)
        self._validation = (self.step, val_metrics)
        if self._saved_step == self.step:
            self.save()

    def validate(self, split: str = "val", disable_tqdm: bool = False) -> dict:
        """Validate as fairchem does; `save` sees that averaged weights are in use."""
        with self._averaged():
            return super().validate(split, disable_tqdm)

    def predict(self, *arguments: Any, **options: Any) -> Any:
        """Predict as fairchem does; `save` sees that averaged weights are in use."""
        with self._averaged():
            return super().predict(*arguments, **options)

    def run_relaxations(self) -> None:
        """Relax as fairchem does; `save` sees that averaged weights are in use."""
        with self._averaged():
            super().run_relaxations()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Context in which the model's weights are the average's, once the EMA has collected the student's own."""
        if self.ema is not None:
            self.ema.collected_params = []  # those of the last time
        self._is_averaged = True
        try:
            yield
        finally:
            self._is_averaged = False

    def save(self, metrics: dict | None = None, checkpoint_file: str = LAST, training_state: bool = True) -> str | None:
        """Save fairchem's checkpoint, and the entry of ours if it is a training's.

        Written under a temporary name and renamed, so that a kill while saving leaves the last checkpoint whole.
        """
        if not training_state:
            with self._averaged():
                return self._save(metrics, checkpoint_file, training_state)
        if not self._has_own_state():
            return self._save(metrics, checkpoint_file, training_state)
        last = self._checkpoint(checkpoint_file)
        if (self._is_updating or not self._is_training) and last.is_file():
            why = "between two updates that belong together" if self._is_updating else "outside of the training's steps"
            logging.warning(f"Step {self.step}: interrupted {why}; {last} stays as it is.")
            return str(last)
        with self._last_update_restored():
            return self._save(metrics, checkpoint_file, training_state)

    @contextmanager
    def _last_update_restored(self) -> Iterator[None]:
        """The last completed step, where another has begun; the student's own weights, where their average is in use."""
        begun, averaged = (self.step, self.epoch), self.ema if self._is_averaged else None
        if self._is_training and self._last_update != self.step:
            self.step, self.epoch = self._last_update, self._last_update / len(self.train_loader)
        if averaged is not None and averaged.collected_params:
            averaged.restore()
        try:
            yield
        finally:
            self.step, self.epoch = begun
            if averaged is not None and averaged.collected_params:
                averaged.copy_to()

    def _checkpoint(self, file: str) -> Path:
        return Path(self.config["cmd"]["checkpoint_dir"]) / file

    def _save(self, metrics: dict | None, checkpoint_file: str, training_state: bool) -> str | None:
        if training_state and self._validation is not None and self._validation[0] == self.step:
            metrics = self._validation[1]  # by which a resumed run also sees that this step has been validated
        file = self._checkpoint(checkpoint_file)
        with writing(file, self.step):
            path = super().save(metrics, f"{checkpoint_file}.partial", training_state)
            if path is not None:
                if entry := self._entry(training_state):
                    # fairchem has written it just now, whatever it holds
                    checkpoint = read(Path(path), trust=True, map_location="cpu", mmap=True)
                    checkpoint[keys.CHECKPOINT_KEY] = entry
                    merged = f"{path}.merged"
                    torch.save(checkpoint, merged)
                    os.replace(merged, path)
                os.replace(path, file)
        if training_state and checkpoint_file == LAST:
            self._saved_step = self.step  # on every rank; only rank 0 writes
        return None if path is None else str(file)

    def _entry(self, training_state: bool) -> dict | None:
        """What a checkpoint has under `keys.CHECKPOINT_KEY`."""
        if not training_state:
            return {keys.STEP: self.step, keys.EPOCH: self.epoch}
        if not self._has_own_state():
            return None
        return self._own_state() if self._is_training else self._resumed_state  # until that of the training is there

    def load_checkpoint(self, checkpoint_path: str, checkpoint: dict | None = None, inference_only: bool = False) -> None:
        """Load as fairchem does, and keep the entry of ours for when training starts.

        fairchem saves before it advances the learning rate's schedule, so that its own resumed run repeats a rate; here the
        schedule is brought to the step that is next.

        Raises:
            ValueError: the checkpoint cannot be read, or is of another student.
        """
        if checkpoint is None and os.path.isfile(checkpoint_path):
            checkpoint = read_checkpoint(Path(checkpoint_path), trust=self._trusts_files)
        self._has_fresh_weights = False
        if checkpoint is not None:
            entry = checkpoint.get(keys.CHECKPOINT_KEY) or {}
            self._resumed_state = entry if keys.PROJECTION in entry else None
            # a training that was interrupted before it began; the checkpoint for inference has no step
            self._has_fresh_weights = checkpoint.get("step") == 0 and self._resumed_state is None
            self._check_student(checkpoint, checkpoint_path)
            if "optimizer" in checkpoint and checkpoint.get("step") and not inference_only:
                checkpoint = self._remembered(checkpoint, checkpoint_path)
            if self.scheduler is None:  # without training data there are no epochs to count a schedule in
                checkpoint = {**checkpoint, "scheduler": None}
        super().load_checkpoint(checkpoint_path, checkpoint, inference_only)
        if checkpoint is not None and not inference_only and "step" in checkpoint:
            if checkpoint.get("val_metrics"):
                self._validation = (self.step, checkpoint["val_metrics"])
            if Path(checkpoint_path).resolve() == self._checkpoint(LAST).resolve():
                self._saved_step = self.step
        if self.best_val_metric is None:
            self.primary_metric = None  # fairchem would compare with the best of no evaluation
        if (
            self._has_own_state()
            and self.scheduler
            and not inference_only
            and self.scheduler.scheduler_type not in ("Null", "ReduceLROnPlateau")
        ):
            while self.scheduler.scheduler.last_epoch < self.step:
                self.scheduler.scheduler.step()

    def _remembered(self, checkpoint: dict, path: str) -> dict:
        """Keep what `continuation.compare` reads when training starts; without a state that fairchem could not load."""
        identity = recorded(checkpoint)
        self._resumed = Resumed(path, checkpoint["step"], checkpoint.get("epoch") or 0.0, identity)
        if not foreign_state(identity, of_training(self.config, ranks=None)):
            return checkpoint
        return {**{name: value for name, value in checkpoint.items() if name != "optimizer"}, "scheduler": None}

    def _check_student(self, checkpoint: dict, path: str) -> None:
        """Raise ValueError for a checkpoint of another student; fairchem would complain of its optimizer."""
        weights = match_state_dict(self.model.state_dict(), checkpoint["state_dict"])
        try:
            load_state_dict(self.model, weights, strict=self.config["task"].get("strict_load", True))
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds another student than the config's `model`: {' '.join(str(error).split()[:40])} ... Give the "
                "`model` it was trained with, or begin another run, with another --timestamp-id."
            ) from error
