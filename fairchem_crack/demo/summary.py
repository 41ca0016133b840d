"""The demo's result: undistilled student, distilled student and teacher on the four validation splits."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from fairchem_crack.demo.prepare import SPLITS
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.io.files import whole, write_json

MODELS = ("undistilled", "crack", "teacher")
COLUMNS = {  # of summary.json: heading, format
    "energy_mae": ("energy MAE [eV]", "{:.3f}"),
    "forces_mae": ("force MAE [eV/A]", "{:.4f}"),
    "forces_cosine_similarity": ("force cosine", "{:.3f}"),
    "energy_forces_within_threshold": ("EFwT [%]", "{:.1%}"),
}
ERRORS = ("energy_mae", "forces_mae")
VALIDATION_SPLITS = tuple(split for split in SPLITS if split != "train")
# What the demo's architectures are called in print.
TITLES = {"painn": "PaiNN", "gemnet_t": "GemNet-dT", "equiformer_v2": "EquiformerV2", "escn": "eSCN"}
DATASET = {"format": "lmdb", "key_mapping": {"y": "energy", "force": "forces"}}


def summarize_demo(run_dir: Path, *, data: Path, teacher: Path, seeds: list[int]) -> None:
    """Evaluate the best checkpoints below `run_dir`; print the table, write summary.json and summary.png there."""
    checkpoints = [
        (model, seed, run_dir / "checkpoints" / f"{model}-{seed}" / "best_checkpoint.pt")
        for seed in seeds
        for model in ("undistilled", "crack")
    ]
    checkpoints.append(("teacher", 0, teacher))
    missing = [str(path) for _, _, path in checkpoints if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"missing {', '.join(missing)}; `make demo` trains them.")
    logging.disable(logging.WARNING)  # fairchem describes each model at length while loading it
    rows = [row for model, seed, path in checkpoints for row in _evaluate(model, seed, path, data)]
    logging.disable(logging.NOTSET)

    write_json(run_dir / "summary.json", rows)
    draw(rows, run_dir / "summary.png")
    print(table(rows))
    print("\nWritten:")
    for model, seed, path in checkpoints:
        print(f"  {path}  ({model}, seed {seed})" if model != "teacher" else f"  {path}  (teacher, as shipped)")
    print(f"  {run_dir / 'logs'}  (TensorBoard: tensorboard --logdir {run_dir / 'logs'})")
    print(f"  {run_dir / 'summary.json'}\n  {run_dir / 'summary.png'}")


def _evaluate(model: str, seed: int, checkpoint: Path, data: Path) -> Iterable[dict]:
    evaluator = CheckpointEvaluator(checkpoint, DATASET)
    speed = evaluator.atoms_per_second(data / "val_id")
    for split in VALIDATION_SPLITS:
        metrics = evaluator.metrics(data / split)
        yield {
            "model": model,
            "architecture": evaluator.architecture,
            "seed": seed,
            "split": split,
            **{name: metrics[name] for name in COLUMNS},
            "atoms_per_second": speed,
        }


def average(rows: list[dict], model: str, split: str, column: str) -> float:
    """Mean of a column over the seeds."""
    return mean(row[column] for row in rows if row["model"] == model and row["split"] == split)


def gap_closed(rows: list[dict], split: str, column: str) -> float:
    """(undistilled - distilled) / (undistilled - teacher) of an error on one split."""
    undistilled, distilled, teacher = (average(rows, model, split, column) for model in MODELS)
    return (undistilled - distilled) / (undistilled - teacher)


def table(rows: list[dict]) -> str:
    """The leaderboard-style table, as text."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [f"Mean over {len(seeds)} seeds." if len(seeds) > 1 else f"Seed {seeds[0]}."]
    width = max(len(heading) for heading, _ in COLUMNS.values()) + 2
    for split in VALIDATION_SPLITS:
        lines += ["", f"{split:<14}" + "".join(f"{heading:>{width}}" for heading, _ in COLUMNS.values())]
        for model in MODELS:
            cells = (form.format(average(rows, model, split, name)) for name, (_, form) in COLUMNS.items())
            lines.append(f"  {model:<12}" + "".join(f"{cell:>{width}}" for cell in cells))
        closed = (f"{gap_closed(rows, split, name):.0%}" if name in ERRORS else "" for name in COLUMNS)
        lines.append(f"  {'gap closed':<12}" + "".join(f"{cell:>{width}}" for cell in closed))
    speed = {model: average(rows, model, "val_id", "atoms_per_second") for model in MODELS}
    lines += ["", "Inference: " + ", ".join(f"{model} {value:,.0f} atoms/s" for model, value in speed.items())]
    lines.append(f"The distilled student is {speed['crack'] / speed['teacher']:.1f} times as fast as the teacher.")
    return "\n".join(lines)


def draw(rows: list[dict], file: Path) -> None:
    """Bars of energy and force MAE per split and model, labelled with the gap closed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors = {"undistilled": "#9aa5b1", "crack": "#d1495b", "teacher": "#1d3557"}
    title = {row["model"]: TITLES.get(row["architecture"], row["architecture"]) for row in rows}
    labels = {
        "undistilled": f"{title['undistilled']}, labels alone",
        "crack": f"{title['crack']}, distilled",
        "teacher": f"{title['teacher']} teacher",
    }
    seeds = {row["seed"] for row in rows}
    figure, axes = pyplot.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    for axis, column in zip(axes, ERRORS):
        for offset, model in enumerate(MODELS):
            heights = [average(rows, model, split, column) for split in VALIDATION_SPLITS]
            positions = [index + 0.27 * (offset - 1) for index in range(len(heights))]
            axis.bar(positions, heights, width=0.25, color=colors[model], label=labels[model])
            for row in rows:
                if row["model"] == model and model != "teacher" and len(seeds) > 1:  # one dot for each seed
                    at = positions[VALIDATION_SPLITS.index(row["split"])]
                    axis.plot(at, row[column], ".", color="black", markersize=4)
        for index, split in enumerate(VALIDATION_SPLITS):
            top = max(row[column] for row in rows if row["split"] == split)
            text = f"gap closed\n{gap_closed(rows, split, column):.0%}"
            axis.annotate(
                text, (index, top), ha="center", va="bottom", fontsize=8, xytext=(0, 3), textcoords="offset points"
            )
        axis.set_xticks(range(len(VALIDATION_SPLITS)), VALIDATION_SPLITS)
        axis.set_ylabel(COLUMNS[column][0].replace("/A]", "/Å]"))
        axis.margins(y=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    with whole(file) as partial:
        figure.savefig(partial, dpi=150)
    pyplot.close(figure)
