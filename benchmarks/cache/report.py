"""The page of the teacher cache: its figures by size, exponents, and what larger caches would take."""

from __future__ import annotations

import math
from typing import Any, Optional

FIELDS: dict[str, Optional[list[str]]] = {  # what a training reads of a record
    "all fields": None,
    "embedding and pairs": ["node_embedding", "pairs"],
    "energy and forces": ["energy", "forces"],
}
GROWING = {  # figure -> its name on the page
    "bytes": "bytes on disk",
    "write_cpu": "CPU time of writing",
    "finish_seconds": "finishing",
    "finish_mb": "memory of finishing",
    "open_seconds": "opening",
    "open_mb": "memory of opening",
}
DATASETS = {"2M": 2_000_000, "172M": 172_000_000}  # OC20 S2EF 2M; All + MD
NEGLIGIBLE = 0.5  # MB, of memory: what Python itself takes now and then


def by_shape(content: dict) -> dict[str, list[dict]]:
    """The rows of each size of record, by number of systems."""
    shapes = dict.fromkeys(row["shape"] for row in content["rows"])
    rows = sorted(content["rows"], key=lambda row: row["systems"])
    return {shape: [row for row in rows if row["shape"] == shape] for shape in shapes}


def exponent(rows: list[dict], name: str) -> float:
    """p of figure ~ systems^p, from the smallest to the largest cache; 0 where the figure is negligible."""
    first, last = rows[0], rows[-1]
    if name.endswith("_mb") and last[name] < NEGLIGIBLE:
        return 0.0
    low = max(first[name], NEGLIGIBLE) if name.endswith("_mb") else first[name]
    return math.log(last[name] / low) / math.log(last["systems"] / first["systems"])


def expected(content: dict, systems: int) -> dict[str, float]:
    """What a cache of realistic records and so many systems takes, in proportion to the largest ones measured.

    Bytes and writing follow the records; finishing and its memory follow their number, whose largest cache has the
    smallest records. Opening does not grow.
    """
    realistic, smallest = (rows[-1] for rows in by_shape(content).values())
    records, rows = systems / realistic["systems"], systems / smallest["systems"]
    return {
        "gigabytes": realistic["bytes"] * records / 1e9,
        "write_hours": realistic["write_seconds"] * records / 3600,
        "finish_minutes": smallest["finish_seconds"] * rows / 60,
        "finish_gb": smallest["finish_mb"] * rows / 1e3,
        "open_seconds": max(realistic["open_seconds"], smallest["open_seconds"]),
        "epoch_gb": realistic["cold"]["all fields"]["bytes"] * systems / 1e9,
    }


def report(content: dict) -> str:
    """The page, as markdown."""
    lines = [
        "# The teacher cache: bytes, writing, finishing, opening, reading",
        "",
        f"{content['machine']}. One process writes, finishes and reads each cache; each figure is of a process of its own. "
        "Cold: the files are not in the page cache when the reading begins "
        f"(`posix_fadvise`). {content['reads']} records are read in random order, each once, by the digest of its system. "
        f"Load of the machine before it began: {content['load']:.1f}. `{content['command']}` makes this page and "
        "`cache.json`.",
    ]
    for shape, rows in by_shape(content).items():
        lines += ["", f"## Records of {shape}: {rows[-1]['record_bytes']:,} bytes", "", *_growth(rows), "", *_reading(rows)]
    return "\n".join([*lines, "", *_expectations(content), "", *_layouts(content), ""])


def _growth(rows: list[dict]) -> list[str]:
    lines = [
        "| systems | bytes a system | writing, systems / s (CPU) | finish, s | its memory, MB | open, ms | its memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        systems = row["systems"]
        cells = [f"{row['bytes'] / systems:,.0f}"]
        cells += [f"{systems / row['write_seconds']:,.0f} ({systems / row['write_cpu']:,.0f})"]
        cells += [f"{row['finish_seconds']:.2f}", f"{row['finish_mb']:.0f}"]
        cells += [f"{1e3 * row['open_seconds']:.1f}", f"{row['open_mb']:.1f}"]
        lines.append(f"| {systems:,} | {' | '.join(cells)} |")
    powers = ", ".join(f"{title} {exponent(rows, name):.2f}" for name, title in GROWING.items())
    return [*lines, "", f"Exponents, from the smallest to the largest cache: {powers}."]


def _reading(rows: list[dict]) -> list[str]:
    heads = " | ".join(f"{name}: bytes / record's, ms" for name in FIELDS)
    lines = [f"| systems | cold, {heads} | major page faults | warm, all fields, ms |", f"|{'---|' * (len(FIELDS) + 3)}"]
    for row in rows:
        costs = [row["cold"][name] for name in FIELDS]
        cells = [f"{cost['bytes'] / row['record_bytes']:.2f}, {cost['ms']:.2f}" for cost in costs]
        faults = max(cost["faults"] for cost in costs)
        lines.append(f"| {row['systems']:,} | {' | '.join(cells)} | {faults:.2f} | {row['warm']['ms']:.2f} |")
    return lines


def _expectations(content: dict) -> list[str]:
    lines = [
        "## What larger caches would take",
        "",
        "In proportion to the largest caches above: bytes, writing and reading to the one of realistic records, finishing "
        "to the one of most records. Not measured.",
        "",
        "| systems | disk, GB | writing by one process, h | finish, min | its memory, GB | open, s | a cold epoch, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, systems in DATASETS.items():
        values: dict[str, Any] = expected(content, systems)
        cells = [f"{values['gigabytes']:,.0f}", f"{values['write_hours']:.1f}", f"{values['finish_minutes']:.1f}"]
        cells += [f"{values['finish_gb']:.1f}", f"{values['open_seconds']:.2f}", f"{values['epoch_gb']:,.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _layouts(content: dict) -> list[str]:
    lines = [
        "## Beside LMDB",
        "",
        f"{content['layout_size']:,} realistic records in each layout, without the digests and checksums of ours, and "
        f"{content['reads']} of them read in random order, cold.",
        "",
        "| layout | bytes on disk / record's | bytes read / record's | major page faults | ms |",
        "|---|---|---|---|---|",
    ]
    for row in content["layouts"]:
        size = row["record_bytes"]
        cells = [f"{row['disk_bytes'] / size:.2f}", f"{row['bytes'] / size:.2f}", f"{row['faults']:.2f}", f"{row['ms']:.2f}"]
        lines.append(f"| {row['layout']} | {' | '.join(cells)} |")
    return lines
