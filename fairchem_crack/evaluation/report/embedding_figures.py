"""Pictures of node embeddings and of the relations between them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.markers import MarkerStyle

from fairchem_crack.evaluation.drawing import COLORS, OTHER, PALETTE, SHAPES, SIZE, Picture, canvas
from fairchem_crack.evaluation.report.relations import Plane, Planes, Similarity
from fairchem_crack.evaluation.tables import digits

LARGEST_ELEMENTS = len(PALETTE)  # with a colour of their own
REST = (OTHER, "o")  # how other elements look


def pca(planes: Planes, titles: dict[str, str]) -> list[Picture]:
    """The plane of each model, its atoms coloured by element; the same limits where the axes are the same."""
    drawn = {"teacher": planes.teacher, **({} if planes.student is None else {"student": planes.student})}
    limits = None
    if planes.shared:
        spans = np.concatenate([plane.points for plane in drawn.values()])
        margin = 0.05 * np.ptp(spans, axis=0)
        limits = np.stack((spans.min(axis=0) - margin, spans.max(axis=0) + margin), axis=1)
    return [_plane(role, plane, planes, titles[role], limits) for role, plane in drawn.items()]


def _plane(role: str, plane: Plane, planes: Planes, title: str, limits: np.ndarray | None) -> Picture:
    frequent = [number for number, _ in Counter(planes.atomic_numbers.tolist()).most_common(LARGEST_ELEMENTS)]
    with canvas((SIZE[0], 4.3)) as drawn:
        axis = drawn.axis
        looks = {number: (PALETTE[rank], SHAPES[rank % len(SHAPES)]) for rank, number in enumerate(sorted(frequent))}
        _scatter(axis, plane.points, [looks.get(int(number), REST) for number in planes.atomic_numbers])
        names = {chemical_symbols[number]: look for number, look in looks.items()}
        if len(set(planes.atomic_numbers)) > len(frequent):
            names["other"] = REST
        for name, (color, marker) in names.items():  # only for the legend
            axis.plot([], [], marker, color=color, label=name, markersize=4.5, markeredgewidth=0)
        if limits is not None:
            axis.set(xlim=limits[0], ylim=limits[1])
        whose = "teacher's " if planes.shared else ""
        axis.set_xlabel(f"{whose}component 1 ({plane.variance[0]:.0%} of the variance)")
        axis.set_ylabel(f"{whose}component 2 ({plane.variance[1]:.0%})")
        axis.set_title(f"{title} {role}{', projected' if role == 'student' and planes.shared else ''}", color=COLORS[role])
        handles = {"markerscale": 1.5, "handletextpad": 0.0, "columnspacing": 0.7, "handlelength": 1.3}
        drawn.figure.legend(loc="outside lower center", ncols=7, **handles)
        elements = ", ".join(chemical_symbols[number] for number in sorted(frequent))
        projected = "projected node" if role == "student" and planes.shared else "node"
        caption = f"{projected.capitalize()} embeddings of the {role}, one mark for each of {len(plane.points):,} atoms."
        return Picture(f"pca_{role}", caption, f"{caption} Elements {elements}.", drawn.png())


def _scatter(axis: Axes, points: np.ndarray, looks: list[tuple[str, str]], *, seed: int = 0) -> None:
    """Marks at (N, 2) places, each of its colour and shape, in random order: none of an element hides all of another."""
    order = np.random.default_rng(seed).permutation(len(points))
    drawn = axis.scatter(
        points[order, 0], points[order, 1], s=16, c=[looks[index][0] for index in order], linewidths=0, alpha=0.85
    )
    shapes = {marker: MarkerStyle(marker) for _, marker in looks}
    paths = {marker: shape.get_path().transformed(shape.get_transform()) for marker, shape in shapes.items()}
    drawn.set_paths([paths[looks[index][1]] for index in order])


def matrix(cosines: np.ndarray, role: str) -> Picture:
    """Cosines between relations of one model (rows) and the teacher's (columns)."""
    with canvas((SIZE[0], 4.1)) as drawn:
        axis = drawn.axis
        shown = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axis.set(xlabel="teacher's relation", ylabel=f"{role}'s relation", xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(f"{role} · teacher", color=COLORS[role])
        bar = drawn.figure.colorbar(shown, ax=axis, label="cosine", shrink=0.85, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.outline.set_visible(False)
        own = float(np.diag(cosines).mean())
        caption = (
            f"The student's relations against the teacher's; mean of the diagonal {digits(own)}."
            if role == "student"
            else "The teacher's relations against themselves: what a perfect student would show."
        )
        return Picture(f"relations_{role}", caption, f"{caption} {len(cosines)} x {len(cosines)} cosines.", drawn.png())


def histogram(similarity: Similarity) -> Picture:
    """How the cosines of relations with their own teacher relation, and with others, are distributed."""
    bins = np.linspace(-1, 1, 61).tolist()
    with canvas() as drawn:
        axis = drawn.axis
        for values, color, label, filled in (
            (similarity.others, "#7d8794", "with another pair's", 0.45),
            (similarity.own, COLORS["student"], "with its own", 0.7),
        ):
            axis.hist(values, bins, density=True, histtype="stepfilled", color=color, alpha=filled, label=label)
            axis.hist(values, bins, density=True, histtype="step", color=color, linewidth=1.4)
        axis.set(
            xlabel="cosine of a student's relation with a teacher's",
            ylabel="density",
            xlim=(-1, 1),
            xticks=[-1, -0.5, 0, 0.5, 1],
        )
        axis.legend(loc="upper left")
        caption = (
            f"{len(similarity.own):,} relations: mean cosine {digits(float(similarity.own.mean()))} with their own, "
            f"{digits(float(similarity.others.mean()))} with others; {similarity.top1:.0%} are nearest to their own among "
            f"all {2 * len(similarity.own):,}."
        )
        return Picture("relations_histogram", caption, caption, drawn.png())
