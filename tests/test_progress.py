"""What `fairchem-crack progress` shows of fairchem's log, and that `make demo` depends on the training only."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from fairchem_crack.commands.progress import follow

ROOT = Path(__file__).parents[1]
CONFIG = "optim:\n  batch_size: 16\n  max_epochs: 4\noutputs:\n"  # of which fairchem prints all at the start
VALIDATION = "energy_mae: 5.9364, forces_mae: 0.3003, loss: 118.4059, epoch: 2.0000"
END = "2026-11-26 14:00:41 core/common/utils.py:1127: (INFO): Total time taken: 40.4\n"


def line(second: int, numbers: str, *, level: str = "INFO", file: str = "core/trainers/ocp_trainer.py") -> str:
    """A line of fairchem's log, with the time at which it was written."""
    return f"2026-11-26 14:{second // 60:02d}:{second % 60:02d} /venv/{file}:194: ({level}): {numbers}\n"


def step(second: int, number: int, *, terms: str = "", steps_per_epoch: int = 10) -> str:
    """A line of a training step, as fairchem writes one."""
    epoch = number / steps_per_epoch
    numbers = f"energy_mae: 1.78e+00, forces_mae: 2.34e-01, {terms}loss: 8.26e+01, lr: 3.72e-03"
    return line(second, f"{numbers}, epoch: {epoch:.2e}, step: {number:.2e}")


def shown(log: str) -> list[str]:
    """The lines that are no terminal's."""
    file = io.StringIO()
    follow(io.StringIO(log), file)
    return file.getvalue().splitlines()


def test_a_line_for_each_tenth_has_the_time_left_and_the_losses():
    steps = [step(number, number) for number in range(1, 41)]
    lines = shown("".join([CONFIG, *steps, END]))
    assert lines[0] == "     2%  epoch 0.1 of 4, step 1, loss 82.6 (energy_mae 1.8, forces_mae 0.23)"  # no pace yet
    assert [text.split("%")[0].strip() for text in lines[1:]] == [str(10 * tenth) for tenth in range(1, 11)]
    assert lines[5] == "    50%  epoch 2 of 4, 20 s left, step 20, loss 82.6 (energy_mae 1.8, forces_mae 0.23)"


def test_terms_are_shown_in_place_of_the_errors():
    terms = "loss_energy: 4.32e-01, loss_relations: 4.31e+00, relation_top1: 2.93e-01, loss_atom_energies: 5.57e-02, "
    assert shown(CONFIG + step(0, 1, terms=terms))[0].endswith("loss 82.6 (energy 0.43, relations 4.3, atom_energies 0.056)")


def test_a_resumed_training_is_timed_from_where_it_resumes():
    log = "".join([CONFIG, step(0, 20), step(60, 22), step(120, 24), END])
    assert [text.split(", ")[:2] for text in shown(log)[1:]] == [["    60%  epoch 2.4 of 4", "8 min left"]]


def test_without_a_number_of_epochs_a_line_each_minute():
    lines = shown("".join(step(second, second) for second in range(1, 150)) + END)
    assert [text.split(", loss")[0] for text in lines] == [
        "   epoch 0.1, step 1",
        "   epoch 6.1, step 61",
        "   epoch 12.1, step 121",
    ]


def test_validations_and_our_warnings_are_shown():
    skipped = "Step 30: skipped; 9 more in a row stop the run."
    ours = line(3, skipped, level="WARNING", file="fairchem_crack/training/guard.py")
    bar = "\rdevice 0:   0%|          | 0/1\rdevice 0: 100%|##########| 1/1\n"
    log = "".join([CONFIG, line(0, "log_summary not supported", level="WARNING"), bar, line(2, VALIDATION), ours, END])
    assert shown(log) == [
        "   validation: energy_mae 5.94, forces_mae 0.3, loss 118, epoch 2",
        f"   warning: {skipped}",
    ]


def test_a_terminal_has_one_line_that_is_drawn_anew():
    file = io.StringIO()
    file.isatty = lambda: True
    assert follow(io.StringIO(CONFIG + step(0, 10) + step(10, 20) + line(12, VALIDATION) + END), file)
    first, second, validation, end = file.getvalue().split("\r\x1b[K")[1:]
    assert first.startswith("   |###         | 25%  epoch 1 of 4, step 10") and "\n" not in first + second
    assert second.startswith("   |######      | 50%  epoch 2 of 4, 20 s left") and len(second) < 80
    assert validation.endswith("epoch 2\n") and end == ""


def test_a_failed_training_shows_the_end_of_its_log():
    log = "".join(f"line {number}\n" for number in range(30)) + "ValueError: no such file\n"
    done = subprocess.run(
        [sys.executable, "-m", "fairchem_crack.commands.cli", "progress"], input=log, capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == 11 and lines[0].startswith("   The training ended before its last step.")
    assert lines[1:] == [*(f"   line {number}" for number in range(21, 30)), "   ValueError: no such file"]


@pytest.mark.parametrize(
    ("training", "progress", "status"),
    [
        ("exit 0", "cat > /dev/null", 0),
        ("exit 3", "cat > /dev/null; exit 1", 2),  # make's status
        ("exit 0", "kill -9 $$", 0),
        ("exit 3", "kill -9 $$", 2),
    ],
)
def test_make_ends_as_the_training_whatever_shows_it(training, progress, status, tmp_path):
    written = "for number in $(seq 3000); do echo a line of the log that is $number; done; echo last"
    for name, script in (("fairchem", f"{written}; {training}"), ("fairchem-crack", progress)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    target = "try: ; @seed=0; $(call train,painn.yml,undistilled-0)"
    command = ["make", f"--eval={target}", "try", f"BIN={tmp_path}", f"RUN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    log = (tmp_path / "undistilled-0.log").read_text().splitlines()
    assert done.returncode == status and len(log) == 3001 and log[-1] == "last"
