"""The page of `benchmarks/teacher`."""

from __future__ import annotations

import statistics

COMPILED = ("teacher_equiformer_v2", "painn", "gemnet_dT")


def middle(seconds: list[float], digits: int = 1) -> str:
    """Median and quartiles in ms."""
    low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
    return f"{median:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ratio(numerator: list[float], denominator: list[float]) -> list[float]:
    """Median and quartiles of one / other, round by round."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(numerator, denominator)], n=4)
    return [median, low, high]


def shown(values: list[float]) -> str:
    """A median and its quartiles."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def errors(precision: dict, name: str) -> list[float]:
    """Of energy or forces: mean and max difference, the mean without exact edges; errors on the labels in both types."""
    mean = precision["mean"]
    of_labels = [mean[f"{name} {kind} labels"] for kind in ("float32", "bfloat16")]
    return [mean[name], precision["max"][name], mean[f"{name} rounded"], *of_labels]


def report(content: dict) -> str:
    """The tables, as markdown."""
    return "\n".join(
        [
            "# The teacher: settled edges, bfloat16, torch.compile",
            "",
            f"{content['machine']}. The demo's EquiformerV2. Forwards to energy and forces are interleaved "
            "on the same batches, "
            "in alternating order; figures are medians over the rounds, of the ratios too, in brackets quartiles. "
            f"Load of the machine before it began, of {content['cores']} cores: {content['load']:.1f}. "
            f"`{content['command']}` makes this page and `teacher.json`.",
            *_edges(content["edges"]),
            *_precision(content["precision"], content["bfloat16"]),
            *(_compile(content["compile"], content["longest"]) if content["compile"] else []),
            *(
                ["", "This section is of an earlier run on the machine."]
                if "--without-compile" in content["command"]
                else []
            ),
            "",
        ]
    )


def _edges(edges: dict) -> list[str]:
    calls = edges["calls"]
    lines = [
        "",
        "## Settled edges",
        "",
        "So that the outputs for a system do not depend on the others of its batch, the frames of edges and the order of "
        "equally distant neighbors are settled, by a detour of torch's calls through Python. Of "
        f"{calls['all']} calls of a forward {calls['detour']} take it: those that make the graph and the frames. Before, "
        "all of them did. The outputs are equal bit by bit.",
        "",
        "| systems | atoms | rounds | only the model, ms | edges settled, ms | all settled, as before, ms "
        "| edges / model | all / model |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for systems, batch in edges["batches"].items():
        seconds = batch["seconds"]
        cells = [systems, batch["atoms"], len(seconds["model"])]
        cells += [middle(seconds[name]) for name in ("model", "edges", "everywhere")]
        cells += [shown(ratio(seconds[name], seconds["model"])) for name in ("edges", "everywhere")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _precision(precision: dict, has_unit: bool) -> list[str]:
    mean, most, seconds = precision["mean"], precision["max"], precision["seconds"]
    unit = "has" if has_unit else "lacks"
    return [
        "",
        "## `precision: bfloat16`",
        "",
        f"Against float32, {precision['systems']} systems that it was not trained on; forces are components of free atoms. "
        "Graph, edge frames and rotations are in float32 in both; the third column is without that, as before. The last "
        "columns are the teacher's own error, against the labels.",
        "",
        "| | mean difference | max | mean, edges in bfloat16 | error on the labels, float32 | bfloat16 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name}, {unit} | {' | '.join(f'{value:.4f}' for value in errors(precision, name))} |"
            for name, unit in (("energy", "eV"), ("forces", "eV/Å"))
        ),
        f"| node embedding, relative | {mean['embedding']:.4f} | {most['embedding']:.4f} | | | |",
        f"| 1 - cosine of a relation | {1 - precision['cosine']['mean']:.1e} | {1 - precision['cosine']['min']:.1e} | | | |",
        "",
        f"| {precision['atoms']} atoms | ms |",
        "|---|---|",
        f"| float32 | {middle(seconds['float32'])} |",
        f"| bfloat16 | {middle(seconds['bfloat16'])} |",
        f"| bfloat16 / float32 | {shown(ratio(seconds['bfloat16'], seconds['float32']))} |",
        "",
        f"The processor {unit} instructions for bfloat16. What a GPU gains was not measured.",
    ]


def _compile(cases: dict, longest: int) -> list[str]:
    lines = [
        "",
        "## torch.compile",
        "",
        "Tried on the models by themselves, and used nowhere: `torch._dynamo.explain` of one forward, then `torch.compile` "
        "with its defaults on that batch, without gradients. Figures are with `torch._dynamo.config.suppress_errors`, which "
        "leaves out what cannot be compiled; without it the model fails as the second column says. Compiling is the time of "
        f"three forwards; a model is given up after {longest} s. Batches of other shapes compile anew. The deviation is of "
        "forces, relative to their max; EquiformerV2's includes other random frames.",
        "",
        "| model | fails with | graphs | breaks | compiling, s | eager, ms | compiled, ms | compiled / eager | deviation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        cells = [name, f"`{case['error']}`" if case.get("error") else "", case.get("graphs", ""), case.get("breaks", "")]
        if "seconds" in case:
            seconds = case["seconds"]
            cells += [f"{case['compiling']:.0f}", middle(seconds["eager"]), middle(seconds["compiled"])]
            cells += [shown(ratio(seconds["compiled"], seconds["eager"])), f"{case['deviation']:.1e}"]
        else:
            cells += ["given up", *[""] * 4]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "What breaks the graphs most often:", ""]
    lines += [f"- {name}: {count} x {reason}" for name, case in cases.items() for reason, count in case.get("reasons", [])]
    return lines
