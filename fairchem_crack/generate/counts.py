"""How many systems are thrown out, by strategy and reason."""

from __future__ import annotations

from collections import Counter


def nested(counts: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """As JSON has them."""
    by_strategy: dict[str, dict[str, int]] = {}
    for (strategy, reason), count in sorted(counts.items()):
        by_strategy.setdefault(strategy, {})[reason] = count
    return by_strategy


def describe(thrown_out: dict[str, dict[str, int]]) -> str:
    """For example `rattle: 3 two atoms too close; md: 1 a force above the limit`."""
    return "; ".join(
        f"{strategy}: " + ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        for strategy, reasons in thrown_out.items()
    )
