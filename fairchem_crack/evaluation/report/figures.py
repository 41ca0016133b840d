"""Pictures of errors, speed and the training's curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from fairchem_crack import keys
from fairchem_crack.evaluation.drawing import (
    COLORS,
    DENSITY,
    FAINT,
    MARKERS,
    NARROW,
    OTHER,
    SIZE,
    SMALL,
    Picture,
    canvas,
    diagonal,
    draw_bars,
    logarithmic,
    look,
)
from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.report.collect import Model
from fairchem_crack.evaluation.report.curves import TRAIN, VAL, Curve
from fairchem_crack.evaluation.report.numbers import Groups
from fairchem_crack.evaluation.tables import ENERGY_MAE, FORCE_MAE, METRICS, digits

LABELS = {name: heading for name, (heading, _) in METRICS.items()}
CURVES = {  # of other scalars: title, and what it is
    keys.RELATION_TOP1: ("relations found", "Fraction of relations nearest to their own teacher relation"),
    keys.RELATION_COSINE: ("cosine of relations", "Mean cosine of a relation with its own teacher relation"),
    keys.RELATION_ENTROPY: ("entropy of relations [nats]", "Entropy of the likeness of a relation to all teacher relations"),
    "loss": ("loss", "Loss, the weighted sum of its terms,"),
    ENERGY_MAE: (LABELS[ENERGY_MAE], "Energy MAE"),
    FORCE_MAE: (LABELS[FORCE_MAE], "Force MAE"),
    "forces_cosine_similarity": (LABELS["forces_cosine_similarity"], "Mean cosine of predicted and labelled forces"),
    "energy_forces_within_threshold": ("EFwT", "Fraction of systems with energy and forces within the threshold"),
}
LARGEST_GROUPS = 20  # of elements or adsorbates in a picture
DRAWN_POINTS = 1500  # of a curve
WIDEST_OF_TWO = 22  # letters of labels of which a narrow picture holds two beside each other
BySplit = dict[str, dict[str, dict[str, float]]]  # metrics by split and role


def by_split(name: str, metrics: BySplit, roles: Collection[str], gaps: Mapping[str, Mapping[str, Interval]]) -> Picture:
    """Bars of one error per split and role, over them the gap closed where it is known."""
    of_splits = [gaps[split].get(name) for split in metrics]
    with canvas(NARROW) as drawn:
        errors = {role: [Interval(of_roles[role][name]) for of_roles in metrics.values()] for role in roles}
        draw_bars(drawn.axis, list(metrics), errors, COLORS, of_splits)
        drawn.axis.set_ylabel(LABELS[name])
        drawn.figure.legend(loc="outside upper left", ncols=len(roles), handlelength=1.0, columnspacing=1.0)
        values = "; ".join(
            f"{split}: " + ", ".join(f"{role} {digits(of_roles[role][name])}" for role in roles)
            for split, of_roles in metrics.items()
        )
        has_gap = any(gap is not None and math.isfinite(gap.estimate) for gap in of_splits)
        error = "Energy" if name == ENERGY_MAE else "Force"
        caption = f"{error} MAE of each split{'; over the bars, the gap closed' if has_gap else ''}."
        return Picture(f"{name}_by_split", caption, f"Bars, {LABELS[name]}. {values}", drawn.png())


def by_group(name: str, groups: Groups, *, quantity: str, kind: str, members: str) -> Picture:
    """A row for each group, a mark with its interval for each model.

    Args:
        name: of the picture.
        quantity: a key of `LABELS`.
        kind: what the groups are, "element".
        members: what their `counts` are, "atoms" or "systems".
    """
    shown = slice(0, LARGEST_GROUPS)
    names = groups.names[shown]
    with canvas((SIZE[0], max(1.7 + 0.3 * len(names), 2.8))) as drawn:
        axis = drawn.axis
        for number, (role, intervals) in enumerate(groups.errors.items()):
            rows = np.arange(len(names)) + 0.22 * (number - (len(groups.errors) - 1) / 2)
            errors = np.array([(interval.low, interval.estimate, interval.high) for interval in intervals[shown]])
            axis.hlines(rows, errors[:, 0], errors[:, 2], color=COLORS[role], linewidth=1.4, alpha=0.55)
            style: dict[str, Any] = {"color": COLORS[role], "marker": MARKERS[role], "label": role}
            axis.plot(errors[:, 1], rows, linestyle="none", markersize=5.5, markeredgecolor="white", zorder=3, **style)
        axis.hlines(np.arange(len(names) - 1) + 0.5, 0, 1, color=FAINT, linewidth=0.6, transform=axis.get_yaxis_transform())
        axis.set_yticks(range(len(names)), _labels(groups, len(names), members))
        axis.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, None), xlabel=LABELS[quantity])
        axis.tick_params(axis="y", length=0, labelsize=10)
        heading = "atoms in systems" if members == "atoms" else "systems"
        axis.annotate(heading, (0, 1), (-4, 4), textcoords="offset points", xycoords="axes fraction", ha="right", fontsize=9)
        axis.grid(axis="x")
        drawn.figure.legend(loc="outside upper right", ncols=3, handletextpad=0.1, columnspacing=1.0)
        left_out = len(groups.names) - len(names)
        more = f" The {len(names)} most frequent of {len(groups.names)}." if left_out else ""
        counts = "atoms in so many systems" if members == "atoms" else "systems"
        quantity_name = LABELS[quantity].partition(" [")[0].replace("energy", "Energy").replace("force", "Force")
        caption = f"{quantity_name} by {kind}, with 95 % intervals; beside each {kind}, its {counts}.{more}"
        values_in_words = "; ".join(
            f"{group}: " + ", ".join(f"{role} {digits(values[row].estimate)}" for role, values in groups.errors.items())
            for row, group in enumerate(names)
        )
        return Picture(name, caption, f"{LABELS[quantity]} by {kind}. {values_in_words}", drawn.png())


def _labels(groups: Groups, shown: int, members: str) -> list[str]:
    """The name of each group and how much it holds."""
    sizes = zip(groups.names[:shown], groups.counts, groups.systems)
    return [
        f"{_formula(name)}  {count:,} in {systems:,}" if members == "atoms" else f"{_formula(name)}  {count:,}"
        for name, count, systems in sizes
    ]


def _formula(text: str) -> str:
    """The digits of a formula as subscripts, which the page's fonts and matplotlib's have."""
    return text.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def energy_parity(x: np.ndarray, y: np.ndarray, *, against: str, title: str) -> Picture:
    """The student's energies (S,) against those of `against`, "labels" or "teacher"."""
    with canvas(NARROW) as drawn:
        diagonal(drawn.axis, x, y)
        drawn.axis.plot(x, y, "o", color=COLORS["student"], markersize=4, alpha=0.55, markeredgewidth=0)
        drawn.axis.set(xlabel=f"{against} [eV]", ylabel=f"{title} student [eV]", title="energy")
        mae = f"MAE {digits(float(np.abs(x - y).mean()))} eV"
        drawn.axis.text(0.04, 0.96, f"{mae}\n{len(x):,} systems", transform=drawn.axis.transAxes, va="top", fontsize=9.5)
        caption = f"Energies of the student against the {against}."
        return Picture(f"energy_parity_{against}", caption, f"{caption} {mae}, {len(x)} systems.", drawn.png())


