"""One writer at a time: a lock on a file, which the kernel releases when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of a file system

_held: set[int] = set()  # file descriptors of this process


class LockedError(RuntimeError):
    """Another process holds the lock.

    Attributes:
        holder: for example `process 4711 on node12`.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is locked by {holder}.")
        self.holder = holder


@contextmanager
def exclusive(path: Path, *, is_required: bool = False) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing and never removed: a second file would be a second lock.

    A child process does not hold the lock. A file system without locks is named in a warning, and nothing is locked.

    Args:
        is_required: a file system without locks is an error.

    Raises:
        LockedError: another process, or this one, holds it.
        OSError: the file cannot be opened for writing; its file system has no locks (`NO_LOCKS`), and one is required.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        _lock(descriptor, path, is_required=is_required)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        if descriptor in _held:  # not in a child
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, path: Path, *, is_required: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(path, os.pread(descriptor, 1024, 0).decode(errors="replace") or "another process") from None
    except OSError as error:
        if is_required or error.errno not in NO_LOCKS:
            raise
        logging.warning(f"{path}: its file system has no locks ({error.strerror}); nothing keeps a second writer away.")


def _forget() -> None:
    """In a child of `fork`, for example a loader's worker, which may outlive its parent."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
