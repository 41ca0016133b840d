"""Every distillation term in a training by the stock command: one at a time, from a cache, without labels, by a schedule."""

from __future__ import annotations

import copy
import gc
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from architectures import GEMNET_T
from conftest import DATASET, TEACHER_MODEL, TERMS, with_terms, write_cache, write_teacher
from tolerances import REBATCHED, REORDERED, REPEATED

from fairchem_crack import keys
from fairchem_crack.commands.cli import main
from fairchem_crack.config import TeacherConfig
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.teacher.frozen import Teacher, load_teacher
from fairchem_crack.training import terms

GEMNET = {"name": "gemnet_t", **GEMNET_T, "max_neighbors": 20}


@pytest.mark.parametrize("key", TERMS)
def test_each_term_is_trained_by_itself(run, distilled, key):
    finished = run(with_terms(distilled, {key: TERMS[key]}))
    values = [step[f"loss_{key}"] for step in finished.steps]
    assert len(values) == 6 and all(value > 0 for value in values)
    assert [name for name in finished.steps[0] if name.startswith("loss_")] == ["loss_energy", "loss_forces", f"loss_{key}"]


@pytest.mark.slow
@pytest.mark.parametrize("student", ["painn", "gemnet_t"])
def test_all_terms_from_a_cache_are_those_online(run, distilled, teacher_checkpoint, tmp_path, student):
    terms = {**TERMS, "relations": {**TERMS["relations"], "lmax": 0}}
    for key in (
        "force_jacobian",
        "embedding_response",
        "force_response",
    ):  # from a cache their rows and displacements are other ones
        terms.pop(key)
    if student == "gemnet_t":
        distilled["model"] = GEMNET
        terms.pop("vector_embeddings")
    content = torch.load(teacher_checkpoint, weights_only=False)
    content["elementrefs"] = {"energy": {"element_references": torch.linspace(-4, 1, 119)}}
    torch.save(content, tmp_path / "teacher.pt")
    np.savez(tmp_path / "references.npz", coeff=np.linspace(-3, 1, 119, dtype=np.float32))
    config = with_terms(distilled, terms)
    config["task"]["distill"]["teacher"]["checkpoint"] = str(tmp_path / "teacher.pt")
    config["dataset"]["train"]["transforms"] = {
        "element_references": {"energy": {"file": str(tmp_path / "references.npz")}},
        "normalizer": {"energy": {"mean": 0.5, "stdev": 2.0}},
    }
    online = run(config, name="online")
    config["task"]["distill"]["teacher"] = {"cache": str(write_cache(config, tmp_path))}
    cached = run(config, name="cached")
    assert len(online.steps) == 6
    for online_step, cached_step in zip(online.steps, cached.steps):
        for key in terms:
            assert cached_step[f"loss_{key}"] == pytest.approx(online_step[f"loss_{key}"], rel=REBATCHED), key


@pytest.mark.parametrize("student", ["painn", "gemnet_t"])
def test_rows_and_responses_from_a_cache_are_trained(run, distilled, tmp_path, student):
    if student == "gemnet_t":
        distilled["model"] = GEMNET
    terms = {key: TERMS[key] for key in ("embedding_response", "force_response")}
    terms["force_jacobian"] = {**TERMS["force_jacobian"], "every": 2}
    config = with_terms(distilled, terms)
    config["task"]["distill"]["teacher"] = {"cache": str(write_cache(config, tmp_path))}
    steps = run(config).steps
    assert all(step["loss_embedding_response"] > 0 and step["loss_force_response"] > 0 for step in steps)
    assert all(step["loss_force_jacobian"] > 0 for step in steps[::2])