def force_parity(x: np.ndarray, y: np.ndarray, *, against: str, title: str) -> Picture:
    """Density of the components of the student's forces (N', 3) against those of `against`, "labels" or "teacher"."""
    x, y = x.ravel(), y.ravel()
    with canvas(NARROW) as drawn:
        diagonal(drawn.axis, x, y)
        extent = (*drawn.axis.get_xlim(), *drawn.axis.get_ylim())
        shown = drawn.axis.hexbin(x, y, gridsize=60, bins="log", cmap=DENSITY, mincnt=1, linewidths=0.1, extent=extent)
        diagonal(drawn.axis, x, y)
        drawn.axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        bar = drawn.figure.colorbar(shown, ax=drawn.axis, label="components", shrink=0.7)
        bar.outline.set_visible(False)
        drawn.axis.set(xlabel=f"{against} [eV/Å]", ylabel=f"{title} student [eV/Å]", title="force components")
        mae = f"MAE {digits(float(np.abs(x - y).mean()))} eV/Å"
        drawn.axis.text(0.04, 0.96, f"{mae}\n{len(x):,} components", transform=drawn.axis.transAxes, va="top", fontsize=9.5)
        caption = f"Force components of the student against the {against}."
        return Picture(f"force_parity_{against}", caption, f"{caption} {mae}, {len(x)} components.", drawn.png())


