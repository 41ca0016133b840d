"""Whole trainings with the stock fairchem command."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import same_weights
from test_denormals import are_flushed
from tolerances import REORDERED, REPEATED

from fairchem_crack import CrackDistillTrainer, keys

DIAGNOSTICS = (
    keys.RELATION_TOP1,
    keys.RELATION_COSINE,
    keys.RELATION_ENTROPY,
    keys.NUM_PAIRS,
    keys.NUM_DEGENERATE,
    "loss_energy",
    "loss_forces",
    "loss_relations",
    "loss_node_embeddings",
)


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


@pytest.mark.parametrize("with_terms", [False, True], ids=["no term", "coefficient 0"])
def test_without_a_distillation_term_it_is_the_stock_trainer(run, stock, distilled, with_terms):
    plain = run(stock, name="stock")
    stock["trainer"] = "fairchem_crack.CrackDistillTrainer"
    if with_terms:
        for entry in distilled["loss_functions"][2:]:
            for term in entry.values():
                term["coefficient"] = 0
    ours = run(distilled if with_terms else stock, name="ours")
    assert len(plain.steps) == 6 and plain.losses() == ours.losses()
    expected, checkpoint = (load(trained.checkpoints / "checkpoint.pt") for trained in (plain, ours))
    assert same_weights(expected["state_dict"], checkpoint["state_dict"])
    assert expected.keys() == checkpoint.keys()


def test_every_step_logs_each_loss_and_the_relations(run, distilled):
    steps = run(distilled).steps
    assert len(steps) == 6
    for record in steps:
        assert all(torch.isfinite(torch.tensor(record[name])) for name in DIAGNOSTICS)
        total = record["loss_energy"] + 10 * record["loss_forces"]
        total += 10 * record["loss_relations"] + record["loss_node_embeddings"]
        assert record["loss"] == pytest.approx(total, rel=REORDERED)
        assert record[keys.NUM_PAIRS] > 20


def test_a_training_flushes_denormals(run, distilled, monkeypatch):
    seen, step = [], CrackDistillTrainer._forward
    monkeypatch.setattr(CrackDistillTrainer, "_forward", lambda *batch: (seen.append(are_flushed()), step(*batch))[1])
    run(distilled)
    assert len(seen) >= 6 and all(seen) and not are_flushed()


def test_distillation_changes_the_student_towards_the_teacher(run, stock, distilled):
    for config in (stock, distilled):
        config["optim"].update(max_epochs=4, T_max=24, lr_initial=5e-3)
    plain, ours = run(stock, name="stock"), run(distilled, name="ours")
    assert plain.losses()[0] < ours.losses()[0]
    cosines = [record[keys.RELATION_COSINE] for record in ours.steps]
    assert cosines[-1] > cosines[0] + 0.1


def test_the_projection_is_drawn_independently_of_the_student(run, distilled):
    first, second = (run(copy.deepcopy(distilled), name=name) for name in ("one", "two"))
    assert first.losses() == second.losses()


def test_a_resumed_run_equals_the_uninterrupted_one(run, distilled):
    distilled["optim"].update(max_epochs=2, checkpoint_every=2, eval_every=4)
    distilled["task"]["distill"]["relations"] = {"max_pairs": 30}
    whole = run(distilled, name="whole")
    run(distilled, name="cut", stop_at=5)
    resumed = run(distilled, name="cut")
    assert [record["step"] for record in resumed.steps] == list(range(5, 13))
    assert resumed.losses() == pytest.approx(whole.losses()[4:], rel=REPEATED)
    expected, checkpoint = (load(trained.checkpoints / "checkpoint.pt") for trained in (whole, resumed))
    assert same_weights(expected["state_dict"], checkpoint["state_dict"])
    assert same_weights(expected[keys.CHECKPOINT_KEY][keys.PROJECTION], checkpoint[keys.CHECKPOINT_KEY][keys.PROJECTION])


def test_resuming_with_another_teacher_is_refused(run, distilled, teacher_checkpoint, tmp_path):
    run(distilled)
    other_teacher = load(teacher_checkpoint)
    other_teacher["ema"] = None
    torch.save(other_teacher, tmp_path / "other.pt")
    distilled["task"]["distill"]["teacher"]["checkpoint"] = str(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"another teacher.*task.distill.resume: student"):
        run(distilled)
    same_weights_of_another_model = load(teacher_checkpoint)
    same_weights_of_another_model["config"]["model"]["avg_degree"] = 7.5
    torch.save(same_weights_of_another_model, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other settings than .*config\.avg_degree \S+ \(before\), 7\.5 \(now\)\. Give"):
        run(distilled)
    distilled["task"]["distill"]["resume"] = "student"
    distilled["optim"]["max_epochs"] = 2
    assert [record["step"] for record in run(distilled).steps] == list(range(7, 13))


def test_a_checkpoint_has_one_key_beyond_a_stock_one(run, stock, distilled):
    plain, ours = run(stock, name="stock"), run(distilled, name="ours")
    for name, extra in (("checkpoint.pt", {keys.CHECKPOINT_KEY}), ("best_checkpoint.pt", {keys.CHECKPOINT_KEY})):
        expected, checkpoint = (load(trained.checkpoints / name) for trained in (plain, ours))
        assert checkpoint.keys() - expected.keys() == extra
        assert expected["state_dict"].keys() == checkpoint["state_dict"].keys()
        assert checkpoint["config"]["loss_functions"] == expected["config"]["loss_functions"]
        assert checkpoint["config"]["trainer"] == "ocp" and "distill" not in checkpoint["config"]["task"]
    assert len(checkpoint.get("optimizer", expected)) and len(
        load(ours.checkpoints / "checkpoint.pt")["ema"]["shadow_params"]
    ) == len(load(plain.checkpoints / "checkpoint.pt")["ema"]["shadow_params"])
    assert sorted(path.name for path in ours.checkpoints.iterdir()) == [
        "best_checkpoint.pt",
        "checkpoint.pt",
        "training.lock",
    ]


def test_validation_and_prediction_need_no_teacher(run, distilled):
    trained = run(distilled)
    distilled["task"]["distill"]["teacher"]["checkpoint"] = "gone.pt"
    best = trained.checkpoints / "best_checkpoint.pt"
    validated = run(distilled, mode="validate", name="validate", checkpoint=best)
    assert validated.validations[0]["forces_mae"] == pytest.approx(trained.validations[-1]["forces_mae"], rel=REPEATED)
    assert (run(distilled, mode="predict", name="predict", checkpoint=best).results / "ocp_predictions.npz").is_file()


@pytest.mark.parametrize("graph", ["teacher", "student"])
@pytest.mark.parametrize("negatives", ["batch", "system"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_options_of_the_distill_block_train(run, distilled, graph, negatives, kind):
    distilled["task"]["distill"]["relations"] = {"graph": graph, "negatives": negatives, "anchor": "symmetric"}
    distilled["task"]["distill"]["projection"] = {"kind": kind}
    assert len(run(distilled).steps) == 6


def test_a_checkpoint_needs_no_file_of_scale_factors(run, distilled, tmp_path):
    factors = {f"upd_out_scalar_scale_{layer}": 1.5 + layer for layer in range(distilled["model"]["num_layers"])}
    file = tmp_path / "scales.json"
    file.write_text(json.dumps({"comment": "fitted", **factors}))
    distilled["model"]["scale_file"] = str(file)
    finished = run(distilled)
    assert load(finished.checkpoints / "best_checkpoint.pt")["config"]["model"]["scale_file"] == factors
