"""The errors of single systems, against fairchem's own metrics."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from conftest import DATASET, write_edited
from tolerances import REPEATED

from fairchem_crack.evaluation.s2ef.evaluator import METRICS, CheckpointEvaluator, SystemErrors


def test_forces_are_summed_by_system():
    # Two systems of one and two free atoms.
    prediction = {"energy": torch.tensor([[1.0], [2.0]]), "forces": torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, -3]])}
    target = {"energy": torch.tensor([[3.0], [2.5]]), "forces": torch.zeros(3, 3), "natoms": torch.tensor([1, 2])}
    errors = SystemErrors()
    for _ in range(2):  # batches
        errors.eval(prediction, target)
    sums = errors.arrays()
    assert sums["energy"].tolist() == [2, 0.5] * 2
    assert sums["forces"].tolist() == [1, 5] * 2
    assert sums["components"].tolist() == [3, 6] * 2


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_errors_of_the_systems_average_to_fairchems_metrics(run, stock, data, tmp_path, batch_size):
    stock["dataset"]["train"]["transforms"] = {
        "normalizer": {"energy": {"mean": -1.0, "stdev": 2.0}, "forces": {"mean": 0.0, "stdev": 0.5}}
    }
    stock["optim"].update(max_epochs=2, lr_initial=1e-2)
    stock["evaluation_metrics"]["metrics"] = METRICS
    trained = run(stock)
    gc.collect()
    evaluator = CheckpointEvaluator(trained.checkpoints / "best_checkpoint.pt", DATASET, batch_size=batch_size)
    logged = min(trained.validations, key=lambda record: record["forces_mae"])
    if batch_size == stock["optim"]["batch_size"]:  # among neighbors at equal distance PaiNN's choice depends on the batch
        evaluated = evaluator.metrics(data / "val_id")
        assert evaluated == pytest.approx({name: logged[name] for name in evaluated}, rel=REPEATED, abs=REPEATED)
    metrics, errors = evaluator.metrics_and_errors(data / "val_ood_both")
    assert {len(values) for values in errors.values()} == {6}  # systems
    assert errors["energy"].mean() == pytest.approx(metrics["energy_mae"], rel=REPEATED)
    assert errors["forces"].sum() / errors["components"].sum() == pytest.approx(metrics["forces_mae"], rel=REPEATED)
    # Systems differ in size, so that a mean over their own means would not do.
    assert np.mean(errors["forces"] / errors["components"]) != pytest.approx(metrics["forces_mae"], rel=REPEATED)
    assert evaluator.metrics(data / "val_ood_both") == pytest.approx(metrics)

    def edit(index, system):
        system.y = np.nan if index == 2 else system.y

    spoiled = write_edited(data / "val_ood_ads", tmp_path / "edited", edit)
    with pytest.raises(ValueError, match=r"best_checkpoint.pt on .*edited: the errors of 1 systems \(number 2\) are not"):
        evaluator.metrics(spoiled)
