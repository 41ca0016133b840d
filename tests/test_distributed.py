"""The CRACK loss over several processes (gloo) against one process that has all their systems."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fairchem.core.datasets import data_list_collater
from tolerances import RANKS_GRADIENT, RANKS_LOSS
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data

from fairchem_crack.loss.crack import ANCHORS
from fairchem_crack.teacher.cache import CacheWriter, Plan, Record, TeacherCache, finish
from fairchem_crack.teacher.cached import CachedDataset, CachedTeacher, digest_of

WIDTH = 6
WORLDS = {  # atoms of each system of each rank; the one atom has no pair
    "2 ranks": ((5, 7), (9, 4)),
    "2 ranks, one without pairs": ((1,), (5, 7)),
    "3 ranks, one without pairs": ((5, 7), (1,), (8,)),
}


class Case(NamedTuple):
    anchor: str
    negatives: str
    source: str = "given"  # or cache: where the teacher's embeddings and the pairs come from
    degenerate: bool = False  # the last rank's student says the same of two atoms

    @property
    def options(self) -> dict:
        return {"temperature": 0.15, "anchor": self.anchor, "negatives": self.negatives}

    def __str__(self) -> str:
        return f"{self.anchor}-{self.negatives}-{self.source}" + ("-degenerate" if self.degenerate else "")


CASES = [
    Case(anchor, negatives, source)
    for anchor in ANCHORS
    for negatives in ("batch", "world")
    for source in ("given", "cache")
]
CASES += [Case(anchor, "world", degenerate=True) for anchor in ANCHORS]


class Part(NamedTuple):
    """What one rank has: N atoms in its systems."""

    student: torch.Tensor  # (N, 4)
    teacher: torch.Tensor  # (N, WIDTH) exact in float32
    pairs: list[torch.Tensor]  # (2, P) of each system, a part of all
    natoms: torch.Tensor

    @property
    def joined(self) -> torch.Tensor:
        first = self.natoms.cumsum(0) - self.natoms
        return torch.cat([pairs + start for pairs, start in zip(self.pairs, first)], dim=1)


def part(sizes: tuple[int, ...], rank: int, degenerate: bool = False) -> Part:
    generator = torch.Generator().manual_seed(rank)
    student = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    if degenerate:
        student[-2] = student[-1]
    teacher = torch.randn(sum(sizes), WIDTH, generator=generator).double()
    pairs = [torch.triu(torch.ones(size, size), diagonal=1).nonzero().T[:, rank:].contiguous() for size in sizes]
    return Part(student, teacher, pairs, torch.tensor(sizes))


def part_of(case: Case, world: str, rank: int) -> Part:
    return part(WORLDS[world][rank], rank, case.degenerate and rank == len(WORLDS[world]) - 1)


def systems_of(world: str) -> list[Data]:
    """The systems of all ranks, atoms anywhere."""
    generator = torch.Generator().manual_seed(9)
    return [
        Data(
            pos=torch.rand(size, 3, generator=generator),
            atomic_numbers=torch.full((size,), 6.0),
            cell=torch.eye(3)[None],
            natoms=size,
        )
        for sizes in WORLDS[world]
        for size in sizes
    ]


def write_cache(directory: Path, world: str) -> None:
    systems = systems_of(world)
    parts = [part(sizes, rank) for rank, sizes in enumerate(WORLDS[world])]
    embeddings = [values for of_rank in parts for values in of_rank.teacher.split(of_rank.natoms.tolist())]
    pairs = [pairs for of_rank in parts for pairs in of_rank.pairs]
    plan = Plan("toy", "0" * 64, len(systems), "", WIDTH, dtype="float32", chunk=2, fields=("node_embedding",))
    records = [
        Record(digest_of(system), system.natoms, {"node_embedding": values.numpy()}, joined.numpy())
        for system, values, joined in zip(systems, embeddings, pairs)
    ]
    writer = CacheWriter(directory, plan)
    for chunk in range(plan.chunks):
        writer.write(chunk, records[2 * chunk : 2 * chunk + 2])
    writer.close()
    finish(directory, plan)


def from_cache(directory: Path, world: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher (N, WIDTH) and pairs of this rank, as they reach its training step."""
    cache = TeacherCache(directory)
    dataset = CachedDataset(systems_of(world), cache, "dataset.train", ["node_embedding"])
    first = sum(len(sizes) for sizes in WORLDS[world][:rank])
    batch = data_list_collater([dataset[first + index] for index in range(len(WORLDS[world][rank]))], otf_graph=True)
    outputs = CachedTeacher(cache)(batch)
    return outputs.node_embedding, outputs.edge_index


def projection() -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(4, WIDTH).double()


