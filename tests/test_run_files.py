"""Only one training writes a run, and files that cannot be written are named."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import run_fairchem
from test_locks import holder

from fairchem_crack.training.run_files import LOCK, only_training, writing


def test_a_second_training_of_a_run_is_refused_by_name(stock, tmp_path):
    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    checkpoints = run_fairchem(tmp_path, stock).checkpoints
    before = {file.name: file.read_bytes() for file in checkpoints.iterdir()}
    stock["optim"]["max_epochs"] = 2
    with holder(checkpoints / LOCK) as first:
        refusal = (
            rf"checkpoints/run is being written by another training, process {first.pid} on .*--timestamp-id.*--run-dir"
        )
        with pytest.raises(RuntimeError, match=refusal):
            run_fairchem(tmp_path, stock)
        run_fairchem(tmp_path, stock, mode="validate", checkpoint=checkpoints / "checkpoint.pt")
        run_fairchem(tmp_path, stock, name="another")
        assert {name: (checkpoints / name).read_bytes() for name in before if name != LOCK} == {
            name: content for name, content in before.items() if name != LOCK
        }
        first.kill()
        first.wait()
        assert len(run_fairchem(tmp_path, stock).steps) == 6  # it resumes


def rank_of_two(rank: int, directory: Path) -> None:
    """Ask for the lock of each run in the directory."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    outcomes = {}
    for run in RUNS:
        try:
            with only_training(directory / run):
                outcomes[run] = "it trains"
        except RuntimeError as refusal:
            outcomes[run] = str(refusal)
    (directory / f"rank{rank}.json").write_text(json.dumps(outcomes))
    dist.barrier()
    # Without destroy_process_group: it waits for gloo's threads with the GIL held, which they need for a last tensor.
    os._exit(0)


RUNS = ("of another training", "free", "not writable")


def test_every_rank_of_a_second_training_is_refused(tmp_path):
    for run in RUNS:
        (tmp_path / run).mkdir()
    broken = tmp_path / "not writable" / LOCK
    broken.mkdir()
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=rank_of_two, args=(rank, tmp_path)) for rank in (0, 1)]
    with holder(tmp_path / "of another training" / LOCK) as first:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    outcomes, of_the_other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert outcomes == of_the_other and outcomes["free"] == "it trains"
    assert f"another training, process {first.pid}" in outcomes["of another training"]
    assert outcomes["not writable"].partition(": ")[0] == f"{broken} cannot be written (Is a directory)"


@pytest.fixture
def limited():
    """No file of this process can be larger than 100 kB: torch then fails as on a full disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_torchs_error_of_a_full_disk_is_translated(tmp_path, limited):
    file, partial = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt.partial"
    message = (
        r"checkpoint\.pt: the checkpoint of step 7 could not be written \(is the disk.*\?\)\. .*There is no earlier one"
    )
    with pytest.raises(OSError, match=message), writing(file, 7):
        torch.save(torch.zeros(1_000_000), partial)
    assert not list(tmp_path.iterdir())


def test_other_errors_while_saving_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match=r"^CUDA error$"), writing(Path(tmp_path / "checkpoint.pt"), 7):
        raise RuntimeError("CUDA error")
