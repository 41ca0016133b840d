"""The page of a GPU day: a pure function of gpu.json, which `benchmarks/gpu/day.py` fills.

python -m benchmarks.gpu.report OUT/gpu.json          # writes docs/benchmarks/gpu.json and gpu.md, of a card's figures only
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks import ROOT

DOCS = ROOT / "docs/benchmarks"
KINDS = ("undistilled", "cached", "online")
GIB = 2**30
MOST_CACHED = 1.05  # the target: a cached step over an undistilled one
HEADINGS = {
    "tests": "Tests marked `gpu`",
    "loss": "The CRACK loss",
    "steps": "Training steps, float32",
    "amp": "Training steps, `--amp`",
    "host": "What works with this torch",
    "demo": "The demo with and without `--amp`",
    "ranks": "Several GPUs",
}


def report(content: dict) -> str:
    """The page, as markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [
        f"# A day on a GPU: {content['card']}",
        "",
        f"{content['card']}, {content['gpus']} of them, {content['cores']} CPU cores; {versions}; "
        f"commit {content['commit'] or 'unknown'}. torch-scatter and torch-sparse: {content['extensions']}. "
        f"`{content['command']}` makes this page and gpu.json. Times are medians, in brackets min and max.",
        *([content["note"]] if "note" in content else []),
        "",
        *table(
            ["part", "status", "seconds", "limit"],
            [
                [name, part["status"], f"{part['seconds']:.0f}", str(part["limit"])]
                for name, part in content["parts"].items()
            ],
        ),
    ]
    for name, part in content["parts"].items():
        rows = PAGES[name](part["rows"])
        if rows:
            lines += ["", f"## {HEADINGS[name]}", "", *rows]
    errors = {name: part["error"] for name, part in content["parts"].items() if part.get("error")}
    for name, error in errors.items():
        lines += ["", f"## Where {name} ended", "", "```", *error.splitlines()[-15:], "```"]
    return "\n".join([*lines, ""])


