"""A scheduler takes the machine away at some moment of a run: fairchem's `Runner.checkpoint`, called as submitit does."""

from __future__ import annotations

import copy
import gc
import os
import shutil
import signal
import sys
import weakref
from pathlib import Path

import pytest
import recorder
import torch
import yaml
from conftest import TEACHER_MODEL, distill_config, run_fairchem
from fairchem.core._cli import Runner
from fairchem.core.common import distutils
from fairchem.core.common.flags import flags
from fairchem.core.common.utils import build_config
from fairchem.core.models.equiformer_v2.transformer_block import TransBlockV2
from fairchem.core.models.painn.painn import PaiNNUpdate
from fairchem.core.modules.exponential_moving_average import ExponentialMovingAverage
from fairchem.core.trainers import base_trainer
from submitit.helpers import DelayedSubmission
from tolerances import REPEATED

from fairchem_crack.training.distillation import Distillation
from fairchem_crack.training.trainer import CrackDistillTrainer

pytestmark = pytest.mark.slow

STEPS = 12  # checkpoints of steps 4, 8, 12; evaluations after 5 and 10


def long_config(data: Path, teacher: Path) -> dict:
    config = distill_config(data, teacher)
    config["optim"].update(max_epochs=2, T_max=STEPS, checkpoint_every=4, eval_every=5)
    config["task"]["distill"]["relations"] = {"max_pairs": 30}
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, teacher_checkpoint) -> list[float]:
    """Losses of the uninterrupted run."""
    losses = run_fairchem(tmp_path_factory.mktemp("whole"), long_config(data, teacher_checkpoint)).losses()
    assert len(losses) == STEPS
    return losses


class Job:
    """A submitted training. At SIGUSR2 it leaves a checkpoint, writes its resubmission and exits, as submitit does."""

    def __init__(self, directory: Path, config: dict) -> None:
        file, self.pickle = directory / "job.yml", directory / "submitted.pkl"
        file.write_text(yaml.safe_dump(config))
        arguments = ["--mode", "train", "--config-yml", str(file), "--cpu", "--seed", "0"]
        arguments += ["--run-dir", str(directory), "--timestamp-id", "job", "--print-every", "1"]
        DelayedSubmission(Runner(), build_config(*flags.get_parser().parse_known_args(arguments))).dump(self.pickle)
        self.was_preempted = False

    def __call__(self) -> list[dict]:
        """Run what is submitted, until it ends or is preempted; what it logged in each training step."""
        recorder.start(None)
        gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
        submitted, self.was_preempted = DelayedSubmission.load(self.pickle), False

        def preempt(*_) -> None:
            self.was_preempted = True
            submitted.function.checkpoint(*submitted.args).dump(self.pickle)
            sys.exit(-1)

        handler = signal.signal(signal.SIGUSR2, preempt)
        try:
            distutils.setup_env_local()
            submitted.result()
        except SystemExit:
            assert self.was_preempted
        finally:
            signal.signal(signal.SIGUSR2, handler)
            if distutils.initialized():
                distutils.cleanup()
        return [record for record in recorder.records() if record["split"] == "train" and "loss" in record]


@pytest.fixture
def job(tmp_path, data, teacher_checkpoint) -> Job:
    return Job(tmp_path, long_config(data, teacher_checkpoint))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data, teacher_checkpoint) -> Path:
    """Checkpoint of step 8 of a run that was stopped in step 9."""
    config = long_config(data, teacher_checkpoint)
    return run_fairchem(tmp_path_factory.mktemp("stopped"), config, stop_at=9).checkpoints


@pytest.fixture
def late_job(job, stopped, tmp_path) -> Job:
    """The job, which begins with step 9."""
    shutil.copytree(stopped, tmp_path / "checkpoints/job")
    return job


@pytest.fixture
def strike(monkeypatch):
    """Callable: preempt the job once, before or after the first call of `owner.name` with `is_now(trainer, ...)`."""
    load, current = CrackDistillTrainer.load, None

    def noticed(trainer, *more):
        nonlocal current
        current = weakref.ref(trainer)  # a trainer of the past keeps its data set's LMDB open
        return load(trainer, *more)

    monkeypatch.setattr(CrackDistillTrainer, "load", noticed)

    def at(owner, name: str, is_now, after: bool = False) -> None:
        call, is_over = getattr(owner, name), False

        def struck(*arguments, **options):
            nonlocal is_over
            is_due = not is_over and is_now(current(), *arguments)
            is_over = is_over or is_due
            if is_due and not after:
                os.kill(os.getpid(), signal.SIGUSR2)
            value = call(*arguments, **options)
            if is_due and after:
                os.kill(os.getpid(), signal.SIGUSR2)
            return value

        monkeypatch.setattr(owner, name, struck)

    return at


