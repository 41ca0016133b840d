"""What a report shows and in which order: sections of pictures, the tables, and the numbers at its head."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from fairchem_crack.evaluation.drawing import Picture
from fairchem_crack.evaluation.intervals import error_interval
from fairchem_crack.evaluation.report import embedding_figures, figures
from fairchem_crack.evaluation.report.collect import Findings
from fairchem_crack.evaluation.report.curves import TRAIN, VAL, training_tags, validation_tags
from fairchem_crack.evaluation.report.numbers import system_errors
from fairchem_crack.evaluation.report.request import ROLES
from fairchem_crack.evaluation.stability.tables import drift_note, drift_table, langevin_notes, langevin_table
from fairchem_crack.evaluation.tables import ENERGY_MAE, ERRORS, FORCE_MAE, METRICS, Cell, cell, digits, gap_cell

FIRST_CURVES = (f"{TRAIN}loss", VAL + ENERGY_MAE, VAL + FORCE_MAE)  # others are folded
FOLDED = "More curves: the terms of the loss, the relations, other metrics"


@dataclass(frozen=True)
class Row:
    """A row of a table: its model or "gap closed", that model's architecture, and a cell for each split."""

    heading: str
    title: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: of links to it.
        title: its heading.
        text: what explains it.
        pictures: shown, `per_row` beside each other on a wide screen.
        folded: shown on a click.
        folded_title: what these are.
        tables: headings and rows of each, shown before the pictures.
    """

    anchor: str
    title: str
    text: str
    pictures: list[Picture]
    per_row: int = 2
    folded: list[Picture] = field(default_factory=list)
    folded_title: str = ""
    tables: list[tuple[list[str], list[list[str]]]] = field(default_factory=list)

    @property
    def all_pictures(self) -> list[Picture]:
        """The pictures and those that are folded."""
        return [*self.pictures, *self.folded]


@dataclass(frozen=True)
class Tile:
    """A number at the page's head: as it is written, what it is, and its interval, empty where there is none."""

    value: str
    caption: str
    interval: str = ""


def tiles(findings: Findings) -> list[Tile]:
    """The numbers at the page's head; of the first split where they depend on one."""
    student, teacher = findings.models["student"], findings.models["teacher"]
    split = findings.splits[0].name
    shown = []
    for name, quantity in ((ENERGY_MAE, "energy"), (FORCE_MAE, "force")):
        gap = findings.gaps[split].get(name)
        if gap is not None and math.isfinite(gap.estimate):
            shown.append(
                Tile(f"{gap.estimate:.0%}", f"of the gap in {quantity} MAE closed, {split}", gap_cell(gap).interval)
            )
    if not shown:
        of_systems = system_errors(findings.splits[0], findings.predictions["student"][split])
        error = cell(error_interval(*of_systems[FORCE_MAE]))
        shown = [Tile(error.value, f"eV/Å force MAE, {split}", error.interval)]
    for caption, own, of_teacher in (
        ("atoms per second", student.speed, teacher.speed),
        ("parameters", student.parameters, teacher.parameters),
    ):
        if own is not None and of_teacher is not None:
            shown.append(Tile(f"{digits(own / of_teacher, 2)}×", f"the teacher's {caption}"))  # noqa: RUF001
    if findings.similarity is not None:
        cosine = digits(float(findings.similarity.own.mean()), 2)
        shown.append(Tile(cosine, "mean cosine with the teacher's relations"))
    return shown


def columns(findings: Findings) -> list[str]:
    """What heads the columns of the tables: the splits and, where there are several, their mean."""
    return [*findings.metrics, *(["mean"] if findings.average else [])]


def tables(findings: Findings) -> dict[str, list[Row]]:
    """Of each metric a table: a row for each model, one for the gap closed where it is known, and `columns`."""
    metrics = [*findings.metrics.values(), *([findings.average] if findings.average else [])]
    gaps = [*findings.gaps.values(), *([findings.average_gap] if findings.average else [])]
    shown = {}
    for name, (heading, form) in METRICS.items():
        rows = [
            Row(role, model.title, [Cell(form(of_roles[role][name])) for of_roles in metrics])
            for role, model in findings.models.items()
        ]
        if all(name in of_errors for of_errors in gaps):
            rows.append(Row("gap closed", "", [gap_cell(of_errors[name]) for of_errors in gaps]))
        shown[heading] = rows
    return shown


def sections(findings: Findings) -> list[Section]:
    """Every section but the table of errors."""
    shown = [_accuracy(findings), _parity(findings), _groups(findings), *_stability(findings)]
    return [*shown, _curves(findings), *_embeddings(findings)]


def _stability(findings: Findings) -> list[Section]:
    content = findings.stability
    if content is None:
        return []
    texts, tables = ["Median [min, max] over the starts.", *langevin_notes(content)], [langevin_table(content)]
    if content["options"]["drift_ps"]:
        texts.append(drift_note(content))
        tables.append(drift_table(content))
    return [Section("stability", "Molecular dynamics", " ".join(texts), [], tables=tables)]


