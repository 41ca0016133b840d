"""A run interrupted anywhere and started again resumes as the uninterrupted one."""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
from pathlib import Path

import pytest
import recorder
import torch
import yaml
from conftest import TEACHER_MODEL, distill_config, run_fairchem
from forked_ranks import Launch, launch_forked
from tolerances import REORDERED, REPEATED

from fairchem_crack.commands.cli import main
from fairchem_crack.training.trainer import CrackDistillTrainer

pytestmark = pytest.mark.slow

STEPS = 24  # 4 epochs of 6


def as_long(config: dict) -> dict:
    """24 steps with random subsets of pairs, a checkpoint every second and an evaluation every fourth."""
    config["optim"].update(max_epochs=4, T_max=STEPS, checkpoint_every=2, eval_every=4)
    config["task"]["distill"]["relations"] = {"max_pairs": 30}
    return config


def in_blocks(config: dict) -> None:
    """Have the training data visited in blocks."""
    config["dataset"]["train"]["no_shuffle"] = True
    config["task"]["distill"]["shuffle"] = {"buffer": 4, "block": 2}


@pytest.fixture
def long(distilled) -> dict:
    return as_long(distilled)


@pytest.fixture(scope="module")
def whole(data, teacher_checkpoint, tmp_path_factory) -> list[float]:
    """Losses of the uninterrupted run."""
    losses = run_fairchem(tmp_path_factory.mktemp("whole"), as_long(distill_config(data, teacher_checkpoint))).losses()
    assert len(losses) == STEPS
    return losses


def resumes(run, config: dict, whole: list[float]) -> None:
    """Start the run `cut` again, and compare every loss from there on."""
    resumed = run(copy.deepcopy(config), name="cut")
    first = int(resumed.steps[0]["step"])
    assert resumed.losses() == pytest.approx(whole[first - 1 :], rel=REPEATED)


@pytest.mark.parametrize("student", ["painn", "equiformer_v2"])
def test_an_interruption_at_any_step(run, long, whole, student):
    """Steps 3 to 5 are within an epoch, 6 and 12 end one, 8 and 16 are evaluated."""
    if student == "equiformer_v2":  # with dropout and random edge frames
        long["model"] = {**TEACHER_MODEL, "alpha_drop": 0.1, "drop_path_rate": 0.1}
        in_blocks(long)
        whole = run(copy.deepcopy(long), name="whole").losses()
        assert len(whole) == STEPS
    for stop_at in (3, 4, 5, 6, 8, 12, 13, 16, 19, 22):  # of one run, interrupted again and again
        run(copy.deepcopy(long), name="cut", stop_at=stop_at)
    resumes(run, long, whole)


def test_an_interruption_during_an_evaluation(run, long, whole, monkeypatch):
    def interrupted(*_, **__):
        raise recorder.Interrupted

    monkeypatch.setattr(CrackDistillTrainer, "validate", interrupted)
    run(copy.deepcopy(long), name="cut", stop_at=99)
    monkeypatch.undo()
    resumes(run, long, whole)


@pytest.mark.parametrize("which", ["fairchem's file", "ours"])
def test_an_interrupted_save_leaves_the_last_checkpoint(run, long, whole, monkeypatch, which):
    save, count = torch.save, 0

    def torn(content, file, *more, **options):
        nonlocal count
        count += str(file).endswith(".partial.merged" if which == "ours" else ".partial")
        if count == 3:
            Path(file).write_bytes(b"half a checkpoint")
            raise recorder.Interrupted
        save(content, file, *more, **options)

    monkeypatch.setattr(torch, "save", torn)
    run(copy.deepcopy(long), name="cut", stop_at=99)
    monkeypatch.undo()
    resumes(run, long, whole)


