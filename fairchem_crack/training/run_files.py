"""The files of a run: written by one training at a time, and a message where they cannot be written."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fairchem.core.common import distutils
from torch import distributed as dist

from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.locks import LockedError, exclusive
from fairchem_crack.io.progress import progress_of

LOCK = "training.lock"
OF_TORCH = ("inline_container.cc", "PytorchStreamWriter")  # parts of torch.save's error where a disk is full


@contextmanager
def only_training(directory: Path) -> Iterator[None]:
    """Hold the lock of a run, by rank 0, until the block or the process ends; all ranks take part.

    Args:
        directory: of the run's checkpoints.

    Raises:
        RuntimeError: on every rank, where another training has it.
    """
    with ExitStack() as stack:
        refusal = [_take(directory, stack) if distutils.is_master() else ""]
        if distutils.initialized():
            dist.broadcast_object_list(refusal)
        if refusal[0]:
            raise RuntimeError(refusal[0])
        yield


def _take(directory: Path, stack: ExitStack) -> str:
    """Take the lock; returns why that is not possible, empty where it is."""
    try:
        stack.enter_context(exclusive(directory / LOCK))
    except LockedError as error:
        return (
            f"{directory} is being written by another training, {error.holder}. Wait until that has ended, or begin another "
            "run: with another --timestamp-id, --identifier or --run-dir."
        )
    except OSError as error:
        return f"{directory / LOCK} cannot be written ({error.strerror}): is this run yours, and its file system writable?"
    return ""


@contextmanager
def writing(file: Path, step: int) -> Iterator[None]:
    """Context in which a checkpoint is written beside `file`, under another ending; it replaces `file` at the end.

    Raises:
        OSError: that failed. `file` is as it was, and what was written beside it is removed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in OF_TORCH):
            raise
        free = shutil.disk_usage(file.parent).free / 2**20
        for partial in file.parent.glob(f"{file.name}.partial*"):
            partial.unlink()
        reason = error.strerror if isinstance(error, OSError) else "is the disk, or a quota, full?"
        message = f"{file}: the checkpoint of step {step} could not be written ({reason}). {free:,.1f} MB were free."
        if file.is_file():
            size = 2 * file.stat().st_size / 2**20  # fairchem's, and the one with the entry of ours
            message += (
                f" The one before it is whole ({progress_of(read_checkpoint(file, trust=True))}): make room, {size:,.1f} MB "
                "for the next, and the same command resumes from it."
            )
        else:
            message += " There is no earlier one: make room, and start again."
        raise OSError(message) from error