def _accuracy(findings: Findings) -> Section:
    metrics, roles = findings.metrics, [role for role in ROLES if role in findings.models]
    pictures = [figures.by_split(name, metrics, roles, findings.gaps) for name in ERRORS]
    pictures += [figures.speed_accuracy(name, findings.models, metrics) for name in ERRORS]
    text = f"Speeds: all models on the same batch of {findings.splits[0].name}, interleaved; medians."
    return Section("accuracy", "Accuracy and speed", text, pictures, per_row=4)


def _parity(findings: Findings) -> Section:
    predictions, title, splits = findings.predictions, findings.models["student"].title, findings.splits

    def energies(role: str) -> np.ndarray:
        return np.concatenate(
            [split.energy if role == "labels" else predictions[role][split.name].energy for split in splits]
        )

    def forces(role: str) -> np.ndarray:
        of_splits = [
            (split.forces if role == "labels" else predictions[role][split.name].forces)[split.mask] for split in splits
        ]
        return np.concatenate(of_splits)

    pictures = []
    for against in ("labels", "teacher"):
        pictures.append(figures.energy_parity(energies(against), energies("student"), against=against, title=title))
    for against in ("labels", "teacher"):
        pictures.append(figures.force_parity(forces(against), forces("student"), against=against, title=title))
    atoms = "free atoms" if any(not split.mask.all() for split in splits) else "all atoms"
    text = f"All splits together ({', '.join(split.name for split in splits)}); forces of {atoms}."
    return Section("parity", "Student against labels and teacher", text, pictures, per_row=4)


def _groups(findings: Findings) -> Section:
    pictures = [
        figures.by_group("force_mae_by_element", findings.elements, quantity=FORCE_MAE, kind="element", members="atoms")
    ]
    for name, groups in findings.adsorbates.items():
        members = "systems" if name == ENERGY_MAE else "atoms"
        pictures.append(figures.by_group(f"{name}_by_adsorbate", groups, quantity=name, kind="adsorbate", members=members))
    splits = findings.splits
    atoms = "free atoms" if any(not split.mask.all() for split in splits) else "all atoms"
    pooled = f"The {len(splits)} splits are pooled: {', '.join(split.name for split in splits)}. " if len(splits) > 1 else ""
    text = f"{pooled}The largest groups first; forces of {atoms}. Lines: 95 % intervals over the systems of a group."
    if not findings.adsorbates:
        text += " No atom is tagged 2: there are no adsorbates to group by."
    return Section("groups", "Errors by element and adsorbate", text, pictures, per_row=3)


def _curves(findings: Findings) -> Section:
    known = {tag: curve for role in reversed(findings.curves) for tag, curve in findings.curves[role].items()}
    validations = validation_tags(known)
    zero = [
        tag
        for tag in validations
        if not any(curves[tag].values.any() for curves in findings.curves.values() if tag in curves)
    ]
    tags = [*training_tags(findings.curves["student"]), *(tag for tag in validations if tag not in zero)]
    pictures = {tag: figures.curve(tag, _comparable(tag, findings)) for tag in tags}
    first = [tag for tag in FIRST_CURVES if tag in pictures] or tags[:3]
    if not findings.curves["student"]:
        text = "The run has no TensorBoard event files (its logger was another, or logs/tensorboard was not kept)."
        text += " The validations are the undistilled student's only." if pictures else " There are no curves to show."
    else:
        text = "From the run's TensorBoard logs. Faint: what was logged; strong: its running mean over 2 % of the training."
    if zero:
        text += f" In every validation 0, and not shown: {', '.join(figures.described(tag)[0] for tag in zero)}."
    folded = [picture for tag, picture in pictures.items() if tag not in first]
    return Section("curves", "Training", text, [pictures[tag] for tag in first], 3, folded, FOLDED)


def _comparable(tag: str, findings: Findings) -> dict:
    """The curves of all models; of the loss, which sums other terms in each, only the student's."""
    return findings.curves if tag != "train/loss" else {"student": findings.curves["student"]}


def _embeddings(findings: Findings) -> list[Section]:
    titles = {role: model.title for role, model in findings.models.items()}
    split = findings.splits[0].name
    if findings.planes is None:
        return [Section("embeddings", "Node embeddings and relations", f"Not shown: {findings.lacking}.", [])]
    text = f"Principal components of the unit node embeddings of atoms of {split}, each model's around their mean. "
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
    similarity = findings.similarity
    text = (
        "A relation is the unit vector between the embeddings of two neighboring atoms, here from the lighter to the "
        f"heavier; distillation matches the student's with the teacher's. A random sample of {len(similarity.matrix)} pairs "
        f"of {split}, ordered by the teacher so that like relations are neighbors: the diagonal is each pair with itself."
    )
    pictures = [
        embedding_figures.matrix(similarity.matrix, "student"),
        embedding_figures.matrix(similarity.reference, "teacher"),
        embedding_figures.histogram(similarity),
    ]
    return [*shown, Section("relations", "Relations", text, pictures, per_row=3)]
