"""The numbers of a report: models, errors, curves, embeddings. No pictures, no files written."""

from __future__ import annotations

import logging
import platform
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import torch
from fairchem.core.common.utils import setup_imports

import fairchem_crack
from fairchem_crack import keys
from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.report.curves import TRAIN, Curve, log_directory, read_curves
from fairchem_crack.evaluation.report.numbers import (
    Groups,
    average,
    by_adsorbate,
    by_element,
    gap_closed,
    metrics,
    system_errors,
)
from fairchem_crack.evaluation.report.predict import (
    AnyModel,
    Embeddings,
    Prediction,
    atoms_per_second,
    embed,
    load_model,
    predict,
    runner,
    title,
)
from fairchem_crack.evaluation.report.relations import Planes, Similarity, planes, similarity
from fairchem_crack.evaluation.report.request import ROLES, Request
from fairchem_crack.evaluation.report.systems import Split, load_split
from fairchem_crack.evaluation.s2ef.evaluator import check_errors
from fairchem_crack.evaluation.teacher_caches import TeacherCaches
from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.progress import trained_progress
from fairchem_crack.teacher.frozen import Teacher

STUDENTS: tuple[str, ...] = ("undistilled", "student")
EMBEDDED_SYSTEMS = 64  # whose node embeddings are compared


@dataclass(frozen=True)
class Model:
    """One of the models: what it is and how fast.

    Attributes:
        title: its architecture in print.
        checkpoint: its file.
        parameters: how many; None for a teacher that is not run.
        speed: atoms per second; None likewise.
        progress: of its training.
    """

    title: str
    checkpoint: str
    parameters: Optional[int]
    speed: Optional[float]
    progress: str = ""

    @property
    def facts(self) -> str:
        """In print."""
        size = "" if self.parameters is None else f"{self.parameters / 1e6:.3g}M parameters, "
        return f"{self.title}, {size}{self.checkpoint}, {self.progress}"


@dataclass(frozen=True)
class Findings:
    """All numbers of a report.

    A mapping of models has the keys of `ROLES` that were given; in `models`, `predictions`, `metrics` and `average` the
    names of further models follow.

    Attributes:
        facts: of the header: what, and its value.
        models: by role.
        splits: the data.
        predictions: by role and split.
        metrics: fairchem's, by split and role.
        average: of the metrics over the splits, by role; empty where there is one split.
        gaps: gap closed in energy and force MAE, by split; empty without undistilled student.
        average_gap: gap closed in the means over the splits; empty where there is one split.
        elements: force MAE by element.
        adsorbates: energy and force MAE by adsorbate; empty where no atom is tagged as one.
        curves: by role and TensorBoard's tag.
        planes: PCA of the node embeddings; None where the teacher's caches hold none.
        similarity: of the relations; None where `lacking` says why.
        lacking: see `predict.Embeddings`.
        stability: what `fairchem-crack stability` measured, or None.
    """

    facts: dict[str, str]
    models: dict[str, Model]
    splits: list[Split]
    predictions: dict[str, dict[str, Prediction]]
    metrics: dict[str, dict[str, dict[str, float]]]
    average: dict[str, dict[str, float]]
    gaps: dict[str, dict[str, Interval]]
    average_gap: dict[str, Interval]
    elements: Groups
    adsorbates: dict[str, Groups]
    curves: dict[str, dict[str, Curve]]
    planes: Planes | None
    similarity: Similarity | None
    lacking: str
    stability: dict[str, Any] | None


def collect(request: Request) -> Findings:
    """Run every model over every split, and compare their outputs."""
    setup_imports()
    device = torch.device("cuda" if torch.cuda.is_available() and not request.cpu else "cpu")
    caches = TeacherCaches(request.teacher_cache) if request.teacher_cache else None
    splits = [
        load_split(
            name,
            options,
            systems=request.systems,
            free_atoms_only=request.free_atoms_only,
            caches=caches,
            labels=request.labels,
        )
        for name, options in request.data.items()
    ]
    of_teacher = request.teacher if caches is None else caches.checkpoint
    named = {"undistilled": request.undistilled, "student": request.student, "teacher": of_teacher, **request.also}
    paths = {role: str(path) for role, path in named.items() if path is not None}
    loaded: dict[str, AnyModel] = {
        role: caches if caches is not None and role == "teacher" else load_model(role, path, device)
        for role, path in paths.items()
    }
    progress = {role: _progress(model) for role, model in loaded.items()}
    predictions: dict[str, dict[str, Prediction]] = {role: {} for role in loaded}
    for role, model in loaded.items():
        logging.info(f"{role}: {model.checkpoint}, {progress[role]}")
        run = runner(role, model, request.batch_size, device)
        for split in splits:
            logging.info(f"{role}: {len(split.systems)} of {split.total} systems of {split.name}")
            prediction = predict(role, model, run, split, batch_size=request.batch_size, device=device)
            check_errors(
                {name: x for name, (x, _) in system_errors(split, prediction).items()}, f"{paths[role]} on {split.source}"
            )
            predictions[role][split.name] = prediction
    logging.info("speeds, embeddings, pictures")
    timed = {role: model for role, model in loaded.items() if isinstance(model, Teacher)}
    speeds = atoms_per_second(timed, splits[0].systems[: request.batch_size], device)
    models = {role: _model(model, speeds.get(role), progress[role]) for role, model in loaded.items()}
    training = None if request.training is None else str(request.training)
    embeddings = None
    if caches is None or caches.has_embeddings:
        embedded = splits[0].systems[:EMBEDDED_SYSTEMS]
        embeddings = embed(loaded["teacher"], training, embedded, batch_size=request.batch_size, device=device)
    curves = {role: read_curves(log_directory(Path(paths[role]))) for role in STUDENTS if role in paths}
    measured = {
        split.name: {role: metrics(split, of_splits[split.name]) for role, of_splits in predictions.items()}
        for split in splits
    }
    compared_roles = {role: predictions[role] for role in ROLES if role in predictions}
    several = len(splits) > 1
    compared = None if embeddings is None else similarity(embeddings)
    return Findings(
        facts=_facts(request, models, splits, curves["student"], device),
        models=models,
        splits=splits,
        predictions=predictions,
        metrics=measured,
        average=average(measured) if several else {},
        gaps={split.name: gap_closed([split], compared_roles) for split in splits},
        average_gap=gap_closed(splits, compared_roles) if several else {},
        elements=by_element(splits, compared_roles),
        adsorbates=by_adsorbate(splits, compared_roles),
        curves=curves,
        planes=None if embeddings is None else planes(embeddings),
        similarity=compared,
        lacking=_lacking(embeddings, compared),
        stability=request.stability,
    )


