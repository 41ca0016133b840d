"""Energies of another zero: references from a teacher cache, in the YAML, in training, in `check`; validation labels."""

from __future__ import annotations

import copy
import gc
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from caches import write_cache as write_records
from conftest import DATASET, TERMS, distill_config, with_terms, write_edited
from fairchem.core.modules.normalization.element_references import create_element_references
from fairchem.core.modules.normalization.normalizer import create_normalizer
from tolerances import GAP_CLOSED, REPEATED, TOTAL_ENERGY

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.io.datasets import Records
from fairchem_crack.teacher.cache import Record, TeacherCache
from fairchem_crack.teacher.cached import digest_of

ENERGY_OF = np.linspace(-3.0, -8.0, 119)  # eV by atomic number: what total energies have beyond those of the teacher


def cache_of(config: dict, directory: Path, split: str) -> Path:
    file = directory / "cached.yml"
    file.write_text(yaml.safe_dump(config))
    gc.collect()
    main(["cache-teacher", "--config-yml", str(file), "--cpu", "--output", str(directory / split), "--split", split])
    return directory / split


def with_totals(source: Path, directory: Path, data: Path) -> Path:
    """A cache whose energies, and those of the atoms, are total energies."""
    cache, numbers = TeacherCache(source), {}
    gc.collect()
    with Records({"src": str(data)}) as systems:
        for system in (systems[index] for index in range(len(systems))):
            numbers[digest_of(system)] = system.atomic_numbers.int().numpy()
    records = []
    for record in cache.records():
        of_atoms = ENERGY_OF[numbers[record.digest]]
        values = {
            **record.values,
            "energy": record.values["energy"] + of_atoms.sum(),
            "atom_energies": record.values["atom_energies"] + of_atoms,
        }
        records.append(Record(record.digest, record.atoms, values, record.pairs))
    write_records(directory, cache.plan, records)
    return directory


@pytest.fixture(scope="module")
def caches(tmp_path_factory, data, teacher_checkpoint) -> dict[str, Path]:
    """Of train and val, as the teacher has them and with total energies."""
    directory, config = tmp_path_factory.mktemp("caches"), distill_config(data, teacher_checkpoint)
    made = {split: cache_of(config, directory, split) for split in ("train", "val")}
    sources = {"train": data / "train", "val": data / "val_id"}
    return {
        **made,
        **{f"total {split}": with_totals(made[split], directory / f"total_{split}", sources[split]) for split in made},
    }


@pytest.fixture
def totals(distilled, caches) -> dict:
    """A training on a teacher's total energies, without its checkpoint."""
    config = with_terms(distilled, {key: TERMS[key] for key in ("atom_energies", "teacher_energy")})
    config["task"]["distill"] = {"teacher": {"cache": str(caches["total train"])}, "labels": "teacher"}
    return config


def call(capsys, *arguments: str) -> str:
    gc.collect()
    main([*arguments, "--cpu"])
    return capsys.readouterr().out


def file_of(config: dict, directory: Path) -> list[str]:
    file = directory / "student.yml"
    file.write_text(yaml.safe_dump({**config, "logger": "tensorboard"}))
    return ["--config-yml", str(file)]


def test_total_energies_train_as_others_by_their_references(run, totals, caches, tmp_path):
    zero = copy.deepcopy(totals)
    zero["task"]["distill"]["teacher"] = {"cache": str(caches["train"]), "val_cache": str(caches["val"])}
    totals["task"]["distill"]["teacher"]["val_cache"] = str(caches["total val"])
    np.savez(tmp_path / "known.npz", element_references=ENERGY_OF.astype(np.float32))
    transforms = {"element_references": {"energy": {"file": str(tmp_path / "known.npz")}}}
    totals["dataset"]["train"]["transforms"] = transforms
    expected, trained = run(zero, name="zero"), run(totals, name="totals")
    for name in ("loss_energy", "loss_atom_energies", "loss_teacher_energy", "loss"):
        values, others = ([step[name] for step in one.steps] for one in (trained, expected))
        assert len(values) == 6 and values == pytest.approx(others, rel=2 * TOTAL_ENERGY), name
    (ours,), (others,) = trained.validations, expected.validations
    assert ours["energy_mae"] == pytest.approx(others["energy_mae"], rel=2 * TOTAL_ENERGY)
    assert ours["forces_mae"] == pytest.approx(others["forces_mae"], rel=2 * TOTAL_ENERGY)


