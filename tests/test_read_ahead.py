"""A loader read ahead by a thread: the same batches, errors where they belong, and no thread left."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from fairchem_crack.teacher.read_ahead import ReadAhead, read_ahead

SYSTEMS, BATCH = 10, 3
LONG = 60  # seconds, after which a test fails


class Numbers(Dataset):
    """The numbers 0 to 9; `on_read(index)` is called in the thread that reads."""

    def __init__(self, on_read: Callable[[int], object] = int) -> None:
        self.on_read = on_read

    def __len__(self) -> int:
        return SYSTEMS

    def __getitem__(self, index: int) -> torch.Tensor:
        self.on_read(int(index))
        return torch.tensor([index])


def loader_of(dataset: Dataset, *, shuffle: bool = False, workers: int = 0) -> DataLoader:
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(4)) if shuffle else range(len(dataset))
    return DataLoader(dataset, batch_sampler=BatchSampler(order, BATCH, drop_last=False), num_workers=workers)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


def broken_at(number: int) -> Numbers:
    def read(index: int) -> None:
        if index == number:
            raise ValueError(f"system {index} cannot be read")

    return Numbers(read)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


def test_batches_are_those_of_the_loader_in_its_order():
    for _ in range(2):  # epochs, each with an order of its own
        expected, batches = list(loader_of(Numbers(), shuffle=True)), list(ReadAhead(loader_of(Numbers(), shuffle=True)))
        assert len(batches) == 4 and all(map(torch.equal, batches, expected))
    ahead = ReadAhead(loader_of(Numbers(), shuffle=True))
    first, second = torch.cat(list(ahead)), torch.cat(list(ahead))
    assert sorted(first.flatten().tolist()) == list(range(SYSTEMS)) and not torch.equal(first, second)
    assert len(ahead) == 4 and isinstance(ahead.dataset, Numbers)


def test_the_next_batch_is_read_while_one_is_used():
    read = {index: threading.Event() for index in range(SYSTEMS)}
    names = set()

    def on_read(index: int) -> None:
        names.add(threading.current_thread().name)
        read[index].set()

    for number, _ in enumerate(ReadAhead(loader_of(Numbers(on_read)))):
        ahead = min(BATCH * (number + 2), SYSTEMS)
        assert all(read[index].wait(LONG) for index in range(ahead))
        assert not any(read[index].is_set() for index in range(ahead, SYSTEMS))
    assert names == {"read-ahead_0"}


def test_the_sampler_runs_in_the_callers_thread():
    """One that gathers from all ranks does so at the same point of each rank's program."""
    names = []

    class Sampler(BatchSampler):
        def __iter__(self):
            for indices in super().__iter__():
                names.append(threading.current_thread())
                yield indices

    sampler = Sampler(range(SYSTEMS), BATCH, drop_last=False)
    list(ReadAhead(DataLoader(Numbers(), batch_sampler=sampler)))
    assert set(names) == {threading.current_thread()} and len(names) == 4


@pytest.mark.parametrize("broken, batches", [(0, 0), (4, 1), (9, 3)])
def test_an_error_of_a_read_is_raised_in_place_of_its_batch(broken, batches):
    read = []
    with pytest.raises(ValueError, match=f"system {broken} cannot be read"):
        for batch in ReadAhead(loader_of(broken_at(broken))):
            read.append(batch)
    assert len(read) == batches and threads() == []


def test_the_thread_ends_before_the_last_batch_is_used():
    """fairchem's loop never asks for more than there is."""
    batches = iter(ReadAhead(loader_of(Numbers())))
    for _ in range(4):
        next(batches)
    assert threads() == []


def test_the_thread_ends_with_an_iterator_that_is_dropped():
    batches = iter(ReadAhead(loader_of(Numbers())))
    next(batches)
    assert threads() == ["read-ahead_0"]
    del batches
    assert threads() == []


def test_the_thread_ends_when_a_step_fails():
    def train() -> None:
        for _ in ReadAhead(loader_of(Numbers())):
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        train()


def test_an_interpreter_that_exits_amid_an_epoch_is_not_held_up():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_read_ahead import *\n"
        "batches = iter(ReadAhead(loader_of(Numbers())))\n"
        "print(next(batches).tolist(), threads())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[[0], [1], [2]] ['read-ahead_0']\n", "")


def test_memory_is_pinned_by_the_thread_on_the_callers_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append((threading.current_thread().name, device)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda batch: (calls.append(threading.current_thread().name), batch)[1])
    loader = DataLoader(Numbers(), batch_sampler=BatchSampler(range(6), BATCH, drop_last=False), pin_memory=True)
    assert len(list(ReadAhead(loader))) == 2
    assert calls == [("read-ahead_0", 3), "read-ahead_0", "read-ahead_0"]


def test_a_loader_with_workers_is_left_as_it_is():
    with_workers, without = loader_of(Numbers(), workers=1), loader_of(Numbers())
    assert read_ahead(with_workers) is with_workers
    assert isinstance(read_ahead(without), ReadAhead)
