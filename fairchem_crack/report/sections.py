"""What a report shows and in which order: sections of pictures, the tables, and the numbers at its head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fairchem_crack.report import embedding_figures, figures
from fairchem_crack.report.collect import Findings
from fairchem_crack.report.curves import training_tags, validation_tags
from fairchem_crack.report.drawing import Picture, digits
from fairchem_crack.report.numbers import ENERGY_MAE, FORCE_MAE
from fairchem_crack.statistics import Interval

COLUMNS = {  # of the table: heading, and how a value is written
    ENERGY_MAE: ("energy MAE [eV]", digits),
    FORCE_MAE: ("force MAE [eV/Å]", digits),
    "forces_cosine_similarity": ("force cosine", "{:.3f}".format),
    "energy_forces_within_threshold": ("EFwT", "{:.1%}".format),
}


@dataclass(frozen=True)
class Cell:
    """A value as it is written, and its interval, empty where there is none."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the table: its heading, a kind for the style sheet, and its cells."""

    heading: str
    kind: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """A part of the page: an anchor, a title, an explanation, and pictures."""

    anchor: str
    title: str
    text: str
    pictures: list[Picture]


def tiles(findings: Findings) -> list[tuple[str, str]]:
    """The numbers at the page's head: a value and what it is."""
    student, teacher = findings.models["student"], findings.models["teacher"]
    split = findings.splits[0].name
    shown = []
    for name, what in ((ENERGY_MAE, "energy"), (FORCE_MAE, "force")):
        gap = findings.gaps[split].get(name)
        if gap is not None and math.isfinite(gap.estimate):
            shown.append((f"{gap.estimate:.0%}", f"of the gap in {what} MAE closed, {split}"))
    if not shown:
        shown = [(digits(findings.metrics[split]["student"][FORCE_MAE]), f"eV/Å force MAE, {split}")]
    shown.append((f"{digits(student.speed / teacher.speed, 2)}×", "the teacher's atoms per second"))  # noqa: RUF001
    shown.append((f"{digits(student.parameters / teacher.parameters, 2)}×", "the teacher's parameters"))  # noqa: RUF001
    if findings.similarity is not None:
        shown.append((digits(float(findings.similarity.own.mean()), 2), "mean cosine with the teacher's relations"))
    return shown


def table(findings: Findings) -> dict[str, list[Row]]:
    """The metrics: of each split a row for each model, and one for the gap closed where it is known."""
    found = {}
    for split, of_roles in findings.metrics.items():
        rows = [
            Row(
                f"{role}, {findings.models[role].title}",
                role,
                [Cell(form(of_role[name])) for name, (_, form) in COLUMNS.items()],  # type: ignore[operator]
            )
            for role, of_role in of_roles.items()
        ]
        if gaps := findings.gaps[split]:
            rows.append(Row("gap closed", "gap", [_gap(gaps[name]) if name in gaps else Cell("") for name in COLUMNS]))
        found[split] = rows
    return found


def _gap(gap: Interval) -> Cell:
    if not math.isfinite(gap.estimate):
        return Cell("no gap")
    interval = f"[{gap.low:.0%}, {gap.high:.0%}]" if math.isfinite(gap.low + gap.high) else ""
    return Cell(f"{gap.estimate:.0%}", interval)


def sections(findings: Findings) -> list[Section]:
    """Every section with pictures."""
    return [_accuracy(findings), _parity(findings), _groups(findings), _curves(findings), *_embeddings(findings)]


def _accuracy(findings: Findings) -> Section:
    pictures = [figures.by_split(name, findings.metrics, findings.models, findings.gaps) for name in (ENERGY_MAE, FORCE_MAE)]
    pictures.append(figures.speed_accuracy(findings.models, findings.metrics))
    text = f"Speeds: all models on the same batch of {findings.splits[0].name}, in turns; the fastest of three rounds."
    return Section("accuracy", "Accuracy and speed", text, pictures)


