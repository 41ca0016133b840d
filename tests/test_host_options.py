"""Options on which fairchem would fail in the first steps, or which it would never apply."""

from __future__ import annotations

import pytest
import torch
from fairchem.core.common.registry import registry
from torch_geometric.data import Batch, Data

from fairchem_crack.commands.check.fields import field_faults
from fairchem_crack.config import DistillConfig, TeacherConfig
from fairchem_crack.training.host_options import (
    all_outputs,
    check_free_atoms,
    label_faults,
    lambda_faults,
    metric_faults,
    optim_faults,
    output_faults,
    own_loss_faults,
    transform_faults,
)

FREE = {"train_on_free_atoms": True, "eval_on_free_atoms": True}
OUTPUTS = {
    "energy": {"level": "system"},
    "oc_forces": {"property": "forces", "level": "atom", **FREE},
    "stress": {
        "level": "system",
        "decomposition": {"stress_isotropic": {"irrep_dim": 0}, "stress_anisotropic": {"irrep_dim": 2}},
    },
}
OPTIM = {"max_epochs": 1, "num_workers": 0}


@pytest.mark.parametrize(
    "name, options, part",
    [
        (
            "energy",
            {"fn": "l2mae", "coefficient": 1},
            "energy.fn: `l2mae` takes the length of vectors; `energy` has .* (B, 1)",
        ),
        ("stress_isotropic", {"fn": "l2norm", "coefficient": 1}, "`stress_isotropic` has the shape (B, 1)"),
        ("stress_anisotropic", {"fn": "per_atom_mae", "coefficient": 1}, "`stress_anisotropic` has the shape (B, 5)"),
        (
            "oc_forces",
            {"fn": "per_atom_mae", "coefficient": 1},
            "`oc_forces` has the shape (N, 3). Take `mae`, `mse` or `l2mae`",
        ),
        ("energy", {"fn": "crack", "coefficient": 1}, "`crack` compares embeddings"),
        ("energy", {"fn": "mae", "coefficient": "4e0"}, "energy.coefficient: expected a finite number, found '4e0'"),
        ("energy", {"fn": "mae", "coefficient": float("nan")}, "expected a finite number, found nan"),
        ("energy", {"coefficient": 1}, "energy: expected a mapping with `fn` and `coefficient`"),
        ("energy", "mae", "energy: expected a mapping with `fn` and `coefficient`, found 'mae'"),
    ],
)
def test_a_loss_that_an_output_cannot_take_is_a_fault(name, options, part):
    (fault,) = own_loss_faults([{name: options}], OUTPUTS)
    for piece in part.split(" .* "):
        assert piece in str(fault)


@pytest.mark.parametrize(
    "name, fn",
    [
        *(("energy", fn) for fn in ("mae", "mse", "per_atom_mae", "a_loss_of_your_own")),
        *(("oc_forces", fn) for fn in ("mae", "mse", "l2mae", "l2norm")),
        *(("stress_anisotropic", fn) for fn in ("mae", "mse", "l2mae")),
    ],
)
def test_losses_that_fit_are_taken(name, fn, monkeypatch):
    monkeypatch.setitem(registry.mapping["loss_name_mapping"], "a_loss_of_your_own", torch.nn.L1Loss)
    assert list(own_loss_faults([{name: {"fn": fn, "coefficient": 1}}], OUTPUTS)) == []


@pytest.mark.parametrize(
    "change, lines",
    [
        ({"max_epochs": None}, ["max_epochs: expected an integer >= 1, found None."]),
        ({"max_epochs": 1.5}, ["max_epochs: expected an integer >= 1, found 1.5."]),
        (
            {"max_epochs": 0, "num_workers": -1, "batch_size": True, "eval_every": "1e3", "checkpoint_every": 0},
            [
                "max_epochs: expected an integer >= 1, found 0.",
                "num_workers: expected an integer >= 0, found -1.",
                "batch_size: expected an integer >= 1, found True.",
                "eval_every: expected an integer >= 1, found '1e3'.",
                "checkpoint_every: expected an integer >= 1, found 0.",
            ],
        ),
        ({"eval_every": 0}, ["eval_every: expected an integer >= 1, found 0."]),
        ({"checkpoint_every": -1, "eval_every": 5, "batch_size": 2}, []),
    ],
)
def test_an_impossible_number_of_optim_is_a_fault(change, lines):
    assert [str(fault) for fault in optim_faults({**OPTIM, **change})] == [f"optim.{line}" for line in lines]


