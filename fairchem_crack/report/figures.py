"""Pictures of errors, speed and the training's curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fairchem_crack import keys
from fairchem_crack.report.collect import Model
from fairchem_crack.report.curves import TRAIN, VAL, Curve
from fairchem_crack.report.drawing import (
    COLORS,
    DENSITY,
    FAINT,
    MARKERS,
    OTHER,
    SHAPES,
    SIZE,
    SMALL,
    Picture,
    canvas,
    diagonal,
    digits,
    logarithmic,
)
from fairchem_crack.report.numbers import ENERGY_MAE, FORCE_MAE, Groups
from fairchem_crack.statistics import Interval

LABELS = {
    ENERGY_MAE: "energy MAE [eV]",
    FORCE_MAE: "force MAE [eV/Å]",
    "forces_cosine_similarity": "force cosine",
    "energy_forces_within_threshold": "energy and forces within threshold",
}
CURVES = {
    keys.RELATION_TOP1: "relation_top1",
    keys.RELATION_COSINE: "relation_cosine",
    keys.RELATION_ENTROPY: "relation_entropy [nats]",
    "loss": "loss, weighted sum of the terms",
}
LARGEST_GROUPS = 20  # of elements or adsorbates in a picture
CLOSE = 1.25  # the ratio of two speeds that are drawn apart
DRAWN_POINTS = 1500  # of a curve
METRICS = dict[str, dict[str, dict[str, float]]]  # by split and role


def by_split(
    name: str, metrics: METRICS, models: Mapping[str, Model], gaps: Mapping[str, Mapping[str, Interval]]
) -> Picture:
    """Bars of one error per split and model, over them the gap closed where it is known."""
    width = 0.8 / len(models)
    tops = [max(found[name] for found in of_roles.values()) for of_roles in metrics.values()]
    with canvas() as drawn:
        axis = drawn.axis
        for number, (role, model) in enumerate(models.items()):
            heights = [of_roles[role][name] for of_roles in metrics.values()]
            positions = [index + (number - (len(models) - 1) / 2) * width for index in range(len(heights))]
            axis.bar(positions, heights, 0.92 * width, color=COLORS[role], label=f"{model.title}, {role}")
        labels = [split.replace("_ood_", "_ood\n") if len(metrics) > 2 else split for split in metrics]
        axis.set_xticks(range(len(metrics)), labels)
        axis.tick_params(axis="x", length=0)
        axis.set_ylabel(LABELS[name])
        for index, (split, top) in enumerate(zip(metrics, tops)):
            gap = gaps[split].get(name)
            if gap is not None and math.isfinite(gap.estimate):
                text = f"gap closed\n{gap.estimate:.0%}" if len(metrics) <= 4 else f"{gap.estimate:.0%}"
                axis.annotate(text, (index, top), (0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=8.5)
        axis.margins(y=0.14)
        drawn.figure.legend(loc="outside upper left", ncols=1 + (len(models) == 2), handlelength=1.2)
        said = "; ".join(
            f"{split}: " + ", ".join(f"{role} {digits(found[name])}" for role, found in of_roles.items())
            for split, of_roles in metrics.items()
        )
        what = "Energy" if name == ENERGY_MAE else "Force"
        return Picture(f"{name}_by_split", f"{what} MAE of each split.", f"Bars, {LABELS[name]}. {said}", drawn.png())


def by_group(name: str, groups: Groups, *, quantity: str, kind: str, counted: str) -> Picture:
    """A row for each group, a mark for each model.

    Args:
        name: of the picture.
        quantity: a key of `LABELS`.
        kind: what the groups are, "element".
        counted: what their numbers count, "atoms".
    """
    shown = slice(0, LARGEST_GROUPS)
    names, counts = groups.names[shown], groups.counts[shown]
    with canvas((SIZE[0], max(1.5 + 0.27 * len(names), 2.6))) as drawn:
        axis = drawn.axis
        rows = np.arange(len(names))
        ends = np.array([values[shown] for values in groups.errors.values()])
        axis.hlines(rows, ends.min(axis=0), ends.max(axis=0), color=FAINT, linewidth=3, zorder=1)
        for role, values in groups.errors.items():
            style: dict[str, Any] = {"color": COLORS[role], "marker": MARKERS[role], "label": role}
            axis.plot(values[shown], rows, linestyle="none", markersize=7, markeredgecolor="white", zorder=3, **style)
        axis.set_yticks(rows, [f"{_formula(one)}  ({count:,})" for one, count in zip(names, counts)])
        axis.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, None), xlabel=LABELS[quantity])
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        drawn.figure.legend(loc="outside upper right", ncols=3, handletextpad=0.1, columnspacing=1.0)
        left_out = len(groups.names) - len(names)
        more = f" The {len(names)} most frequent of {len(groups.names)}." if left_out else ""
        caption = f"{LABELS[quantity].partition(' [')[0].capitalize()} by {kind}; in brackets, {counted}.{more}"
        said = "; ".join(
            f"{one}: " + ", ".join(f"{role} {digits(values[row])}" for role, values in groups.errors.items())
            for row, one in enumerate(names)
        )
        return Picture(name, caption.replace("mae", "MAE"), f"{LABELS[quantity]} by {kind}. {said}", drawn.png())


def _formula(text: str) -> str:
    """The digits of a formula as subscripts, which the page's fonts and matplotlib's have."""
    return text.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def energy_parity(x: np.ndarray, y: np.ndarray, *, against: str, title: str) -> Picture:
    """The student's energies (S,) against those of `against`, "labels" or "teacher"."""
    with canvas() as drawn:
        diagonal(drawn.axis, x, y)
        drawn.axis.plot(x, y, "o", color=COLORS["student"], markersize=4, alpha=0.55, markeredgewidth=0)
        drawn.axis.set(xlabel=f"{against} [eV]", ylabel=f"{title} student [eV]", title="energy")
        mae = f"MAE {digits(float(np.abs(x - y).mean()))} eV"
        drawn.axis.text(0.04, 0.96, f"{mae}\n{len(x):,} systems", transform=drawn.axis.transAxes, va="top")
        caption = f"Energies of the student against the {against}."
        return Picture(f"energy_parity_{against}", caption, f"{caption} {mae}, {len(x)} systems.", drawn.png())


