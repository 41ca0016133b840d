"""What the system refuses, as messages that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fairchem_crack.teacher.cache.records import CacheError

MEANINGS = {
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "your quota of the disk is used up. Make room",
    errno.EFBIG: "a file may not grow further. Raise `ulimit -f`, or take another disk if its file system is the limit",
    errno.EACCES: "you may not write there. Give it permission, or another directory by --output",
    errno.EPERM: "you may not write there. Give it permission, or another directory by --output",
    errno.EROFS: "its file system is read-only. Mount it for writing, or give another directory by --output",
    errno.ENOMEM: "there is no memory left. Raise `ulimit -v`, or take a machine with more",
    errno.EMFILE: "too many files are open. Raise `ulimit -n`",
    errno.EIO: "the disk failed. See the kernel's log, and replace the disk if need be",
}


@contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Raise an error of the operating system as a CacheError that says what to do."""
    try:
        yield
    except (OSError, MemoryError) as error:
        number = error.errno if isinstance(error, OSError) else errno.ENOMEM
        meaning = MEANINGS.get(number or 0, f"{error}. Put that right")
        where = getattr(error, "filename", None) or directory
        raise CacheError(
            f"Teacher cache {directory}: cannot write {where}: {meaning}, and run the same command again. "
            "What is written is kept and resumed."
        ) from error