def test_numbers_that_optim_lacks_are_faults():
    assert [str(fault) for fault in optim_faults({})] == [f"optim.{name}: missing; expected an integer." for name in OPTIM]


@pytest.mark.parametrize(
    "outputs, part",
    [
        ({"energy": None}, "outputs.energy: expected a mapping with `level`"),
        ({"energy": {}}, "outputs.energy.level: expected `system` or `atom`, found None"),
        (
            {"forces": {"level": "atom", "train_on_free_atoms": True}},
            "outputs.forces.eval_on_free_atoms: expected True or F",
        ),
        (
            {"forces": {"level": "atom", "eval_on_free_atoms": True}},
            "outputs.forces.train_on_free_atoms: expected True or F",
        ),
    ],
)
def test_an_output_without_what_steps_read_is_a_fault(outputs, part):
    (fault,) = output_faults(outputs)
    assert part in str(fault)
    assert list(output_faults(all_outputs(OUTPUTS))) == []


@pytest.mark.parametrize("transform", ["normalizer", "element_references"])
def test_a_normalizer_of_no_output_is_a_fault(transform):
    for given in ({"energyy": {}}, {"fit": {"targets": ["energyy"]}}):
        (fault,) = transform_faults({"transforms": {transform: given}}, OUTPUTS)
        assert fault.path == f"dataset.train.transforms.{transform}"
        assert fault.sentence == "`energyy` is no output, and would never be applied. Did you mean `energy`?"
    sound = {"file": "a.pt", "stress_isotropic": {}, "fit": {"targets": {"energy": {}}}}
    assert list(transform_faults({"transforms": {transform: sound}}, OUTPUTS)) == []


@pytest.mark.parametrize("transform", ["normalizer", "element_references"])
def test_labels_of_the_teacher_are_not_fitted_to_the_datas(transform):
    dataset = {"transforms": {transform: {"fit": {"targets": ["energy"]}}}}
    given = {"transforms": {transform: {"energy": {"mean": 0.0, "stdev": 1.0}}}}
    assert list(label_faults(DistillConfig(TeacherConfig("t.pt")), dataset)) == []
    for labels in ("teacher", "fill"):
        distill = DistillConfig(TeacherConfig("t.pt"), labels=labels)
        assert list(label_faults(distill, given)) == []
        (fault,) = label_faults(distill, dataset)
        assert fault.path == f"dataset.train.transforms.{transform}.fit" and f"labels: {labels}" in fault.sentence


@pytest.mark.parametrize(
    "params, part",
    [
        ({"lambda_type": "cosin"}, "lambda_type: unknown 'cosin'. Did you mean `cosine`?"),
        ({"lambda_type": "cosine", "warmup_epochs": 1, "lr_min_factor": 0.1}, "scheduler_params.warmup_factor: missing"),
    ],
)
def test_a_schedule_that_fairchem_lacks_is_a_fault(params, part):
    (fault,) = lambda_faults(params)
    assert part in str(fault)


def test_the_ocp_task_has_no_default_metrics():
    """fairchem's evaluator then computes none, and the first validation would end in a KeyError."""
    (fault,) = metric_faults({"primary_metric": "forces_mae"})
    assert fault.sentence == "'forces_mae' is none of the metrics. Give evaluation_metrics.metrics."
    assert list(metric_faults({"primary_metric": "forces_mae"}, "s2ef")) == []


@pytest.mark.parametrize("metric", ["loss", "forces_mse", "energy_per_atom_mse", "energy_rmse", "forces_magnitude_error"])
def test_a_metric_whose_worst_value_is_kept_is_a_fault(metric):
    """fairchem's `update_best` keeps the largest of what has no `mae` in its name."""
    of, _, fn = metric.partition("_")
    metrics = {of: [fn]} if fn else {"forces": ["mae"]}
    (fault,) = metric_faults({"primary_metric": metric, "metrics": metrics})
    assert fault.path == "evaluation_metrics.primary_metric"
    assert fault.sentence.startswith(f"'{metric}' is better when it is smaller") and "be the worst" in fault.sentence


