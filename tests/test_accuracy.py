"""The accuracy benchmark: what it runs, what it keeps, what it reports."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import stock_config
from tolerances import FLOAT32_SMALL, QUANTILE, REORDERED, REPEATED

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import embeddings, generated, page, relations, summary, training
from benchmarks.accuracy.plan import EXPERIMENTS, TEACHER, Plan, Run, expand, read_plan
from benchmarks.accuracy.table import Table, locked
from benchmarks.accuracy.training import METRICS, SPLITS, Workspace, schedule, training_config, write_config
from fairchem_crack.config import DistillConfig, parse, split_loss_functions

ROOT = Path(__file__).parents[1]
GRID = {"student": "painn", "teacher": "escn", "budget": "steps"}
PLAN = Plan(
    students={"painn": "configs/oc20/demo/painn.yml", "gemnet_dT": "configs/oc20/demo/gemnet_dT.yml"},
    teachers={"escn": "configs/oc20/demo/teacher_escn.pt"},
    methods={
        "undistilled": {},
        "labels": {
            "terms": [
                {"teacher_energy": {"fn": "mae", "coefficient": {"painn": 2, "gemnet_dT": 4}}},
                {"teacher_forces": {"fn": "l2mae", "coefficient": 10}},
            ]
        },
        "crack": {
            "terms": [{"relations": {"fn": "crack", "coefficient": 40}}],
            "distill": {"relations": {"anchor": "symmetric"}},
        },
        "hessian": {"terms": [{"force_jacobian": {"fn": "mse", "coefficient": 1}}]},
        "response": {"terms": [{"embedding_response": {"fn": "mse", "coefficient": 1}}]},
    },
    tables={
        "accuracy": {
            "splits": list(SPLITS),
            "budgets": {"steps": {"painn": 1140, "gemnet_dT": 380}, "time": {"painn": {"crack": 1026}}},
            "grids": [
                {"teacher": "escn", "method": TEACHER},
                {**GRID, "method": ["undistilled", "crack"], "seed": [1, 2], "train_systems": [75, 300]},
                {**GRID, "method": ["undistilled", "crack"], "seed": [1], "train_systems": 300, "budget": "time"},
            ],
        }
    },
    validation_systems=6,
    jacobian_rows=2,
    structures={"rattle2": "--strategies rattle=2"},
)
CRACK = Run("painn", "escn", "crack", 3, 300, "steps")
UNDISTILLED = Run("painn", "", "undistilled", 3, 300, "steps")
GENERATED = replace(CRACK, structures="rattle2")
THE_TEACHER = Run(teacher="escn", method=TEACHER)


# What is run


@pytest.mark.parametrize(
    "systems, given, epochs, steps",
    [
        (300, 1140, 60, 1140),  # the demo's own figures
        (1200, 1140, 15, 1125),  # as many, but for whole epochs
        (300, 570, 30, 570),
        (300, 1, 1, 19),
    ],
)
def test_steps_are_rounded_to_whole_epochs(systems, given, epochs, steps):
    optim = schedule(steps=given, systems=systems, batch_size=16)
    assert (optim["max_epochs"], optim["total_steps"]) == (epochs, steps)
    last = steps // optim["eval_every"] * optim["eval_every"]
    assert steps - last < 5  # the last validation sees the end of the schedule
    assert steps != 1140 or optim["eval_every"] == 228  # the demo's


def test_seeds_are_outermost_and_undistilled_runs_are_shared():
    runs = PLAN.runs("accuracy", {})
    assert runs[0] == THE_TEACHER
    of_seed_1, of_seed_2 = ([run for run in runs[1:] if run.seed == seed] for seed in (1, 2))
    assert runs[1:] == of_seed_1 + of_seed_2
    assert [(run.train_systems, run.method, run.budget) for run in of_seed_2] == [
        (75, "undistilled", "steps"),
        (300, "undistilled", "steps"),
        (75, "crack", "steps"),
        (300, "crack", "steps"),
    ]
    assert set(of_seed_1) - {replace(run, seed=1) for run in of_seed_2} == {replace(CRACK, seed=1, budget="time")}
    assert {run.teacher for run in runs if run.method == "undistilled"} == {""}


def test_only_some_of_the_runs_are_chosen():
    only = command.fields(["method=crack,undistilled", "seed=2"])
    assert only == {"method": ["crack", "undistilled"], "seed": [2]}
    assert len(PLAN.runs("accuracy", only)) == 4
    with pytest.raises(ValueError, match="--only seeds: expected one of student, teacher, method"):
        PLAN.runs("accuracy", command.fields(["seeds=1"]))
    with pytest.raises(ValueError, match="--only seed=5: no run of table accuracy has it; there are 1, 2\\."):
        PLAN.runs("accuracy", command.fields(["seed=5,1"]))
    with pytest.raises(ValueError, match="--only budget=time: no run of table accuracy has it with seed=2\\."):
        PLAN.runs("accuracy", command.fields(["seed=2", "budget=steps,time"]))
    with pytest.raises(ValueError, match="--only seed: expected NAME=VALUE"):
        command.fields(["seed"])


@pytest.mark.parametrize("given", [{"method": "crak"}, {"student": "schnet"}, {"teacher": "scn"}, {"structure": "rattle3"}])
def test_unknown_names_in_a_grid_are_refused(given):
    ((kind, name),) = given.items()
    field = "structures" if kind == "structure" else kind
    plan = replace(PLAN, tables={"accuracy": {"grids": [{**GRID, "method": "crack", field: name}]}})
    with pytest.raises(ValueError, match=f"table accuracy: {kind} `{name}` is unknown; known: "):
        plan.runs("accuracy", {})


def test_a_grid_of_coefficients_has_every_candidate():
    runs = expand({**GRID, "seed": 100, "method": "undistilled", "coefficients": {"crack": [10, 0.5], "labels": [1]}})
    assert [run.method for run in runs] == ["undistilled", "crack@10", "crack@0.5", "labels@1"]
    assert {run.seed for run in runs} == {100}


def test_coefficients_depend_on_student_and_candidate():
    painn, gemnet = (replace(CRACK, student=student, method="labels") for student in ("painn", "gemnet_dT"))

    def coefficients(run: Run) -> list[float]:
        return [options["coefficient"] for term in PLAN.terms(run) for options in term.values()]

    assert coefficients(painn) == [2, 10] and coefficients(gemnet) == [4, 10]
    assert coefficients(replace(painn, method="labels@1")) == [1, 5]  # the others keep their ratio to the first
    assert coefficients(painn) == [2, 10]  # nothing was changed in place


def test_steps_depend_on_budget_student_and_method():
    assert PLAN.steps("accuracy", CRACK) == 1140 and PLAN.steps("accuracy", replace(CRACK, student="gemnet_dT")) == 380
    assert PLAN.steps("accuracy", replace(CRACK, budget="time")) == 1026
    with pytest.raises(ValueError, match="budgets: no steps of painn-escn-labels-3-300-time"):
        PLAN.steps("accuracy", replace(CRACK, method="labels", budget="time"))


def test_the_yaml_of_a_run_adds_terms_and_a_teacher(tmp_path):
    workspace = Workspace(tmp_path)
    plain = training_config(UNDISTILLED, PLAN, workspace, steps=1140)
    distilled = training_config(CRACK, PLAN, workspace, steps=38)
    own = [{"energy": {"fn": "mae", "coefficient": 4}}, {"forces": {"fn": "l2mae", "coefficient": 100}}]
    assert plain["trainer"] == "ocp" and "task" not in plain and plain["loss_functions"] == own
    assert distilled["loss_functions"] == [*own, {"relations": {"fn": "crack", "coefficient": 40}}]
    assert distilled["task"]["distill"]["relations"] == {"anchor": "symmetric"}
    assert distilled["task"]["distill"]["teacher"]["cache"] == "caches/escn-300"
    assert distilled["optim"]["max_epochs"] == 2 and plain["optim"]["max_epochs"] == 60
    hessian = training_config(replace(CRACK, method="hessian"), PLAN, workspace, steps=1140)
    assert hessian["task"]["distill"]["teacher"]["cache"] == "caches/escn-300-jacobian"
    response = training_config(replace(CRACK, method="response"), PLAN, workspace, steps=1140)
    assert response["task"]["distill"]["teacher"]["cache"] == "caches/escn-300-response"


def test_generated_structures_take_as_many_steps(tmp_path):
    workspace = Workspace(tmp_path)
    pretend_generated(GENERATED, workspace, systems=897)
    config = training_config(GENERATED, PLAN, workspace, steps=1140)
    assert config["dataset"]["train"]["src"] == "structures/escn-300-rattle2/data"
    assert config["task"]["distill"]["teacher"]["cache"] == "structures/escn-300-rattle2/cache"
    assert (config["optim"]["max_epochs"], config["optim"]["total_steps"]) == (20, 1140)
    assert config["trainer"] == "fairchem_crack.CrackDistillTrainer"
    assert GENERATED.name == "painn-escn-crack-3-300-steps-rattle2"
    assert GENERATED.of_method("undistilled") == replace(UNDISTILLED, budget="steps")
    assert replace(GENERATED, budget="triple").of_method("undistilled") == replace(UNDISTILLED, budget="triple")
    assert replace(GENERATED, budget="time").of_method("undistilled") == UNDISTILLED


def pretend_generated(run: Run, workspace: Workspace, *, systems: int) -> None:
    workspace.structures(run).mkdir(parents=True)
    (workspace.structures(run) / "generate.json").write_text(json.dumps({"systems": systems}))


def test_structures_are_made_once_and_their_cost_is_kept(tmp_path, monkeypatch):
    script = tmp_path / "fairchem-crack"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/arguments\nmkdir $3\necho \'{{"systems": 890}}\' > $3/generate.json\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(training, "COMMANDS", tmp_path)
    monkeypatch.setattr("fairchem_crack.demo.prepare.prepare_demo", lambda *_, **__: None)
    workspace = Workspace(tmp_path / "out")
    for _ in range(2):
        training.prepare(GENERATED, PLAN, workspace, device="cpu")
    training.prepare(replace(CRACK, method="response"), PLAN, workspace, device="cpu")
    arguments, of_response = (tmp_path / "arguments").read_text().splitlines()
    assert "caches/escn-300-response " in of_response and "--embedding-response --jacobian-rows 2" in of_response
    assert arguments.startswith("generate --output ") and "--all-degrees --strategies rattle=2 --dataset" in arguments
    row, _ = workspace.table("labels").rows()
    assert row.pop("cpu_seconds") >= 0
    of_run = {"teacher": "escn", "train_systems": 300, "structures": "rattle2"}
    assert row == {**of_run, "jacobian_rows": 0, "systems": 890, "device": "cpu"}


def test_every_run_of_experiments_yml_is_understood(tmp_path):
    plan, workspace = read_plan(EXPERIMENTS), Workspace(tmp_path)
    candidates = {grid["student"]: grid["coefficients"] for grid in plan.tables["tuning"]["grids"]}
    for student in ("painn", "gemnet_dT"):
        for method in ("n2n", "infonce", "teacher_labels", "atom_energies", "hessian", "crack"):
            assert len(candidates[student][method]) >= 3, method
    runs = {(run.student, run.method): (table, run) for table in plan.tables for run in plan.runs(table, {}) if run.student}
    assert {method.partition("@")[0] for _, method in runs} == plan.methods.keys()
    for table, run in runs.values():
        if run.structures and not workspace.structures(run).exists():
            pretend_generated(run, workspace, systems=3000)
        config = training_config(run, plan, workspace, steps=plan.steps(table, run))
        terms = split_loss_functions(config["loss_functions"])[1]
        assert bool(terms) == (run.method not in ("undistilled", "labelled"))
        if run.teacher:
            parse(DistillConfig, config["task"]["distill"], "task.distill")


def test_every_published_row_is_a_run_of_experiments_yml():
    plan, workspace = read_plan(EXPERIMENTS), Workspace(ROOT / "docs/benchmarks/accuracy")
    rows = workspace.table("accuracy").rows()
    assert set(map(Run.of, rows)) == set(plan.runs("accuracy", {}))
    for table in ("generated", "relations"):
        assert set(map(Run.of, workspace.table(table).rows())) <= set(plan.runs(table, {}))
    batches = {100: 7, 300: 19, 1000: 63, 3000: 188}
    for row in rows:
        run = Run.of(row)
        if run.student:
            optim = schedule(steps=plan.steps("accuracy", run), systems=run.train_systems, batch_size=16)
            assert row["steps"] == optim["total_steps"] and row["steps"] % batches[run.train_systems] == 0


def test_equal_time_is_fewer_steps_by_the_measured_costs():
    budgets = read_plan(EXPERIMENTS).tables["accuracy"]["budgets"]
    costs = summary.step_costs(Workspace(ROOT / "docs/benchmarks/accuracy").table("costs").rows())
    for method, steps in budgets["time"]["painn"].items():
        fits = budgets["steps"]["painn"] / costs["painn", "equiformer_v2", method].estimate
        assert steps == schedule(steps=fits, systems=300, batch_size=16)["total_steps"], method


def test_the_cost_of_a_step_is_a_median_of_ratios():
    seconds = {"undistilled": (0.06, 0.06, 0.07), "crack": (0.08, 9.0, 0.07)}
    rows = [
        {"student": "painn", "teacher": "escn", "method": method, "round": number, "seconds": value}
        for method, rounds in seconds.items()
        for number, value in enumerate(rounds)
    ]
    assert summary.step_costs(rows)["painn", "escn", "crack"].estimate == pytest.approx(0.08 / 0.06)


def test_the_mean_cost_has_the_dear_steps_of_a_rare_term():
    common = {"student": "painn", "teacher": "escn"}
    seconds = {"undistilled": [1.0, 1.0, 1.0, 1.0], "crack": [2.0, 1.1, 2.2, 1.1]}
    rows = [{**common, "method": name, "round": k, "seconds": own[k]} for name, own in seconds.items() for k in (2, 0, 3, 1)]
    costs = summary.mean_costs(rows)
    assert costs["painn", "escn", "crack"] == [1.6, 1.55, 1.65] and costs["painn", "escn", "undistilled"] == [1, 1, 1]


def test_a_run_begun_with_other_settings_is_refused(tmp_path):
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    config = training_config(CRACK, PLAN, here, steps=1140)
    write_config(CRACK, config, here)
    shorter = training_config(CRACK, PLAN, here, steps=570)
    write_config(CRACK, shorter, here)  # it has not begun
    assert yaml.safe_load(here.file(CRACK, "yml").read_text())["optim"]["max_epochs"] == 30
    here.checkpoint(CRACK, "checkpoint.pt").parent.mkdir(parents=True)
    here.checkpoint(CRACK, "checkpoint.pt").touch()
    with pytest.raises(ValueError, match="painn-escn-crack-3-300-steps began with other settings"):
        write_config(CRACK, config, here)
    assert training_config(CRACK, PLAN, there, steps=570) == shorter  # a directory that moved has the same settings


# One process, and several


@pytest.fixture
def experiments(tmp_path) -> Path:
    """Two runs of one grid, of which the first is `bad`."""
    methods = {name: PLAN.methods["crack"] for name in ("bad", "good")}
    grid = {**GRID, "method": ["bad", "good"], "seed": 0, "train_systems": 300}
    file = tmp_path / "experiments.yml"
    table = {**PLAN.tables["accuracy"], "grids": [grid]}
    file.write_text(yaml.safe_dump({**asdict(PLAN), "methods": methods, "tables": {"accuracy": table}}))
    return file


def test_a_failed_run_does_not_stop_the_others(tmp_path, experiments, monkeypatch, capsys):
    script = tmp_path / "fairchem"
    script.write_text("#!/bin/sh\necho why\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(training, "FAIRCHEM", [str(script)])

    def work(run, plan, workspace, table, *, device, lock):
        if run.method == "bad":
            training.train(run, workspace, device=device, lock=lock)
        workspace.table(table).append([row_of(run, "val_id", 0.1, 0.05)])
        return workspace.table(table).rows()[-1]

    monkeypatch.setattr(command, "work", work)
    assert command.main(["run", str(tmp_path / "out"), "--experiments", str(experiments)]) == 1
    printed = capsys.readouterr().out
    assert "[1/2] painn-escn-bad-0-300-steps" in printed and "exit status 3" in printed and "    why" in printed
    assert "[2/2] painn-escn-good-0-300-steps\n    val_id 0.100 eV, 0.0500 eV/A" in printed
    assert "1 of 2 runs are in" in printed and "Failed: painn-escn-bad-0-300-steps." in printed


def test_two_processes_share_the_runs(tmp_path, experiments, monkeypatch):
    both, done = threading.Barrier(2, timeout=30), []

    def work(run, plan, workspace, table, *, device, lock):
        both.wait()  # each has a run of its own
        done.append(run.method)
        workspace.table(table).append([row_of(run, "val_id", 0.1, 0.05)])
        return workspace.table(table).rows()[-1]

    monkeypatch.setattr(command, "work", work)
    arguments = ["run", str(tmp_path / "out"), "--experiments", str(experiments)]
    threads = [threading.Thread(target=command.main, args=(arguments,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["bad", "good"]


def test_a_training_keeps_its_run_when_its_parent_is_killed(tmp_path):
    with locked(tmp_path / "lock", wait=False) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with locked(tmp_path / "lock", wait=False) as again:
        assert again is None
    child.kill()
    child.wait()
    with locked(tmp_path / "lock", wait=False) as again:
        assert again is not None


def test_an_interrupted_benchmark_ends_its_training(tmp_path, monkeypatch):
    script = tmp_path / "fairchem"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 1\nkill -ALRM $PPID\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(training, "FAIRCHEM", [str(script)])
    workspace = Workspace(tmp_path / "out")
    write_config(CRACK, training_config(CRACK, PLAN, workspace, steps=1140), workspace)

    before = signal.signal(signal.SIGALRM, lambda *_: sys.exit(1))  # as the command does on SIGTERM
    try:
        with locked(tmp_path / "lock") as lock, pytest.raises(SystemExit):
            training.train(CRACK, workspace, device="cpu", lock=lock)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


# What is kept


def row_of(run: Run, split: str, energy: float, forces: float) -> dict:
    metrics = dict(zip(METRICS, (energy, forces, 0.5, 0.01)))
    return {**asdict(run), "split": split, **metrics, "steps": 1140, "cpu_seconds": "", "seconds": 100.0}


def test_rows_come_back_as_they_went(tmp_path):
    table = Table(tmp_path / "accuracy.csv")
    teacher = {**row_of(THE_TEACHER, "val_id", 0.1, 0.2), "steps": ""}
    table.append([row_of(CRACK, split, 1 / 3, 0.05) for split in SPLITS])
    table.append([teacher])
    rows = table.rows()
    assert [Run.of(row) for row in rows] == [CRACK] * 4 + [THE_TEACHER]
    assert rows[0] == row_of(CRACK, "val_id", 1 / 3, 0.05)
    with table.file.open() as file:
        assert len(list(csv.reader(file))) == 1 + 5  # one header


def test_a_column_may_be_added_to_rows_that_lack_it(tmp_path):
    table = Table(tmp_path / "accuracy.csv")
    table.append([{"method": "crack", "seed": 0}])
    table.append([{"method": "crack", "seed": 1, "start": "teacher"}])
    assert table.rows() == [{"method": "crack", "seed": 0, "start": ""}, {"method": "crack", "seed": 1, "start": "teacher"}]
    assert [Run.of(row) for row in table.rows()] == [Run(method="crack", seed=seed) for seed in (0, 1)]


def test_an_interrupted_append_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    table = Table(tmp_path / "accuracy.csv")
    table.append([row_of(CRACK, "val_id", 0.1, 0.05)])
    before = table.file.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("fairchem_crack.io.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        table.append([row_of(UNDISTILLED, "val_id", 0.1, 0.05)])
    assert table.file.read_bytes() == before


# What is reported


@pytest.fixture
def results(tmp_path) -> Workspace:
    """Two seeds, two systems of 1 and 3 free atoms in every split; the same errors in each.

    Energy: undistilled 1.2 and 0.8 eV, crack 0.7 and 0.5 eV, teacher 0.2 eV. Forces of a component, in eV/A: a tenth.
    Equal time: crack 0.9 and 0.7 eV. 75 systems: crack as bad as the undistilled student. Step: 1.1, 1.2, 1.3 times.
    """
    workspace = Workspace(tmp_path / "results")
    rows, errors = [], {}

    def add(run: Run, energy: float) -> None:
        components = np.array([3.0, 9.0])
        own = np.stack([np.array([energy, energy]), energy / 10 * components, components])
        rows.extend(row_of(run, split, energy, energy / 10) for split in SPLITS)
        errors.update({f"{run.name}/{split}": own for split in SPLITS})

    add(THE_TEACHER, 0.2)
    for seed, (undistilled, crack, in_time) in enumerate(((1.2, 0.7, 0.9), (0.8, 0.5, 0.7))):
        add(replace(UNDISTILLED, seed=seed), undistilled)
        add(replace(CRACK, seed=seed), crack)
        add(replace(CRACK, seed=seed, budget="time"), in_time)
        add(replace(UNDISTILLED, seed=seed, train_systems=75), 2 * undistilled)
        add(replace(CRACK, seed=seed, train_systems=75), 2 * undistilled)
    workspace.table("accuracy").append(rows, errors)
    common = {"student": "painn", "teacher": "escn"}
    workspace.table("costs").append(
        [
            {**common, "method": method, "round": number, "seconds": seconds}
            for method, rounds in {"undistilled": (0.1, 0.2, 0.1), "crack": (0.11, 0.24, 0.13)}.items()
            for number, seconds in enumerate(rounds)
        ]
    )
    return workspace


def by_place(content: dict) -> dict[tuple, dict]:
    return {(row["train_systems"], row["budget"], row["method"], row["split"]): row for row in content["rows"]}


def test_the_report_has_the_gaps_by_hand(results, tmp_path):
    page.write_report(results, tmp_path / "out")
    rows = by_place(json.loads((tmp_path / "out/accuracy.json").read_text()))
    assert {place[:2] for place in rows} == {(300, "steps"), (300, "time"), (75, "steps")}
    for split in (*SPLITS, summary.MEAN):
        crack = rows[300, "steps", "crack", split]
        assert crack["energy_mae"][0] == pytest.approx(0.6)
        assert crack["forces_mae"][0] == pytest.approx(0.06)
        # Half width of the t-interval of two seeds: t_{0.975, 1} = 12.706 times |difference| / 2
        assert crack["energy_mae"][2] - 0.6 == pytest.approx(12.706 * 0.1, rel=QUANTILE)
        for quantity in ("energy", "forces"):
            # Of the seeds apart 0.5 / 1.0 and 0.3 / 0.6, both 0.5; of the means (1.0 - 0.6) / (1.0 - 0.2), too
            assert crack[f"gap_{quantity}"] == pytest.approx([0.5, 0.5, 0.5])
            in_time = rows[300, "time", "crack", split][f"gap_{quantity}"]
            by_hand = [(1.0 - 0.8) / 0.8, 0.1 / 0.6, 0.3 / 1.0]  # the mean and the single seeds
            assert in_time == pytest.approx(by_hand, abs=REPEATED)
            assert rows[75, "steps", "crack", split][f"gap_{quantity}"] == pytest.approx([0, 0, 0])
    assert rows[300, "steps", "crack", "val_id"]["step_cost"] == pytest.approx([1.2, 1.15, 1.25])
    text = (tmp_path / "out/accuracy.md").read_text(encoding="utf-8")
    assert "### painn from escn, 300 systems, equal steps" in text and "### painn from escn, 75 systems" in text
    assert "| undistilled | 2 | 1.000 [-1.541, 3.541] |" in text
    assert "| teacher |  | 0.200 | 0.0200 | 0.500 | 1.00 |" in text
    assert "| 50% [50, 50] | 50% [50, 50] | 1.20 [1.15, 1.25] |" in text
    assert "val_id 2, val_ood_ads 2" in text and "## Coefficients" not in text
    assert (tmp_path / "out/accuracy.png").stat().st_size > 5000

    page.write_report(Workspace(tmp_path / "out/accuracy"), tmp_path / "second")  # the published rows make the same
    for name in ("accuracy.md", "accuracy.json", "accuracy/accuracy.csv", "accuracy/accuracy.npz"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_generated_structures_are_compared_with_the_recipe(results, tmp_path, monkeypatch):
    line = replace(CRACK, seed=None, structures="rattle9")
    longer, other = replace(line, budget="double"), replace(line, method="hessian", structures="rattle2")
    grid = {**GRID, "train_systems": 300, "seed": [0, 1]}
    grids = [{"teacher": "escn", "method": TEACHER}, {**grid, "method": "undistilled"}]
    grids += [
        {**grid, **{name: getattr(of, name) for name in ("method", "budget", "structures")}} for of in (line, longer, other)
    ]
    plan = replace(
        PLAN, tables={"generated": {"grids": grids}}, structures={"rattle2": "--strategies rattle=2", "rattle9": ""}
    )
    monkeypatch.setattr(generated, "read_plan", lambda _: plan)
    monkeypatch.setattr(generated, "RECIPES", {"painn": "crack"})
    monkeypatch.setattr(generated, "NAMES", {**generated.NAMES, "crack": "recipe", "hessian": "other"})
    arrays = dict(np.load(results.table("accuracy").errors))
    kept = [row for row in results.table("accuracy").rows() if row["train_systems"] != 75 and row["budget"] != "time"]
    rows = [{**row, "cpu_seconds": 120} for row in kept if row["method"] != "crack"]
    for of, less in ((line, 0.0), (longer, 0.1), (other, 0.2)):
        for row in (row for row in kept if row["method"] == "crack"):
            run, energy = replace(of, seed=row["seed"]), row["energy_mae"] - less
            rows.append({**row_of(run, row["split"], energy, energy / 10), "cpu_seconds": 180})
            arrays[f"{run.name}/{row['split']}"] = arrays[f"{Run.of(row).name}/{row['split']}"] - np.array(
                [[less], [0], [0]]
            )
    results.table("generated").append(rows, arrays)
    for structures in ("rattle2", "rattle9"):
        label = {"structures": structures, "jacobian_rows": 0, "systems": int(structures[-1]) * 300 + 300}
        results.table("labels").append([{"teacher": "escn", "train_systems": 300, **label, "cpu_seconds": 96.4}])

    page.write_report(results, tmp_path / "out")
    content = json.loads((tmp_path / "out/generated.json").read_text())
    made = {(row["method"], row["budget"]): row for row in content["rows"] if row["split"] == "val_id"}
    assert made["crack", "steps"]["gap_energy"] == pytest.approx([0.5, 0.5, 0.5])  # as in the table `accuracy`
    assert made["crack", "double"]["gap_energy"] == [None] * 3  # no undistilled student has as many steps
    assert made["hessian", "steps"]["less_recipe_energy"] == pytest.approx([-0.2, -0.2, -0.2])
    assert made["crack", "steps"]["less_recipe_energy"] == []
    text = (tmp_path / "out/generated.md").read_text(encoding="utf-8")
    assert (
        "| rattle2 | other | 900 | 1140 | 2 | 0.400 [" in text
        and "| -0.200 [-0.200, -0.200] | -0.0200 [-0.0200, -0.0200] | 3.0 |" in text
    )
    assert "| rattle2 | `--strategies rattle=2` | 900 | 96 |" in text and "| parents | labels only | 300 |" in text
    assert (tmp_path / "out/generated.png").stat().st_size > 5000


def test_relations_are_compared_with_a_reference(results, tmp_path, monkeypatch):
    """By a bootstrap; by t over the seeds where the errors of systems were not kept."""
    methods = ["undistilled", "crack", "labels", "hessian"]
    grid = {**GRID, "question": "weights", "train_systems": 300, "seed": [0, 1], "method": methods}
    plan = replace(PLAN, tables={"relations": {"grids": [grid]}})
    monkeypatch.setattr(relations, "read_plan", lambda _: plan)
    monkeypatch.setattr(relations, "QUESTIONS", {"weights": relations.Question("Weights", "Which?", "labels")})
    arrays = dict(np.load(results.table("accuracy").errors))
    kept = [row for row in results.table("accuracy").rows() if row["split"] == "val_id" and row["budget"] in ("", "steps")]
    rows = [row for row in kept if row["train_systems"] != 75]
    for method, energies in {"labels": (1.4, 1.0), "hessian": (0.7, 0.75)}.items():
        for seed, energy in enumerate(energies):
            run = replace(CRACK, method=method, seed=seed)
            rows.append(row_of(run, "val_id", energy, energy / 10))
            if method == "labels":
                components = np.array([3.0, 9.0])
                arrays[f"{run.name}/val_id"] = np.stack([np.full(2, energy), energy / 10 * components, components])
    results.table("relations").append([{**row, "cpu_seconds": 90 if row["student"] else ""} for row in rows], arrays)
    parts = {"system": 0.5, "within": 0.25, "system_fitted": 0.1, "within_fitted": 0.2}
    results.table("embeddings").append(
        [{**asdict(CRACK), **parts}, {**asdict(replace(CRACK, seed=4)), **parts, "system": 0.3}]
    )

    page.write_report(results, tmp_path / "out")
    content = json.loads((tmp_path / "out/relations.json").read_text())
    made = {row["method"]: row for row in content["rows"]}
    assert made["crack"]["less_energy"] == made["crack"]["less_forces"] == pytest.approx([0.5, 0.5, 0.5])
    half = 12.706 * 0.125
    assert made["hessian"]["less_energy"] == pytest.approx([0.375, 0.375 - half, 0.375 + half], rel=QUANTILE)
    assert "less_energy" not in made["labels"] and "less_energy" not in made["undistilled"]
    assert content["embeddings"][0]["system"] == pytest.approx(0.4) and content["embeddings"][0]["seeds"] == 2
    text = (tmp_path / "out/relations.md").read_text(encoding="utf-8")
    assert "| crack | 2 | 0.600 [" in text and "| labels | 50% [50, 50] | 50% [50, 50] |" in text
    assert (
        "| crack | 2 | 0.400 | 0.250 | 0.100 | 0.200 |" in text
        and "CPU time of the 8 trainings" in text
        and "{" not in text.replace("{md", "")
    )


def test_an_embeddings_error_is_split_into_systems_and_the_rest():
    natoms = torch.tensor([2, 1, 3] * 20)
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(int(natoms.sum()), 4, generator=generator)
    common, within = embeddings.parts(error, natoms)
    by_hand = [part - part.mean(dim=0) for part in error.split(natoms.tolist())]
    assert within == pytest.approx(float(torch.cat(by_hand).square().mean()))
    assert common + within == pytest.approx(float(error.square().mean()))
    assert embeddings.fitted_parts(7 * error @ torch.randn(4, 4, generator=generator) + 3, error, natoms) == pytest.approx(
        (0, 0), abs=FLOAT32_SMALL["atol"]
    )


def test_without_measured_costs_there_are_none(results):
    results.table("costs").file.unlink()
    content = summary.figures(results)
    assert "| 50% [50, 50] | 50% [50, 50] |\n" in page.page(content)


def test_only_shared_seeds_make_a_gap(results):
    table = results.table("accuracy")
    rows = [row for row in table.rows() if (row["method"], row["seed"]) != ("undistilled", 1)]
    table.file.unlink()
    table.append(rows)
    crack = by_place(summary.figures(results))[300, "steps", "crack", "val_id"]
    assert crack["seeds"] == 2
    assert crack["gap_energy"][0] == pytest.approx((1.2 - 0.7) / (1.2 - 0.2))


def test_a_report_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no row of a distilled student"):
        summary.figures(Workspace(tmp_path))
    Table(tmp_path / "accuracy.csv").append([row_of(CRACK, "val_id", 0.1, 0.05)])
    with pytest.raises(ValueError, match="no rows of the teacher escn; run --only method=teacher"):
        summary.figures(Workspace(tmp_path))


def test_the_tuning_takes_the_lowest_mean_of_relative_errors(results):
    tuning = results.table("tuning")
    tuning.append([row_of(replace(UNDISTILLED, seed=100), "val_id", 0.2, 0.1)])
    for coefficient, energy, forces in ((10, 0.1, 0.1), (20, 0.2, 0.04), (40, 0.3, 0.09)):
        tuning.append([row_of(replace(CRACK, seed=100, method=f"crack@{coefficient}"), "val_id", energy, forces)])
    # (0.5 + 1) / 2, (1 + 0.4) / 2, (1.5 + 0.9) / 2
    content = summary.figures(results)
    assert [candidate["criterion"] for candidate in content["tuning"]] == pytest.approx([0.75, 0.7, 1.2])
    assert "| painn | escn | crack | 1140 | 10: 0.750, **20: 0.700**, 40: 1.200 |" in page.page(content)


# All of it, with a toy


@pytest.fixture
def toy(tmp_path, data, teacher_checkpoint, monkeypatch) -> list[str]:
    """The arguments for two methods of a tiny student, on the tests' data."""
    student = stock_config(data)
    student["optim"].update(load_balancing=False)  # of which fairchem compiles the sampler in every process
    (tmp_path / "student.yml").write_text(yaml.safe_dump(student))
    teacher = torch.load(teacher_checkpoint)
    teacher["config"].update({name: student[name] for name in ("outputs", "loss_functions")})  # it is evaluated, too
    torch.save(teacher, tmp_path / "teacher.pt")
    grid = {"student": "painn", "teacher": "toy", "seed": 0, "train_systems": 12, "budget": "steps"}
    plan = Plan(
        students={"painn": str(tmp_path / "student.yml")},
        teachers={"toy": str(tmp_path / "teacher.pt")},
        methods={"undistilled": {}, "crack": PLAN.methods["crack"]},
        tables={
            "accuracy": {
                "splits": list(SPLITS),
                "budgets": {"steps": 11},
                "grids": [{"teacher": "toy", "method": TEACHER}, {**grid, "method": ["undistilled", "crack"]}],
            }
        },
        validation_systems=6,
        jacobian_rows=0,
    )
    (tmp_path / "toy.yml").write_text(yaml.safe_dump(asdict(plan)))

    def prepare_demo(directory: Path, *, sizes: dict[str, int], **_) -> None:
        for split, systems in sizes.items():
            assert systems == (12 if split == "train" else 6)
            shutil.copytree(data / split, directory / split, dirs_exist_ok=True)

    monkeypatch.setattr("fairchem_crack.demo.prepare.prepare_demo", prepare_demo)
    return [str(tmp_path / "out"), "--experiments", str(tmp_path / "toy.yml")]