def test_references_are_fitted_to_a_teacher_cache(totals, tmp_path, capsys):
    flags, file = file_of(totals, tmp_path), tmp_path / "references.npz"
    missing = "a reference for each element would leave"
    assert missing in call(capsys, "check", *flags)
    printed = call(capsys, "references", *flags, "--output", str(file))
    assert "12 systems with the labels of the teacher cache" in printed
    assert "Ridge regression towards the mean of the teacher's atom energies" in printed
    totals["dataset"]["train"]["transforms"] = yaml.safe_load(printed.partition("\n\n")[2])["dataset"]["train"]["transforms"]
    references, normalizer = create_element_references(file), create_normalizer(file)
    cache = TeacherCache(Path(totals["task"]["distill"]["teacher"]["cache"]))
    left, forces = [], []
    gc.collect()
    with Records({"src": totals["dataset"]["train"]["src"]}) as systems:
        for system in (systems[index] for index in range(12)):
            of_atoms = references.element_references[system.atomic_numbers.long()]
            values = cache[digest_of(system)].values
            left.append(values["energy"] - float(of_atoms.double().sum()))
            forces.append(values["forces"][system.fixed.numpy() == 0])
    assert float(normalizer.mean) == pytest.approx(np.mean(left), abs=TOTAL_ENERGY)
    assert float(normalizer.rmsd) == pytest.approx(np.std(left), abs=TOTAL_ENERGY)
    line = f"standard deviation {np.std(left):.3g} eV"
    assert line in printed
    size = np.sqrt(np.square(np.concatenate(forces)).mean())
    scale = totals["dataset"]["train"]["transforms"]["normalizer"]["forces"]["stdev"]
    assert scale == pytest.approx(size, rel=1e-4) and "divided by it, since the student predicts them" in printed
    gradient = ["references", *flags, "--output", str(file), "--model.direct_forces=False"]
    printed = call(capsys, *gradient)
    assert "divided by the energies' standard deviation" in printed
    assert re.search(rf"forces:\n *mean: 0.0\n *stdev: {np.std(left):.3g}", printed)
    output = call(capsys, "check", *file_of(totals, tmp_path))
    assert missing not in output and "far from 0" not in output
    assert "transforms.normalizer" not in output and "No problem found." in output


def test_what_has_no_labels_is_refused_or_needs_none(totals, caches, tmp_path, capsys):
    totals["dataset"]["train"]["transforms"] = {"normalizer": {"fit": {"targets": {"energy": None}, "batch_size": 4}}}
    with pytest.raises(SystemExit):
        call(capsys, "check", *file_of(totals, tmp_path))
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert len(problems) == 1 and "normalizer.fit: is fitted to the labels of the data" in problems[0]
    assert "`fairchem-crack references --config-yml" in problems[0]
    bare = write_edited(
        Path(totals["dataset"]["train"]["src"]), tmp_path / "bare", lambda _, system: (system.pop("y"), system.pop("force"))
    )
    totals["dataset"]["train"]["src"] = str(bare)
    del totals["model"]["scale_file"]
    scales = tmp_path / "scales.json"
    call(capsys, "fit-scales", *file_of(totals, tmp_path), "--output", str(scales))
    assert scales.is_file()
    totals["task"]["distill"] = {"teacher": {"checkpoint": "teacher.pt"}, "labels": "teacher"}
    flags = ["references", *file_of(totals, tmp_path), "--output", str(tmp_path / "x.npz")]
    with pytest.raises(SystemExit, match=r"cache: missing\. With task\.distill\.labels: teacher the labels"):
        call(capsys, *flags)
    totals["task"]["distill"]["labels"] = "data"
    with pytest.raises(SystemExit, match="system 0 has no finite `energy` to fit references to"):
        call(capsys, "references", *file_of(totals, tmp_path), "--output", str(tmp_path / "x.npz"))
    assert not (tmp_path / "x.npz").exists()


def test_wrong_caches_of_the_validation_data_are_refused(totals, caches, tmp_path, capsys):
    teacher = totals["task"]["distill"]["teacher"]
    for directory, message in (
        (caches["train"], r"no record of system 0 of dataset\.val"),
        (tmp_path / "gone", "does not exist"),
    ):
        teacher["val_cache"] = str(directory)
        with pytest.raises(SystemExit):
            call(capsys, "check", *file_of(totals, tmp_path))
        assert re.search(message, capsys.readouterr().out)
    totals["task"]["distill"]["labels"] = "data"
    with pytest.raises(SystemExit):
        call(capsys, "check", *file_of(totals, tmp_path))
    assert "task.distill.labels: teacher.val_cache gives labels; expected `teacher` or `fill`" in capsys.readouterr().out


def test_heavy_terms_are_named_with_their_share(totals, tmp_path, capsys):
    totals["task"]["distill"]["teacher"]["cache"] = str(totals["task"]["distill"]["teacher"]["cache"]).replace("total_", "")
    totals["loss_functions"].append({"node_embeddings": {"fn": "mse", "coefficient": 1e5}})
    output = call(capsys, "check", *file_of(totals, tmp_path))
    (line,) = (line for line in output.splitlines() if line.startswith("loss "))
    values = {name: (float(value), int(share)) for name, value, share in re.findall(r"(\w+) (\S+) \((\d+)%\)", line)}
    assert sum(share for _, share in values.values()) == pytest.approx(100, abs=2)  # each is rounded
    weighted = 1e5 * values["node_embeddings"][0]
    own = values["energy"][0] + 10 * values["forces"][0]
    (warning,) = (line for line in output.splitlines() if "WARNING: loss_functions: `node_embeddings`" in line)
    times = float(re.search(r", (\d+) times the student's own terms", warning)[1])
    assert times == pytest.approx(weighted / own, rel=0.03)  # of printed figures
    assert times > 10