def in_step(step: int):
    return lambda trainer, *_: trainer.step == step and trainer.model.training


def evaluating(step: int):
    return lambda trainer, *_: trainer.step == step and not trainer.model.training


def saving(file: str, step: int):
    return lambda trainer, _, path, *__: trainer.step == step and Path(path).name == file


# name: where; and the step with which the resubmitted job begins
MOMENTS = {
    "the first step, no checkpoint yet": ((PaiNNUpdate, "forward", in_step(1)), 1),
    "the saving of a checkpoint": ((torch, "save", saving("checkpoint.pt.partial", 8)), 9),
    "the saving of the best checkpoint": ((torch, "save", saving("best_checkpoint.pt.partial", 5)), 6),
    "the prediction after the best evaluation": ((CrackDistillTrainer, "save_results", evaluating(5)), 6),
}
LATE_MOMENTS = {  # of a job that begins with step 9
    "the student's forward": ((PaiNNUpdate, "forward", in_step(11)), 11),
    "the teacher's forward": ((TransBlockV2, "forward", in_step(11)), 11),
    "before the optimizer's step": ((torch.nn.utils, "clip_grad_norm_", in_step(11)), 11),
    "the optimizer's step, before the average's": ((ExponentialMovingAverage, "update", in_step(11)), 9),
    "between the student's and the projection's update": ((Distillation, "update_projection", in_step(11)), 9),
    "after both updates": ((recorder.Recorder, "log", lambda trainer, _, record, *__: record.get("step") == 11), 12),
    "the beginning of the second evaluation": ((base_trainer, "ensure_fitted", in_step(10)), 11),
    "an evaluation of the average": ((PaiNNUpdate, "forward", evaluating(10)), 11),
    "the end of an evaluation": ((ExponentialMovingAverage, "restore", evaluating(10), True), 11),
}


@pytest.mark.parametrize("moment", [*MOMENTS, *LATE_MOMENTS])
def test_a_preempted_job_resumes_as_the_uninterrupted_one(request, strike, whole, moment):
    job = request.getfixturevalue("late_job" if moment in LATE_MOMENTS else "job")
    where, first = {**MOMENTS, **LATE_MOMENTS}[moment]
    strike(*where)
    cut = job()
    assert job.was_preempted and len(cut) < STEPS
    resumed = job()
    assert not job.was_preempted
    assert [record["step"] for record in resumed] == list(range(first, STEPS + 1))
    assert [record["loss"] for record in resumed] == pytest.approx(whole[first - 1 :], rel=REPEATED)


def test_in_the_backward_pass(job, whole, monkeypatch):
    loss, steps = Distillation.loss, []

    def hooked(self, step, outputs):
        steps.append(step.global_step)
        if steps.count(11) == 1 and step.global_step == 11:
            self.student_features.node_embedding.register_hook(lambda _: os.kill(os.getpid(), signal.SIGUSR2))
        return loss(self, step, outputs)

    monkeypatch.setattr(Distillation, "loss", hooked)
    assert len(job()) == 10 and job.was_preempted
    assert [record["loss"] for record in job()] == pytest.approx(whole[10:], rel=REPEATED)


def test_between_the_updates_of_the_first_step(job, strike, whole):
    """No checkpoint is there that could stay as it is."""
    strike(Distillation, "update_projection", in_step(1))
    job()
    assert job.was_preempted
    resumed = job()
    assert [record["loss"] for record in resumed] == pytest.approx(whole, rel=REPEATED)


@pytest.mark.parametrize("where", ["build_distillation", "preflight"])
def test_a_resubmitted_job_preempted_before_step_1_loses_nothing(late_job, strike, whole, where):
    strike(PaiNNUpdate, "forward", in_step(11))
    late_job()
    strike({"preflight": Distillation}.get(where, CrackDistillTrainer), where, lambda *_: True)
    assert late_job() == [] and late_job.was_preempted
    resumed = late_job()
    assert [record["loss"] for record in resumed] == pytest.approx(whole[10:], rel=REPEATED)


def test_a_job_preempted_before_step_1_starts_from_the_teacher(strike, data, teacher_checkpoint, tmp_path):
    config = long_config(data, teacher_checkpoint)
    config["model"] = copy.deepcopy(TEACHER_MODEL)
    config["task"]["distill"]["init_from_teacher"] = {"blocks": [0]}
    config["optim"]["max_epochs"] = 1
    known = run_fairchem(tmp_path, config, name="known").losses()
    (tmp_path / "preempted").mkdir()
    preempted = Job(tmp_path / "preempted", config)
    strike(Distillation, "preflight", lambda *_: True)
    assert preempted() == []
    assert [record["loss"] for record in preempted()] == pytest.approx(known, rel=REPEATED)
