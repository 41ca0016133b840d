"""The accuracy benchmark: what it runs, what it keeps, what it reports."""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import stock_config

from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy import page as accuracy_page
from benchmarks.accuracy import report as accuracy_report
from benchmarks.accuracy import summary as accuracy_summary
from benchmarks.accuracy.runs import (
    COSTS,
    METRICS,
    SPLITS,
    Comparison,
    Run,
    Workspace,
    load_comparison,
    run_of,
    schedule,
    training_config,
    write_config,
)
from benchmarks.accuracy.summary import step_costs, time_ratio
from fairchem_crack.config import DistillConfig, parse, split_loss_functions

ROOT = Path(__file__).parents[1]
DEMO = {"batch_size": 16, "total_steps": 1140}
COMPARISON = Comparison(
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
        "v2v": {"students": ["painn"], "terms": [{"vector_embeddings": {"fn": "mse", "coefficient": 1}}]},
        "hessian": {"terms": [{"force_jacobian": {"fn": "mse", "coefficient": 1}}]},
    },
    validation_systems=6,
    jacobian_rows=0,
    tuning={"seed": 100, "coefficients": {"painn": {"crack": [10, 20], "labels": [1]}, "gemnet_dT": {"crack": [5]}}},
)
CRACK = Run("painn", "escn", "crack", 3, 300, "steps")
UNDISTILLED = Run("painn", "", "undistilled", 3, 300, "steps")


def options(**given) -> argparse.Namespace:
    defaults = {
        "command": "run",
        "students": ["painn"],
        "methods": ["undistilled", "crack"],
        "teacher": "escn",
        "seeds": [0],
        "train_systems": [300],
        "budget": "steps",
        "comparison": Path("accuracy.yml"),
        "device": "cpu",
        "set": [],
    }
    return argparse.Namespace(**{**defaults, **given})


# What is run


@pytest.mark.parametrize(
    "systems, ratio, epochs, steps",
    [
        (300, 1, 60, 1140),  # the demo's own figures
        (1200, 1, 15, 1125),  # the same steps, but for whole epochs
        (300, 0.5, 30, 570),
        (300, 0.001, 1, 19),
    ],
)
def test_a_run_has_the_students_own_number_of_steps(systems, ratio, epochs, steps):
    found = schedule(DEMO, {}, systems=systems, ratio=ratio)
    assert (found["max_epochs"], found["total_steps"]) == (epochs, steps)
    last = steps // found["eval_every"] * found["eval_every"]
    assert steps - last < 5  # the last validation sees the end of the schedule


def test_the_demos_schedule_is_the_benchmarks():
    assert schedule(DEMO, {}, systems=300, ratio=1)["eval_every"] == 228


def test_given_epochs_take_the_place_of_the_steps():
    assert schedule(DEMO, {"max_epochs": 4}, systems=300, ratio=0.5)["max_epochs"] == 2


def test_seeds_are_outermost_and_the_undistilled_is_one_run_for_every_teacher_and_budget():
    found = accuracy.wanted_runs(COMPARISON, options(seeds=[1, 2], train_systems=[75, 300], budget="time"))
    assert found[0] == Run(teacher="escn")
    assert [(run.seed, run.train_systems, run.method) for run in found[1:]] == [
        (seed, systems, method) for seed in (1, 2) for systems in (75, 300) for method in ("undistilled", "crack")
    ]
    assert {(run.teacher, run.budget) for run in found if run.method == "undistilled"} == {("", "steps")}
    assert {(run.teacher, run.budget) for run in found if run.method == "crack"} == {("escn", "time")}


def test_a_method_is_left_out_for_students_that_cannot_have_it(capsys):
    found = accuracy.wanted_runs(COMPARISON, options(students=["painn", "gemnet_dT"], methods=["v2v"]))
    assert [run.student for run in found[1:]] == ["painn"]
    assert "v2v is left out for gemnet_dT" in capsys.readouterr().out


@pytest.mark.parametrize("given", [{"methods": ["crak"]}, {"students": ["schnet"]}, {"teacher": "scn"}])
def test_unknown_names_are_refused(given):
    with pytest.raises(ValueError, match=r"not in accuracy\.yml\. Known are"):
        accuracy.wanted_runs(COMPARISON, options(**given))


