"""Processes that end with the one that started them, and what they hand back."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Callable

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, killed or not; of a process that `multiprocessing` started.

    A process of a pool that waits for work would otherwise wait for ever: it holds both ends of its queue.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int = parent.sentinel) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def end_with_caller() -> None:
    """In a process of `subprocess`, as its `preexec_fn`: end with the one that started it. Only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def values_from(target: Callable[..., None], arguments: Sequence[tuple]) -> Iterator[Any]:
    """Run `target(*arguments, put)` for each of these arguments, each in a process of its own; what they `put`, as it comes.

    Raises:
        ValueError: with the message of one that raised a ValueError or an OSError, or when one has died.
    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.SimpleQueue()
    processes = [context.Process(target=_run, args=(target, each, queue)) for each in arguments]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes) or not queue.empty():
            while not queue.empty():
                is_error, value = queue.get()
                if is_error:
                    raise ValueError(value)
                yield value
            if any(process.exitcode for process in processes):
                raise ValueError("a process failed; see above. What is written is kept: run the command again.")
            time.sleep(0.1)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _run(target: Callable[..., None], arguments: tuple, queue: Any) -> None:
    end_with_parent()
    try:
        target(*arguments, lambda value: queue.put((False, value)))
    except (ValueError, OSError) as error:
        queue.put((True, str(error)))
