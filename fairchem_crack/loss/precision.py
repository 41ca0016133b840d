"""Full precision for differences of nearly equal numbers, whatever a user's settings permit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Context in which float32 operations are computed in float32.

    No autocast, and matrix products without TF32 (CUDA) or bfloat16 (CPU), which `allow_tf32` and
    `torch.set_float32_matmul_precision` permit: they keep 10 or 7 bits of 23, and the difference of two nearly equal
    products keeps none.

    Args:
        device_type: "cpu" or "cuda", of the tensors.
    """
    permitted = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(permitted)
