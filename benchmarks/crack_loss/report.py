"""The page and the picture of the results."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from benchmarks.crack_loss.methods import ATOMS_PER_SYSTEM, METHODS, PAIRS_PER_ATOM, WIDTH

SIZES = {"cpu": (1000, 2000, 4000, 8000, 16000, 32000), "cuda": (2000, 4000, 8000, 16000, 32000, 64000)}
# P x P x D products of kernels that multiply relations: logits forward and backward, their gradient; each three of TF32.
KERNEL_PRODUCTS = 3 * 3
LABELS = {
    "dense": "dense, 2P x 2P",
    "tiled": "tiled, D-long dot products",
    "unfused": "ours, torch operations",
    "ours": "ours, fused",
}


def report(document: dict) -> str:
    """The page, as markdown."""
    results, machine, device = document["results"], document["machine"], document.get("device", "cpu")
    by_case = {(row["method"], row["pairs"]): row for row in results}
    name = "crack_loss" if device == "cpu" else "crack_loss_gpu"
    command = "python -m benchmarks.crack_loss" + ("" if device == "cpu" else f" --device {device}")
    lines = [
        "# The CRACK loss: time, memory, error" + ("" if device == "cpu" else ", on a GPU"),
        "",
        f"Forward and backward, float32, D = {WIDTH}, N = P / {PAIRS_PER_ATOM}, systems of {ATOMS_PER_SYSTEM} atoms, "
        f"one run side by side: {machine}. Seconds are the median, in brackets the range. Peak memory is beyond inputs.",
        f"`{command}` makes this page, `{name}.json` and the picture.",
        "",
        "| P | " + " | ".join(f"{LABELS[m]}: s | MB" for m in METHODS) + " | dense / ours | tiled / ours | unfused / ours |",
        "|---" * (3 * len(METHODS)) + "|",
    ]
    for pairs in SIZES[device]:
        cells, ratios = [], []
        for method in METHODS:
            row = by_case.get((method, pairs))
            cells.append(
                f"{row['median']:.3g} [{min(row['seconds']):.3g}, {max(row['seconds']):.3g}] | {row['peak_mb']:.0f}"
                if row
                else "does not fit | "
            )
            if method != "ours":
                ratios.append(f"{row['median'] / by_case['ours', pairs]['median']:.1f}" if row else "")
        lines.append(f"| {pairs} | " + " | ".join(cells + ratios) + " |")
    mine = [row for row in results if row["method"] == "ours"]
    lines += [
        "",
        f"Ours grows as P^{exponent(mine, 'median'):.2f} in time and P^{exponent(mine, 'peak_mb'):.2f} in memory "
        "(fit of the three largest sizes).",
        *(bound_lines(mine, document["tf32_rate"]) if "tf32_rate" in document else ()),
        "",
        "| P | relative error of the loss | of the gradient (against dense float64) |",
        "|---|---|---|",
        *(
            f"| {row['pairs']} | {row['loss_error']:.1e} | {row['gradient_error']:.1e} |"
            for row in mine
            if "loss_error" in row
        ),
        "",
        f"![time and memory]({name}.png)",
        "",
    ]
    return "\n".join(lines)


def exponent(rows: list[dict], quantity: str) -> float:
    """Slope of log quantity over log P at the three largest sizes."""
    points = [(math.log(row["pairs"]), math.log(row[quantity])) for row in rows[-3:]]
    x, y = (statistics.mean(values) for values in zip(*points))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def bound_lines(rows: list[dict], rate: float) -> list[str]:
    """Against kernels that would multiply the relations themselves, which need tensor cores."""
    return [
        "",
        f"Kernels that multiply the relations themselves, in three products (of the logits forward and backward, of their "
        f"gradient) and each TF32 in three parts, cannot be faster than {KERNEL_PRODUCTS} P x P x D at this GPU's rate: "
        f"{rate / 1e12:.0f} TFLOP/s for 8192 x 8192 matrices in TF32. Ours multiply atoms and relations, P / N times less, "
        "in float32.",
        "",
        "| P | ours, ms | bound of such kernels, ms | ours / bound |",
        "|---|---|---|---|",
        *(
            f"| {row['pairs']} | {1e3 * row['median']:.2f} | {1e3 * shortest:.2f} | {row['median'] / shortest:.1f} |"
            for row, shortest in ((row, bound(row, rate)) for row in rows)
        ),
    ]


def bound(row: dict, rate: float) -> float:
    """Seconds of the products of relations."""
    return KERNEL_PRODUCTS * 2 * row["pairs"] ** 2 * WIDTH / rate


def draw(results: list[dict], file: Path) -> None:
    """Log-log picture of time and memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    colors = {"dense": "#9aa5b1", "tiled": "#457b9d", "unfused": "#e9a23b", "ours": "#d1495b"}
    for method in METHODS:
        rows = [row for row in results if row["method"] == method]
        pairs = [row["pairs"] for row in rows]
        axes[0].loglog(pairs, [row["median"] for row in rows], "o-", color=colors[method], label=LABELS[method])
        axes[1].loglog(pairs, [row["peak_mb"] for row in rows], "o-", color=colors[method])
    for axis, title in zip(axes, ("forward + backward [s]", "peak extra memory [MB]")):
        axis.set(xlabel="pairs P", title=title)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=150)