@pytest.mark.parametrize("which", ["fairchem's file", "ours"])
def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(run, long, whole, monkeypatch, which):
    save, count = torch.save, 0

    def full(content, file, *more, **options):
        nonlocal count
        count += str(file).endswith(".partial.merged" if which == "ours" else ".partial")
        if count == 3:
            Path(file).write_bytes(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file, *more, **options)

    monkeypatch.setattr(torch, "save", full)
    message = (
        r"checkpoint\.pt: the checkpoint of step 4 could not be written \(No space left on device\)\. [\d,.]+ MB were free\."
    )
    message += r" The one before it is whole \(step 2, epoch 0.3333\): make room, .*, and the same command resumes from it"
    with pytest.raises(OSError, match=message):
        run(copy.deepcopy(long), name="cut")
    monkeypatch.undo()
    resumes(run, long, whole)


def killed_at(step: int, config: dict, directory: Path) -> Launch:
    """Of `killed_trainer`, whose rank 0 is killed in this step; 0 is never."""
    return Launch(config, directory, {"LOSSES": str(directory / f"losses-{step}"), "KILL_AT": str(step)})


def losses_of(launch: Launch) -> dict[int, list[float]]:
    """By step, of each rank that came to it."""
    losses: dict[int, list[float]] = {}
    for rank in (0, 1):
        for line in Path(f"{launch.environment['LOSSES']}.{rank}").read_text().splitlines():
            step, loss = json.loads(line)
            losses.setdefault(step, []).append(loss)
    return losses


KILLS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0)  # within an epoch of 3 steps, at its end, at evaluations, around a checkpoint


@pytest.fixture(scope="module")
def on_two_ranks(data, teacher_checkpoint, tmp_path_factory) -> dict[str, list[Launch]]:
    """Finished and killed trainings, all in one process: what each is for, and its launches."""
    config = distill_config(data, teacher_checkpoint)
    config.update(trainer="killed_trainer.KilledTrainer", logger="tensorboard")
    long, directory = as_long(copy.deepcopy(config)), tmp_path_factory.mktemp("two_ranks")
    long["optim"].update(max_epochs=11, T_max=33)
    in_blocks(long)
    config["task"]["distill"]["relations"] = {"negatives": "world"}
    file, cache = directory / "cached.yml", directory / "cache"
    file.write_text(yaml.safe_dump(config))
    gc.collect()  # a former run's data set closes its LMDB when collected; one process opens it only once
    main(["cache-teacher", "--config-yml", str(file), "--cpu", "--output", str(cache), "--dtype", "float32", "--chunk", "5"])
    from_cache = copy.deepcopy(config)
    from_cache["task"]["distill"]["teacher"]["cache"] = str(cache)
    launches = {
        "online": [killed_at(0, config, directory / "online")],
        "cached": [killed_at(0, from_cache, directory / "cached")],
        "whole": [killed_at(0, long, directory / "whole")],
        "cut": [killed_at(step, long, directory / "cut") for step in KILLS],
    }
    ended = launch_forked([launch for group in launches.values() for launch in group])
    assert ended == [True, True, True, *(step == 0 for step in KILLS)]
    return launches


def test_two_ranks_from_a_cache_train_as_online(on_two_ranks):
    online, cached = (losses_of(on_two_ranks[name][0]) for name in ("online", "cached"))
    assert sorted(online) == [1, 2, 3]
    for step, losses in online.items():
        assert len(losses) == 2 and losses == pytest.approx(
            cached[step], rel=REORDERED
        )  # threads differ, and so does rounding


def test_two_ranks_resume_after_each_kill_of_one_of_them(on_two_ranks):
    """At last 22 steps at once."""
    uninterrupted = losses_of(on_two_ranks["whole"][0])
    assert sorted(uninterrupted) == list(range(1, 34))
    for kill_at, launch in zip(KILLS, on_two_ranks["cut"]):
        resumed = losses_of(launch)
        assert max(resumed) == (kill_at or 33)
        for step, losses in resumed.items():
            if step != kill_at:  # which the other rank may not have reached
                assert losses == pytest.approx(uninterrupted[step], rel=REPEATED), step