def force_parity(x: np.ndarray, y: np.ndarray, *, against: str, title: str) -> Picture:
    """Density of the components of the student's forces (N', 3) against those of `against`, "labels" or "teacher"."""
    x, y = x.ravel(), y.ravel()
    with canvas() as drawn:
        diagonal(drawn.axis, x, y)
        extent = (*drawn.axis.get_xlim(), *drawn.axis.get_ylim())
        shown = drawn.axis.hexbin(x, y, gridsize=60, bins="log", cmap=DENSITY, mincnt=1, linewidths=0.1, extent=extent)
        diagonal(drawn.axis, x, y)
        bar = drawn.figure.colorbar(shown, ax=drawn.axis, label="components", shrink=0.85)
        bar.outline.set_visible(False)
        drawn.axis.set(xlabel=f"{against} [eV/Å]", ylabel=f"{title} student [eV/Å]", title="force components")
        mae = f"MAE {digits(float(np.abs(x - y).mean()))} eV/Å"
        drawn.axis.text(0.04, 0.96, f"{mae}\n{len(x):,} components", transform=drawn.axis.transAxes, va="top")
        caption = f"Force components of the student against the {against}."
        return Picture(f"force_parity_{against}", caption, f"{caption} {mae}, {len(x)} components.", drawn.png())


