"""An evenly spaced sample of indices."""

from __future__ import annotations


def evenly_spaced(size: int, count: int) -> list[int]:
    """At most `count` indices below `size`, in order: 0, and then one every size / count."""
    count = min(count, size)
    return [index * size // count for index in range(count)]
