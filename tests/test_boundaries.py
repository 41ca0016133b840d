"""The periodic boundaries of a system are its own in any batch, for every model."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import MODELS, build
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from fairchem.core.datasets import data_list_collater
from fairchem.core.preprocessing import AtomsToGraphs
from torch import nn
from torch_geometric.data import Batch

from fairchem_crack.io.boundaries import OwnBoundaries, as_pbc, count_edges, pbc_of, set_option
from fairchem_crack.loss.relations import unordered_pairs
from fairchem_crack.teacher.frozen import Teacher

CONVERT = AtomsToGraphs(r_edges=False, r_pbc=True).convert
FIELDS = ("energy", "forces")


def several() -> list[Atoms]:
    """A bulk, a slab with little vacuum, a molecule without a cell; T T T, T T F, F F F."""
    systems = [bulk("Cu", cubic=True), fcc111("Cu", (2, 1, 2), vacuum=1.0), molecule("C2H6")]
    for seed, system in enumerate(systems):
        system.rattle(0.1, seed=seed)
        system.set_tags(1)  # GemNet-OC needs them
    return systems


def collate(systems: list[Atoms]) -> Batch:
    return data_list_collater([CONVERT(system, sid=sid) for sid, system in enumerate(systems)], otf_graph=True)


@pytest.mark.parametrize("name", MODELS)
def test_a_teacher_keeps_each_systems_pbc_in_a_batch(name):
    teacher, systems = Teacher("model", build(name), Path("model")), several()
    batch = collate(systems)
    together = teacher(batch, FIELDS)
    singly = [teacher(collate([system]), FIELDS) for system in systems]
    for field in FIELDS:  # of the largest entry: edges, and sums over them, come in another order
        expected = torch.cat([outputs[field] for outputs in singly])
        torch.testing.assert_close(together[field], expected, rtol=0, atol=5e-5 * float(expected.abs().max()))
    # the oracle: pairs of ASE's neighbor list, which knows the pbc of each
    first = np.cumsum([0, *map(len, systems)])
    near = {
        (int(min(i, j)) + start, int(max(i, j)) + start)
        for system, start in zip(systems, first)
        for i, j in zip(*neighbor_list("ij", system, teacher.cutoff))
        if i != j
    }
    assert set(map(tuple, unordered_pairs(together.edge_index, batch.num_nodes).T.tolist())) == near
    assert batch.pbc.shape == (9,) and batch[2].pbc.tolist() == [False] * 3  # left as it was


@pytest.mark.parametrize("pbc", [True, False])
def test_a_batch_of_one_pbc_is_computed_as_without_us(pbc):
    systems = several()[:2]
    for system in systems:
        system.pbc = pbc
    model = build("painn").eval()
    plain = model(collate(systems))
    boundaries = OwnBoundaries(model)
    hooked = model(collate(systems))
    assert all(torch.equal(plain[name], hooked[name]) for name in plain)
    assert not boundaries.has_met_several and not model.use_pbc_single
    boundaries.close()
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(
    "stored",
    [
        lambda pbc: pbc[None],
        lambda pbc: pbc.int(),
        lambda pbc: pbc.numpy(),
        lambda pbc: pbc.tolist(),
        lambda pbc: pbc.numpy().astype(int).tolist(),
    ],
    ids=["(1, 3)", "int", "array", "list", "list of int"],
)
def test_pbc_may_be_stored_in_any_form(stored):
    model, systems = build("painn").eval(), several()
    OwnBoundaries(model)
    expected = model(collate(systems))["forces"]
    for chosen in (slice(None), slice(2)):  # the second with one pbc for all
        records = [CONVERT(system) for system in systems[chosen]]
        if chosen.stop:
            records[0].pbc = records[1].pbc
        reference = model(data_list_collater(copy.deepcopy(records), otf_graph=True))["forces"]
        for record in records:
            record.pbc = stored(record.pbc)
        assert torch.equal(model(data_list_collater(records, otf_graph=True))["forces"], reference)
    assert torch.equal(model(collate(systems))["forces"], expected)


def test_one_value_of_pbc_stands_for_all_directions():
    assert as_pbc(True).tolist() == [True] * 3 and as_pbc(0).tolist() == [False] * 3
    batch = data_list_collater([CONVERT(system) for system in several()], otf_graph=True)
    batch.pbc = torch.tensor([True, False, True])
    assert pbc_of(batch).tolist() == [[True] * 3, [False] * 3, [True] * 3]


def test_a_model_that_cannot_is_refused_by_name():
    class Foreign(nn.Module):
        def forward(self, batch):
            return {"energy": batch.pos.sum()}

    model = Foreign()
    OwnBoundaries(model)
    model(collate(several()[:1]))
    with pytest.raises(ValueError, match=r"several pbc \(T T T, T T F, F F F\), and Foreign has no option `use_pbc_single`"):
        model(collate(several()))
    model.use_pbc = False  # which takes no system for periodic
    model(collate(several()))


def test_a_failed_forward_leaves_the_option_as_it_was():
    model, batch = build("painn").eval(), collate(several())
    OwnBoundaries(model)
    batch.atomic_numbers = batch.atomic_numbers[:-1]
    with pytest.raises(IndexError):
        model(batch)
    assert not model.use_pbc_single and batch.pbc.shape == (9,)


def test_the_option_of_a_checkpoint_is_where_fairchem_reads_it():
    plain, hydra, tuned = {"name": "painn"}, {"name": "hydra", "backbone": {}}, {"name": "hydra", "finetune_config": {}}
    assert [set_option(model) for model in (plain, hydra, tuned)] == [True] * 3
    assert [set_option(model) for model in (plain, hydra, tuned)] == [False] * 3  # it was set
    assert plain["use_pbc_single"] and hydra["backbone"]["use_pbc_single"]
    assert tuned["finetune_config"]["override"] == {"use_pbc_single": True}


def test_neighbors_are_counted_with_each_systems_pbc():
    single = [Atoms("Cu", cell=[3, 3, 3], pbc=pbc) for pbc in (True, False, [1, 1, 0])]
    batch = collate(single)
    assert (count_edges(batch, 3.5) > 0).tolist() == [True, False, True]
    assert (count_edges(batch, 3.5, use_pbc=False) > 0).tolist() == [False] * 3
    del batch.pbc  # as OC20's records, which are periodic in all directions
    assert (count_edges(batch, 3.5) > 0).tolist() == [True] * 3
