"""Start a student from blocks of its teacher, as the 22M EquiformerV2 of Lim, Choung, Han 2025 does."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"^((?:backbone\.)?(?:blocks|layer_blocks)\.)(\d+)\.")
_HYDRA = re.compile(r"^(backbone\.|output_heads\.[^.]+\.)")


@torch.no_grad()
def copy_weights(teacher: nn.Module, student: nn.Module, blocks: Sequence[int]) -> None:
    """Copy the teacher's embeddings, norms and heads into the student, and block `blocks[i]` into the student's block i.

    A hydra and the model it was made of have the same weights under other names; either may be teacher or student.

    Args:
        teacher: a model of blocks, EquiformerV2 or eSCN.
        student: a model of the same architecture and widths with `len(blocks)` blocks.

    Raises:
        ValueError: the student has another number of blocks, or weights that the teacher lacks, or of another shape.
    """
    own, theirs = student.state_dict(), teacher.state_dict()
    theirs = {**{_HYDRA.sub("", key): value for key, value in theirs.items()}, **theirs}  # by either name
    count, available = _number_of_blocks(own), _number_of_blocks(theirs)
    where = "task.distill.init_from_teacher"
    if not count or not available:
        model = "teacher" if count else "student"
        raise ValueError(f"{where}: the {model} has no blocks to copy; EquiformerV2, eSCN and eSEN have.")
    if count != len(blocks):
        raise ValueError(f"{where}.blocks: the student has {count} blocks, and {len(blocks)} are named: {list(blocks)}.")
    if max(blocks) >= available:
        raise ValueError(f"{where}.blocks: block {max(blocks)} is named, the teacher has {available}, numbered from 0.")

    def source(key: str) -> Any:
        """The teacher's tensor for one of the student's; None where it has none."""
        name = _BLOCK.sub(lambda match: f"{match[1]}{blocks[int(match[2])]}.", key)
        return theirs.get(name, theirs.get(_HYDRA.sub("", name)))

    def misfit(key: str, value: Tensor) -> str | None:
        given = source(key)
        if given is None:
            return f"{key} is not in the teacher"
        return None if given.shape == value.shape else f"{key} is {tuple(value.shape)}, the teacher's {tuple(given.shape)}"

    misfits = [message for key, value in own.items() if (message := misfit(key, value))]
    if misfits:
        raise ValueError(
            f"{where}: the student must have the teacher's architecture and widths; {len(misfits)} of its {len(own)} "
            f"weights do not fit: {'; '.join(misfits[:3])}. Leave the option out, or give the student the teacher's options."
        )
    for key, value in own.items():
        value.copy_(source(key))
    logging.info(f"Student: started from the teacher's embeddings, heads and blocks {', '.join(map(str, blocks))}.")


def _number_of_blocks(weights: dict[str, Tensor]) -> int:
    return len({match[2] for key in weights if (match := _BLOCK.match(key))})
