"""With which options labelled data are read, and whatever a checkpoint predicts beside energy and forces."""

from __future__ import annotations

import copy
import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import MODELS, build
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from conftest import DATASET, stock_config
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.datasets import LmdbDataset, data_list_collater
from tolerances import REBATCHED, REORDERED, REPEATED

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation.report.predict import AsFairchem
from fairchem_crack.evaluation.s2ef.data import as_labelled, format_of, given_options, options_for, validation_options
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator, evaluated_outputs, first_records
from fairchem_crack.evaluation.speed.runs import Model

NAMES = {"energy": "energy", "forces": "forces"}
STRESS = {
    "level": "system",
    "decomposition": {
        "stress_isotropic": {"level": "system", "irrep_dim": 0},
        "stress_anisotropic": {"level": "system", "irrep_dim": 2},
    },
}
EQUIFORMER = "equiformer_v2 hydra"
HEADS = MODELS[EQUIFORMER]["heads"]
STRESS_HEAD = {"module": "rank2_symmetric_head", "decompose": True}
ASE = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True}}


def write(path: Path, name: str, *, heads: dict, outputs: dict, weights: dict | None = None, **config) -> dict:
    """A checkpoint of a toy hydra with these heads and outputs; the weights of its state dict."""
    model = {**copy.deepcopy(MODELS[name]), "heads": heads}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, name, model)
        state = build(name).state_dict()
    state.update(weights or {})
    normalizers = {"energy": {"mean": torch.tensor(-1.0), "rmsd": torch.tensor(3.0)}}
    named = {
        name: state for name in outputs if outputs[name].get("property", name) == "energy" for state in normalizers.values()
    }
    content = {"config": {**stock_config(Path()), "model": model, "outputs": outputs, **config}, "state_dict": state}
    torch.save({**content, "normalizers": named, "ema": None}, path)
    return state


def outputs_of(**forces) -> dict:
    return {"energy": {"level": "system"}, "forces": {**stock_config(Path())["outputs"]["forces"], **forces}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data) -> tuple[Path, dict, dict]:
    """An EquiformerV2 of energies and forces, its weights, and its metrics on val_id."""
    path = tmp_path_factory.mktemp("plain") / "plain.pt"
    state = write(path, EQUIFORMER, heads=HEADS, outputs=outputs_of())
    gc.collect()
    return path, state, CheckpointEvaluator(path, DATASET, batch_size=6).metrics(data / "val_id")


def test_a_stress_head_changes_nothing(plain, data, tmp_path):
    """Its data have no `stress_isotropic`, and fairchem's own validation ends in a KeyError."""
    path, (_, state, expected) = tmp_path / "stress.pt", plain
    heads = {**HEADS, "stress": STRESS_HEAD}
    trained_on = {**DATASET, "src": str(data / "train")}
    write(path, EQUIFORMER, heads=heads, outputs={"stress": STRESS, **outputs_of()}, weights=state, dataset=trained_on)
    gc.collect()
    evaluator = CheckpointEvaluator(path, DATASET, batch_size=6)
    assert evaluator.metrics(data / "val_id") == pytest.approx(expected, rel=REBATCHED, abs=REPEATED)
    file = evaluator.predict(data / "val_id", tmp_path / "predictions")
    assert set(np.load(file)) == {"ids", "energy", "forces", "chunk_idx"}
    del evaluator
    gc.collect()
    records = first_records(data / "val_id", DATASET, 2)
    batch = data_list_collater(records, otf_graph=True)
    assert AsFairchem(path, {}, batch_size=2)(batch.clone())["forces"].shape == (batch.num_nodes, 3)
    assert Model(path, cpu=True).forward(batch.clone())["energy"].shape == (2, 1)


@pytest.mark.parametrize("passes_through", [True, False])
def test_outputs_of_another_name_are_found_by_their_property(data, tmp_path, passes_through):
    metrics = []
    for names in (("energy", "forces"), ("oc20_energy", "oc20_forces")):
        model = MODELS["painn hydra"]
        heads = dict(zip(names, model["heads"].values()))
        outputs = {
            name: {"property": evaluated, **options} for name, (evaluated, options) in zip(names, outputs_of().items())
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "painn hydra", {**model, "pass_through_head_outputs": passes_through})
            state = write(tmp_path / "a.pt", "painn hydra", heads=heads, outputs=outputs)
        assert any(f"output_heads.{names[0]}" in key for key in state)
        gc.collect()
        metrics.append(CheckpointEvaluator(tmp_path / "a.pt", DATASET, batch_size=6).metrics(data / "val_id"))
    if passes_through:  # the heads' names are then those of their outputs, which are energy and forces
        assert metrics[0]["energy_mae"] > 0
    assert metrics[1] == pytest.approx(metrics[0], rel=REORDERED)