def curve(tag: str, curves: Mapping[str, Mapping[str, Curve]]) -> Picture:
    """One logged scalar over the training steps, of every model that logged it."""
    name = tag.partition("/")[2]
    is_term = tag.startswith(TRAIN + keys.LOSS_PREFIX)
    label = f"{name} (unweighted)" if is_term else CURVES.get(name, LABELS.get(name, name))
    with canvas(SMALL) as drawn:
        axis, lowest, ends = drawn.axis, math.inf, []
        for role, of_tags in curves.items():
            if tag not in of_tags:
                continue
            found = of_tags[tag]
            lowest = min(lowest, float(found.values.min()))
            ends.append(f"{role} {digits(float(found.values[-1]))} at step {found.steps[-1]:,}")
            marker = MARKERS[role] if tag.startswith(VAL) else ""
            _line(axis, found, COLORS[role], marker, role)
        bound = _bound(name, curves.get("student", {}))
        if bound:
            axis.axhline(bound, color=OTHER, linestyle="--", linewidth=1.2)
            axis.annotate("log 2P: chance", (0.98, bound), (0, -3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", ha="right", va="top", fontsize=9, color="#5b6570")  # fmt: skip
        elif lowest > 0 and not name.startswith("relation_") and "cosine" not in name:
            logarithmic(axis, "y")
        axis.set_title(label)
        axis.set_xlabel("training step")
        axis.grid(axis="y")
        if len(ends) > 1:
            axis.legend(handlelength=1.4)
        where = "of the validations" if tag.startswith(VAL) else "in training"
        caption = f"{name} {where}: {'; '.join(ends)}."
        return Picture(f"curve_{tag.replace('/', '_')}", caption, caption, drawn.png())


def _line(axis, found: Curve, color: str, marker: str, label: str) -> None:
    """A curve; one of many steps faintly, with its running mean over a fiftieth of the training."""
    steps, values = found.steps, found.values
    window = len(values) // 50
    if window < 2:
        axis.plot(steps, values, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=label)
        return
    thin = max(len(values) // DRAWN_POINTS, 1)
    axis.plot(steps[::thin], values[::thin], color=color, alpha=0.22, linewidth=0.7)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(window, len(values) + 1)
    mean = (sums[ends] - sums[ends - window]) / window
    axis.plot(steps[ends - 1][::thin], mean[::thin], color=color, linewidth=1.8, label=label)


def _bound(name: str, curves: Mapping[str, Curve]) -> float:
    """log 2P, P the mean pairs of a step: what a student without any resemblance has; 0 for another curve."""
    pairs = curves.get(TRAIN + keys.NUM_PAIRS)
    if pairs is None or name not in (keys.RELATION_ENTROPY, keys.LOSS_PREFIX + keys.RELATIONS):
        return 0.0
    return math.log(max(2 * float(pairs.values.mean()), 1.0))


def _apart(speeds: dict[str, float]) -> dict[str, float]:
    """Where the models are drawn: those of the student's architecture side by side, lest they hide each other."""
    student, undistilled = speeds["student"], speeds.get("undistilled", math.inf)
    if not 1 / CLOSE < student / undistilled < CLOSE:
        return speeds
    middle = math.sqrt(student * undistilled)
    return {**speeds, "undistilled": middle / math.sqrt(CLOSE), "student": middle * math.sqrt(CLOSE)}


def speed_accuracy(models: Mapping[str, Model], metrics: METRICS) -> Picture:
    """Force MAE against atoms per second, a mark for each split."""
    places: Any = {  # of a model's name beside its marks: offset in points, alignment
        "undistilled": {"xytext": (-9, 0), "ha": "right", "va": "center"},
        "student": {"xytext": (9, 0), "ha": "left", "va": "center"},
        "teacher": {"xytext": (0, 10), "ha": "center", "va": "bottom"},
    }
    places_of = _apart({role: model.speed for role, model in models.items()})
    with canvas() as drawn:
        axis, said = drawn.axis, []
        for role, model in models.items():
            errors = [of_roles[role][FORCE_MAE] for of_roles in metrics.values()]
            low, high, speed = min(errors), max(errors), places_of[role]
            axis.vlines(speed, low, high, color=COLORS[role], linewidth=1.5, alpha=0.4)
            for number, error in enumerate(errors):
                style: Any = {"marker": SHAPES[number % len(SHAPES)], "color": COLORS[role], "markeredgecolor": "white"}
                axis.plot(speed, error, markersize=9, **style)
            at = (speed, high if role == "teacher" else (low + high) / 2)
            text = f"{role}\n{model.title}"
            axis.annotate(text, at, textcoords="offset points", color=COLORS[role], fontsize=10.5, **places[role])
            said.append(f"{role} {digits(model.speed)} atoms/s, {', '.join(digits(error) for error in errors)} eV/Å")
        for number, split in enumerate(metrics):
            axis.plot([], [], SHAPES[number % len(SHAPES)], color="#5b6570", label=split)
        speeds = [model.speed for model in models.values()]
        axis.set_xlim(min(speeds) / 2, max(speeds) * 3)
        logarithmic(axis, "x")
        axis.set(xlabel="atoms per second", ylabel=LABELS[FORCE_MAE])
        axis.margins(y=0.2)
        axis.set_ylim(0, None)
        axis.grid()
        drawn.figure.legend(loc="outside upper left", ncols=min(len(metrics), 3), handletextpad=0.1, columnspacing=1.0)
        caption = "Force MAE against speed; a mark for each split."
        if places_of != {role: model.speed for role, model in models.items()}:
            caption += " The two students are nearly equally fast, and drawn apart to be seen."
        return Picture("speed_accuracy", caption, f"{caption} {'; '.join(said)}.", drawn.png())
