"""The figures of a training step at true size, their targets, and the page."""

from __future__ import annotations

import statistics
from typing import Any

TEACHER = "eqV2_31M"
KINDS = ("undistilled", "cached", "online")
MOST_CACHED, MOST_ONLINE, MOST_WRITING, MOST_SIZE = 1.10, 1.05, 1.05, 1.15  # the targets
CLOCKS = {"wall": "", "cpu": "_cpu"}  # what a figure's name ends in; the second is disturbed less by other work


def summary(steps: dict) -> dict:
    """Median, min and max of each ratio over the rounds, by wall clock and CPU time, and of each time in seconds."""
    ratios = {
        "cached_over_undistilled": lambda s: s["cached"] / s["undistilled"],
        "online_over_sum": lambda s: s["online"] / (s["teacher"] + s["undistilled"]),
        "online_over_undistilled": lambda s: s["online"] / s["undistilled"],
        "online_without_teacher_over_undistilled": lambda s: (s["online"] - s["teacher within online"]) / s["undistilled"],
        "teacher_within_online_over_alone": lambda s: s["teacher within online"] / s["teacher"],
        "cached_over_online": lambda s: s["cached"] / s["online"],
        "waiting_for_the_loader": lambda s: s["cached loading"] / s["cached"],
        **{f"seconds_{kind}": lambda s, kind=kind: s[kind] for kind in steps["rounds"][0]},
    }
    figures: dict[str, Any] = {"parameters": steps["parameters"], "pairs": steps["pairs"], "repeats": len(steps["rounds"])}
    for name, ratio in ratios.items():
        for clock, ending in CLOCKS.items():
            values = [ratio({part: times[clock] for part, times in round_times.items()}) for round_times in steps["rounds"]]
            key = name.replace(" ", "_") + ending
            figures[key], figures[f"{key}_spread"] = statistics.median(values), [min(values), max(values)]
    return figures


def cache_ratios(cache: dict) -> dict[str, float]:
    """The cache's figures that have a target, and how long a record takes."""
    large = cache["large"]
    return {
        "writing_over_inference": cache["writing"]["wall"] / cache["inference"]["wall"],
        "writing_over_inference_cpu": cache["writing"]["cpu"] / cache["inference"]["cpu"],
        "disk_over_arrays": large["bytes_on_disk"] / large["bytes_of_arrays"],
        "disk_over_arrays_of_these_systems": cache["bytes_on_disk"] / cache["bytes_of_arrays"],
        "bytes_per_system": large["bytes_on_disk"] / large["systems"],
        "seconds_to_write_a_record": large["writing_a_record"],
        "seconds_to_read_a_record": large["reading_a_record"],
        "seconds_of_a_system": cache["attaching"]["without"],
        "seconds_of_a_system_with_record": cache["attaching"]["with"],
    }


def missed(students: dict[str, dict], cache: dict[str, float]) -> list[str]:
    """A sentence for each target that is missed."""
    figures = []
    for name, own in students.items():
        for clock, of in (("", "wall clock"), ("_cpu", "CPU time")):
            cached, online = (
                own[f"cached_over_undistilled{clock}"],
                own[f"online_over_sum{clock}"],
            )
            figures.append((f"{name}, cached / undistilled, {of}", cached, MOST_CACHED))
            same = own[f"teacher_within_online_over_alone{clock}"]
            title = f"{name}, online / (teacher + undistilled), {of} (the teacher within / alone, the same work: {same:.2f})"
            figures.append((title, online, MOST_ONLINE))
    figures.append(("writing / inference, wall clock", cache["writing_over_inference"], MOST_WRITING))
    figures.append(("writing / inference, CPU time", cache["writing_over_inference_cpu"], MOST_WRITING))
    figures.append(("size on disk / arrays", cache["disk_over_arrays"], MOST_SIZE))
    return [f"{name}: {value:.3f}, target at most {most:.2f}." for name, value, most in figures if not value <= most]


