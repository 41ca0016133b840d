"""`fairchem-crack check` and `fit-scales`: the facts they print, every problem at once, and nothing written."""

from __future__ import annotations

import gc
import json
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest
import torch
import yaml
from conftest import STUDENT_MODEL, TEACHER_MODEL
from fairchem.core.common.registry import registry
from fairchem.core.datasets import LmdbDataset, data_list_collater

from fairchem_crack.commands.check import inputs, models
from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.time_and_memory import loss_bytes
from fairchem_crack.training.scale_factors import scale_factors

GEMNET_T = {
    "name": "gemnet_t",
    **{"num_spherical": 3, "num_radial": 8, "num_blocks": 1, "cutoff": 5.0, "max_neighbors": 12},
    **{"emb_size_atom": 16, "emb_size_edge": 16, "emb_size_trip": 8, "emb_size_rbf": 4, "emb_size_cbf": 4},
    **{"emb_size_bil_trip": 8, "num_before_skip": 1, "num_after_skip": 1, "num_concat": 1, "num_atom": 1},
    **{"regress_forces": True, "direct_forces": True, "otf_graph": True, "output_init": "HeOrthogonal"},
    **{
        "rbf": {"name": "gaussian"},
        "envelope": {"name": "polynomial", "exponent": 5},
        "cbf": {"name": "spherical_harmonics"},
    },
}

COSINE = {"lambda_type": "cosine", "warmup_epochs": 1, "warmup_factor": 0.2, "lr_min_factor": 0.01}


@pytest.fixture
def command(tmp_path):
    """Callable: write the config, and return the arguments that check it."""

    def arguments(config: dict, *flags: str) -> list[str]:
        file = tmp_path / "student.yml"
        logger = "tensorboard" if config["logger"] == "recorder" else config["logger"]  # that of the tests' own trainings
        file.write_text(yaml.safe_dump({**config, "logger": logger}))
        return ["check", "--config-yml", str(file), "--cpu", "--run-dir", str(tmp_path / "runs"), *flags]

    return arguments


@pytest.fixture
def check(command, capsys, tmp_path):
    """Callable: check the config in this process; the exit status and the output. Nothing may have been written."""

    def run(config: dict, *flags: str) -> tuple[int, str]:
        arguments = command(config, *flags)
        before = sorted(tmp_path.rglob("*"))
        status, output = call(arguments, capsys)
        assert sorted(tmp_path.rglob("*")) == before
        return status, output

    return run


def call(arguments: list[str], capsys) -> tuple[int, str]:
    gc.collect()  # a former data set closes its LMDB when collected; one process opens it only once
    status: int | str | None = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = end.code
    output = capsys.readouterr().out
    assert isinstance(status, int), status
    return status, output


def section(output: str, name: str) -> str:
    """The line of one section."""
    return next(line for line in output.splitlines() if line.startswith(f"{name} "))


def problems(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("- ")]


def build(options: dict) -> torch.nn.Module:
    return registry.get_model_class(options["name"])(**{key: value for key, value in options.items() if key != "name"})


def pairs_per_system(source: Path) -> float:
    """Of the toy teacher's graph, one system after the other, by a set of Python."""
    data, teacher = LmdbDataset({"src": str(source)}), build(TEACHER_MODEL)
    count = 0
    for index in range(len(data)):
        graph = teacher.generate_graph(data_list_collater([data[index]], otf_graph=True))
        count += len({frozenset(edge) for edge in graph.edge_index.T.tolist()} - {frozenset([i]) for i in range(99)})
    return count / len(data)