def curve(tag: str, curves: Mapping[str, Mapping[str, Curve]]) -> Picture:
    """One logged scalar over the training steps, of every model that logged it."""
    name = tag.partition("/")[2]
    label, meaning = described(tag)
    with canvas(SMALL) as drawn:
        axis, lowest, last, ends = drawn.axis, math.inf, 0, []
        for role, of_tags in curves.items():
            if tag not in of_tags:
                continue
            logged = of_tags[tag]
            lowest = min(lowest, float(logged.values.min()))
            ends.append(f"{role} {digits(float(logged.values[-1]))}")
            last = max(last, int(logged.steps[-1]))
            marker = MARKERS[role] if tag.startswith(VAL) else ""
            _line(axis, logged, COLORS[role], marker, role)
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
        caption = (
            f"{meaning} {'in the validations' if tag.startswith(VAL) else 'during training'}; at the end (step {last:,}), "
        )
        caption += f"{', '.join(ends)}."
        return Picture(f"curve_{tag.replace('/', '_')}", caption, caption, drawn.png())


def described(tag: str) -> tuple[str, str]:
    """The title of a logged scalar's picture, and what it is in words."""
    name = tag.partition("/")[2]
    if tag.startswith(TRAIN + keys.LOSS_PREFIX):
        term = name.removeprefix(keys.LOSS_PREFIX).replace("_", " ")
        return f"{term} term", f"Loss of the {term} term, before its weight,"
    return CURVES.get(name, (name.replace("_", " "), name.replace("_", " ").capitalize()))


def _line(axis, curve: Curve, color: str, marker: str, label: str) -> None:
    """A curve; that of many steps faintly, with its running mean over a fiftieth of the training."""
    steps, values = curve.steps, curve.values
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


def speed_accuracy(name: str, models: Mapping[str, Model], metrics: BySplit) -> Picture:
    """One error against atoms per second of every model: a large mark for the mean over the splits, small ones for each.

    Args:
        name: of the error, a key of `LABELS`.
        models: of which those are drawn whose speed is known.
    """
    speeds = {role: model.speed for role, model in models.items() if model.speed is not None}
    models, looks, in_words = {role: models[role] for role in speeds}, look({role: role for role in models}), []
    with canvas(NARROW) as drawn:
        axis = drawn.axis
        for role, model in models.items():
            errors = [of_roles[role][name] for of_roles in metrics.values()]
            color, marker = looks[role]
            if len(errors) > 1:
                axis.plot(
                    [speeds[role]] * len(errors), errors, "_", color=color, markersize=9, markeredgewidth=1.6, alpha=0.7
                )
            mean = float(np.mean(errors))
            axis.plot(
                speeds[role],
                mean,
                marker,
                color=color,
                markersize=9,
                markeredgecolor="white",
                label=f"{model.title}, {role}",
                zorder=3,
            )
            in_words.append(f"{role} {digits(speeds[role])} atoms/s, {', '.join(digits(error) for error in errors)}")
        axis.set_xlim(min(speeds.values()) / 1.6, max(speeds.values()) * 1.6)
        logarithmic(axis, "x")
        axis.set(xlabel="atoms per second", ylabel=LABELS[name])
        axis.set_ylim(0, 1.06 * max(of_roles[role][name] for of_roles in metrics.values() for role in models))
        axis.grid()
        labels = [f"{model.title}, {role}" for role, model in models.items()]
        fit = {"fontsize": 8.5, "ncols": 2 if max(map(len, labels)) <= WIDEST_OF_TWO else 1}
        drawn.figure.legend(loc="outside upper left", handletextpad=0.1, columnspacing=0.5, borderpad=0.2, **fit)
        error = "Energy" if name == ENERGY_MAE else "Force"
        caption = (
            f"{error} MAE against speed{'; large marks: mean of the splits, small: each split' if len(metrics) > 1 else ''}."
        )
        return Picture(f"speed_{name}", caption, f"{caption} {'; '.join(in_words)}.", drawn.png())