def report(content: dict) -> str:
    """The tables, as markdown."""
    students, cache = content["students"], content["cache"]

    def cell(figures: dict, name: str, digits: int = 2) -> str:
        low, high = figures[f"{name}_spread"]
        return f"{figures[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    lines = [
        "# A training step: undistilled, from a teacher cache, with the teacher online",
        "",
        f"{content['machine']}. Teacher: an {TEACHER} with random weights. Batches of {content['batch_size']} of "
        f"{len(content['atoms'])} slabs of {_range(content['atoms'])} atoms. A step is a turn of "
        "fairchem's training loop: load and collate the batch (no loader workers), forward, losses, metrics, backward, "
        "clipping, optimizer, EMA. The kinds of step are interleaved on the same batches in one run, undistilled and cached "
        "in alternating order and after a step that is not timed, as a teacher by itself slows the next one; figures are "
        "medians over the rounds, of the ratios too, in brackets min and max. CPU time is disturbed less by other work on "
        f"the machine. `{content['command']}` makes this page and `step.json`.",
        "",
        "## Ratios",
        "",
        f"Targets: cached / undistilled at most {MOST_CACHED:.2f}, online / (teacher + undistilled) at most "
        f"{MOST_ONLINE:.2f}.",
        "",
        "| student | parameters | rounds | clock | cached / undistilled | online / (teacher + undistilled) "
        "| online / undistilled | cached / online |",
        "|---" * 8 + "|",
    ]
    names = ("cached_over_undistilled", "online_over_sum", "online_over_undistilled", "cached_over_online")
    for student, figures in students.items():
        for clock, label in (("", "wall"), ("_cpu", "CPU")):
            cells = [student, f"{figures['parameters'] / 1e6:.1f}M", str(figures["repeats"]), label]
            lines.append("| " + " | ".join([*cells, *(cell(figures, name + clock) for name in names)]) + " |")
    lines += [
        "",
        "What an online step is made of: all but the teacher, over an undistilled step; and the teacher within it, over the "
        "teacher by itself. The second is the same work on the same batch: how far it is from 1 is the machine's noise, and "
        "what it costs that the student's activations are in memory meanwhile.",
        "",
        "| student | clock | online without the teacher / undistilled | teacher within online / alone |",
        "|---|---|---|---|",
    ]
    names = ("online_without_teacher_over_undistilled", "teacher_within_online_over_alone")
    for student, figures in students.items():
        for clock, label in (("", "wall"), ("_cpu", "CPU")):
            lines.append("| " + " | ".join([student, label, *(cell(figures, name + clock) for name in names)]) + " |")
    lines += [
        "",
        "## Seconds",
        "",
        "The last two are how long a step waits for its batch, and which part of a cached step that is.",
        "",
        "| student | clock | undistilled | cached | online | teacher alone | teacher within online "
        "| loading, undistilled, ms | loading, cached, ms | of a cached step |",
        "|---" * 10 + "|",
    ]
    for student, figures in students.items():
        for clock, label in (("", "wall"), ("_cpu", "CPU")):
            cells = [cell(figures, f"seconds_{kind}{clock}") for kind in (*KINDS, "teacher", "teacher_within_online")]
            cells += [f"{figures[f'seconds_{kind}_loading{clock}'] * 1e3:.1f}" for kind in KINDS[:2]]
            cells.append(f"{figures[f'waiting_for_the_loader{clock}']:.2%}")
            lines.append(f"| {student} | {label} | " + " | ".join(cells) + " |")
    raw = content["raw"]["cache"]
    peak = "unknown" if raw["peak_memory"] is None else f"{raw['peak_memory'] / 2**20:.0f} MiB"
    lines += [
        "",
        "## The cache",
        "",
        "| | | target |",
        "|---|---|---|",
        f"| writing and finishing / the teacher's forward within it, wall clock | {cache['writing_over_inference']:.4f} "
        f"| {MOST_WRITING:.2f} |",
        f"| the same, CPU time | {cache['writing_over_inference_cpu']:.4f} | {MOST_WRITING:.2f} |",
        f"| size on disk / bytes of the arrays, {raw['large']['systems']} systems | {cache['disk_over_arrays']:.3f} "
        f"| {MOST_SIZE:.2f} |",
        f"| the same, {raw['systems']} systems | {cache['disk_over_arrays_of_these_systems']:.3f} | |",
        f"| bytes of a system | {cache['bytes_per_system']:.0f} | |",
        f"| encoding, writing and finishing a record, ms | {cache['seconds_to_write_a_record'] * 1e3:.2f} | |",
        f"| reading a record, ms | {cache['seconds_to_read_a_record'] * 1e3:.2f} | |",
        f"| a system of the data set, ms | {cache['seconds_of_a_system'] * 1e3:.2f} | |",
        f"| the same with its record, ms | {cache['seconds_of_a_system_with_record'] * 1e3:.2f} | |",
        f"| the teacher on {raw['systems']} systems to its end, s | {raw['inference']['wall']:.1f} | |",
        f"| memory that writing takes beyond the teacher, at its peak | {peak} | |",
        "",
        *(["## Targets missed", "", *(f"- {sentence}" for sentence in content["missed"])] if content["missed"] else []),
        *([] if content["missed"] else ["Every target is met."]),
        "",
    ]
    return "\n".join(lines)


def _range(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"