def _lacking(embeddings: Embeddings | None, compared: Similarity | None) -> str:
    """Why the relations are not compared; empty where they are."""
    if embeddings is None:
        return "the teacher's caches hold no node embeddings"
    return embeddings.lacking or ("" if compared else "the sample has fewer than two pairs with a direction")


def _progress(model: AnyModel) -> str:
    """Of the training that wrote a model's checkpoint."""
    if isinstance(model, TeacherCaches):
        return "from its caches"
    return str(trained_progress(read_checkpoint(model.checkpoint), model.checkpoint))


def numbers_of(findings: Findings) -> dict[str, Any]:
    """The numbers of the tables, for other programs."""
    return {
        "facts": findings.facts,
        "models": {role: vars(model) for role, model in findings.models.items()},
        "metrics": findings.metrics,
        "average_metrics": findings.average,
        "gap_closed": {
            split: {name: vars(gap) for name, gap in gaps.items()} for split, gaps in findings.gaps.items() if gaps
        },
        "average_gap_closed": {name: vars(gap) for name, gap in findings.average_gap.items()},
        "force_mae_by_element": asdict(findings.elements),
        "by_adsorbate": {name: asdict(groups) for name, groups in findings.adsorbates.items()},
        "stability": findings.stability,
        "relation_top1": findings.similarity and findings.similarity.top1,
        "relation_cosine": findings.similarity and float(findings.similarity.own.mean()),
    }


def _model(model: AnyModel, speed: float | None, progress: str) -> Model:
    size = sum(parameter.numel() for parameter in model.model.parameters()) if isinstance(model, Teacher) else None
    return Model(
        title=title(model),
        checkpoint=str(model.checkpoint),
        parameters=size,
        speed=speed,
        progress=progress,
    )


def _facts(
    request: Request, models: dict[str, Model], splits: list[Split], curves: dict[str, Curve], device: torch.device
) -> dict[str, str]:
    command = request.config.get("cmd") or {}
    roles = {role: model.facts for role, model in models.items()}
    data = "; ".join(
        f"{split.name}: {len(split.systems)}{'' if split.total == len(split.systems) else f' of {split.total}'} systems of "
        f"{split.source}"
        for split in splits
    )
    trained_on = (
        (request.config.get("dataset") or {}).get("src") if isinstance(request.config.get("dataset"), dict) else None
    )
    optim = request.config.get("optim") or {}
    training = [
        f"on {trained_on}" if trained_on else "",
        f"{optim['max_epochs']} epochs, batches of {optim.get('batch_size', 1)}" if "max_epochs" in optim else "",
        f"seed {command['seed']}" if command.get("seed") is not None else "",
        _span(curves),
    ]
    terms = [tag.removeprefix(TRAIN + keys.LOSS_PREFIX) for tag in curves if tag.startswith(TRAIN + keys.LOSS_PREFIX)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("fairchem-core", "torch"))
    return {
        "run": f"{request.name} in {request.run_dir}",
        **roles,
        "data": data,
        **({"labels": "the teacher's outputs, from its caches"} if request.labels == "teacher" else {}),
        "training": ", ".join(part for part in training if part) or "its config does not say",
        **({"loss terms": ", ".join(terms)} if terms else {}),
        "made": f"{datetime.now():%Y-%m-%d %H:%M} on {_device_name(device)}",
        "versions": f"fairchem-crack {fairchem_crack.__version__}, {packages}, Python {platform.python_version()}; trained "
        f"with fairchem-core {command.get('version', '(version unknown)')}",
    }


def _span(curves: dict[str, Curve]) -> str:
    """When a training logged its first and its last step."""
    if not curves:
        return ""
    first, last = (
        datetime.fromtimestamp(time) for time in _ends([time for curve in curves.values() for time in curve.times[[0, -1]]])
    )
    return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"


def _ends(times: list[float]) -> tuple[float, float]:
    return min(times), max(times)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s'[: torch.get_num_threads() > 1]}"