def test_a_tuning_runs_every_candidate_with_its_own_seed():
    found = accuracy.tuning_runs(COMPARISON, options(methods=["undistilled", "crack", "labels"]))
    assert [run.method for run in found] == ["undistilled", "crack@10", "crack@20", "labels@1"]
    assert {run.seed for run in found} == {100}
    gemnet = accuracy.tuning_runs(COMPARISON, options(students=["gemnet_dT"], methods=["crack", "labels"]))
    assert [run.method for run in gemnet] == ["crack@5"]  # a student has its own


def test_coefficients_depend_on_student_and_candidate():
    painn, gemnet = (Run(student, "escn", "labels", 0, 300, "steps") for student in ("painn", "gemnet_dT"))

    def coefficients(run: Run) -> list[float]:
        return [one["coefficient"] for term in COMPARISON.terms(run) for one in term.values()]

    assert coefficients(painn) == [2, 10] and coefficients(gemnet) == [4, 10]
    assert coefficients(replace(painn, method="labels@1")) == [1, 5]  # the others keep their ratio to the first
    assert coefficients(painn) == [2, 10]  # nothing was changed in place


def test_the_yaml_of_a_run_adds_terms_and_a_teacher_to_the_students_own(tmp_path):
    workspace = Workspace(tmp_path)
    plain = training_config(UNDISTILLED, COMPARISON, workspace, given={}, ratio=1)
    distilled = training_config(CRACK, COMPARISON, workspace, given={"optim": {"max_epochs": 2}}, ratio=1)
    own = [{"energy": {"fn": "mae", "coefficient": 4}}, {"forces": {"fn": "l2mae", "coefficient": 100}}]
    assert plain["trainer"] == "ocp" and "task" not in plain and plain["loss_functions"] == own
    assert distilled["loss_functions"] == [*own, {"relations": {"fn": "crack", "coefficient": 40}}]
    assert distilled["task"]["distill"]["relations"] == {"anchor": "symmetric"}
    assert distilled["task"]["distill"]["teacher"]["cache"] == str(tmp_path / "caches/escn-300")
    assert distilled["optim"]["max_epochs"] == 2 and plain["optim"]["max_epochs"] == 60
    hessian = training_config(replace(CRACK, method="hessian"), COMPARISON, workspace, given={}, ratio=1)
    assert hessian["task"]["distill"]["teacher"]["cache"] == str(tmp_path / "caches/escn-300-jacobian")


def test_every_method_of_accuracy_yml_is_understood(tmp_path):
    comparison = load_comparison(ROOT / "benchmarks/accuracy/accuracy.yml")
    for student in comparison.students:
        candidates = comparison.tuning["coefficients"][student]
        assert all(comparison.has(method, student) for method in candidates)
        for method in ("n2n", "infonce", "teacher_labels", "atom_energies", "hessian", "crack"):
            assert len(candidates[method]) >= 3, method
        for method in comparison.methods:
            run = Run(student, "" if method == "undistilled" else "equiformer_v2", method, 0, 300, "steps")
            config = training_config(run, comparison, Workspace(tmp_path), given={}, ratio=1)
            terms = split_loss_functions(config["loss_functions"])[1]
            assert bool(terms) == (method != "undistilled")
            if terms:
                parse(DistillConfig, config["task"]["distill"], "task.distill")


def test_a_run_begun_with_other_settings_is_refused(tmp_path):
    workspace, elsewhere = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    config = training_config(CRACK, COMPARISON, workspace, given={}, ratio=1)
    write_config(CRACK, config, workspace, is_begun=False)
    other = training_config(CRACK, COMPARISON, workspace, given={"optim": {"lr_initial": 1.0}}, ratio=1)
    with pytest.raises(ValueError, match="other settings"):
        write_config(CRACK, other, workspace, is_begun=True)
    moved = training_config(CRACK, COMPARISON, elsewhere, given={}, ratio=1)
    write_config(CRACK, moved, workspace, is_begun=True)  # a directory that moved has the same settings
    write_config(CRACK, other, workspace, is_begun=False)
    assert yaml.safe_load(workspace.config(CRACK).read_text())["optim"]["lr_initial"] == 1.0