def _parity(findings: Findings) -> Section:
    said, title, splits = findings.predictions, findings.models["student"].title, findings.splits

    def energies(role: str) -> np.ndarray:
        return np.concatenate([one.energy if role == "labels" else said[role][one.name].energy for one in splits])

    def forces(role: str) -> np.ndarray:
        of_splits = [(one.forces if role == "labels" else said[role][one.name].forces)[one.counted] for one in splits]
        return np.concatenate(of_splits)

    pictures = []
    for against in ("labels", "teacher"):
        pictures.append(figures.energy_parity(energies(against), energies("student"), against=against, title=title))
    for against in ("labels", "teacher"):
        pictures.append(figures.force_parity(forces(against), forces("student"), against=against, title=title))
    atoms = "free atoms" if any(not one.counted.all() for one in splits) else "all atoms"
    text = f"All splits together ({', '.join(one.name for one in splits)}); forces of {atoms}."
    return Section("parity", "Student against labels and teacher", text, pictures)


def _groups(findings: Findings) -> Section:
    pictures = [
        figures.by_group(
            "force_mae_by_element", findings.elements, quantity=FORCE_MAE, kind="element", counted="atoms counted"
        )
    ]
    for name, groups in findings.adsorbates.items():
        counted = "systems" if name == ENERGY_MAE else "free atoms of its systems"
        pictures.append(figures.by_group(f"{name}_by_adsorbate", groups, quantity=name, kind="adsorbate", counted=counted))
    text = "All splits together, the largest groups first."
    if not findings.adsorbates:
        text += " No atom is tagged 2, so nothing is said of adsorbates."
    return Section("groups", "Errors by element and adsorbate", text, pictures)


def _curves(findings: Findings) -> Section:
    known = {tag: curve for role in reversed(findings.curves) for tag, curve in findings.curves[role].items()}
    validations = validation_tags(known)
    zero = [tag for tag in validations if not any(one[tag].values.any() for one in findings.curves.values() if tag in one)]
    tags = [*training_tags(findings.curves["student"]), *(tag for tag in validations if tag not in zero)]
    pictures = [figures.curve(tag, _comparable(tag, findings)) for tag in tags]
    if not findings.curves["student"]:
        text = "The run has no TensorBoard event files (its logger was another, or logs/tensorboard was not kept)."
        text += " The validations are the undistilled student's alone." if pictures else " There are no curves to show."
    else:
        text = "From the run's TensorBoard logs. Faint: what was logged; strong: its running mean over 2 % of the training."
    if zero:
        text += f" In every validation 0, and not shown: {', '.join(tag.partition('/')[2] for tag in zero)}."
    return Section("curves", "Training", text, pictures)


def _comparable(tag: str, findings: Findings) -> dict:
    """The curves of all models; of the loss, which sums other terms in each, the student's alone."""
    return findings.curves if tag != "train/loss" else {"student": findings.curves["student"]}


def _embeddings(findings: Findings) -> list[Section]:
    titles = {role: model.title for role, model in findings.models.items()}
    split = findings.splits[0].name
    text = f"Principal components of the unit node embeddings of atoms of {split}, each model's about their own mean. "
    if findings.planes.shared:
        text += (
            "Both are drawn along the teacher's two leading components, the student through the projection of its last "
            "training step, with the weights of that step."
        )
    else:
        text += f"Each model along its own components, not to be compared by place: {findings.lacking}."
    shown = [Section("embeddings", "Node embeddings", text, embedding_figures.pca(findings.planes, titles))]
    if findings.similarity is None:
        return [*shown, Section("relations", "Relations", f"Not shown: {findings.lacking}.", [])]
    found = findings.similarity
    text = (
        "A relation is the unit vector between the embeddings of two neighboring atoms, here from the lighter to the "
        f"heavier; distillation matches the student's with the teacher's. A random sample of {len(found.matrix)} pairs of "
        f"{split}, ordered by the teacher so that like relations are neighbors: the diagonal is each pair with itself."
    )
    pictures = [
        embedding_figures.matrix(found.matrix, "student"),
        embedding_figures.matrix(found.reference, "teacher"),
        embedding_figures.histogram(found),
    ]
    return [*shown, Section("relations", "Relations", text, pictures)]
