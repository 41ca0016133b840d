"""The picture of a leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes

from fairchem_crack.evaluation.drawing import canvas, draw_bars, legend_label, logarithmic, look
from fairchem_crack.evaluation.s2ef.leaderboard import AVERAGE, Row, Throughputs
from fairchem_crack.evaluation.tables import ERRORS, METRICS
from fairchem_crack.io.files import write_bytes


def draw(rows: Sequence[Row], throughput: Throughputs, file: Path) -> None:
    """Bars of energy and force MAE of each model and split with the gap closed over them; and the speeds, if any.

    Where there are seeds, each has a dot. The gap closed is that of a single student.
    """
    rows = [row for row in rows if row.split != AVERAGE]
    splits = list(dict.fromkeys(row.split for row in rows))
    looks = look({row.model: row.role for row in rows})
    students = {row.model for row in rows if row.role == "student"}
    width, panels = max(4.6, 0.38 * len(splits) * len(looks)), 2 + bool(throughput)
    with canvas((width * panels, 4), panels) as drawn:
        for axis, error in zip(drawn.axes, ERRORS):
            errors = {model: [row.intervals[error] for row in rows if row.model == model] for model in looks}
            gaps = [row.gaps.get(error) for row in rows if row.role == "student" and len(students) == 1]
            colors = {model: color for model, (color, _) in looks.items()}
            draw_bars(axis, splits, errors, colors, gaps, "gap closed\n{:.0%}")
            axis.set_ylabel(METRICS[error][0])
            _draw_seeds(axis, [row for row in rows if len(row.seeds) > 1], error, list(looks), splits)
        if throughput:
            _draw_speeds(drawn.axes[-1], throughput, looks)
        handles = drawn.axis.get_legend_handles_labels()
        drawn.figure.legend(*handles, loc="outside upper center", ncols=min(len(looks), 4))
        write_bytes(file, drawn.png())


def _draw_seeds(axis: Axes, rows: Sequence[Row], error: str, models: Sequence[str], splits: Sequence[str]) -> None:
    for row in rows:
        place = splits.index(row.split) + 0.8 * ((models.index(row.model) + 0.5) / len(models) - 0.5)
        values = [seed[error] for seed in row.seeds]
        axis.plot([place] * len(values), values, ".", color="black", markersize=4)


def _draw_speeds(axis: Axes, throughput: Throughputs, looks: dict[str, tuple[str, str]]) -> None:
    for model, by_size in throughput.items():
        measured = {int(size): cell["atoms_per_second"] for size, cell in by_size.items() if cell}
        color, marker = looks[model]
        rates = list(measured.values())
        axis.plot(list(measured), [median(rate) for rate in rates], color=color, marker=marker, label=legend_label(model))
        axis.fill_between(
            list(measured), [min(rate) for rate in rates], [max(rate) for rate in rates], color=color, alpha=0.2
        )
    sizes = sorted({int(size) for by_size in throughput.values() for size in by_size})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    logarithmic(axis, "y")
    axis.set_xlabel("systems in a batch")
    axis.set_ylabel("atoms/s")
