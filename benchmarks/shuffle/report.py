"""The page of the shuffle buffer: cold reads in each order, and the demo's errors."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from benchmarks.shuffle.accuracy import BLOCK, METRICS, ORDERS, SPLITS
from fairchem_crack.evaluation.intervals import Interval, t_interval

MEAN = "mean of the four"
SHOWN = ("val_id", "val_ood_both", MEAN)
UNIFORM = next(iter(ORDERS))
UNITS = {"energy_mae": "energy, eV", "forces_mae": "forces, eV/Å"}


def seeds(content: dict[str, Any], order: str) -> list[int]:
    """Those with which an order was trained and evaluated."""
    return sorted({row["seed"] for row in content["rows"] if row["order"] == order})


def error(content: dict[str, Any], order: str, seed: int, split: str, metric: str) -> float:
    """On one split, or averaged over the four."""
    rows = [row for row in content["rows"] if (row["order"], row["seed"]) == (order, seed)]
    return fmean(row[metric] for row in rows if row["split"] in (SPLITS if split == MEAN else (split,)))


def difference(content: dict[str, Any], order: str, split: str, metric: str) -> Interval:
    """Of an order's error and the uniform one's, paired by seed: mean and 95 % interval."""
    shared = [seed for seed in seeds(content, order) if seed in seeds(content, UNIFORM)]
    return t_interval([error(content, order, s, split, metric) - error(content, UNIFORM, s, split, metric) for s in shared])


def cost_ratio(content: dict[str, Any], source: str, figure: str) -> float:
    """Of a cold read in blocks and one in uniform order: `bytes` or `ms`."""
    by_order = {row["order"]: row[figure] for row in content["cost"]["rows"] if row["source"] == source}
    return by_order["in blocks"] / by_order["uniform"]


def report(content: dict[str, Any]) -> str:
    """The page, as markdown."""
    return "\n".join(["# An epoch in blocks with a shuffle buffer", "", *_cost(content), "", *_accuracy(content), ""])


def _cost(content: dict[str, Any]) -> list[str]:
    cost = content["cost"]
    lines = [
        f"{content['machine']}. Blocks of {cost['block']} systems, a buffer of {cost['buffer']:,}, the defaults of "
        f"`task.distill.shuffle`. The first of {cost['systems']:,} systems of an epoch are read from a cold page cache: "
        "from a teacher cache by digest, all fields; and from an LMDB with the options of fairchem's dataset, in the order "
        f"of its file, around whose faults the kernel reads {cost['around_kb']:,} kB on this disk. Nothing is kept of what "
        "was read long ago, as where both are larger than memory. `python -m benchmarks.shuffle` makes this page and "
        "`shuffle.json`.",
        "",
        "| | order | reads | bytes read / record's | major page faults | ms |",
        "|---|---|---|---|---|---|",
    ]
    for row in cost["rows"]:
        size = row["bytes"] / row["record_bytes"]
        lines.append(
            f"| {row['source']} | {row['order']} | {row['reads']:,} | {size:.2f} | {row['faults']:.2f} | {row['ms']:.2f} |"
        )
    ratios = [
        f"{source}: bytes {cost_ratio(content, source, 'bytes'):.2f}, time {cost_ratio(content, source, 'ms'):.2f}"
        for source in ("cache", "dataset")
    ]
    return [*lines, "", f"In blocks over uniform: {'; '.join(ratios)}."]


def _accuracy(content: dict[str, Any]) -> list[str]:
    lines = [
        "## Errors of the demo's PaiNN",
        "",
        f"300 training systems, 1140 steps of {BLOCK}, OC20's recipe (the demo's without the Hessian), "
        f"blocks of {BLOCK}. The data are sorted by "
        "their elements, so that neighbours are alike. First row: mean of the "
        "errors. Others: difference to it, paired by seed, ± half a 95 % t-interval.",
        "",
        f"| order | seeds | {' | '.join(f'{split}: {UNITS[metric]}' for split in SHOWN for metric in METRICS)} |",
        f"|{'---|' * (2 + len(SHOWN) * len(METRICS))}",
    ]
    for order in (order for order in ORDERS if seeds(content, order)):
        cells = []
        for split, metric in ((split, metric) for split in SHOWN for metric in METRICS):
            if order == UNIFORM:
                values = [error(content, order, seed, split, metric) for seed in seeds(content, order)]
                cells.append(f"{fmean(values):.4f}")
            else:
                interval = difference(content, order, split, metric)
                cells.append(f"{interval.estimate:+.4f} ± {interval.high - interval.estimate:.4f}")
        lines.append(f"| {order} | {len(seeds(content, order))} | {' | '.join(cells)} |")
    return lines