def test_a_property_of_two_outputs_is_refused(tmp_path):
    outputs = {"a": {"property": "energy"}, "b": {"property": "energy"}, "forces": {}}
    config = {"outputs": outputs, "loss_functions": [{"a": {}}]}
    with pytest.raises(ValueError, match="energy and forces; a, b have the property `energy`"):
        evaluated_outputs(config, tmp_path)
    assert evaluated_outputs({**config, "outputs": {**outputs, "energy": {}}}, tmp_path)[0]["energy"] == "energy"


@pytest.mark.parametrize("free_only", [True, False])
def test_forces_are_of_the_atoms_that_the_checkpoint_names(plain, data, tmp_path, free_only):
    path = tmp_path / "a.pt"
    write(path, EQUIFORMER, heads=HEADS, outputs=outputs_of(eval_on_free_atoms=free_only), weights=plain[1])
    gc.collect()
    systems = first_records(data / "val_id", DATASET, 6)
    evaluator = CheckpointEvaluator(path, DATASET, batch_size=6)
    metrics, errors = evaluator.metrics_and_errors(data / "val_id")
    in_mask = [system.natoms if not free_only else int((system.fixed == 0).sum()) for system in systems]
    assert sorted(errors["components"]) == sorted(3 * count for count in in_mask)
    assert sum(in_mask) < sum(system.natoms for system in systems) or not free_only
    assert errors["forces"].sum() / errors["components"].sum() == pytest.approx(metrics["forces_mae"], rel=REORDERED)
    assert evaluator.atoms == ("free" if free_only else "all")
    if free_only:
        assert metrics == pytest.approx(plain[2])
    del evaluator
    gc.collect()
    of_other_atoms = CheckpointEvaluator(path, DATASET, batch_size=6, atoms="all" if free_only else "free")
    assert of_other_atoms.metrics(data / "val_id")["forces_mae"] != pytest.approx(metrics["forces_mae"], rel=REBATCHED)


def test_evaluate_prints_whose_forces_are_compared(plain, data, tmp_path, capsys):
    path = tmp_path / "all.pt"
    write(path, EQUIFORMER, heads=HEADS, outputs=outputs_of(eval_on_free_atoms=False), weights=plain[1])
    third = tmp_path / "third.pt"
    write(third, EQUIFORMER, heads=HEADS, outputs=outputs_of())
    flags = ["--checkpoint", str(path), "--undistilled", str(plain[0]), "--teacher", str(third), "--cpu", "--batch-sizes"]
    flags += ["--data", f"val_id={data / 'val_id'}", "--output", str(tmp_path / "out")]
    gc.collect()
    main(["evaluate", *flags])
    output = capsys.readouterr().out
    assert "Forces of free atoms: plain, third; of all atoms: all, as their checkpoints have it" in output
    assert "Data read as format: lmdb, key_mapping: {'y': 'energy', 'force': 'forces'}" in output
    content = json.loads((tmp_path / "out.json").read_text())
    assert {model["name"]: model["atoms"] for model in content["models"].values()} == {
        **{"all": "all", "plain": "free", "third": "free"}
    }
    gaps = next(row["gaps"] for row in content["rows"] if row["role"] == "student")
    assert set(gaps) == {"energy_mae"}
    gc.collect()
    main(["evaluate", *flags, "--atoms", "free"])
    assert "Forces of free atoms.\n" in capsys.readouterr().out
    gaps = next(row["gaps"] for row in json.loads((tmp_path / "out.json").read_text())["rows"] if row["role"] == "student")
    assert set(gaps) == {"energy_mae", "forces_mae"}


# ---- the data