def test_options_are_set_as_in_a_yaml():
    assert accuracy.nested(["optim.max_epochs=1", "optim.lr_initial=1.e-3", "model.name=painn"]) == {
        "optim": {"max_epochs": 1, "lr_initial": 1e-3},
        "model": {"name": "painn"},
    }
    with pytest.raises(ValueError, match="--set optim"):
        accuracy.nested(["optim"])


def start_instead(code: dict[str, str]):
    """Instead of `accuracy._start`: a process that runs this code."""

    def start(run: Run, workspace: Workspace, *_) -> subprocess.Popen:
        workspace.runs.mkdir(parents=True, exist_ok=True)
        with (workspace.runs / f"{run.name}.log").open("w") as log:
            command = [sys.executable, "-c", code[run.method]]
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    return start


def test_a_failed_run_is_told_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "POLL", 0.01)
    monkeypatch.setattr(accuracy, "_start", start_instead({"bad": "print('why'); exit(3)", "good": ""}))
    runs = [replace(CRACK, method=method) for method in ("bad", "good")]
    workspace = Workspace(tmp_path)
    workspace.append([row_of(runs[1], "val_id", 0.1, 0.05)])
    failed = accuracy.run_all(runs, workspace, options(jobs=1, hours=1), deadline=time.monotonic() + 3600, lock=0)
    assert failed == [runs[0]]
    printed = capsys.readouterr().out
    assert f"[1/2] {runs[0].name}" in printed and "    why" in printed
    assert f"[2/2] {runs[1].name}" in printed and "val_id 0.100 eV" in printed


def test_no_run_is_begun_after_the_deadline(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "_start", lambda *_: pytest.fail("a run was begun"))
    assert accuracy.run_all([CRACK], Workspace(tmp_path), options(jobs=1, hours=0), deadline=time.monotonic(), lock=0) == []
    assert "1 runs are left" in capsys.readouterr().out


