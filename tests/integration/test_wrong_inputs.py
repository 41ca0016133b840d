"""Ways to get it wrong: each ends in one clear error before the first step, and leaves no checkpoint behind."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
import recorder
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import SCN_MODEL, TEACHER_MODEL

FAR = 60.0  # A, edge of a cell in which no atom is within a cutoff of another's image


@pytest.fixture
def fails(run, tmp_path):
    """Callable: run the config, expect the error, and check that nothing was trained or written."""

    def check(config: dict, error: type[Exception], message: str, **options) -> str:
        before = sorted(tmp_path.rglob("*.pt"))
        with pytest.raises(error, match=message) as raised:
            run(config, **options)
        assert type(raised.value) is error
        assert not recorder.records()
        assert sorted(tmp_path.rglob("*.pt")) == before
        return str(raised.value)

    return check


@pytest.fixture
def teacher(distilled, tmp_path):
    """Callable: write a teacher of these model options, take it in the config, and return its path."""

    def make(**model) -> Path:
        from fairchem.core.common.registry import registry

        attributes = copy.deepcopy(model)
        built = registry.get_model_class(attributes.pop("name"))(**attributes)
        path = tmp_path / "teacher.pt"
        torch.save({"config": {"model": model}, "state_dict": built.state_dict(), "ema": None}, path)
        distilled["task"]["distill"]["teacher"]["checkpoint"] = str(path)
        return path

    return make


@pytest.fixture
def train_on(distilled, tmp_path):
    """Callable: write these systems as the training data of the config, and return its path."""
    from fairchem_crack.demo.prepare import oc20_record

    def write(systems: list[Atoms], *, natoms: list[int] | None = None) -> Path:
        directory = tmp_path / "systems"
        directory.mkdir()
        environment = lmdb.open(str(directory / "data.0000.lmdb"), map_size=1 << 24, subdir=False, lock=False)
        with environment, environment.begin(write=True) as transaction:
            for index, system in enumerate(systems):
                system.pbc = True
                system.set_tags([1] * len(system))
                system.calc = SinglePointCalculator(system, energy=-1.0, forces=np.zeros((len(system), 3)))
                transaction.put(str(index).encode(), pickle.dumps(oc20_record(system, sid=index, fid=0), protocol=-1))
            transaction.put(b"length", pickle.dumps(len(systems)))
        np.savez(directory / "metadata.npz", natoms=natoms or [len(system) for system in systems])
        distilled["dataset"]["train"]["src"] = str(directory)
        return directory

    return write


def molecule(*symbols: str, distance: float = 1.5, cell=(FAR, FAR, FAR)) -> Atoms:
    """A chain of atoms in a large cell."""
    return Atoms(symbols, positions=[[0, 0, distance * index] for index in range(len(symbols))], cell=cell)


# ---- teacher


def test_a_missing_teacher_file_is_named(fails, distilled):
    distilled["task"]["distill"]["teacher"]["checkpoint"] = "teachers/gone.pt"
    fails(distilled, FileNotFoundError, r"task\.distill\.teacher\.checkpoint: teachers/gone\.pt is neither a file")


def test_a_truncated_teacher_is_named(fails, distilled, teacher):
    path = teacher(**TEACHER_MODEL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = fails(distilled, ValueError, "cannot be read as a checkpoint.*bytes: was its download or copy cut short")
    assert str(path) in message


def test_a_teacher_without_adapter_is_refused(fails, distilled, teacher):
    path = teacher(**SCN_MODEL)
    message = fails(distilled, ValueError, "teacher .*is a `scn`.*it has those of .*`equiformer_v2`, .*`painn`")
    assert str(path) in message


def test_elements_that_the_teacher_lacks_are_named(fails, distilled, teacher):
    teacher(**TEACHER_MODEL, max_num_elements=30)  # the demo's metals end with gold, 79
    fails(
        distilled, ValueError, r"dataset\.train holds an atom of atomic number \d\d; the teacher knows elements up to 29\."
    )


# ---- student


def test_elements_that_the_student_lacks_are_named(fails, distilled):
    distilled["model"]["num_elements"] = 30
    message = r"dataset\.train holds an atom of atomic number \d\d; the student knows elements up to 30\..*`num_elements`"
    fails(distilled, ValueError, message)


def test_a_student_without_adapter_is_refused(fails, distilled):
    distilled["model"] = dict(SCN_MODEL)
    fails(distilled, ValueError, "student is a `scn`.*it has those of .*`equiformer_v2`, .*`painn`")


# ---- config


def test_faults_of_all_options_come_in_one_message(fails, distilled):
    distilled["task"]["distill"]["relations"] = {"anchr": "student", "graph": "techer"}
    distilled["loss_functions"][2]["relations"]["temperature"] = 0
    distilled["loss_functions"][0]["energy"]["coefficient"] = "4e0"
    distilled["loss_functions"].append({"relation": {"fn": "crack", "coefficient": 1}})
    distilled["dataset"]["trian"] = {}
    message = fails(distilled, ValueError, "unknown option")
    assert message.split("\n") == [
        "task.distill.relations.anchr: unknown option. Did you mean `anchor`?",
        "dataset.trian: fairchem reads train, val, test, relax and drops the rest. Did you mean `train`?",
        "loss_functions[2].relations.temperature: expected a number >= 0.001667, found 0.",
        "task.distill.relations.graph: expected one of `teacher`, `student`, found 'techer'. Did you mean `teacher`?",
        "loss_functions, energy.coefficient: expected a finite number, found '4e0'.",
        "loss_functions: `relation` is neither an output of the model nor a distillation term. Did you mean `relations`?",
    ]


def test_terms_without_a_distill_block_are_refused(fails, distilled):
    del distilled["task"]
    fails(distilled, ValueError, r"task\.distill: missing.*task\.distill\.teacher\.checkpoint")


def test_unknown_losses_are_refused(fails, distilled):
    distilled["loss_functions"][0]["energy"]["fn"] = "maae"
    distilled["loss_functions"][3]["node_embeddings"]["fn"] = "msee"
    message = fails(distilled, ValueError, "fairchem has no loss")
    assert message.split("\n") == [
        "loss_functions, energy.fn: fairchem has no loss `maae`. Did you mean `mae`?",
        "loss_functions, node_embeddings.fn: fairchem has no loss `msee`. Did you mean `mse`?",
    ]


def test_a_missing_primary_metric_is_refused(fails, distilled):
    del distilled["evaluation_metrics"]["primary_metric"]
    fails(distilled, ValueError, r"evaluation_metrics\.primary_metric: missing")


def test_a_run_dir_that_cannot_be_written_is_refused(fails, distilled, tmp_path):
    (tmp_path / "file").write_text("")
    fails(distilled, NotADirectoryError, "--run-dir .*file/below: .*file is a file", run_dir=tmp_path / "file/below")


# ---- data


@pytest.mark.parametrize("split, path", [("train", "data/s2ef/2000k/train"), ("val", "data/s2ef/all/val_idd")])
def test_a_wrong_path_of_data_is_named(fails, distilled, split, path):
    distilled["dataset"][split]["src"] = path
    fails(distilled, FileNotFoundError, rf"dataset\.{split}\.src: {path} does not exist")


def test_a_directory_without_an_lmdb_is_refused(fails, distilled, tmp_path):
    (tmp_path / "empty").mkdir()
    distilled["dataset"]["train"]["src"] = str(tmp_path / "empty")
    message = fails(distilled, FileNotFoundError, r"dataset\.train\.src.*lmdb")
    assert str(tmp_path / "empty") in message


def test_training_without_data_is_refused(fails, distilled):
    del distilled["dataset"]["train"]["src"]
    fails(distilled, ValueError, r"dataset\.train\.src: missing")


NO_PAIR = r"task\.distill\.relations: the (teacher|student)'s graph joins no pair of atoms in a sample of 4 systems"


@pytest.mark.parametrize("graph", ["teacher", "student"])
@pytest.mark.parametrize(
    "symbols, reason",
    [(("Cu", "O"), "no two atoms are within the model's cutoff"), (("Cu",), "each has one atom")],
    ids=["far atoms", "single atoms"],
)
def test_atoms_that_see_only_their_images_are_refused(fails, distilled, train_on, graph, symbols, reason):
    distilled["task"]["distill"]["relations"] = {"graph": graph}
    train_on([molecule(*symbols, distance=FAR / 2, cell=(3, 3, FAR)) for _ in range(4)])
    fails(distilled, ValueError, f"{NO_PAIR}.*{reason}")


@pytest.mark.parametrize("graph", ["teacher", "student"])
@pytest.mark.parametrize("symbols", [("Cu", "O"), ("H",)], ids=["two far atoms", "one atom"])
def test_atoms_that_see_nothing_at_all_are_refused(fails, distilled, train_on, graph, symbols):
    distilled["task"]["distill"]["relations"] = {"graph": graph}
    train_on([molecule(*symbols, distance=FAR / 2) for _ in range(4)])
    fails(distilled, ValueError, r"dataset\.train.*4 systems.*cutoff")


def test_a_system_that_sees_nothing_is_named(fails, distilled, train_on):
    """The sample has pairs, and the teacher runs; PaiNN fails on such a system."""
    train_on([molecule("Cu", "O", distance=FAR / 2 if index == 2 else 1.5) for index in range(4)])
    fails(distilled, ValueError, r"dataset\.train: in 1 of a sample of 4 systems \(sid 2\) .*cutoff")


def test_metadata_of_other_data_leaves_no_system_out(run, distilled, train_on):
    """metadata.npz only balances batches between ranks: a wrong one is no error, and costs no system."""
    train_on([molecule("Cu", "O") for _ in range(4)], natoms=[7] * 4)
    assert len(run(distilled).steps) == 2


# ---- resuming


@pytest.mark.slow
def test_resuming_with_another_projection_is_refused(run, distilled):
    trained = run(distilled)
    before = (trained.checkpoints / "checkpoint.pt").read_bytes()
    distilled["task"]["distill"]["projection"] = {"kind": "mlp"}
    with pytest.raises(ValueError, match=r"resumed with another task\.distill\.projection\.kind: linear -> mlp"):
        run(distilled)
    assert (trained.checkpoints / "checkpoint.pt").read_bytes() == before


def test_data_that_cannot_be_balanced_are_refused(fails, distilled, train_on):
    (train_on([molecule("Cu", "Cu")]) / "metadata.npz").unlink()
    distilled["optim"]["load_balancing"] = "atoms"
    fails(distilled, ValueError, "optim.load_balancing: .*optim.load_balancing_on_error: warn_and_no_balance")
