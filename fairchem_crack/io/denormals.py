"""Numbers below 1.2e-38, which Intel's processors compute with many times more slowly than with others.

Where a Gaussian basis of distances has died down it is full of them (docs/benchmarks/denormals.md). As 0 they change no
digit of a float32 result that is not itself so small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

FLOATS = (np.float16, np.float32, np.float64)


@contextmanager
def without_denormals() -> Iterator[None]:
    """Within this context the CPU takes them for 0, in this thread and those that it starts."""
    for dtype in FLOATS:
        np.finfo(dtype)  # which warns where its first call finds them to be 0, and remembers what it found before
    were_flushed = float(torch.tensor(1e-40) * 1) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(were_flushed)
