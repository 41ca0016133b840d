"""The pure parts of a GPU day: its list of parts, its rows, its page. `benchmarks/gpu/run.sh --device cpu` runs the rest."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import day, json_lines
from benchmarks.gpu import demo as gpu_demo
from benchmarks.gpu import report as gpu_report

ROOT = Path(__file__).parents[1]
STEP = {"undistilled": 0.2, "cached": 0.21, "online": 0.5, "teacher": 0.3}
LOADING = {f"{kind} loading": 0.01 for kind in gpu_report.KINDS}
STUDENT = {"student": "painn", "precision": "fp32"}
SIZES = {"parameters": 20_100_000, "batch_size": 32, "atoms": 2336, "pairs": 30_000}
BYTES = {"undistilled": 2**30, "cached": 2**30, "online": 2**31}


def content(**parts: dict) -> dict:
    """A gpu.json with these parts."""
    common = {"status": "done", "seconds": 3.0, "limit": 60, "rows": []}
    return {
        **{"device": "cuda", "card": "NVIDIA X", "gpus": 1, "cores": 16, "commit": "abc", "extensions": "carried"},
        **{"command": "bash benchmarks/gpu/run.sh BUNDLE OUT", "versions": {"python": "3.12.3", "torch": "2.11.0"}},
        "parts": {name: {**common, **part} for name, part in parts.items()},
    }


def test_parts_run_in_order_of_importance():
    assert [part.name for part in day.chosen("demo,loss")] == ["loss", "demo"]
    assert [part.name for part in day.chosen(None)] == list(gpu_report.HEADINGS) == list(gpu_report.PAGES)


def test_an_unknown_part_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="--only loss,lost: no part lost; there are tests, loss, steps"):
        day.chosen("loss,lost")


@pytest.mark.parametrize("part", day.PARTS, ids=lambda part: part.name)
def test_the_command_of_a_part_is_a_module(part):
    flag, module, *_ = part.command.format(device="cpu", work="w", rows="r").split()
    assert flag == "-m" and importlib.util.find_spec(module)


def test_rows_that_are_half_written_wait_for_their_end(tmp_path):
    file = tmp_path / "rows.jsonl"
    assert json_lines.read(file) == []
    json_lines.append(file, number=1)
    file.write_text(file.read_text() + '{"number": 2')
    assert json_lines.read(file) == [{"number": 1}]


def test_a_loss_that_is_cut_off_keeps_what_it_printed(tmp_path):
    log = tmp_path / "loss.log"
    log.write_text("P =   8000  dense     0.012 s       300 MB\nP =   8000  ours      0.003")
    assert json_lines.read_loss(tmp_path, log) == [{"pairs": 8000, "method": "dense", "median": 0.012, "peak_mb": 300.0}]


def test_the_page_has_ratios_of_each_round_and_memory():
    rounds = [{"what": "round", **STUDENT, "seconds": {**STEP, **LOADING, "cached": cached}} for cached in (0.2, 0.21, 0.23)]
    sizes = {"what": "sizes", **STUDENT, **SIZES, "resident": BYTES, "growth": BYTES}
    page = gpu_report.report(content(steps={"rows": [*rounds, sizes]}))
    assert "| painn | 1.05 [1.00, 1.15] | 1.05 [1.00, 1.16] | 1.00 [1.00, 1.00] | 2.50 [2.50, 2.50] |" in page
    assert "| painn | 3 | 200.0 [200.0, 200.0] | 210.0 [200.0, 230.0] | 500.0 [500.0, 500.0] |" in page
    assert "| painn | 20.1M | 32 | 2336 | 30000 | 1.00, 1.00 | 1.00, 1.00 | 2.00, 2.00 |" in page
    assert page.startswith("# A day on a GPU: NVIDIA X\n") and "python 3.12.3, torch 2.11.0; commit abc." in page


def test_the_page_compares_each_method_with_ours():
    rows = [
        {"method": method, "pairs": 32000, "median": seconds, "peak_mb": 10.0}
        for method, seconds in (("unfused", 0.1), ("ours", 0.01))
    ]
    rows[1].update(loss_error=1e-7, gradient_error=2e-7)
    page = gpu_report.report(content(loss={"rows": rows}))
    assert "| 32000 | 100, 10 | 10, 10 | 10.0 |" in page
    assert "| ours | 32000 | 1.0e-07 | 2.0e-07 |" in page


def test_the_page_has_the_scatter_of_the_last_validations():
    maes = [("fp32-0", 5, 0.9, 0.9), ("fp32-0", 10, 0.1, 0.05), ("fp32-1", 10, 0.2, 0.07), ("amp-0", 10, 0.15, 0.06)]
    rows = [
        {"run": run, "seconds": 50.0, "epoch": at, "energy_mae": energy, "forces_mae": forces}
        for run, at, energy, forces in maes
    ]
    page = gpu_report.report(content(demo={"rows": [*rows, {"run": "amp-1", "error": "Error: out of memory"}]}))
    assert "| fp32 | 2 | 10.0 [10.0, 10.0] | 0.1500 [0.1000, 0.2000] | 0.0600 [0.0500, 0.0700] | 50 [50, 50] |" in page
    assert "| amp | 1 |" in page and "amp-1 failed: `Error: out of memory`" in page


def test_the_page_lists_what_does_not_work_and_why():
    host = [
        {"kind": "model", "what": "painn", "works": True, "seconds": 1.0, "error": ""},
        {"kind": "model", "what": "escn", "works": False, "seconds": 1.0, "error": "Traceback\nKeyError: 'Jd'"},
    ]
    outcomes = ("passed", "passed", "skipped")
    tests = [{"test": "a::b", "outcome": outcome, "seconds": 1.0, "error": ""} for outcome in outcomes]
    page = gpu_report.report(content(host={"rows": host}, tests={"rows": tests}))
    assert "1 of 2 trials work: painn." in page and "| escn | KeyError: 'Jd' |" in page
    assert "2 passed, 1 skipped." in page


def test_a_part_that_was_cut_off_shows_rows_and_end_of_log():
    host = [{"kind": "model", "what": "painn", "works": True, "seconds": 1.0, "error": ""}]
    page = gpu_report.report(content(host={"status": "cut off", "rows": host, "error": "working\nstill working"}))
    assert "| host | cut off | 3 | 60 |" in page and "1 of 1 trials work: painn." in page
    assert "## Where host ended\n\n```\nworking\nstill working\n```" in page


def test_a_day_without_rows_has_a_page():
    page = gpu_report.report(content(**{name: {"status": "not run: no time left"} for name in gpu_report.PAGES}))
    assert page.count("not run: no time left") == len(gpu_report.PAGES)


def test_only_the_figures_of_a_card_become_a_page_of_the_docs(tmp_path):
    file = tmp_path / "of_the_day.json"
    file.write_text(json.dumps({**content(), "device": "cpu", "card": "CPU, x86_64"}))
    with pytest.raises(ValueError, match="the figures are of CPU, x86_64, a dry run, and not of a GPU"):
        gpu_report.publish(file, tmp_path)
    file.write_text(json.dumps(content()))
    gpu_report.publish(file, tmp_path)
    assert (tmp_path / "gpu.md").read_text() == gpu_report.report(json.loads((tmp_path / "gpu.json").read_text()))


def test_the_last_validation_of_a_log_is_its_result():
    lines = ("energy_mae: 0.30, forces_mae: 0.09, epoch: 0.5", "energy_mae: 0.10, forces_mae: 0.05, epoch: 1.0")
    log = "".join(f"2026-01-01 (INFO): {line}\n" for line in lines)
    assert gpu_demo.validation(log) == {"energy_mae": 0.1, "forces_mae": 0.05, "epoch": 1.0}
    assert gpu_demo.validation("killed") == {}


def test_scipys_new_spherical_harmonics_are_the_old_ones(monkeypatch):
    special = pytest.importorskip("scipy.special")
    angles = (0.3, 1.1)  # azimuth, polar
    old = special.sph_harm(1, 2, *angles) if hasattr(special, "sph_harm") else None
    monkeypatch.delattr(special, "sph_harm", raising=False)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu/site"))
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    importlib.import_module("sitecustomize")
    new = special.sph_harm(1, 2, *angles)
    assert new == pytest.approx(special.sph_harm_y(2, 1, 1.1, 0.3))
    assert old is None or new == pytest.approx(old)