def loss_of(options: dict, projected: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor, natoms: torch.Tensor):
    from fairchem_crack.config import RelationsConfig
    from fairchem_crack.training.losses import CrackLoss, LossContext, TermLoss

    loss = CrackLoss(options["temperature"], RelationsConfig(anchor=options["anchor"], negatives=options["negatives"]))
    return TermLoss(loss)(projected, teacher, LossContext(natoms, pairs))


def rank_main(rank: int, world: str, directory: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{directory}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(WORLDS[world]))
    sent = watch_embeddings()
    results = []
    for case in CASES:
        sent.clear()
        results.append((*one_step(rank, world, case, Path(directory) / "cache"), list(sent)))
    torch.save(results, Path(directory) / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads, torn down while another rank still ends, abort a process now and then


def watch_embeddings() -> list[torch.Tensor]:
    """From here on, every (N, WIDTH) that this rank sends by a collective."""
    sent: list[torch.Tensor] = []
    gather, reduce = distributed.all_gather, distributed.all_reduce

    def keep(values: torch.Tensor) -> None:
        if values.dim() == 2 and values.shape[1] == WIDTH:
            sent.append(values.clone())

    def watched_gather(parts, values, *more, **options):
        keep(values)
        return gather(parts, values, *more, **options)

    def watched_reduce(values, *more, **options):
        keep(values)
        return reduce(values, *more, **options)

    distributed.all_gather, distributed.all_reduce = watched_gather, watched_reduce
    return sent


def one_step(rank: int, world: str, case: Case, cache: Path) -> tuple:
    """Loss, gradients of the projection and of the student's embedding, as a training's optimizers see them."""
    own, size = part_of(case, world, rank), len(WORLDS[world])
    teacher, pairs = (own.teacher, own.joined) if case.source == "given" else from_cache(cache, world, rank)
    student = own.student.requires_grad_(True)
    model = DistributedDataParallel(projection())
    loss = loss_of(case.options, model(student), teacher, pairs, own.natoms)
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    gradients = [parameter.grad for parameter in model.parameters()]
    # a student's parameters are averaged over the ranks too: what reaches their input counts 1 / size
    return total / size, gradients, student.grad / size


def union(world: str, case: Case) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients in one process; without `world` the ranks' relations are not each other's negatives."""
    from fairchem_crack import crack_terms

    model, parts = projection(), [part_of(case, world, rank) for rank in range(len(WORLDS[world]))]
    students = [part.student.requires_grad_(True) for part in parts]
    if case.negatives == "world":
        first = np.cumsum([0, *(len(student) for student in students)])
        pairs = torch.cat([part.joined + int(start) for part, start in zip(parts, first)], dim=1)
        teacher = torch.cat([part.teacher for part in parts])
        losses = crack_terms(student=model(torch.cat(students)), teacher=teacher, pairs=pairs, **case.options).loss
    else:
        losses = torch.cat(
            [
                crack_terms(student=model(part.student), teacher=part.teacher, pairs=part.joined, **case.options).loss
                for part in parts
            ]
        )
    losses.mean().backward()
    return (
        losses.mean().detach(),
        [parameter.grad for parameter in model.parameters()],
        [student.grad for student in students],
    )


@pytest.fixture(scope="module", params=WORLDS)
def ranks(request, tmp_path_factory) -> tuple[str, list[list[tuple]]]:
    """The world, and what each of its ranks found for each of CASES."""
    world, directory = request.param, tmp_path_factory.mktemp("ranks")
    write_cache(directory / "cache", world)
    size = len(WORLDS[world])
    multiprocessing.start_processes(rank_main, (world, str(directory)), size, start_method="forkserver")
    return world, [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=map(str, CASES))
def test_ranks_give_the_loss_and_gradients_of_their_union(ranks, case):
    world, results = ranks
    loss, gradients, of_students = union(world, CASES[case])
    for rank, of_cases in enumerate(results):
        own_loss, own_gradients, of_student, _ = of_cases[case]
        torch.testing.assert_close(own_loss, loss, **RANKS_LOSS)
        torch.testing.assert_close(own_gradients, gradients, **RANKS_GRADIENT)
        torch.testing.assert_close(of_student, of_students[rank], **RANKS_GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=map(str, CASES))
def test_a_student_as_anchor_sends_only_the_teachers_embedding(ranks, case):
    """Else the students' and the gradient of all of them do too; without `world`, nothing."""
    world, results = ranks
    for rank, of_cases in enumerate(results):
        sent, case_ = of_cases[case][3], CASES[case]
        if case_.negatives == "batch":
            assert not sent
            continue
        teacher = part_of(case_, world, rank).teacher
        assert torch.equal(sent[0][: len(teacher)].double(), teacher)
        assert len(sent) == (1 if case_.anchor == "student" else 3)
