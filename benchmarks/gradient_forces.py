"""Direct and gradient forces at constant energy: docs/benchmarks/gradient_forces.{json,md}.

    fairchem-crack stability --checkpoint runs/*/checkpoints/gemnet-*-0/best_checkpoint.pt --data data/demo/val_id --cpu \
      --temperatures 300 --ps 0.02 --every 5 --drift-ps 0.5 --starts 3 --output build/seed-0.json
    python -m benchmarks.gradient_forces build/seed-*.json

Checkpoints are named STUDENT-FORCES-TRAINING-SEED, for example gemnet-direct-distilled-0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from fairchem_crack.io.files import write_json, write_text

DOCS = Path(__file__).parents[1] / "docs/benchmarks"
COLUMNS = (
    *("student", "forces", "training", "seeds", "energy MAE [eV]", "force MAE [eV/A]"),
    *("to the end", "lasted [ps]", "drift [meV/atom/ps]"),
)
STUDENTS = {"gemnet": "GemNet-dT", "painn": "PaiNN"}


def collect(files: list[Path]) -> dict[str, Any]:
    """The rows of all checkpoints in files of `fairchem-crack stability`."""
    rows, first = [], json.loads(files[0].read_text())
    for file in files:
        for name, figures in json.loads(file.read_text())["checkpoints"].items():
            student, forces, training, seed = name.split("-")
            metrics = torch.load(figures["path"], map_location="cpu", weights_only=False)["val_metrics"]
            course = figures["constant_energy"]
            rows.append(
                {
                    "student": student,
                    "forces": forces,
                    "training": training,
                    "seed": int(seed),
                    "energy_mae": metrics["energy_mae"]["metric"],
                    "forces_mae": metrics["forces_mae"]["metric"],
                    "drift": course["drift"],
                    "ps": course["ps"],
                }
            )
    options = {name: first["options"][name] for name in ("temperatures", "drift_ps")}
    return {"machine": first["machine"], "starts": len(first["starts"]["atoms"]), **options, "rows": rows}


def report(content: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Direct forces and forces that are a gradient",
        "",
        f"Small students of the demo, 374 or 380 steps, at constant energy for {content['drift_ps']:g} ps from",
        f"velocities of {content['temperatures'][0]:g} K, {content['starts']} validation systems for each seed.",
        "Undistilled: on 300 labelled systems. Distilled: on generated ones, with the teacher's labels.",
        "Written by `python -m benchmarks.gradient_forces`.",
        "",
        "A run ends early above 2000 K, or with two atoms too close; drift (median of the absolute value [min, max]) is of",
        "the others. Errors are means over the seeds, on 200 validation systems.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for (student, forces, training), rows in grouped(content["rows"]).items():
        drifts = sorted(abs(drift) for row in rows for drift in row["drift"] if drift is not None)
        lasted = [ps for row in rows for ps in row["ps"]]
        drift = f"{median(drifts):.1f} [{drifts[0]:.1f}, {drifts[-1]:.1f}]" if drifts else "-"
        errors = " | ".join(f"{mean(row[name] for row in rows):.3f}" for name in ("energy_mae", "forces_mae"))
        lines.append(
            f"| {STUDENTS[student]} | {forces} | {training} | {len(rows)} | {errors} | {len(drifts)} of {len(lasted)} "
            f"| {median(lasted):.2f} [{min(lasted):.2f}, {max(lasted):.2f}] | {drift} |"
        )
    return "\n".join(lines) + "\n"


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The seeds of each student, kind of forces and training."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["student"], row["forces"], row["training"] == "distilled", row["seed"])):
        groups.setdefault((row["student"], row["forces"], row["training"]), []).append(row)
    return groups


def main() -> None:
    """Collect and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=DOCS / "gradient_forces.json")
    options = parser.parse_args()
    content = collect(options.files)
    write_json(options.output, content)
    write_text(options.output.with_suffix(".md"), report(content))


if __name__ == "__main__":
    main()