def test_all_degrees_from_a_cache_are_those_online(run, distilled, tmp_path, monkeypatch):
    """An EquiformerV2 from one of its own widths; two of its parts are frozen, or learn slowly."""
    monkeypatch.setitem(TEACHER_MODEL, "lmax_list", [2])
    of_all = {"lmax": "all", "standardize": False, "coefficient": 1}
    terms = {
        "relations": {**of_all, "fn": "crack", "per_degree": True},
        "node_embeddings": {**of_all, "fn": "mse", "projected": False},
    }
    config = with_terms(distilled, terms)
    config["model"] = {**TEACHER_MODEL, "num_layers": 2}
    config["task"]["distill"] = {
        "teacher": {"checkpoint": str(write_teacher(tmp_path / "teacher.pt"))},
        "init_from_teacher": {"blocks": [0, 0]},
        "learning_rates": {"sphere_embedding": 0, "force_block": 0.01},
    }
    online = run(config, name="online")
    config["task"]["distill"]["teacher"]["cache"] = str(write_cache(config, tmp_path))
    cached = run(config, name="cached")
    for online_step, cached_step in zip(online.steps, cached.steps):
        for key in terms:
            assert cached_step[f"loss_{key}"] == pytest.approx(online_step[f"loss_{key}"], rel=REBATCHED), key
    trained = torch.load(online.checkpoints / "checkpoint.pt", weights_only=False)["state_dict"]
    start = load_teacher(TeacherConfig(str(tmp_path / "teacher.pt")), torch.device("cpu")).model.state_dict()
    name = "sphere_embedding.weight"
    assert len(online.steps) == 6 and torch.equal(trained[f"module.{name}"], start[name])


def named(config: dict, energy: str, forces: str, references: Path) -> dict:
    """The config with a hydra whose outputs have these names, a normalizer of rmsd 100 and element references."""
    config = copy.deepcopy(config)
    model = {name: value for name, value in config["model"].items() if name not in ("name", "scale_file")}
    heads = {energy: {"module": "painn_energy_head"}, forces: {"module": "painn_force_head"}}
    backbone = {"model": "painn_backbone", **model}
    config["model"] = {"name": "hydra", "backbone": backbone, "heads": heads, "otf_graph": True}
    config["outputs"] = {
        energy: {"property": "energy", **config["outputs"]["energy"]},
        forces: {"property": "forces", **config["outputs"]["forces"]},
    }
    config["loss_functions"][:2] = [{energy: {"fn": "mae", "coefficient": 1}}, {forces: {"fn": "l2mae", "coefficient": 10}}]
    config["evaluation_metrics"] = {"metrics": {energy: ["mae"], forces: ["mae"]}, "primary_metric": f"{forces}_mae"}
    config["dataset"]["train"].update(
        key_mapping={"y": energy, "force": forces},
        transforms={
            "normalizer": {energy: {"mean": -0.5, "stdev": 100.0}, forces: {"mean": 0.0, "stdev": 2.0}},
            "element_references": {energy: {"file": str(references)}},
        },
    )
    config["optim"]["batch_size"] = 6
    return config


@pytest.mark.parametrize("labels", ["data", "teacher"])
def test_outputs_are_taken_by_their_property(run, distilled, tmp_path, capsys, labels):
    np.savez(tmp_path / "references.npz", coeff=np.linspace(-1, 1, 119, dtype=np.float32))
    keys_of_energies = ("atom_energies", "teacher_energy", "teacher_forces")
    distilled["task"]["distill"]["labels"] = labels
    config = with_terms(distilled, {key: TERMS[key] for key in keys_of_energies})
    runs, agreements, metrics = {}, {}, {}
    for energy, forces in (("energy", "forces"), ("oc20_energy", "oc20_forces")):
        own = named(config, energy, forces, tmp_path / "references.npz")
        runs[energy] = run(own, name=energy)
        file = tmp_path / f"{energy}.yml"
        file.write_text(yaml.safe_dump(own))
        gc.collect()
        main(["check", "--config-yml", str(file), "--cpu"])  # exits with 1 where it finds a problem
        (agreements[energy],) = re.findall("^agreement.*", capsys.readouterr().out, re.MULTILINE)
        evaluator = CheckpointEvaluator(runs[energy].checkpoints / "best_checkpoint.pt", dict(DATASET), batch_size=6)
        metrics[energy] = evaluator.metrics(Path(own["dataset"]["val"]["src"]))
        del evaluator  # whose LMDB a process opens only once
    plain, renamed = (runs[name].steps for name in ("energy", "oc20_energy"))
    assert len(plain) == 2 and agreements["energy"] == agreements["oc20_energy"] and "energy MAE" in agreements["energy"]
    for plain_step, renamed_step in zip(plain, renamed):
        assert renamed_step["loss"] == pytest.approx(plain_step["loss"], rel=REORDERED)
        for key in keys_of_energies:
            assert renamed_step[f"loss_{key}"] == pytest.approx(plain_step[f"loss_{key}"], rel=REORDERED)
        label, of_teacher = renamed_step["loss_oc20_energy"], renamed_step["loss_teacher_energy"]
        assert (label == pytest.approx(of_teacher, rel=REPEATED)) == (labels == "teacher")
    assert metrics["oc20_energy"] == pytest.approx(metrics["energy"], rel=REORDERED)


