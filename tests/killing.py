"""Processes that are killed where a test wants it."""

from __future__ import annotations

import gc
import os
import signal
import threading
from typing import Any, Callable

from tqdm import tqdm


def fork() -> int:
    """`os.fork`, whose child has its own lock of tqdm: killed with the one it shares, it would leave its parent waiting."""
    pid = os.fork()
    if pid == 0:
        tqdm.set_lock(threading.RLock())
    return pid


def in_fork(function: Callable[..., int], *arguments: Any) -> str:
    """What becomes of a process that calls the function: `exit CODE` or `signal NUMBER`."""
    pid = fork()
    if pid == 0:
        code = 3
        try:
            code = function(*arguments)
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return f"exit {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def kill_at_call(owner: Any, name: str, number: int, run: Callable[[], Any]) -> None:
    """`run` in a process that gets SIGKILL before call `number` of the function `owner.name`, and assert that it did."""

    def killed() -> int:
        import torch

        torch.set_num_threads(1)  # the threads of the parent's pool are not here
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _die_at_call(owner, name, number)
        run()
        return 0

    gc.collect()  # one process opens an LMDB only once
    assert in_fork(killed) == f"signal {signal.SIGKILL.value}", (name, number)


def _die_at_call(owner: Any, name: str, number: int) -> None:
    function, calls = getattr(owner, name), []

    def dying(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)

    setattr(owner, name, dying)
