"""The CRACK loss over several processes (gloo) against one process that has all their systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

WIDTH = 6
OPTIONS = [
    {"temperature": 0.15, "anchor": anchor, "negatives": negatives}
    for anchor in ("student", "teacher", "symmetric")
    for negatives in ("batch", "world")
]
SIZES = {2: ((5, 7), (9, 4)), 3: ((5, 7), (1,), (8,))}  # atoms of each system of each rank; the one atom has no pair


def embeddings(sizes: tuple[int, ...], rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student (N, 4), teacher (N, WIDTH), a part of all pairs, natoms, of one rank."""
    generator = torch.Generator().manual_seed(rank)
    atoms = sum(sizes)
    student = torch.randn(atoms, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(atoms, WIDTH, generator=generator, dtype=torch.float64)
    systems = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pairs = torch.triu(systems[:, None] == systems, diagonal=1).nonzero().T
    return student, teacher, pairs[:, : max(pairs.shape[1] - 2 * rank, 0)], torch.tensor(sizes)


def projection() -> torch.nn.Linear:
    torch.manual_seed(5)
    return torch.nn.Linear(4, WIDTH).double()


def loss_of(options: dict, projected: torch.Tensor, teacher: torch.Tensor, pairs: torch.Tensor, natoms: torch.Tensor):
    from fairchem_crack.losses import DistillationLoss

    loss = DistillationLoss("crack", reduction="mean")
    loss.loss_fn.options, loss.loss_fn.pairs = options, pairs
    return loss(projected, teacher, natoms=natoms)


def rank_main(rank: int, world: int, directory: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world)
    torch.save([one_step(rank, world, options) for options in OPTIONS], Path(directory) / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # gloo's threads, torn down while another rank still ends, abort a process now and then


def one_step(rank: int, world: int, options: dict) -> tuple:
    """Loss, gradients of the projection and of the student's embedding, as a training's optimizers see them."""
    student, teacher, pairs, natoms = embeddings(SIZES[world][rank], rank)
    student.requires_grad_(True)
    model = DistributedDataParallel(projection())
    loss = loss_of(options, model(student), teacher, pairs, natoms)
    loss.backward()
    total = loss.detach().clone()
    distributed.all_reduce(total)
    gradients = [parameter.grad for parameter in model.parameters()]
    # a student's parameters are averaged over the ranks too: what reaches their input counts 1 / world
    return total / world, gradients, student.grad / world


def union(world: int, options: dict) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients in one process; without `world` the ranks' relations are not each other's negatives."""
    from fairchem_crack import crack_terms

    model, parts = projection(), [embeddings(sizes, rank) for rank, sizes in enumerate(SIZES[world])]
    students = [part[0].requires_grad_(True) for part in parts]
    if options["negatives"] == "world":
        first = [0, *torch.tensor([len(student) for student in students]).cumsum(0).tolist()]
        pairs = torch.cat([part[2] + start for part, start in zip(parts, first)], dim=1)
        teacher = torch.cat([part[1] for part in parts])
        losses = crack_terms(student=model(torch.cat(students)), teacher=teacher, pairs=pairs, **options).loss
    else:
        losses = torch.cat(
            [
                crack_terms(student=model(student), teacher=teacher, pairs=pairs, **options).loss
                for student, teacher, pairs, _ in parts
            ]
        )
    losses.mean().backward()
    return (
        losses.mean().detach(),
        [parameter.grad for parameter in model.parameters()],
        [student.grad for student in students],
    )


@pytest.fixture(scope="module", params=SIZES)
def ranks(request, tmp_path_factory) -> list[list[tuple]]:
    """What each rank found for each of OPTIONS."""
    directory = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(rank_main, (request.param, str(directory)), nprocs=request.param)
    return [torch.load(directory / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(OPTIONS)), ids=[f"{one['anchor']}-{one['negatives']}" for one in OPTIONS])
def test_ranks_give_the_loss_and_gradients_of_their_union(ranks, case):
    loss, gradients, of_students = union(len(ranks), OPTIONS[case])
    for rank, found in enumerate(ranks):
        found_loss, found_gradients, of_student = found[case]
        torch.testing.assert_close(found_loss, loss, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found_gradients, gradients, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(of_student, of_students[rank], rtol=1e-6, atol=1e-12)
