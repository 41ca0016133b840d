import dataclasses
import typing

import pytest

from fairchem_crack import config
from fairchem_crack.config import DistillConfig, TermConfig, parse, split_loss_functions
from fairchem_crack.loss import crack

CRACK = {"fn": "crack", "coefficient": 10, "temperature": 0.15}
MSE = {"fn": "mse", "coefficient": 10}


def distill(**blocks):
    return {"teacher": {"checkpoint": "eq2_31M.pt"}, **blocks}


def test_documented_block_is_accepted():
    relations = {"graph": "teacher", "negatives": "batch", "anchor": "student", "max_pairs": None}
    parsed = parse(DistillConfig, distill(relations=relations, projection={"kind": "linear"}), "task.distill")
    assert parsed == parse(DistillConfig, distill(), "task.distill")
    assert dataclasses.asdict(parsed) == {
        "teacher": {
            "checkpoint": "eq2_31M.pt",
            "cache": None,
            "local_cache": "pretrained_models",
            "use_ema": True,
            "precision": "auto",
            "trust": False,
        },
        "relations": {**relations, "false_negative_threshold": None},
        "projection": {"kind": "linear"},
        "init_from_teacher": None,
        "labels": "data",
        "resume": "all",
        "max_skipped_steps": 10,
        "imports": (),
    }


def test_given_options_replace_defaults():
    relations = {
        "graph": "student",
        "negatives": "system",
        "anchor": "symmetric",
        "max_pairs": 100,
        "false_negative_threshold": 1,
    }
    block = distill(relations=relations, projection={"kind": "mlp"})
    block["teacher"]["use_ema"] = False
    parsed = parse(DistillConfig, block, "task.distill")
    assert dataclasses.asdict(parsed.relations) == relations
    assert parsed.projection.kind == "mlp" and parsed.teacher.use_ema is False


def test_choices_are_those_of_the_loss():
    assert typing.get_args(config.Anchor) == crack.ANCHORS
    assert typing.get_args(config.Negatives) == crack.NEGATIVES


@pytest.mark.parametrize(
    "block, path, part",
    [
        (distill(relations={"anchr": "student"}), "task.distill.relations.anchr", "Did you mean `anchor`?"),
        (distill(relation={}), "task.distill.relation", "Did you mean `relations`?"),
        (
            distill(zzz={}),
            "task.distill.zzz",
            "Known are `teacher`, `relations`, `projection`, `init_from_teacher`, `labels`, `resume`, `max_skipped_steps`, "
            "`imports`",
        ),
        (distill(relations={"anchor": "studnt"}), "task.distill.relations.anchor", "Did you mean `student`?"),
        (distill(relations={"negatives": "galaxy"}), "task.distill.relations.negatives", "batch, system, world"),
        (distill(relations={"graph": None}), "task.distill.relations.graph", "teacher, student"),
        (distill(relations={"max_pairs": 1.5}), "task.distill.relations.max_pairs", "expected int, found 1.5"),
        (distill(relations={"max_pairs": True}), "task.distill.relations.max_pairs", "expected int"),
        (distill(relations={"max_pairs": 0}), "task.distill.relations.max_pairs", "positive"),
        (distill(relations={"false_negative_threshold": "0.3"}), "task.distill.relations.false_negative_threshold", "float"),
        (distill(relations={"false_negative_threshold": 1.2}), "task.distill.relations.false_negative_threshold", "(0, 1]"),
        (distill(relations={"false_negative_threshold": 0}), "task.distill.relations.false_negative_threshold", "(0, 1]"),
        (distill(relations="teacher"), "task.distill.relations", "`anchor`"),
        (distill(projection={"kind": "identity"}), "task.distill.projection.kind", "linear, mlp"),
        ({"teacher": {}}, "task.distill.teacher.checkpoint", "missing"),
        ({"teacher": {"checkpoint": None}}, "task.distill.teacher.checkpoint", "missing"),
        ({"teacher": {"checkpoint": "a.pt", "use_ema": 1}}, "task.distill.teacher.use_ema", "expected bool"),
        ({}, "task.distill.teacher", "missing"),
        (
            None,
            "task.distill",
            "`teacher`, `relations`, `projection`, `init_from_teacher`, `labels`, `resume`, `max_skipped_steps`, `imports`",
        ),
        (distill(imports="my_terms"), "task.distill.imports", "expected a list, found 'my_terms'"),
    ],
)
def test_a_wrong_block_is_refused_by_dotted_path(block, path, part):
    with pytest.raises(ValueError) as error:
        parse(DistillConfig, block, "task.distill")
    assert str(error.value).startswith(f"{path}: ")
    assert part in str(error.value)