def table(heading: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a markdown table; none without rows."""
    if not rows:
        return []
    return ["| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows)]


def spread(values: list[float], digits: int = 2) -> str:
    """Median [min, max]."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low}, {high}]"


def last_line(text: str) -> str:
    """The end of a traceback, for a cell of a table."""
    return (text.strip().splitlines() or [""])[-1][:300].replace("|", "/")


def tests_page(rows: list[dict]) -> list[str]:
    """Outcomes, and what failed."""
    counts = defaultdict(int)
    for row in rows:
        counts[row["outcome"]] += 1
    failed = [[f"`{row['test']}`", last_line(row["error"])] for row in rows if row["outcome"] == "failed"]
    line = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    return [f"{line}.", "", *table(["failed", "error"], failed)] if rows else []


def loss_page(rows: list[dict]) -> list[str]:
    """Milliseconds and memory of each method at each P, and their ratios to ours."""
    cases = {(row["method"], row["pairs"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    others = [method for method in methods if method != "ours"]
    heading = ["P", *(f"{method}: ms, MB" for method in methods), *(f"{method} / ours" for method in others)]
    lines = []
    for pairs in sorted({row["pairs"] for row in rows}):
        of_size = {method: cases.get((method, pairs)) for method in methods}
        cells = [f"{1e3 * row['median']:.3g}, {row['peak_mb']:.0f}" if row else "" for row in of_size.values()]
        ours = of_size.get("ours")
        ratios = [
            f"{of_size[method]['median'] / ours['median']:.1f}" if ours and of_size[method] else "" for method in others
        ]
        lines.append([str(pairs), *cells, *ratios])
    page = table(heading, lines)
    checked = [row for row in rows if "loss_error" in row]
    if checked:
        errors = [
            [row["method"], str(row["pairs"]), f"{row['loss_error']:.1e}", f"{row['gradient_error']:.1e}"] for row in checked
        ]
        page += ["", *table(["method", "P", "relative error of the loss", "of the gradient, against float64"], errors)]
    return page


def steps_page(rows: list[dict]) -> list[str]:
    """Times, ratios and memory of the kinds of step."""
    rounds, sizes = defaultdict(list), {}
    for row in rows:
        if row["what"] == "round":
            rounds[row["student"]].append(row["seconds"])
        elif row["what"] == "sizes":
            sizes[row["student"]] = row
    parts = (*KINDS, "teacher", "undistilled loading", "cached loading")
    times = [
        [student, str(len(student_rounds)), *(spread([1e3 * row[part] for row in student_rounds], 1) for part in parts)]
        for student, student_rounds in rounds.items()
    ]
    ratios = [
        [
            student,
            spread([row["cached"] / row["undistilled"] for row in student_rounds]),
            spread([without_loading(row, "cached") / without_loading(row, "undistilled") for row in student_rounds]),
            spread([row["online"] / (row["undistilled"] + row["teacher"]) for row in student_rounds]),
            spread([row["online"] / row["undistilled"] for row in student_rounds]),
        ]
        for student, student_rounds in rounds.items()
    ]
    page = table(["student", "rounds", *(f"{part}, ms" for part in parts)], times)
    heading = ["student", f"cached / undistilled (target: at most {MOST_CACHED})", "the same, once batches are loaded"]
    heading += ["online / (undistilled + teacher)", "online / undistilled"]
    page += ["", *table(heading, ratios)] if ratios else []
    page += ["", *memory_table(sizes)] if sizes else []
    return page + [line for row in rows for line in steps_note(row)]


def without_loading(seconds: dict[str, float], kind: str) -> float:
    """Seconds of a step after its batch was loaded: what loader workers, which these steps do not have, leave of it."""
    return seconds[kind] - seconds[f"{kind} loading"]


def memory_table(sizes: dict[str, dict]) -> list[str]:
    """What a student's step holds on the GPU, weights, gradients, optimizer and teacher, and what it takes beyond that."""
    lines = []
    for student, row in sizes.items():
        held = [f"{row['resident'][kind] / GIB:.2f}, {row['growth'][kind] / GIB:.2f}" for kind in KINDS]
        counts = [f"{row['parameters'] / 1e6:.1f}M", *(str(row[name]) for name in ("batch_size", "atoms", "pairs"))]
        lines.append([student, *counts, *held])
    heading = ["student", "parameters", "systems", "atoms", "pairs"]
    return table([*heading, *(f"{kind}: GiB held, and more at the peak" for kind in KINDS)], lines)


def steps_note(row: dict) -> list[str]:
    """A line for the teacher cache and for a student that failed."""
    if row["what"] == "error":
        return ["", f"{row['student']} failed: `{last_line(row['error'])}`"]
    if row["what"] == "cache":
        made, loaded = f"{row['seconds']:.1f} s", f"{row['loaded']:.1f} s"
        return [
            "",
            f"Filling the teacher cache, {row['systems']} systems of {row['atoms']} atoms: {made}, after {loaded} to load.",
        ]
    return []


def host_page(rows: list[dict]) -> list[str]:
    """What works, and the last line of what does not."""
    works = [row["what"] for row in rows if row["works"]]
    failed = [[row["what"], last_line(row["error"])] for row in rows if not row["works"]]
    if not rows:
        return []
    unmodified = (
        "fairchem is unmodified: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 is set, as it stores plain pickles, which torch 2.6 and "
        "later refuse; benchmarks/gpu/site/ has scipy's sph_harm, which 1.17 removed, and an empty wandb."
    )
    summary = f"{len(works)} of {len(rows)} trials work: {', '.join(works)}."
    return [unmodified, "", summary, "", *table(["does not work", "error"], failed)]


def demo_page(rows: list[dict]) -> list[str]:
    """Errors of the last validations over the seeds, in float32 and mixed precision."""
    last = {row["run"]: row for row in rows if "error" not in row}
    kinds = defaultdict(list)
    for run, row in last.items():
        kinds[run.rpartition("-")[0]].append(row)
    names = {"epoch": 1, "energy_mae": 4, "forces_mae": 4, "seconds": 0}
    lines = [
        [kind, str(len(of_kind)), *(spread([row[name] for row in of_kind], digits) for name, digits in names.items())]
        for kind, of_kind in kinds.items()
    ]
    page = table(["training", "seeds", "epochs", "energy MAE, eV", "force MAE, eV/A", "s, side by side"], lines)
    return page + [
        line for row in rows if "error" in row for line in ("", f"{row['run']} failed: `{last_line(row['error'])}`")
    ]


PAGES: dict[str, Callable[[list[dict]], list[str]]] = {
    "tests": tests_page,
    "loss": loss_page,
    "steps": steps_page,
    "amp": steps_page,
    "host": host_page,
    "demo": demo_page,
    "ranks": demo_page,
}


def publish(file: Path, directory: Path) -> None:
    """Write the figures and their page to a directory.

    Raises:
        ValueError: the figures are of a dry run.
    """
    content = json.loads(file.read_text())
    if content["device"] != "cuda":
        raise ValueError(f"{file}: the figures are of {content['card']}, a dry run, and not of a GPU.")
    (directory / "gpu.json").write_text(json.dumps(content, indent=1))
    (directory / "gpu.md").write_text(report(content), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    publish(parser.parse_args().file, DOCS)
