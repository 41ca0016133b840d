"""What goes into a report: from the command's arguments to files that exist and options that fairchem takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from fairchem.core.common.utils import update_config

from fairchem_crack import keys
from fairchem_crack.evaluation.names import BEST, LAST, short_names
from fairchem_crack.evaluation.s2ef.data import SELECTING, as_labelled, validation_options, without_labels
from fairchem_crack.evaluation.s2ef.evaluator import evaluated_outputs
from fairchem_crack.io.arguments import check_labels, named_values
from fairchem_crack.io.checkpoints import read_checkpoint
from fairchem_crack.io.datasets import VAL_SETTINGS
from fairchem_crack.training.config_checks import check_dataset

ROLES = ("undistilled", "student", "teacher")


@dataclass(frozen=True)
class Request:
    """One report: its files and options.

    Attributes:
        run_dir: fairchem's `--run-dir`.
        name: of the run, the folder below `checkpoints` and `logs/LOGGER`.
        student: the checkpoint whose errors are reported.
        training: the run's training checkpoint, which has the projection; None where there is none.
        config: of the student's checkpoint.
        teacher: a checkpoint, or a name of fairchem's pretrained registry; None where its outputs are in caches.
        teacher_cache: these.
        labels: "teacher" where their outputs are the labels, or "data".
        undistilled: a checkpoint of the same student, trained on labels only.
        also: further checkpoints to compare with, each by its `further_names`.
        data: fairchem's dataset options, `src` among them, of each split by its name.
        free_atoms_only: compare the forces of free atoms, as the student's checkpoint has it, or of all.
        systems: at most so many of each split.
        batch_size: systems of a forward.
        cpu: stay on the CPU where there is a GPU.
        stability: what `fairchem-crack stability` wrote of the student, or None.
        output: the directory to write to.
    """

    run_dir: Path
    name: str
    student: Path
    training: Optional[Path]
    config: dict[str, Any]
    teacher: Optional[str]
    teacher_cache: tuple[Path, ...]
    labels: str
    undistilled: Optional[Path]
    also: dict[str, Path]
    data: dict[str, dict[str, Any]]
    free_atoms_only: bool
    systems: int
    batch_size: int
    cpu: bool
    stability: Optional[dict[str, Any]]
    output: Path


def make_request(
    run_dir: Path,
    *,
    teacher: str | None = None,
    teacher_cache: Sequence[Path] = (),
    labels: str | None = None,
    name: str | None = None,
    data: Sequence[str] = (),
    undistilled: str | None = None,
    also: Sequence[str] = (),
    systems: int = 200,
    batch_size: int = 16,
    cpu: bool = False,
    stability: Path | None = None,
    output: Path | None = None,
) -> Request:
    """Find every file of a report.

    Args:
        labels: "teacher" for the outputs in its caches, in place of the labels of the data.
        name: None for the only run in `run_dir`.
        data: `NAME=SRC` each, or an `SRC` whose last component is its name; empty for `dataset.val` of the training.
        undistilled: a checkpoint, or the name of another run in `run_dir`.
        also: further ones, each likewise.
        stability: the JSON file of `fairchem-crack stability`.
        output: None for `run_dir/reports/name`.

    Raises:
        FileNotFoundError: a run, checkpoint or dataset that is not there.
        ValueError: numbers out of range, a name given twice, or no data to evaluate on.
    """
    for option, value in (("--systems", systems), ("--batch-size", batch_size)):
        if value < 1:
            raise ValueError(f"{option}: expected at least 1, found {value}.")
    check_labels(labels, teacher_cache)
    name = _run_name(run_dir, name)
    student = _checkpoint_of(run_dir, name)
    config = read_checkpoint(student)["config"]
    names, outputs = evaluated_outputs(config, student)
    training = run_dir / "checkpoints" / name / LAST
    output = output or run_dir / "reports" / name
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output {output}: is a file; give a directory.")
    return Request(
        run_dir=run_dir,
        name=name,
        student=student,
        training=training if training.is_file() else None,
        config=config,
        teacher=teacher,
        teacher_cache=tuple(teacher_cache),
        labels=labels or "data",
        undistilled=None if undistilled is None else _given("--undistilled", undistilled, run_dir),
        also=further_names([_given("--also", given, run_dir) for given in also]),
        data=_data(data, config, names, labels=labels or "data"),
        free_atoms_only=outputs[keys.FORCES]["eval_on_free_atoms"],
        systems=systems,
        batch_size=batch_size,
        cpu=cpu,
        stability=None if stability is None else _stability(stability, student),
        output=output,
    )


def _run_name(run_dir: Path, name: str | None) -> str:
    folder = run_dir / "checkpoints"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{run_dir}: expected the --run-dir of a fairchem training, with a folder `checkpoints`; "
            f"{'it has none' if run_dir.is_dir() else 'there is no such directory'} (looked in {Path.cwd()})."
        )
    runs = sorted(path.name for path in folder.iterdir() if any((path / file).is_file() for file in (BEST, LAST)))
    if name is not None and name in runs:
        return name
    listed = ", ".join(runs) or "no run with a checkpoint"
    if name is not None:
        raise FileNotFoundError(f"--name {name}: {folder} has no checkpoint of such a run; it holds {listed}.")
    if len(runs) != 1:
        raise FileNotFoundError(f"{folder} holds {listed}. Choose one with --name." if runs else f"{folder}: {listed}.")
    return runs[0]


def _checkpoint_of(run_dir: Path, name: str) -> Path:
    """The best checkpoint of a run by its primary metric, or the last where there was no validation."""
    best, last = (run_dir / "checkpoints" / name / file for file in (BEST, LAST))
    return best if best.is_file() else last


def further_names(checkpoints: Sequence[Path]) -> dict[str, Path]:
    """What further checkpoints are called: by their `short_names`, none of which is a role.

    Raises:
        ValueError: a checkpoint that is given twice.
    """
    resolved = [path.resolve() for path in checkpoints]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise ValueError(f"--also {checkpoints[number]}: is given twice.")
    return {name: path for path, name in short_names(checkpoints, taken=ROLES).items()}


def _given(option: str, given: str, run_dir: Path) -> Path:
    """The checkpoint that an option gives: a file, or the name of a run."""
    if Path(given).is_file():
        return Path(given)
    checkpoint = _checkpoint_of(run_dir, given)
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{option} {given}: expected a checkpoint, or the name of a run in {run_dir / 'checkpoints'}; found "
            f"neither (looked in {Path.cwd()})."
        )
    return checkpoint


def _stability(file: Path, student: Path) -> dict[str, Any]:
    """The content of the file, which must be of this student."""
    where = f"--stability {file}"
    if not file.is_file():
        raise FileNotFoundError(f"{where}: no such file (looked in {Path.cwd()}). fairchem-crack stability writes it.")
    try:
        content = json.loads(file.read_text())
        paths = [model["path"] for model in content["checkpoints"].values() if model["langevin"]]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{where}: expected the JSON file that fairchem-crack stability --output writes.") from None
    if student.resolve() not in [Path(path).resolve() for path in paths]:
        raise ValueError(f"{where}: no runs of {student}; it has those of {', '.join(paths)}.")
    return content


def _data(
    entries: Sequence[str], config: dict[str, Any], names: dict[str, str], *, labels: str
) -> dict[str, dict[str, Any]]:
    shared = validation_options(update_config(config))
    data: dict[str, dict[str, Any]] = {}
    if not entries:
        if not (config.get("val_dataset") or {}).get("src"):
            raise ValueError("the checkpoint's config names no dataset.val.src to evaluate on; give --data NAME=SRC.")
        data["val"] = shared
    named = [entry if "=" in entry else f"{Path(entry).name}={entry}" for entry in entries]
    for name, src in named_values(named, "--data", "NAME=SRC, for example val_id=data/s2ef/val_id").items():
        data[name] = {**_general(shared), VAL_SETTINGS: _general(shared.get(VAL_SETTINGS) or {}), "src": src}
    for name, options in data.items():
        try:
            check_dataset(name, options, options.get("format", "lmdb"))
        except (ValueError, OSError) as error:
            raise type(error)(f"--data: {error}" if entries else f"{error} Give the data with --data NAME=SRC.") from error
        read = as_labelled(options, names)
        data[name] = without_labels(read) if labels == "teacher" else read
    return data


def _general(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in SELECTING}
