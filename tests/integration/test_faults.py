"""Data and caches that break while a training reads them, and a training that is told to end: the next run resumes."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import recorder
import torch
import yaml
from architectures import MODELS
from conftest import distill_config, run_fairchem
from fairchem.core.datasets import LmdbDataset
from launcher import TREE
from tolerances import REORDERED

from fairchem_crack import keys
from fairchem_crack.commands.cli import main
from fairchem_crack.teacher.cache import CacheError, TeacherCache

pytestmark = pytest.mark.slow

STEPS = 12  # 2 epochs of 6, a checkpoint every second step


def own_config(data: Path, teacher: Path) -> dict:
    config = distill_config(data, teacher)
    config["optim"].update(max_epochs=2, T_max=STEPS, checkpoint_every=2, eval_every=100)
    config["optim"]["load_balancing"] = False  # of which fairchem compiles the sampler in every process
    return config


@pytest.fixture
def config(data, teacher_checkpoint, tmp_path) -> dict:
    """Of a training with training data of its own, that may break."""
    shutil.copytree(data / "train", tmp_path / "train")
    config = own_config(data, teacher_checkpoint)
    config["dataset"]["train"]["src"] = str(tmp_path / "train")
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data, teacher_checkpoint) -> list[float]:
    """Losses of the undisturbed run."""
    losses = run_fairchem(tmp_path_factory.mktemp("whole"), own_config(data, teacher_checkpoint)).losses()
    assert len(losses) == STEPS
    return losses


@pytest.fixture(scope="module")
def written(tmp_path_factory, data, teacher_checkpoint) -> Path:
    """A cache of the training data, a system in each chunk."""
    directory = tmp_path_factory.mktemp("written")
    file = directory / "config.yml"
    file.write_text(yaml.safe_dump(own_config(data, teacher_checkpoint)))
    gc.collect()
    flags = ["--output", str(directory / "cache"), "--dtype", "float32", "--chunk", "1"]
    main(["cache-teacher", "--config-yml", str(file), "--cpu", *flags])
    gc.collect()
    return directory / "cache"


@pytest.fixture
def cache(written, config, tmp_path) -> Path:
    """A copy that may break, from which the training reads."""
    shutil.copytree(written, tmp_path / "cache")
    config["task"]["distill"]["teacher"]["cache"] = str(tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def in_step(monkeypatch):
    """Callable: do something, once, when a step is logged."""

    def at(step: int, action) -> None:
        log, due = recorder.Recorder.log, [action]

        def logged(self, record, **where):
            log(self, record, **where)
            if where["step"] == step and "loss" in record and due:
                due.pop()()

        monkeypatch.setattr(recorder.Recorder, "log", logged)

    return at


def goes_on(run, config: dict, whole: list[float], rel: float = 1e-6) -> None:
    """The checkpoint that was left is whole; started again, the run gives every loss from there on."""
    gc.collect()
    resumed = run(copy.deepcopy(config))
    first = int(resumed.steps[0]["step"])
    assert first > 1 and [record["step"] for record in resumed.steps] == list(range(first, STEPS + 1))
    assert resumed.losses() == pytest.approx(whole[first - 1 :], rel=rel)


def last_step(directory: Path) -> int:
    """Of the checkpoint, which is the only training state there."""
    checkpoints = directory / "checkpoints" / "run"
    assert sorted(file.name for file in checkpoints.iterdir()) == ["checkpoint.pt", "training.lock"]
    state = torch.load(checkpoints / "checkpoint.pt", map_location="cpu", weights_only=False)
    assert keys.CHECKPOINT_KEY in state
    return state["step"]


def overwrite(file: Path, places: list[tuple[int, bytes]]) -> None:
    with file.open("r+b") as content:  # in place: what is mapped by a running process changes too
        for place, replacement in places:
            content.seek(place)
            content.write(replacement)


def records_of(source: Path) -> Iterator[tuple[int, bytes]]:
    """Where the pickle of each system lies in the file."""
    gc.collect()
    dataset, content = LmdbDataset({"src": str(source)}), (source / "data.0000.lmdb").read_bytes()
    for index in range(len(dataset)):
        value = dataset.envs[0].begin().get(str(index).encode())
        assert content.count(value) == 1
        yield content.find(value), value
    del dataset
    gc.collect()


# ---- the training data


@pytest.mark.parametrize("damage", ["zeros", "another pickle"])
def test_unreadable_records_of_the_data(run, config, in_step, whole, tmp_path, damage):
    file, records = tmp_path / "train" / "data.0000.lmdb", list(records_of(tmp_path / "train"))
    garbage = bytes(64) if damage == "zeros" else pickle.dumps({"not": "a system"}).ljust(64, b".")
    in_step(5, lambda: overwrite(file, [(place, garbage) for place, _ in records]))
    with pytest.raises(ValueError, match=r"dataset\.train: system \d+ cannot be read"):
        run(config)
    assert last_step(tmp_path) == 4
    overwrite(file, [(place, value[:64]) for place, value in records])
    goes_on(run, config, whole)


# ---- the teacher's cache


def test_unreadable_records_of_the_cache(run, config, cache, in_step, whole, tmp_path):
    file = cache / "shard.0000.records"
    content = file.read_bytes()
    embeddings = [record.values["node_embedding"].tobytes() for record in TeacherCache(cache).records()]
    places = [(content.find(values), values) for values in embeddings]
    assert all(place > 0 for place, _ in places)
    in_step(5, lambda: overwrite(file, [(place, bytes(len(values))) for place, values in places]))
    with pytest.raises(
        CacheError, match=r"Teacher cache .*/cache: the record of system \d+ in shard.0000.records is damaged.*--repair"
    ):
        run(config)
    assert last_step(tmp_path) in (4, 6)  # the batch of step 6 is read while step 5 computes
    overwrite(file, places)
    goes_on(run, config, whole, rel=REORDERED)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_moved_away_is_still_read_to_the_end(run, config, cache, in_step, whole, tmp_path, workers):
    config["optim"]["num_workers"] = workers  # which begin anew with an epoch
    in_step(5, lambda: cache.rename(tmp_path / "gone"))
    assert run(config).losses() == pytest.approx(whole, rel=REORDERED)


def test_a_cache_that_is_gone_at_resume(run, config, cache, whole, tmp_path):
    run(config, stop_at=5)
    cache.rename(tmp_path / "gone")
    with pytest.raises(CacheError, match=r"Teacher cache .*/cache does not exist"):
        run(config)
    assert last_step(tmp_path) == 4
    (tmp_path / "gone").rename(cache)
    goes_on(run, config, whole, rel=REORDERED)


# ---- a process of its own


@pytest.fixture
def faulty(config, tmp_path):
    """Callable: train by the stock command until a fault in the middle of step 5; what the process left."""

    def train(**fault: str) -> subprocess.CompletedProcess:
        file = tmp_path / "faulty.yml"
        file.write_text(yaml.safe_dump({**config, "trainer": "killed_trainer.KilledTrainer"}))
        flags = ["--config-yml", str(file), "--cpu", "--seed", "0", "--run-dir", str(tmp_path), "--timestamp-id", "run"]
        environment = {
            **os.environ,
            **{"PYTHONPATH": TREE, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            **{"LOSSES": str(tmp_path / "losses"), "KILL_AT": "5"},
        }
        # a shell's background job ignores SIGINT, and its children with it
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        code += "import recorder\nfrom fairchem.core._cli import main; main()"
        command = [sys.executable, "-c", code, "--mode", "train", *flags]
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 600}
        return subprocess.run(command, env={**environment, **fault}, **options)

    return train


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_in_the_middle_of_a_step(run, config, faulty, whole, tmp_path, name):
    assert faulty(SIGNAL=name).returncode == -getattr(signal, name)
    assert last_step(tmp_path) == 4
    goes_on(run, config, whole, rel=REORDERED)  # threads differ, and so does rounding


def test_a_cache_cut_short_under_a_training(run, config, cache, faulty, whole, written, tmp_path):
    done = faulty(TRUNCATE=str(cache / "shard.0000.records"))
    assert done.returncode == 1 and "CacheError: Teacher cache" in done.stderr, done.returncode
    assert last_step(tmp_path) in (4, 6)  # as above
    shutil.copy(written / "shard.0000.records", cache)
    goes_on(run, config, whole, rel=REORDERED)


# ---- another student at resume


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data, teacher_checkpoint) -> Path:
    """Checkpoints of a run that was stopped in step 5."""
    return run_fairchem(tmp_path_factory.mktemp("stopped"), own_config(data, teacher_checkpoint), stop_at=5).checkpoints


@pytest.fixture
def resumable(stopped, data, teacher_checkpoint, tmp_path) -> dict:
    """The config of that run, of which `run` has a copy."""
    shutil.copytree(stopped, tmp_path / "checkpoints/run")
    return own_config(data, teacher_checkpoint)


@pytest.mark.parametrize("resume", ["all", "student"])
@pytest.mark.parametrize("change", ["hidden_channels: 8", "num_layers: 3", "schnet"])
def test_resuming_another_student(run, stopped, resumable, tmp_path, change, resume):
    resumable["model"] = MODELS["schnet"] if change == "schnet" else {**resumable["model"], **yaml.safe_load(change)}
    resumable["model"].pop("scale_file", None)
    resumable["task"]["distill"]["resume"] = resume
    with pytest.raises(ValueError, match=r"checkpoint\.pt.* holds another student than"):
        run(resumable)
    assert (tmp_path / "checkpoints/run/checkpoint.pt").read_bytes() == (stopped / "checkpoint.pt").read_bytes()


def test_resuming_only_the_student_with_another_projection(run, resumable):
    resumable["task"]["distill"].update(projection={"kind": "mlp"}, resume="student")
    assert [record["step"] for record in run(resumable).steps] == list(range(5, STEPS + 1))