def test_a_good_config_has_no_problem(check, distilled, data, monkeypatch):
    loads = []
    load = models.load_teacher
    monkeypatch.setattr(models, "load_teacher", lambda *given: loads.append(given) or load(*given))
    distilled["optim"].update(batch_size=4, eval_every=2)
    distilled["loss_functions"][2]["relations"].update(lmax="all", per_degree=True)
    status, output = check(distilled)
    assert (status, output.splitlines()[-1]) == (0, "No problem found.")
    assert len(loads) == 1
    for role, options, width in (("student", STUDENT_MODEL, "D_s = 16"), ("teacher", TEACHER_MODEL, "D = 16")):
        line = section(output, role)
        millions = sum(parameter.numel() for parameter in build(options).parameters()) / 1e6
        assert f"{options['name']}, {millions:.3f}M parameters, {width}, float32 on cpu" in line
    assert "train 12, val 6, test 6" in section(output, "data")
    assert "train: energy, forces; val: energy, forces" in section(output, "labels")
    gc.collect()
    expected = pairs_per_system(data / "train")
    counts = re.search(r"([\d.]+) per system, (\d+) per batch of 4 .*sample of 12 systems", section(output, "pairs"))
    assert float(counts[1]) == pytest.approx(expected, abs=0.05)  # it is printed with one decimal
    assert int(counts[2]) == pytest.approx(4 * expected, abs=0.5)  # it is printed as an integer
    assert "; 3 steps, validated every 2 and saved every 2 and after the last one, too" in section(output, "training")
    assert "2 of 2 scale factors fitted" in section(output, "scales")
    assert re.search(r"loss of the relations [\d.]+ MB .*weights [\d.]+ MB", section(output, "memory"))
    seconds = [float(value) for value in re.findall(r"[\d.]+(?:e-\d+)?(?= s:|,| \()", section(output, "step"))]
    assert len(seconds) == 4
    assert seconds[0] == pytest.approx(sum(seconds[1:]), rel=0.02)  # they are printed with three digits


def test_six_problems_are_named_at_once(check, distilled, tmp_path):
    distilled["task"]["distill"]["teacher"]["checkpoint"] = "teachers/gone.pt"
    distilled["task"]["distill"]["relations"] = {"anchr": "student", "graph": "techer"}
    distilled["dataset"]["val"]["src"] = "data/val_idd"
    distilled["dataset"]["train"]["key_mapping"] = {"y": "energy"}
    del distilled["evaluation_metrics"]["primary_metric"]
    status, output = check(distilled)
    named = problems(output)
    assert status == 1
    expected = [
        "task.distill.relations.anchr: unknown option. Did you mean `anchor`?",
        "task.distill.relations.graph: expected one of `teacher`, `student`, found 'techer'",
        "evaluation_metrics.primary_metric: missing",
        "dataset.val.src: data/val_idd does not exist",
        "dataset.train: 12 of a sample of 12 systems have no `forces`",
        "task.distill.teacher.checkpoint: teachers/gone.pt is neither a file",
    ]
    assert [problem[2 : 2 + len(start)] for problem, start in zip(named, expected)] == expected
    assert len(named) == len(expected)
    assert "6 problems:" in output
    assert "left out: there is no sound student with a sound teacher" in section(output, "pairs")
    assert "left out: only a config without problems is timed" in section(output, "step")


def test_mistakes_in_fairchems_own_options_are_named(check, distilled, tmp_path):
    (tmp_path / "file").write_text("")
    distilled["trainer"] = "ocp"
    distilled["model"]["hiden_channels"] = 8
    distilled["optim"]["optimizer"] = "Adamm"
    distilled["loss_functions"].append({"energie": {"fn": "mae", "coefficient": 1}})
    status, output = check(distilled, "--run-dir", str(tmp_path / "file"))
    assert status == 1
    for message in ("trainer: 'ocp' cannot", "--run-dir", "hiden_channels", "'Adamm'", "Did you mean `energy`"):
        assert sum(message in problem for problem in problems(output)) == 1, message
    assert section(output, "teacher").startswith("teacher   equiformer_v2")  # it is looked at all the same


