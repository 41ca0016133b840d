"""One writer at a time of a cache or of a shard, and what to do where another process writes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fairchem_crack.io.locks import NO_LOCKS, LockedError, exclusive
from fairchem_crack.teacher.cache.faults import explained
from fairchem_crack.teacher.cache.records import CacheError


@contextmanager
def only_writer(file: Path) -> Iterator[None]:
    """Hold a lock of the cache in whose directory `file` is, until the block or the process ends.

    Raises:
        CacheError: another process holds it, the file cannot be written, or its file system has no locks.
    """
    with ExitStack() as held:
        with explained(file.parent):
            try:
                held.enter_context(exclusive(file, is_required=True))
            except LockedError as error:
                raise CacheError(
                    f"Teacher cache {file.parent}: {error.holder} is writing it, and holds {file.name}. "
                    "Wait until it is done, or end it."
                ) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                raise CacheError(
                    f"Teacher cache {file.parent}: its file system cannot lock {file.name} ({error.strerror}), so two "
                    "writers could spoil each other's records. Give a directory on another file system, or mount this one "
                    "with locks."
                ) from error
        yield