@pytest.mark.parametrize("function", ["mae", "cosine_similarity"])
def test_a_metric_whose_best_value_is_kept_is_taken(function):
    assert list(metric_faults({"primary_metric": f"forces_{function}", "metrics": {"forces": [function]}})) == []


def system(**fields) -> Data:
    """Of two atoms."""
    sound = {"pos": torch.zeros(2, 3), "cell": torch.eye(3)[None], "atomic_numbers": torch.ones(2), "natoms": 2}
    labels = {
        "energy": 1.0,
        "oc_forces": torch.zeros(2, 3),
        "fixed": torch.zeros(2),
        "tags": torch.zeros(2, dtype=torch.long),
    }
    return Data(**{**sound, **labels, **fields})


@pytest.mark.parametrize(
    "fields, fault",
    [
        ({"pos": torch.zeros(2, 3).double()}, "`pos` is float64, expected float32"),
        ({"pos": torch.zeros(3, 2)}, "`pos` has the shape (3, 2), expected (2, 3)"),
        ({"cell": torch.eye(3)}, "`cell` has the shape (3, 3), expected (1, 3, 3)"),
        ({"atomic_numbers": torch.ones(2, 1)}, "`atomic_numbers` has the shape (2, 1), expected (2,)"),
        ({"fixed": torch.zeros(3)}, "`fixed` has the shape (3,), expected (2,)"),
        ({"pos": torch.full((2, 3), float("inf"))}, "`pos` has values that are not finite"),
        ({"oc_forces": torch.zeros(3, 2)}, "`oc_forces` has the shape (3, 2), expected (2, 3)"),
        ({"oc_forces": torch.zeros(2, 3).long()}, "`oc_forces` is int64, expected float32"),
        ({"oc_forces": torch.zeros(2, 3).numpy()}, "`oc_forces` is a ndarray, expected a tensor of float32"),
        ({"energy": 3}, "`energy` is a int, expected a tensor of float32"),
        ({"energy": torch.zeros(2)}, "`energy` has the shape (2,), expected (1, 1)"),
        ({"energy": float("nan")}, "`energy` has values that are not finite"),
        ({"energy": torch.zeros(1).double()}, "`energy` is float64, expected float32 for `fn: mse`"),
    ],
)
def test_a_field_that_fairchem_cannot_take_is_named(fields, fault):
    assert [message for _, message in field_faults(system(**fields), OUTPUTS, by_mse=["energy"])] == [fault]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"energy": torch.zeros(1, 1), "atomic_numbers": torch.ones(2, dtype=torch.long)},
        {"energy": torch.tensor(0.0), "fixed": torch.zeros(2, dtype=torch.bool)},
        {"oc_forces": torch.zeros(2, 3).double()},  # its loss is not mse
    ],
)
def test_fields_that_fairchem_takes_are_sound(fields):
    assert list(field_faults(system(**fields), OUTPUTS, by_mse=["energy"])) == []


@pytest.mark.parametrize("is_training", [True, False])
def test_a_batch_without_a_free_atom_is_named(is_training):
    batch = Batch.from_data_list([system(fixed=torch.ones(2)), system(fixed=torch.ones(2))])
    flag = "train_on_free_atoms" if is_training else "eval_on_free_atoms"
    with pytest.raises(
        ValueError, match=rf"dataset\.x, systems of number 0, 1: all atoms are fixed, and outputs\.oc_forces\.{flag} is"
    ):
        check_free_atoms(batch, OUTPUTS, is_training=is_training, where="dataset.x")
    check_free_atoms(batch, {"forces": {"level": "atom", **FREE, flag: False}}, is_training=is_training, where="")
    one_free = Batch.from_data_list([system(fixed=torch.ones(2)), system(fixed=torch.tensor([1, 0]))])
    check_free_atoms(one_free, OUTPUTS, is_training=is_training, where="")