def test_an_element_beyond_the_models_is_named(check, distilled):
    distilled["model"]["num_elements"] = 30
    status, output = check(distilled)
    assert status == 1
    assert [re.sub(r"\d+", "#", problem)[:71] for problem in problems(output)] == [
        "- dataset.train holds an atom of atomic number #; the student knows elemen"[:71]
    ]


def test_plain_training_needs_no_teacher(check, stock):
    status, output = check(stock)
    assert status == 0
    assert "plain training" in section(output, "config")
    assert section(output, "teacher").startswith("teacher   left out")
    assert "student" in section(output, "step")


@pytest.mark.parametrize("is_known", [True, False])
def test_the_short_trainer_name_needs_an_installed_package(check, distilled, tmp_path, monkeypatch, is_known):
    include = tmp_path / ".include"
    monkeypatch.setattr(inputs, "STOCK_IMPORTS", include)
    if is_known:
        include.write_text("crack_distill")
    distilled["trainer"] = "crack_distill"
    status, output = check(distilled)
    assert status == 0
    assert ("editable install, `fairchem-crack train` does" in section(output, "config")) is not is_known


def test_a_schedule_without_its_milestones_is_named(check, distilled):
    del distilled["optim"]["scheduler"]
    status, output = check(distilled)
    assert status == 1
    assert "optim: 'lr_milestones' is not given" in output


def test_scale_factors_that_are_not_fitted_are_warned_of(check, distilled, tmp_path, capsys):
    distilled["trainer"] = "crack_distill"
    distilled["model"] = dict(GEMNET_T)
    distilled["optim"].update(scheduler="LambdaLR", scheduler_params=COSINE)  # fairchem's own trainer lacks it
    status, output = check(distilled)
    assert status == 0  # a warning, not a problem
    assert "0 of 7 scale factors fitted" in section(output, "scales")
    printed = next(line for line in output.splitlines() if "fairchem-crack fit-scales" in line)
    file = tmp_path / "scale_factors.json"
    status, _ = call(shlex.split(printed.replace("scale_factors.json", str(file)))[1:], capsys)
    assert status == 0
    fitted = scale_factors(build({**GEMNET_T, "scale_file": str(file)}))
    assert {name: factor.scale_factor.item() for name, factor in fitted.items()} == json.loads(file.read_text())
    status, output = check(distilled, f"--model.scale_file={file}")
    assert "7 of 7 scale factors fitted" in section(output, "scales")