@pytest.fixture(scope="module")
def database(tmp_path_factory, data) -> Path:
    """val_id as an ASE database, without stresses."""
    gc.collect()
    content = LmdbDataset({"src": str(data / "val_id")})
    path = tmp_path_factory.mktemp("database") / "val_id.db"
    with connect(path) as rows:
        for index in range(len(content)):
            record = content[index]
            atoms = batch_to_atoms(data_list_collater([record], otf_graph=True))[0]
            atoms.calc = SinglePointCalculator(atoms, energy=float(record.y), forces=record.force.numpy())
            rows.write(atoms)
    del content
    gc.collect()
    return path


def test_data_are_read_as_the_checkpoints_training_read_them(plain, data, database, tmp_path):
    """A training with stresses read them too; these data have none, and are the same systems as val_id."""
    trained = {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True, "r_stress": True, "max_neigh": 100}}
    transforms = {"normalizer": {"energy": {"mean": 0.0, "stdev": 1.0}}}
    config = {
        "dataset": {**trained, "src": "train.db", "first_n": 3, "transforms": transforms},
        "val_dataset": {"src": "x.db"},
    }
    options = options_for([database], validation_options(config), NAMES)
    assert options == {"format": "ase_db", "a2g_args": {"r_energy": True, "r_forces": True, "max_neigh": 100}}
    evaluator = CheckpointEvaluator(plain[0], options, batch_size=6)
    assert evaluator.metrics(database) == pytest.approx(plain[2], rel=1e-3)  # other neighbors at equal distance


def test_labels_of_another_name_are_mapped_as_in_the_training():
    trained = {"format": "lmdb", "key_mapping": {"e_dft": "energy", "f_dft": "forces"}, "no_shuffle": True}
    lmdb = [Path("a.lmdb")]
    assert options_for(lmdb, trained, NAMES) == {"format": "lmdb", "key_mapping": trained["key_mapping"]}
    assert options_for(lmdb, {}, NAMES) == DATASET
    assert options_for([Path("a.db")], trained, NAMES) == ASE
    named = {**trained, "key_mapping": {"e_dft": "oc20_energy", "f_dft": ["oc20_forces", "copy"]}}
    names = {"energy": "oc20_energy", "forces": "oc20_forces"}
    assert as_labelled(named, names)["key_mapping"] == {"e_dft": "energy", "f_dft": ["forces", "copy"]}
    given = given_options(["key_mapping={e: energy, f: forces}"])
    assert options_for(lmdb, trained, NAMES, given=given)["key_mapping"] == {"e": "energy", "f": "forces"}
    assert options_for(lmdb, trained, NAMES, given=given_options(["format=ase_db", "a2g_args={r_energy: true}"])) == {
        **{"format": "ase_db", "a2g_args": {"r_energy": True}}
    }


def test_validation_options_are_fairchems():
    train, val = {"format": "ase_db", "src": "a", "a2g_args": {"r_energy": True}}, {"src": "b", "connect_args": {}}
    assert validation_options({"dataset": train, "val_dataset": val}) == {**train, **val}
    assert validation_options({"dataset": train, "val_dataset": {**val, "use_train_settings": False}}) == {
        **{**val, "use_train_settings": False}
    }
    assert validation_options({"dataset": [train]}) == {} == validation_options({})


@pytest.mark.parametrize(
    "path, trained, expected",
    [
        ("a.db", None, "ase_db"),
        ("a.aselmdb", "lmdb", "ase_db"),
        ("a.lmdb", None, "lmdb"),
        ("directory", None, "lmdb"),
        ("lmdbs", "oc22_lmdb", "oc22_lmdb"),
        ("lmdbs", "ase_db", "lmdb"),
        ("lmdbs", "ase_read", "lmdb"),
        ("cifs", "ase_read", "ase_read"),
        ("databases", "lmdb", "ase_db"),
    ],
)
def test_the_format_is_that_of_the_files(tmp_path, path, trained, expected):
    for name in ("lmdbs/a.lmdb", "cifs/a.cif", "databases/a.aselmdb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert format_of(tmp_path / path, trained) == expected


def test_data_of_two_formats_are_refused():
    with pytest.raises(ValueError, match=r"expected one format, found ase_db, lmdb\. Give it with --format"):
        options_for([Path("a.db"), Path("c.lmdb")], {}, NAMES)
    assert options_for([Path("a.db"), Path("c.lmdb")], {}, NAMES, data_format="ase_db") == ASE