def test_runs_at_work_are_stopped_with_the_benchmark(tmp_path, monkeypatch):
    started = []

    def start(*arguments) -> subprocess.Popen:
        started.append(start_instead({"crack": "import time; time.sleep(60)"})(*arguments))
        return started[-1]

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "_start", start)
    monkeypatch.setattr(accuracy.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        accuracy.run_all([CRACK], Workspace(tmp_path), options(jobs=1, hours=1), deadline=time.monotonic() + 3600, lock=0)
    assert started[0].poll() is not None


# What is kept


def row_of(run: Run, split: str, energy: float, forces: float) -> dict:
    return {
        **run.__dict__,
        "split": split,
        "steps": 1140,
        **dict(zip(METRICS, (energy, forces, 0.5, 0.01))),
        "cpu_seconds": "",
        "seconds": 100.0,
    }


def test_rows_come_back_as_they_went(tmp_path):
    workspace = Workspace(tmp_path)
    teacher = {**row_of(Run(teacher="escn"), "val_id", 0.1, 0.2), "steps": "", "seed": None, "train_systems": None}
    workspace.append([row_of(CRACK, split, 1 / 3, 0.05) for split in SPLITS])
    workspace.append([teacher])
    rows = workspace.rows()
    assert [run_of(row) for row in rows] == [CRACK] * 4 + [Run(teacher="escn")]
    assert rows[0] == row_of(CRACK, "val_id", 1 / 3, 0.05)
    with workspace.table.open() as file:
        assert len(list(csv.reader(file))) == 1 + 5  # one header


def test_an_interrupted_append_leaves_the_rows_that_were_there(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    workspace.append([row_of(CRACK, "val_id", 0.1, 0.05)])
    before = workspace.table.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("fairchem_crack.io.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        workspace.append([row_of(UNDISTILLED, "val_id", 0.1, 0.05)])
    assert workspace.table.read_bytes() == before


def test_equal_time_is_fewer_steps_by_the_median_ratio_of_their_costs():
    seconds = {"undistilled": (0.06, 0.06, 0.07), "crack": (0.08, 9.0, 0.07), "n2n": (0.05, 0.05, 0.05)}
    rows = [
        {"student": "painn", "teacher": "escn", "method": method, "round": number, "seconds": one}
        for method, rounds in seconds.items()
        for number, one in enumerate(rounds)
    ]
    costs, run = step_costs(rows), replace(CRACK, teacher="escn", budget="time")
    assert time_ratio(costs, run) == pytest.approx(0.06 / 0.08)
    assert time_ratio(costs, replace(run, budget="steps")) == 1
    assert time_ratio(costs, replace(run, method="n2n")) == 1  # faster than undistilled is noise
    with pytest.raises(ValueError, match=r"painn-escn-v2v-.*costs\.csv.*accuracy\.py cost"):
        time_ratio(costs, replace(run, method="v2v"))


# What is reported


@pytest.fixture
def results(tmp_path) -> Path:
    """Two seeds, two systems of 1 and 3 free atoms in every split; the same errors in each.

    Energy: undistilled 1.2 and 0.8 eV, crack 0.7 and 0.5 eV, teacher 0.2 eV. Forces of a component, in eV/A: a tenth.
    Equal time: crack 0.9 and 0.7 eV. 75 systems: crack as bad as the undistilled student. Step: 1.1, 1.2, 1.3 times.
    """
    workspace = Workspace(tmp_path / "results")
    workspace.directory.mkdir(parents=True)

    def add(run: Run, energy: float) -> None:
        components = np.array([3.0, 9.0])
        errors = np.stack([np.array([energy, energy]), energy / 10 * components, components])
        rows = [row_of(run, split, energy, energy / 10) for split in SPLITS]
        workspace.append(rows, {f"{run.name}/{split}": errors for split in SPLITS})

    add(Run(teacher="escn"), 0.2)
    for seed, (undistilled, crack, in_time) in enumerate(((1.2, 0.7, 0.9), (0.8, 0.5, 0.7))):
        add(replace(UNDISTILLED, seed=seed), undistilled)
        add(replace(CRACK, seed=seed), crack)
        add(replace(CRACK, seed=seed, budget="time"), in_time)
        add(replace(UNDISTILLED, seed=seed, train_systems=75), 2 * undistilled)
        add(replace(CRACK, seed=seed, train_systems=75), 2 * undistilled)
    costs = ["student,teacher,method,round,seconds"]
    for number, (undistilled, crack) in enumerate(((0.1, 0.11), (0.2, 0.24), (0.1, 0.13))):
        costs += [f"painn,escn,undistilled,{number},{undistilled}", f"painn,escn,crack,{number},{crack}"]
    (workspace.directory / "costs.csv").write_text("\n".join(costs) + "\n")
    return workspace.directory


def test_the_report_has_the_gaps_by_hand(results, tmp_path):
    accuracy_report.write_report(results, tmp_path / "out")
    content = json.loads((tmp_path / "out/accuracy.json").read_text())
    groups = {(group["train_systems"], group["budget"]): group["methods"] for group in content["groups"]}
    assert groups.keys() == {(300, "steps"), (300, "time"), (75, "steps")}
    for split in (*SPLITS, accuracy_summary.MEAN):
        crack = groups[300, "steps"]["crack"]["splits"][split]
        assert crack["energy_mae"][0] == pytest.approx(0.6)
        assert crack["forces_mae"][0] == pytest.approx(0.06)
        # Half width of the t-interval of two seeds: t_{0.975, 1} = 12.706 times |difference| / 2
        assert crack["energy_mae"][2] - 0.6 == pytest.approx(12.706 * 0.1, rel=1e-4)
        for quantity in ("energy", "forces"):
            # Of the seeds apart 0.5 / 1.0 and 0.3 / 0.6, both 0.5; of the means (1.0 - 0.6) / (1.0 - 0.2), too
            assert crack[f"gap_{quantity}"] == pytest.approx([0.5, 0.5, 0.5])
            in_time = groups[300, "time"]["crack"]["splits"][split][f"gap_{quantity}"]
            by_hand = [(1.0 - 0.8) / 0.8, 0.1 / 0.6, 0.3 / 1.0]  # the mean and the single seeds
            assert in_time == pytest.approx(by_hand, abs=1e-6)
            assert groups[75, "steps"]["crack"]["splits"][split][f"gap_{quantity}"] == pytest.approx([0, 0, 0])
    assert groups[300, "steps"]["crack"]["step_cost"] == pytest.approx([1.2, 1.15, 1.25])


def test_the_page_says_seeds_data_and_commands(results, tmp_path):
    accuracy_report.write_report(results, tmp_path / "out")
    page = (tmp_path / "out/accuracy.md").read_text(encoding="utf-8")
    assert "### painn from escn, 300 systems, equal steps" in page
    assert "| undistilled | 2 | 1.000 [-1.541, 3.541] |" in page
    assert "| teacher |  | 0.200 | 0.0200 | 0.500 | 1.00 |" in page
    assert "| 50% [50, 50] | 50% [50, 50] | 1.20 [1.15, 1.25] |" in page
    assert "cost --students painn --teacher escn --methods undistilled crack --output" in page
    assert "val_id 2, val_ood_ads 2" in page
    assert (
        "--students painn --methods undistilled crack --seeds 0 1 --teacher escn --train-systems 300 --budget time" in page
    )
    curve = page[page.index("## Learning curve") :]
    assert "| method | 75 systems | 300 systems |" in curve and "0% [0, 0]" in curve and "50% [50, 50]" in curve
    assert "## Coefficients" not in page
    assert (tmp_path / "out/accuracy.png").stat().st_size > 5000
    picture = "accuracy_systems-painn-escn-steps.png"
    assert f"({picture})" in curve and (tmp_path / "out" / picture).stat().st_size > 5000


def test_the_published_rows_make_the_same_page(results, tmp_path):
    accuracy_report.write_report(results, tmp_path / "first")
    accuracy_report.write_report(tmp_path / "first/accuracy", tmp_path / "second")
    for name in ("accuracy.md", "accuracy.json", "accuracy/accuracy.csv", "accuracy/errors.npz"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    accuracy_report.write_report(tmp_path / "first/accuracy", tmp_path / "first")  # in its place


def test_without_measured_costs_there_are_none(results, tmp_path):
    (results / "costs.csv").unlink()
    accuracy_report.write_report(results, tmp_path / "out")
    page = (tmp_path / "out/accuracy.md").read_text(encoding="utf-8")
    assert "| 50% [50, 50] | 50% [50, 50] |  |" in page and "accuracy.py cost --students" not in page


def test_the_picture_of_the_gaps_leaves_out_the_points_of_a_learning_curve(results):
    found = accuracy_summary.Results(Workspace(results))
    content = {group: accuracy_summary.summary(found, group) for group in found.groups()}
    content[next(group for group in content if group.train_systems == 300)]["another"] = {}
    kept = {(group.train_systems, group.budget) for group in accuracy_summary.compared(content)}
    assert kept == {(300, "steps"), (300, "time")}


def test_only_shared_seeds_make_a_gap(results, tmp_path):
    workspace = Workspace(results)
    rows = [row for row in workspace.rows() if (row["method"], row["seed"]) != ("undistilled", 1)]
    workspace.table.unlink()
    workspace.append(rows)
    accuracy_report.write_report(results, tmp_path)
    groups = json.loads((tmp_path / "accuracy.json").read_text())["groups"]
    crack = next(group for group in groups if group["train_systems"] == 300)["methods"]["crack"]
    assert crack["seeds"] == [0, 1]
    assert crack["splits"]["val_id"]["gap_energy"][0] == pytest.approx((1.2 - 0.7) / (1.2 - 0.2))


def test_a_report_of_nothing_says_so(tmp_path):
    with pytest.raises(ValueError, match="no row of a distilled student"):
        accuracy_report.write_report(tmp_path, tmp_path)


def test_the_tuning_takes_the_least_mean_of_relative_errors(results, tmp_path):
    tuning = Workspace(results, "tuning.csv")
    tuning.append([row_of(replace(UNDISTILLED, seed=100), "val_id", 0.2, 0.1)])
    for coefficient, energy, forces in ((10, 0.1, 0.1), (20, 0.2, 0.04), (40, 0.3, 0.09)):
        tuning.append([row_of(replace(CRACK, seed=100, method=f"crack@{coefficient}"), "val_id", energy, forces)])
    # (0.5 + 1) / 2, (1 + 0.4) / 2, (1.5 + 0.9) / 2
    found = accuracy_summary.choices(tuning.rows())
    assert [one["criterion"] for one in found] == pytest.approx([0.75, 0.7, 1.2])
    row = "| painn | escn | crack | 1140 | 10: 0.750, **20: 0.700**, 40: 1.200 |"
    assert row in accuracy_page.tuning_table(found)
    accuracy_report.write_report(results, tmp_path)
    assert row in (tmp_path / "accuracy.md").read_text(encoding="utf-8")


# All of it, with a toy


@pytest.fixture
def toy(tmp_path, data, teacher_checkpoint, monkeypatch) -> list[str]:
    """Arguments for two methods of a tiny student, and data of a few systems."""
    student = stock_config(data)
    student["optim"].update(total_steps=12, load_balancing=False)  # of which fairchem compiles the sampler in every process
    (tmp_path / "student.yml").write_text(yaml.safe_dump(student))
    teacher = torch.load(teacher_checkpoint)
    teacher["config"].update({name: student[name] for name in ("outputs", "loss_functions")})  # it is evaluated, too
    torch.save(teacher, tmp_path / "teacher.pt")
    methods = {"undistilled": {}, "crack": COMPARISON.methods["crack"]}
    comparison = {
        "students": {"painn": str(tmp_path / "student.yml")},
        "teachers": {"toy": str(tmp_path / "teacher.pt")},
        "methods": methods,
        "validation_systems": 3,
        "jacobian_rows": 0,
        "tuning": {"seed": 100, "coefficients": {"painn": {"crack": [1]}}},
    }
    (tmp_path / "toy.yml").write_text(yaml.safe_dump(comparison))
    monkeypatch.setattr(accuracy.signal, "signal", lambda *_: None)  # the handler is for a process of the benchmark's own
    arguments = ["--methods", "undistilled", "crack", "--teacher", "toy", "--train-systems", "8"]
    return [*arguments, "--comparison", str(tmp_path / "toy.yml"), "--output", str(tmp_path / "out")]


@pytest.mark.slow
def test_a_toy_from_a_failure_to_the_report(toy, tmp_path, capfd):
    workspace = Workspace(tmp_path / "out")
    run = ["run", *toy, "--set", "optim.max_epochs=2"]

    assert accuracy.main([*run, "optim.optimizer=Nonesuch"]) == 1
    printed = capfd.readouterr().out  # the end of its log, and what failed
    assert "Nonesuch" in printed and "Failed: painn-undistilled-0-8-steps, painn-toy-crack-0-8-steps." in printed
    assert {row["method"] for row in workspace.rows()} == {"teacher"}

    assert accuracy.main(run) == 0
    rows = workspace.rows()
    assert [(row["method"], row["split"]) for row in rows] == [
        (method, split) for method in ("teacher", "undistilled", "crack") for split in SPLITS
    ]
    for row in rows[4:]:
        assert row["steps"] == 8  # two epochs of four batches
        assert row["cpu_seconds"] > 0 and row["seconds"] > 0
        energy, forces, components = np.load(workspace.errors)[f"{run_of(row).name}/{row['split']}"]
        assert energy.mean() == pytest.approx(row["energy_mae"], rel=1e-5)
        assert forces.sum() / components.sum() == pytest.approx(row["forces_mae"], rel=1e-5)

    assert accuracy.main(run) == 0
    assert "3 of 3 runs are in" in capfd.readouterr().out and workspace.rows() == rows

    # Killed between the last checkpoint and the CSV: the training goes on from its end, and what it cost is not known.
    workspace.table.unlink()
    workspace.append(rows[:-4])
    assert accuracy.main(run) == 0
    for before, after in zip(rows[-4:], workspace.rows()[-4:]):
        assert after == {**before, "cpu_seconds": "", "seconds": ""}

    assert accuracy.main(["cost", *toy, "--rounds", "2"]) == 0
    costs = Workspace(tmp_path / "out", COSTS).rows()
    assert sorted((row["method"], row["round"]) for row in costs) == [
        (method, number) for method in ("crack", "undistilled") for number in range(2)
    ]
    assert all(row["seconds"] > 0 for row in costs)

    assert accuracy.main(["report", str(workspace.directory), "--out", str(tmp_path / "report")]) == 0
    assert "| crack | 1 |" in (tmp_path / "report/accuracy.md").read_text(encoding="utf-8")
