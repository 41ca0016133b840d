"""An epoch in blocks: each system once, from few blocks at a time, shared by ranks and resumed as fairchem's."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from fairchem.core.common.data_parallel import StatefulDistributedSampler
from torch.utils.data import Dataset

from fairchem_crack.config import DistillConfig, ShuffleConfig, TeacherConfig, parse
from fairchem_crack.training.block_shuffle import BlockSampler, block_shuffle
from fairchem_crack.training.host_options import shuffle_faults
from fairchem_crack.training.trainer import CrackDistillTrainer

BLOCK, BUFFER = 4, 12
SHUFFLE = ShuffleConfig(buffer=BUFFER, block=BLOCK)


class Data(Dataset):
    """Systems without metadata."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def metadata_hasattr(self, name: str) -> bool:
        return False


def order(length: int, seed: int = 0, epoch: int = 0) -> list[int]:
    return block_shuffle(length, block=BLOCK, buffer=BUFFER, seed=seed, epoch=epoch).tolist()


def on_ranks(length: int, ranks: int, *, drop_last: bool = False) -> list[tuple[StatefulDistributedSampler, BlockSampler]]:
    """fairchem's sampler of each rank, and ours made of it."""
    options = {"num_replicas": ranks, "shuffle": True, "seed": 5, "drop_last": drop_last}
    theirs = [StatefulDistributedSampler(Data(length), 2, rank=rank, **options) for rank in range(ranks)]
    return [(sampler, BlockSampler(sampler, SHUFFLE)) for sampler in theirs]


@pytest.mark.parametrize("length", [1, 3, 4, 47, 48, 49, 600])
def test_an_epoch_visits_each_system_once(length):
    assert sorted(order(length)) == list(range(length))


@pytest.mark.parametrize("length, blocks", [(600, 3), (601, 4)])
def test_a_full_buffer_holds_few_blocks(length, blocks):
    """One more than it has room for, where the last block of the data is short."""
    full = [order(length, epoch=epoch)[begin : begin + BUFFER] for epoch in range(20) for begin in range(0, length, BUFFER)]
    assert max(len({index // BLOCK for index in held}) for held in full) == blocks


def test_the_order_is_decided_by_seed_and_epoch():
    assert order(600, 1, 2) == order(600, 1, 2)
    orders = [order(600, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    firsts = [order(600, epoch=epoch)[0] for epoch in range(4000)]  # no system is likelier to come first
    assert np.ptp(np.bincount(np.array(firsts) // 100, minlength=6)) < 200  # of 667 each, 6 deviations


@pytest.mark.parametrize("length, ranks", [(600, 1), (600, 4), (47, 3), (2, 5)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_an_epoch_as_fairchems(length, ranks, drop_last):
    """Equal numbers, all systems or all but a few, and in consecutive parts."""
    if drop_last and length < ranks:
        return
    pairs = on_ranks(length, ranks, drop_last=drop_last)
    parts = [list(ours) for _, ours in pairs]
    assert [len(part) for part in parts] == [len(list(theirs)) for theirs, _ in pairs]
    whole, visited = order(length, seed=5), list(chain(*parts))
    assert visited == (whole * (len(visited) // length + 1))[: len(visited)]


def test_an_epoch_resumes_where_it_was():
    for _, ours in on_ranks(47, 3):
        ours.set_epoch_and_start_iteration(2, 0)
        whole = list(ours)
        ours.set_epoch_and_start_iteration(2, 5)
        assert list(ours) == whole[10:] and len(whole) == 16


def test_only_training_data_are_visited_in_blocks():
    trainer = object.__new__(CrackDistillTrainer)
    trainer.config, trainer.device = {"optim": {}, "cmd": {"seed": 5}}, torch.device("cpu")
    for shuffle, is_training, expected in ((SHUFFLE, True, BlockSampler), (SHUFFLE, False, None), (None, True, None)):
        trainer._distill_config = DistillConfig(TeacherConfig("teacher.pt"), shuffle=shuffle)
        batches = trainer.get_sampler(Data(47), 2, is_training)
        assert type(batches.sampler) is (expected or StatefulDistributedSampler)
        if expected:
            assert list(chain(*batches)) == order(47, seed=5) and len(batches) == 24


def test_a_buffer_of_broken_blocks_is_refused():
    assert parse(ShuffleConfig, {}, "shuffle") == ShuffleConfig(buffer=4096, block=256)
    with pytest.raises(ValueError, match=r"shuffle\.buffer: 1000 systems are no whole number of blocks of 256"):
        parse(ShuffleConfig, {"buffer": 1000}, "shuffle")


@pytest.mark.parametrize(
    "cache, dataset, is_refused",
    [
        (None, {}, True),
        (None, {"sample_n": 5}, True),
        (None, {"no_shuffle": True}, False),
        (None, {"train_split_settings": {"first_n": 5}}, False),
        ("cache", {}, False),
    ],
)
def test_neighbours_that_lie_together_nowhere_are_refused(cache, dataset, is_refused):
    distill = DistillConfig(TeacherConfig("teacher.pt", cache=cache), shuffle=SHUFFLE)
    faults = [str(fault) for fault in shuffle_faults(distill, dataset)]
    assert [fault.startswith("task.distill.shuffle: reads nothing in sequence") for fault in faults] == [True] * is_refused
