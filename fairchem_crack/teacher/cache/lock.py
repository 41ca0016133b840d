"""One writer at a time, by locks of the kernel: released when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.records import CacheError


class Lock:
    """Held from here on until `release`, or the end of the process. Its file stays: to remove it would break the lock.

    Raises:
        CacheError: another process holds it, or the file system has no locks.
    """

    def __init__(self, file: Path) -> None:
        with explained(file.parent):
            self._file = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise CacheError(
                f"Teacher cache {file.parent}: {holder} is writing it, and holds {file.name}. "
                "Wait until it is done, or end it."
            ) from error
        except OSError as error:
            self._file.close()
            raise CacheError(
                f"Teacher cache {file.parent}: its file system cannot lock {file.name} ({error.strerror}), so two writers "
                "could spoil each other's records. Give a directory on another file system, or mount this one with locks."
            ) from error
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have it."""
        self._file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