def test_check_exits_with_its_verdict(command, distilled):
    del distilled["evaluation_metrics"]["primary_metric"]
    done = subprocess.run(
        [sys.executable, "-m", "fairchem_crack.commands.cli", *command(distilled)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-2] == "1 problem:"
    assert "Traceback" not in done.stderr


def test_a_missing_config_file_is_named(command, distilled, tmp_path):
    with pytest.raises(SystemExit, match=r"fairchem-crack check: .*gone\.yml"):
        main([*command(distilled)[:2], str(tmp_path / "gone.yml")])


# ---- the parts that read no data


@pytest.mark.parametrize("method", ["ours", "unfused"])
@pytest.mark.parametrize("device, page", [("cpu", "crack_loss"), ("cuda", "crack_loss_gpu")])
def test_memory_estimate_is_that_of_the_benchmark(device, page, method):
    """Peaks measured by benchmarks/crack_loss, D = 128, N = P / 12.5."""
    report = Path(__file__).parents[2] / f"docs/benchmarks/{page}.json"
    results = [result for result in json.loads(report.read_text())["results"] if result["method"] == method]
    assert results
    for result in results:
        pairs, options = result["pairs"], {"width": 128, "device": device, "fused": method == "ours"}
        estimate = loss_bytes(pairs=pairs, atoms=pairs / 12.5, **options) / 2**20
        assert result["peak_mb"] / 1.5 < estimate < result["peak_mb"] * 1.5, result


def test_memory_estimate_is_linear_in_pairs_and_atoms():
    """Beyond the width of a block of columns."""
    for device, base in (("cpu", 10_000), ("cuda", 100_000)):
        single, double, triple = (
            loss_bytes(pairs=base * n, atoms=base * n / 10, width=64, device=device, fused=False) for n in (1, 2, 3)
        )
        assert triple - double == pytest.approx(double - single)


def test_a_teacher_of_other_data_is_noticed(check, distilled, data):
    _, output = check(distilled)  # the tests' teacher has random weights
    assert re.search(r"agreement teacher on the labels of the sample: energy MAE \S+ eV, force MAE \S+ eV/A", output)
    assert "Was the teacher trained on data of this kind" in output


def test_a_primary_metric_that_is_never_computed_is_named(check, distilled):
    distilled["evaluation_metrics"]["primary_metric"] = "force_mae"
    _, output = check(distilled)
    assert "primary_metric: 'force_mae' is none of the metrics. Did you mean `forces_mae`?" in output


def test_a_plateau_without_validation_is_refused(check, distilled):
    distilled["optim"]["scheduler"] = "ReduceLROnPlateau"
    del distilled["dataset"]["val"]
    _, output = check(distilled)
    assert "dataset.val.src: missing; optim.scheduler ReduceLROnPlateau goes by a validation" in output


def test_an_ase_database_read_as_lmdb_is_named(check, distilled, tmp_path):
    (tmp_path / "oxides.db").write_bytes(b"")
    distilled["dataset"]["train"]["src"] = str(tmp_path / "oxides.db")
    _, output = check(distilled)
    assert "dataset.train: " in output and "dataset.train.format: ase_db" in output


def test_a_misspelt_distill_block_is_named(check, distilled):
    distilled["task"]["distil"] = distilled["task"].pop("distill")
    _, output = check(distilled)
    assert "task.distill: missing, but loss_functions has distillation terms; task has `distil`" in output


# ---- what would end a training later


@pytest.mark.parametrize(
    "scheduler, expected",
    [
        (
            {"total_steps": 5},
            "- optim.scheduler: OneCycleLR has 5 steps, the training 6; torch would",
        ),
        ({"total_steps": 6}, "No problem found."),
        ({"epochs": 1, "steps_per_epoch": 5}, "- optim.scheduler: OneCycleLR has 5 steps, the training 6;"),
    ],
)
def test_a_schedule_that_ends_before_the_training(check, distilled, scheduler, expected):
    del distilled["optim"]["T_max"]
    distilled["optim"].update(scheduler="OneCycleLR", max_lr=1e-3, **scheduler)
    status, output = check(distilled)
    assert expected in output and status == (0 if expected.startswith("No") else 1)
    status, output = check(distilled, "--num-gpus", "2")  # half the steps
    assert status == 0 and f"ends after 3 of the schedule's {scheduler.get('total_steps', 5)} steps" in output


def test_the_course_of_the_learning_rate_is_printed(check, distilled):
    distilled["optim"].update(T_max=4, max_epochs=2)
    status, output = check(distilled)
    assert status == 0
    assert "learning rate 0.001 in step 1, at most 0.001," in output and "in step 12" in output
    assert "WARNING: the learning rate rises again after step 4 of 12" in output


@pytest.fixture
def with_records(distilled, data, tmp_path):
    """Callable: the config with a split whose records are changed."""

    def write(split: str, change) -> dict:
        gc.collect()
        source = LmdbDataset({"src": str(data / ("train" if split == "train" else "val_id"))})
        (tmp_path / split).mkdir()
        environment = lmdb.open(str(tmp_path / split / "data.lmdb"), map_size=1 << 24, subdir=False, lock=False)
        with environment, environment.begin(write=True) as transaction:
            for index in range(len(source)):
                record = source[index].clone()
                change(index, record)
                transaction.put(str(index).encode(), pickle.dumps(record, protocol=-1))
        del source
        gc.collect()
        distilled["dataset"][split]["src"] = str(tmp_path / split)
        return distilled

    return write


def make(name: str, value):
    """Set a field of every record."""
    return lambda index, record: record.__setitem__(name, value(record))


@pytest.mark.parametrize(
    "split, change, expected",
    [
        ("train", make("force", lambda record: record.force.T.contiguous()), "`forces` has the shape (3, "),
        (
            "train",
            make("y", lambda record: float("nan")),
            "dataset.train: `energy` has values that are not finite",
        ),
        (
            "val",
            make("force", lambda record: record.force.double() * float("inf")),
            "dataset.val: `forces` has values",
        ),
        ("train", make("pos", lambda record: record.pos.double()), "dataset.train: `pos` is float64, expected float32"),
        ("train", make("y", lambda record: int(record.y)), "dataset.train: `energy` is a int, expected a tensor of float32"),
        ("train", make("fixed", lambda record: record.fixed * 0 + 1), "all atoms are fixed in 12 of a sample of 12"),
        (
            "val",
            make("fixed", lambda record: record.fixed * 0 + 1),
            "dataset.val: all atoms are fixed in 6 of a sample",
        ),
        (
            "val",
            make("atomic_numbers", lambda record: record.atomic_numbers * 0 + 99),
            "dataset.val holds an atom of",
        ),
        ("test", lambda index, record: record.__delattr__("sid"), "dataset.test: the systems have no `sid`"),
    ],
)
def test_data_that_would_end_a_training_are_named(check, with_records, split, change, expected):
    status, output = check(with_records(split, change))
    assert status == 1
    assert [expected in problem for problem in problems(output)] == [True]


def test_a_few_systems_without_a_free_atom_are_warned_of(check, with_records):
    config = with_records("train", lambda index, record: record.__setitem__("fixed", record.fixed * 0 + (index == 3)))
    status, output = check(config)
    assert status == 0 and "WARNING: dataset.train: all atoms are fixed in 1 of a sample of 12 systems" in output
    status, output = check(config, "--optim.batch_size=1")
    assert status == 1 and "all atoms are fixed in 1 of a sample of 12 systems" in problems(output)[0]


def test_a_loss_that_is_not_finite_is_named(check, distilled):
    distilled["dataset"]["train"]["transforms"] = {"normalizer": {"energy": {"mean": 1e3, "stdev": 1.3e-38}}}
    status, output = check(distilled)
    assert status == 1
    assert problems(output)[0].startswith("- loss_functions: `energy` is inf on a sample of 12 systems")


@pytest.mark.parametrize(
    "path, value, expected",
    [
        (("loss_functions", 0, "energy", "fn"), "l2mae", "- loss_functions, energy.fn: `l2mae` takes the length of vectors"),
        (
            ("evaluation_metrics", "metrics", "energy"),
            ["maee"],
            "- evaluation_metrics: NameError: name 'maee'",
        ),
        (
            ("evaluation_metrics", "metrics"),
            None,
            "- evaluation_metrics.primary_metric: 'forces_mae' is none",
        ),
        (
            ("task", "distill", "learning_rates"),
            {"atom_em": 0},
            "- task.distill.learning_rates.atom_em: no parameter of the student has this name. Did you mean `atom_emb`",
        ),
        (("outputs", "energy"), None, "- outputs.energy: expected a mapping with `level`"),
        (("optim", "max_epochs"), "1", "- optim.max_epochs: expected an integer"),
        (("logger",), "tensorbord", "- logger: RuntimeError: Failed to find the logger 'tensorbord'"),
        (("los_functions",), [], "- los_functions: fairchem reads no block of this name and drops it. Did you mean"),
    ],
)
def test_options_that_would_end_a_training_are_named(check, distilled, path, value, expected):
    block = distilled
    for name in path[:-1]:
        block = block[name]
    block[path[-1]] = value
    status, output = check(distilled)
    assert status == 1
    assert any(problem.startswith(expected) for problem in problems(output)), output
