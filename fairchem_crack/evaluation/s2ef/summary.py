"""What `fairchem-crack evaluate` prints: errors, models, and notes on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from fairchem_crack.evaluation.names import short_names
from fairchem_crack.evaluation.s2ef.leaderboard import Group, Row, Throughputs, table
from fairchem_crack.evaluation.s2ef.runs import Evaluation
from fairchem_crack.evaluation.tables import digits, text_table
from fairchem_crack.evaluation.time_and_memory import Throughput

REPEATS = 3  # of a timed forward


def summary(
    rows: Sequence[Row],
    groups: Sequence[Group],
    evaluations: Mapping[Path, Evaluation],
    throughput: Throughputs,
    *,
    labels: str = "data",
) -> str:
    """The whole text; `labels`: "data", or "teacher", whose outputs the errors are measured from."""
    has_seeds = any(len(group.checkpoints) > 1 for group in groups)
    over = "systems and, of the gap closed, over the seeds" if has_seeds else "systems"
    notes = [f"In brackets 95 % intervals over the {over}. {atoms_note(evaluations)}"]
    if labels == "teacher":
        notes.append("Errors are differences from the teacher's outputs, not from labels of the data: its own are 0.")
    if {group.role for group in groups} < {"student", "undistilled", "teacher"}:
        notes.append("No gap closed: it is measured from --undistilled to --teacher or --teacher-cache.")
    if throughput:
        notes.append(
            f"atoms/s: median of {REPEATS} interleaved repeats, by systems in a batch; in brackets the memory of a batch."
        )
    return "\n\n".join(
        [
            table(rows),
            models_table(groups, evaluations, throughput),
            "\n".join(notes + _ratios(groups, throughput, short_names(list(evaluations)))),
        ]
    )


def atoms_note(evaluations: Mapping[Path, Evaluation]) -> str:
    """Whose forces were compared."""
    if len({model.atoms for model in evaluations.values()}) == 1:
        return f"Forces of {next(iter(evaluations.values())).atoms} atoms."
    names = short_names(list(evaluations))
    by_atoms = "; ".join(
        f"of {atoms} atoms: {', '.join(names[path] for path, model in evaluations.items() if model.atoms == atoms)}"
        for atoms in ("free", "all")
    )
    return f"Forces {by_atoms}, as their checkpoints have it: their errors do not compare. Give --atoms free or all."


def models_table(groups: Sequence[Group], evaluations: Mapping[Path, Evaluation], throughput: Throughputs) -> str:
    """Architecture, parameters, training, and speed and memory of each model."""
    names = short_names(list(evaluations))
    sizes = list(next(iter(throughput.values()), {}))
    rows = []
    for group in groups:
        for path in group.checkpoints:
            model = evaluations[path]
            speeds = throughput.get(group.name, {}) if path == group.checkpoints[0] else {}
            cells = [_speed(speeds[size]) if size in speeds else "" for size in sizes]
            parameters = "from a cache" if model.parameters is None else f"{model.parameters / 1e6:.3f}M"
            rows.append([names[path], group.role, model.architecture, parameters, model.progress, *cells])
    return text_table(
        ["model", "role", "architecture", "parameters", "trained to", *(f"atoms/s at {size}" for size in sizes)], rows
    )


def _speed(measured: Throughput) -> str:
    if not measured:
        return "does not fit"
    memory = "" if measured["peak_bytes"] is None else f" [{measured['peak_bytes'] / 2**20:,.0f} MB]"
    return f"{digits(median(measured['atoms_per_second']))}{memory}"


def _ratios(groups: Sequence[Group], throughput: Throughputs, names: Mapping[Path, str]) -> list[str]:
    """How many times as fast as the teacher the students are, at the largest batch size that fits both."""
    lines = []
    teacher = next((throughput.get(group.name, {}) for group in groups if group.role == "teacher"), {})
    for group in (group for group in groups if group.role == "student"):
        student = throughput.get(group.name, {})
        if sizes := [size for size in teacher if teacher[size] and student.get(size)]:
            own, of_teacher = (median(speeds[sizes[-1]]["atoms_per_second"]) for speeds in (student, teacher))
            name, ratio = names[group.checkpoints[0]], digits(own / of_teacher, 2)
            lines.append(f"{name} runs {ratio} times as many atoms/s as the teacher (batches of {sizes[-1]}).")
    return lines