@pytest.mark.parametrize(
    "key, options, option, part",
    [
        ("relations", {**CRACK, "temprature": 0.1}, ".temprature", "Did you mean `temperature`?"),
        ("relations", {**CRACK, "temperature": 0}, ".temperature", "at least"),
        ("relations", {**CRACK, "temperature": -0.1}, ".temperature", "at least"),
        ("relations", {**CRACK, "temperature": float("nan")}, ".temperature", "at least"),
        ("relations", {**CRACK, "temperature": float("inf")}, ".temperature", "at least"),
        ("relations", {**CRACK, "temperature": "1e-1"}, ".temperature", "expected float"),
        ("relations", {**CRACK, "coefficient": -1}, ".coefficient", ">= 0"),
        ("relations", {**CRACK, "coefficient": float("nan")}, ".coefficient", ">= 0"),
        ("relations", {**CRACK, "coefficient": float("inf")}, ".coefficient", ">= 0"),
        ("relations", {**CRACK, "coefficient": True}, ".coefficient", "expected float"),
        ("relations", {"coefficient": 10}, ".fn", "missing"),
        ("relations", {"fn": "crack"}, ".coefficient", "missing"),
        ("relations", None, ".fn", "missing"),
        ("relations", 10, "", "expected a mapping"),
        ("relations", MSE, ".fn", "`relations` cannot use `mse`; it takes `crack`"),
        ("node_embeddings", CRACK, ".fn", "cannot use `crack`"),
        ("atom_energies", {**MSE, "fn": "l2mae"}, ".fn", "shape (N, 1). Take `mae` or `mse`."),
        ("teacher_energy", {**MSE, "fn": "l2norm"}, ".fn", "shape (B, 1). Take `mae`, `mse` or `per_atom_mae`."),
        ("teacher_forces", {**MSE, "fn": "per_atom_mae"}, ".fn", "shape (N, 3). Take `mae`, `mse` or `l2mae`."),
        ("atom_energies", {**MSE, "fn": "per_atom_mae"}, ".fn", "shape (N, 1). Take `mae` or `mse`."),
        ("node_embeddings", {**MSE, "options": {}}, ".options", "unknown option. Did you mean"),
        ("node_embeddings", {**MSE, "key": "relations"}, ".key", "unknown option"),
        ("relations", {**MSE, "key": "node_embeddings"}, ".key", "unknown option"),
    ],
)
def test_a_wrong_term_is_refused_by_dotted_path(key, options, option, part):
    with pytest.raises(ValueError) as error:
        split_loss_functions([{"energy": MSE}, {key: options}])
    assert str(error.value).startswith(f"loss_functions[1].{key}{option}: ")
    assert part in str(error.value)


@pytest.mark.parametrize("key, options", [("relations", CRACK), ("node_embeddings", MSE)])
def test_a_duplicate_term_is_refused(key, options):
    with pytest.raises(ValueError, match=rf"loss_functions\[2\]\.{key}: .*twice"):
        split_loss_functions([{key: options}, {"energy": MSE}, {key: options}])


def test_own_terms_keep_their_order_and_content_and_the_others_are_typed():
    energy, forces = {"fn": "mae", "coefficient": 4, "option_of_fairchem": [1]}, {"fn": "l2mae", "coefficient": 100}
    loss_functions = [{"forces": forces}, {"relations": CRACK}, {"energy": energy}, {"node_embeddings": MSE}]
    own, terms = split_loss_functions(loss_functions)
    assert own == [{"forces": forces}, {"energy": energy}]
    assert terms == [
        TermConfig(key="relations", fn="crack", coefficient=10.0, temperature=0.15),
        TermConfig(key="node_embeddings", fn="mse", coefficient=10.0),
    ]
    assert loss_functions == [{"forces": forces}, {"relations": CRACK}, {"energy": energy}, {"node_embeddings": MSE}]


@pytest.mark.parametrize("loss_functions", [None, [], [{"energy": MSE}]])
def test_without_distillation_terms_there_are_none(loss_functions):
    assert split_loss_functions(loss_functions) == (loss_functions or [], [])


@pytest.mark.parametrize("coefficient", [0, 0.5])
def test_a_coefficient_may_be_zero(coefficient):
    _, (term,) = split_loss_functions([{"relations": {**CRACK, "coefficient": coefficient}}])
    assert term.coefficient == coefficient and type(term.coefficient) is float


def test_configs_are_frozen():
    parsed = parse(DistillConfig, distill(), "task.distill")
    term = TermConfig(key="relations", fn="crack", coefficient=1.0)
    for one in (parsed, parsed.teacher, parsed.relations, parsed.projection, term):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, dataclasses.fields(one)[0].name, "changed")
