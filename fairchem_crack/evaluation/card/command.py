"""A model card, from a checkpoint, its YAML and its evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Optional

import yaml
from tabulate import tabulate

from fairchem_crack.evaluation.card.options import parser
from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.tables import ERRORS, METRICS, Cell, cell, digits, gap_cell
from fairchem_crack.io.checkpoints import model_config, read_checkpoint
from fairchem_crack.io.files import write_text

CARD = """---
{front}---
# {title}
{about}{model}

## Training
{training}

## Errors
{errors}

## Speed
{speed}

## Use
```python
from fairchem.core import OCPCalculator

atoms.calc = OCPCalculator(checkpoint_path="{file}", cpu=True)
```

It is a checkpoint of fairchem-core 1.10. Its file is a pickle: read it only from a source you trust, and compare its hash.
It is for systems like those that it was trained and evaluated on; of others the errors above say nothing.
"""
UNSAID = "Not measured: give the JSON that `fairchem-crack evaluate --output` writes."


def card(arguments: list[str]) -> None:
    """Write the card."""
    options = parser().parse_args(arguments)
    for path in (options.checkpoint, options.evaluation, options.config_yml):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (looked in {Path.cwd()}).")
    evaluation = None if options.evaluation is None else read_evaluation(options.evaluation, options.checkpoint)
    training = None if options.config_yml is None else read_config(options.config_yml)
    about = "" if options.config_yml is None else first_comment(options.config_yml)
    text = text_of(options.checkpoint, evaluation, training, about=about, licence=options.licence)
    write_text(options.output, text)
    print(f"{options.output} written.")


def text_of(
    checkpoint: Path,
    evaluation: Optional[dict[str, Any]],
    training: Optional[dict[str, Any]],
    *,
    about: str,
    licence: str,
) -> str:
    """The card.

    Args:
        evaluation: the content of `read_evaluation`.
        training: the YAML of its training with everything that it includes.
        about: what the model is, in a sentence, or "".
    """
    content = read_checkpoint(checkpoint)
    name, options = model_config(content, checkpoint)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    size = sum(tensor.numel() for tensor in content["state_dict"].values())
    front = {"license": licence, "library_name": "fairchem-core", "tags": ["interatomic-potential", "catalysis", name]}
    shown = ", ".join(f"`{key}` {value}" for key, value in options.items() if isinstance(value, (bool, int, float, str)))
    distill = _distill_of(training)
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=f"{name}, distilled from {Path(_teacher_of(distill)).stem}" if distill else name,
        about=f"{about}\n\n" if about else "",
        model=f"`{name}`, {size:,} parameters and buffers. {shown}.\n\nSHA-256 of `{checkpoint.name}`: `{digest}`",
        training=_listed(_training_of(content["config"], content.get("crack_distill") or {}, training)),
        errors=UNSAID if evaluation is None else _errors(evaluation),
        speed=UNSAID if evaluation is None else _speed(evaluation),
        file=checkpoint.name,
    )


def read_evaluation(file: Path, checkpoint: Path) -> dict[str, Any]:
    """What `evaluate` wrote of this checkpoint: its rows, and all models' speeds.

    Raises:
        ValueError: another JSON, or one without this checkpoint.
    """
    where = f"--evaluation {file}"
    try:
        content = json.loads(file.read_text())
        models, rows = content["models"], content["rows"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{where}: expected the JSON that fairchem-crack evaluate --output writes.") from None
    name = {Path(path).resolve(): model["name"] for path, model in models.items()}.get(checkpoint.resolve())
    if name is None:
        raise ValueError(f"{where}: {checkpoint} is not in it; it has {', '.join(models)}.")
    labels = content.get("labels", "data")
    return {"name": name, "rows": [row for row in rows if row["model"] == name], "models": models, "labels": labels}


def read_config(file: Path) -> dict[str, Any]:
    """A YAML of fairchem with everything that it includes."""
    from fairchem.core.common.utils import load_config

    return load_config(str(file))[0]


def first_comment(file: Path) -> str:
    """The comment in the first line of a YAML, or ""."""
    first, _, _ = file.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _distill_of(training: Optional[dict[str, Any]]) -> dict[str, Any]:
    return ((training or {}).get("task") or {}).get("distill") or {}


def _teacher_of(distill: dict[str, Any]) -> str:
    teacher = distill.get("teacher") or {}
    return str(teacher.get("checkpoint") or teacher.get("cache") or "its teacher")


def _training_of(config: dict[str, Any], progress: dict[str, Any], training: Optional[dict[str, Any]]) -> dict[str, str]:
    data, optim = config.get("dataset") or {}, config.get("optim") or {}
    losses = (training or config).get("loss_functions") or []
    terms = [f"`{key}` {options.get('coefficient', 1)}" for loss in losses for key, options in loss.items()]
    distill = _distill_of(training)
    return {
        "teacher": f"`{_teacher_of(distill)}`" if distill else "",
        "data": f"`{data['src']}`" if data.get("src") else "",
        "labels": f"{distill.get('labels', 'data')}" if distill else "",
        "loss": ", ".join(terms),
        "steps": f"{progress['step']:,}" if progress.get("step") else "",
        "optimizer": f"{optim.get('optimizer', '')}, learning rate {optim.get('lr_initial', '')}, "
        f"batches of {optim.get('batch_size', '')}",
        "seed": str((config.get("cmd") or {}).get("seed", "")),
    }


def _listed(facts: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _errors(evaluation: dict[str, Any]) -> str:
    rows = []
    for row in evaluation["rows"]:
        errors = [
            cell(_interval(row["intervals"][name])) if name in row["intervals"] else row["metrics"][name] for name in ERRORS
        ]
        others = [form(row["metrics"][name]) for name, (_, form) in METRICS.items() if name not in ERRORS]
        gaps = [str(gap_cell(_interval(row["gaps"][name]))) if row["gaps"].get(name) else "" for name in ERRORS]
        rows.append([row["split"], *errors, *others, " / ".join(gaps).strip(" /")])
    headings = ["split", *(heading for heading, _ in METRICS.values()), "gap closed, energy / forces"]
    since = " Errors are differences from the outputs of its teacher." if evaluation["labels"] == "teacher" else ""
    return f"{_table(headings, rows)}\n\nIn brackets 95 % intervals over the systems.{since}"


def _speed(evaluation: dict[str, Any]) -> str:
    rows = [
        [
            model["name"],
            f"{model['parameters']:,}" if model["parameters"] else "",
            size,
            digits(median(speed["atoms_per_second"])),
        ]
        for model in evaluation["models"].values()
        for size, speed in (model["speed"] or {}).items()
    ]
    if not rows:
        return UNSAID
    table = _table(["model", "parameters", "systems in a batch", "atoms/s"], rows)
    return f"{table}\n\nMedians of one evaluation, on one machine: they compare these models with each other."


def _interval(values: dict[str, Optional[float]]) -> Interval:
    estimate, low, high = (
        float("nan") if (value := values[name]) is None else value for name in ("estimate", "low", "high")
    )
    return Interval(estimate, low, high)


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    texts = [[str(value) if isinstance(value, (str, Cell)) else digits(value) for value in row] for row in rows]
    return tabulate(texts, headings, tablefmt="github", disable_numparse=True)