def test_two_energies_of_a_student_are_refused_by_their_names(run, distilled, tmp_path):
    config = with_terms(distilled, {"teacher_energy": TERMS["teacher_energy"]})
    config["outputs"]["omat_energy"] = {"property": "energy", "level": "system"}
    with pytest.raises(
        ValueError, match=r"outputs: expected one output of property `energy`, found `energy`, `omat_energy`"
    ):
        run(config)


def test_a_term_whose_schedule_is_over_costs_no_teacher(run, distilled, monkeypatch):
    runs = []
    call = Teacher.__call__
    monkeypatch.setattr(Teacher, "__call__", lambda self, *args: runs.append(1) or call(self, *args))
    schedule = {"kind": "off", "until": 0.5}
    finished = run(with_terms(distilled, {"relations": {**TERMS["relations"], "schedule": schedule}}))
    assert ["loss_relations" in step for step in finished.steps] == [True] * 3 + [False] * 3
    assert len(runs) == 1 + 3  # the sample before the first step


def test_the_coefficient_follows_its_schedule(run, distilled):
    schedule = {"kind": "linear", "final": 0.5}
    finished = run(with_terms(distilled, {"relations": {"fn": "crack", "coefficient": 8, "schedule": schedule}}))
    for number, step in enumerate(finished.steps):
        weight = 8 * (1 - 0.5 * number / 6)
        expected = step["loss_energy"] + 10 * step["loss_forces"] + weight * step["loss_relations"]
        assert step["loss"] == pytest.approx(expected, rel=REORDERED)


def test_what_a_model_lacks_is_refused_by_name(run, distilled):
    config = with_terms(distilled, {"vector_embeddings": TERMS["vector_embeddings"]})
    config["model"] = GEMNET
    with pytest.raises(
        ValueError, match="`vector_embeddings` needs an l=1 embedding, which the student, `gemnet_t`, does not provide"
    ):
        run(config)
    config = with_terms(distilled, {"force_jacobian": TERMS["force_jacobian"]})
    config["model"] = TEACHER_MODEL
    with pytest.raises(ValueError, match="`force_jacobian` needs a student whose forces can be differentiated; `equiformer"):
        run(config)


def test_a_cache_that_lacks_a_field_is_refused_before_training(run, distilled, tmp_path):
    file = tmp_path / "cached.yml"
    file.write_text(yaml.safe_dump(distilled))
    gc.collect()
    main(["cache-teacher", "--config-yml", str(file), "--cpu", "--output", str(tmp_path / "cache")])
    config = with_terms(distilled, {"vector_embeddings": TERMS["vector_embeddings"]})
    config["task"]["distill"]["teacher"] = {"cache": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="no vector_embedding, which terms of loss_functions need"):
        run(config)


def test_a_users_own_term_is_trained(run, distilled, monkeypatch):
    monkeypatch.setattr(keys, "DISTILLATION_TERMS", [*keys.DISTILLATION_TERMS])
    monkeypatch.setattr(terms, "COMPARISONS", dict(terms.COMPARISONS))

    @terms.register_term("embedding_lengths", keys.NODE_EMBEDDING)
    def embedding_lengths(context, term):
        return context.projected.norm(dim=1), context.teacher.node_embedding.norm(dim=1)

    finished = run(with_terms(distilled, {"embedding_lengths": {"fn": "mae", "coefficient": 2}}))
    for step in finished.steps:
        own = step["loss_energy"] + 10 * step["loss_forces"]
        assert step["loss"] == pytest.approx(own + 2 * step["loss_embedding_lengths"], rel=REORDERED)