def test_a_cached_teacher_is_evaluated_as_its_checkpoint(run, distilled, data, caches, teacher_checkpoint, tmp_path, capsys):
    trained = run(distilled)
    split = ["--data", f"val={data / 'val_id'}", "--batch-sizes", "--output"]
    students = ["--checkpoint", str(trained.checkpoints / "best_checkpoint.pt")]
    students += ["--undistilled", str(trained.checkpoints / "checkpoint.pt")]
    content = {}
    for name, teacher in (
        ("model", ["--teacher", str(teacher_checkpoint)]),
        ("cache", ["--teacher-cache", str(caches["val"])]),
    ):
        call(capsys, "evaluate", *students, *teacher, *split, str(tmp_path / name))
        content[name] = json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    for row, other in zip(content["cache"], content["model"]):
        assert row["role"] == other["role"]
        for metric, value in row["metrics"].items():
            near = 2e-3 if metric == "forces_cosine_similarity" else 0  # of random weights it is 0 but for rounding
            assert value == pytest.approx(other["metrics"][metric], rel=GAP_CLOSED, abs=near), metric
    with pytest.raises(SystemExit, match=r"--teacher-cache: no record of system 0 of .*val_id in .*train"):
        call(capsys, "evaluate", *students, "--teacher-cache", str(caches["train"]), *split, str(tmp_path / "wrong"))
    flags = [str(tmp_path), "--name", "run", "--data", f"val={data / 'val_id'}", "--systems", "4"]
    call(capsys, "report", *flags, "--teacher-cache", str(caches["val"]), "--output", str(tmp_path / "page"))
    report = json.loads((tmp_path / "page/report.json").read_text())
    assert report["models"]["teacher"]["speed"] is None and report["models"]["student"]["speed"] > 0
    assert report["relation_cosine"] is not None and "energy_mae" in report["metrics"]["val"]["teacher"]


def test_errors_against_the_teacher_need_no_labels(run, distilled, data, caches, tmp_path, capsys):
    """Those of the student are what it differs by from the records; the teacher has none, and the gap ends there."""
    trained = run(distilled)
    students = ["--checkpoint", str(trained.checkpoints / "best_checkpoint.pt")]
    students += ["--undistilled", str(trained.checkpoints / "checkpoint.pt"), "--teacher-cache", str(caches["val"])]

    def without_labels(index, system):
        del system.y, system.force

    gc.collect()
    bare = write_edited(data / "val_id", tmp_path / "bare", without_labels)
    gc.collect()
    with pytest.raises(SystemExit, match=r"bare: expected systems with energy .* --teacher-cache with --labels teacher"):
        call(capsys, "evaluate", *students, "--data", f"val={bare}", "--batch-sizes")
    content = {}
    for name, source in (("bare", bare), ("labelled", data / "val_id")):
        output = ["--data", f"val={source}", "--labels", "teacher", "--batch-sizes", "--output", str(tmp_path / name)]
        printed = call(capsys, "evaluate", *students, *output)
        assert "Errors are differences from the teacher's outputs" in printed
        content[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["bare"]["rows"] == content["labelled"]["rows"] and content["bare"]["labels"] == "teacher"
    rows = {row["role"]: row["metrics"] for row in content["bare"]["rows"]}
    assert (rows["teacher"]["energy_mae"], rows["teacher"]["forces_mae"]) == (0, 0)
    gc.collect()
    evaluator = CheckpointEvaluator(trained.checkpoints / "best_checkpoint.pt", DATASET, batch_size=6)
    predicted = np.load(evaluator.predict(data / "val_id", tmp_path / "predicted"))
    del evaluator
    cache = TeacherCache(caches["val"])
    with Records({"src": str(data / "val_id")}) as systems:
        held = {f"{system.sid}_{system.fid}": cache.get(digest_of(system)).values for system in systems.first(len(systems))}
    errors = [abs(energy - float(held[name]["energy"])) for name, energy in zip(predicted["ids"], predicted["energy"])]
    assert len(errors) == 6 and rows["student"]["energy_mae"] == pytest.approx(np.mean(errors), rel=1e-3)
    flags = [str(tmp_path), "--name", "run", "--data", f"val={bare}", "--systems", "6", "--labels", "teacher"]
    call(capsys, "report", *flags, "--teacher-cache", str(caches["val"]), "--output", str(tmp_path / "page"))
    report = json.loads((tmp_path / "page/report.json").read_text())
    assert report["facts"]["labels"] == "the teacher's outputs, from its caches"
    assert report["metrics"]["val"]["teacher"]["energy_mae"] == 0
    assert report["metrics"]["val"]["student"]["energy_mae"] == pytest.approx(rows["student"]["energy_mae"], rel=REPEATED)


@pytest.mark.parametrize("command", [["evaluate", "--checkpoint", "a.pt", "--data", "val=here"], ["report", "runs"]])
def test_labels_of_the_teacher_need_its_caches(command, teacher_checkpoint, capsys):
    with pytest.raises(SystemExit, match=r"--labels teacher: takes the teacher's outputs from caches .* --teacher-cache"):
        main([*command, "--teacher", str(teacher_checkpoint), "--labels", "teacher"])