@pytest.mark.slow
def test_a_toy_from_the_first_run_to_the_report(toy, tmp_path, capfd):
    workspace = Workspace(tmp_path / "out")
    table = workspace.table("accuracy")
    assert command.main(["run", *toy]) == 0
    rows = table.rows()
    assert [(row["method"], row["split"]) for row in rows] == [
        (method, split) for method in ("teacher", "undistilled", "crack") for split in SPLITS
    ]
    errors = np.load(table.errors)
    for row in rows[4:]:
        assert row["steps"] == 12  # two epochs of six batches
        assert row["cpu_seconds"] > 0 and row["seconds"] > 0
        energy, forces, components = errors[f"{Run.of(row).name}/{row['split']}"]
        assert energy.mean() == pytest.approx(row["energy_mae"], rel=REORDERED)
        assert forces.sum() / components.sum() == pytest.approx(row["forces_mae"], rel=REORDERED)

    # Killed between the last checkpoint and the CSV: the training resumes at its end, and what it cost is not known.
    table.file.unlink()
    table.append(rows[:-4])
    assert command.main(["run", *toy]) == 0
    assert "3 of 3 runs are in" in capfd.readouterr().out
    assert table.rows()[:-4] == rows[:-4]
    for before, after in zip(rows[-4:], table.rows()[-4:]):
        assert after == {**before, "cpu_seconds": "", "seconds": ""}

    assert command.main(["cost", *toy, "--rounds", "2"]) == 0
    costs = workspace.table("costs").rows()
    assert sorted((row["method"], row["round"]) for row in costs) == [
        (method, number) for method in ("crack", "undistilled") for number in range(2)
    ]
    assert all(row["seconds"] > 0 for row in costs)

    assert command.main(["report", str(workspace.directory), "--out", str(tmp_path / "report")]) == 0
    assert "| crack | 1 |" in (tmp_path / "report/accuracy.md").read_text(encoding="utf-8")
