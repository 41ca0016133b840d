"""Options of `task.distill` and of the terms: what is taken, and every fault of what is not, at once."""

import dataclasses
import datetime
import typing
from typing import Optional, Union

import pytest

from fairchem_crack import config
from fairchem_crack.config import DistillConfig, TermConfig, parse, read_options, split_loss_functions
from fairchem_crack.loss import crack

CRACK = {"fn": "crack", "coefficient": 10, "temperature": 0.15}
MSE = {"fn": "mse", "coefficient": 10}
BLOCKS = (
    "`teacher`, `relations`, `projection`, `init_from_teacher`, `learning_rates`, `shuffle`, `labels`, `data_label_weight`, "
    "`resume`, "
    "`max_skipped_steps`, `imports`"
)
OF_TEACHER = "`checkpoint`, `cache`, `command`, `val_cache`, `local_cache`, `use_ema`, `precision`, `trust`"
TEACHER = {"checkpoint": "t.pt"}
EXPONENT = "In YAML a number with an exponent has a point and a sign;"
LENGTH = "takes the length of vectors"
PER_SYSTEM = "takes one number of each system, and divides it by the number of atoms"


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
            "command": None,
            "val_cache": None,
            "local_cache": "pretrained_models",
            "use_ema": True,
            "precision": "auto",
            "trust": False,
        },
        "relations": {**relations, "false_negative_threshold": None, "targets": "own"},
        "projection": {"kind": "linear"},
        "init_from_teacher": None,
        "learning_rates": {},
        "shuffle": None,
        "labels": "data",
        "data_label_weight": 1.0,
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
        "targets": "own",
    }
    block = distill(relations=relations, projection={"kind": "mlp"})
    block["teacher"]["use_ema"] = False
    parsed = parse(DistillConfig, block, "task.distill")
    assert dataclasses.asdict(parsed.relations) == relations
    assert parsed.projection.kind == "mlp" and parsed.teacher.use_ema is False


def test_choices_are_those_of_the_loss():
    assert typing.get_args(config.Anchor) == crack.ANCHORS
    assert typing.get_args(config.Negatives) == crack.NEGATIVES
    assert typing.get_args(config.Targets) == crack.TARGETS


@pytest.mark.parametrize(
    "block, lines",
    [
        # names, at every level
        (distill(relations={"anchr": "student"}), ["relations.anchr: unknown option. Did you mean `anchor`?"]),
        (distill(relation={}), ["relation: unknown option. Did you mean `relations`?"]),
        (
            distill(**{"zzz": {}, "1": 2}),
            [f"zzz: unknown option. Known are {BLOCKS}.", f"1: unknown option. Known are {BLOCKS}."],
        ),
        (
            {"teacher": {"chekpoint": "t.pt"}, "projection": {"knd": "mlp"}, "init_from_teacher": {"blcks": [0]}},
            [
                "teacher.chekpoint: unknown option. Did you mean `checkpoint`?",
                "teacher.checkpoint: missing. Give the file of a teacher, or the directory of its `cache`.",
                "projection.knd: unknown option. Did you mean `kind`?",
                "init_from_teacher.blcks: unknown option. Did you mean `blocks`?",
                "init_from_teacher.blocks: missing; expected a list of integers >= 0, at least 1.",
            ],
        ),
        # choices
        (
            distill(relations={"anchor": "studnt", "negatives": "galaxy", "graph": None}, labels=True),
            [
                "relations.anchor: expected one of `student`, `teacher`, `symmetric`, found 'studnt'. Did you mean "
                "`student`?",
                "relations.negatives: expected one of `batch`, `system`, `world`, `alike`, found 'galaxy'.",
                "relations.graph: expected one of `teacher`, `student`, found None.",
                "labels: expected one of `data`, `teacher`, `fill`, found True.",
            ],
        ),
        # numbers
        (distill(relations={"max_pairs": 1.5}), ["relations.max_pairs: expected an integer >= 1 or null, found 1.5."]),
        (distill(relations={"max_pairs": True}), ["relations.max_pairs: expected an integer >= 1 or null, found True."]),
        (
            distill(relations={"max_pairs": 0, "false_negative_threshold": 1.2}, max_skipped_steps=-1),
            [
                "relations.max_pairs: expected an integer >= 1 or null, found 0.",
                "relations.false_negative_threshold: expected a number in (0, 1] or null, found 1.2.",
                "max_skipped_steps: expected an integer >= 1, found -1.",
            ],
        ),
        (
            distill(relations={"false_negative_threshold": 0, "max_pairs": float("inf")}),
            [
                "relations.false_negative_threshold: expected a number in (0, 1] or null, found 0.",
                "relations.max_pairs: expected an integer >= 1 or null, found inf.",
            ],
        ),
        (
            distill(relations={"false_negative_threshold": "0.3", "max_pairs": "1e3"}),
            [
                "relations.false_negative_threshold: expected a number in (0, 1] or null, found '0.3'. Write 0.3 without "
                "quotes.",
                f"relations.max_pairs: expected an integer >= 1 or null, found '1e3'. {EXPONENT} write 1000.",
            ],
        ),
        # blocks, lists, booleans, text
        (
            {"teacher": "t.pt", "relations": "teacher", "projection": ["linear"], "init_from_teacher": 1},
            [
                f"teacher: expected a mapping with the options {OF_TEACHER}, found 't.pt'.",
                "relations: expected a mapping with the options `graph`, `negatives`, `anchor`, `max_pairs`, "
                "`false_negative_threshold`, `targets`, found 'teacher'.",
                "projection: expected a mapping with the options `kind`, found ['linear'].",
                "init_from_teacher: expected a mapping with the options `blocks` or null, found 1.",
            ],
        ),
        (
            distill(init_from_teacher={"blocks": [0, -1, True, "2"]}, imports="my_terms"),
            [
                "init_from_teacher.blocks[1]: expected an integer >= 0, found -1.",
                "init_from_teacher.blocks[2]: expected an integer >= 0, found True.",
                "init_from_teacher.blocks[3]: expected an integer >= 0, found '2'. Write 2 without quotes.",
                "imports: expected a list of text, found 'my_terms'.",
            ],
        ),
        (
            distill(init_from_teacher={"blocks": []}, imports=["my_terms", 3], learning_rates=["head"]),
            [
                "learning_rates: expected a mapping of names to numbers >= 0, found ['head'].",
                "init_from_teacher.blocks: expected a list of integers >= 0, at least 1, found [].",
                "imports[1]: expected text, found 3.",
            ],
        ),
        (
            {"teacher": {"cache": datetime.date(2024, 1, 1), "local_cache": None, "use_ema": "yes", "checkpoint": ""}},
            [
                "teacher.cache: expected text or null, found datetime.date(2024, 1, 1).",
                "teacher.local_cache: expected text, found None.",
                "teacher.use_ema: expected True or False, found 'yes'. Write True without quotes.",
                "teacher.checkpoint: missing. Give the file of a teacher, or the directory of its `cache`.",
            ],
        ),
        ({"teacher": {**TEACHER, "use_ema": 1}}, ["teacher.use_ema: expected True or False, found 1."]),
        (
            {"teacher": {"checkpoint": None}},
            ["teacher.checkpoint: missing. Give the file of a teacher, or the directory of its `cache`."],
        ),
        ({}, [f"teacher: missing; expected a mapping with the options {OF_TEACHER}."]),
        (None, [f": expected a mapping with the options {BLOCKS}, found None."]),
        ([], [f": expected a mapping with the options {BLOCKS}, found []."]),
    ],
)
def test_every_fault_of_a_block_is_told_at_once(block, lines):
    with pytest.raises(ValueError) as error:
        parse(DistillConfig, block, "task.distill")
    assert sorted(str(error.value).split("\n")) == sorted(f"task.distill.{line}".replace(".: ", ": ") for line in lines)


@pytest.mark.parametrize(
    "key, options, lines",
    [
        ("relations", {**CRACK, "temprature": 0.1}, [".temprature: unknown option. Did you mean `temperature`?"]),
        *(
            ("relations", {**CRACK, "temperature": value}, [f".temperature: expected a number >= 0.001667, found {value}."])
            for value in (0, -0.1, float("nan"), float("inf"))
        ),
        *(
            ("relations", {**CRACK, "coefficient": value}, [f".coefficient: expected a number >= 0, found {value}."])
            for value in (-1, float("nan"), float("inf"), True, [10])
        ),
        (
            "relations",
            {**CRACK, "coefficient": "1e-3", "temperature": "2.5E2"},
            [
                f".{name}: expected a number >= {smallest}, found '{text}'. {EXPONENT} write {written}."
                for name, smallest, text, written in (
                    ("coefficient", "0", "1e-3", "1.0e-3"),
                    ("temperature", "0.001667", "2.5E2", "2.5e+2"),
                )
            ],
        ),
        (
            "node_embeddings",
            {"coefficient": -1, "schedule": {"kind": "expo", "until": 0, "finl": 1}, "standardize": "false"},
            [
                ".coefficient: expected a number >= 0, found -1.",
                ".schedule.kind: expected one of `constant`, `linear`, `cosine`, `off`, found 'expo'.",
                ".schedule.until: expected a number in (0, 1], found 0.",
                ".schedule.finl: unknown option. Did you mean `final`?",
                ".standardize: expected True or False, found 'false'. Write False without quotes.",
                ".fn: missing; expected text.",
            ],
        ),
        ("relations", {"fn": "crack"}, [".coefficient: missing; expected a number >= 0."]),
        ("relations", None, [".fn: missing; expected text.", ".coefficient: missing; expected a number >= 0."]),
        (
            "atom_energies",
            10,
            [
                ": expected a mapping with the options `fn`, `coefficient`, `reduction`, `schedule`, `every`, "
                "`tag_weights`, found 10."
            ],
        ),
        (
            "relations",
            {**CRACK, "reduction": "max"},
            [".reduction: expected one of `mean`, `sum` or null, found 'max'. Did you mean `mean`?"],
        ),
        # of another term
        (
            "relations",
            {**MSE, "lmax": True},
            [
                ".fn: the term `relations` cannot use `mse`; it takes `crack`.",
                ".lmax: expected one of `all` or an integer >= 0, found True.",
            ],
        ),
        (
            "node_embeddings",
            {**CRACK, "per_degree": True, "reduction": 3},
            [
                ".fn: the term `node_embeddings` cannot use `crack`; it takes an elementwise loss of fairchem such as "
                "`mse`, `mae` or `l2mae`.",
                ".temperature: `node_embeddings` has no such option; it is one of `relations`, `node_contrast`.",
                ".per_degree: `node_embeddings` has no such option; it is one of `relations`.",
                ".reduction: expected one of `mean`, `sum` or null, found 3.",
            ],
        ),
        *(
            (key, {**MSE, "fn": fn}, [f".fn: `{fn}` {reason}; `{key}` has the shape {shape}. Take {fitting}."])
            for key, fn, reason, shape, fitting in (
                ("atom_energies", "l2mae", LENGTH, "(N, 1)", "`mae` or `mse`"),
                ("teacher_energy", "l2norm", LENGTH, "(B, 1)", "`mae`, `mse` or `per_atom_mae`"),
                ("teacher_forces", "per_atom_mae", PER_SYSTEM, "(N, 3)", "`mae`, `mse` or `l2mae`"),
                ("atom_energies", "per_atom_mae", PER_SYSTEM, "(N, 1)", "`mae` or `mse`"),
            )
        ),
        # weights
        (
            "node_embeddings",
            {**MSE, "tag_weights": {"adsorbat": 1, "surface": -1}, "degree_weights": [1, -0.5]},
            [
                ".tag_weights.adsorbat: unknown option. Did you mean `adsorbate`?",
                ".tag_weights.surface: expected a number >= 0, found -1.",
                ".degree_weights[1]: expected a number >= 0, found -0.5.",
            ],
        ),
        (
            "relations",
            {**CRACK, "lmax": 2, "degree_weights": [1, 0.5]},
            [".degree_weights: expected 3, of the degrees l = 0 to 2; found 2."],
        ),
        (
            "relations",
            {**CRACK, "lmax": "2", "degree_weights": [], "schedule": {"kind": False}},
            [
                ".lmax: expected one of `all` or an integer >= 0, found '2'. Write 2 without quotes.",
                ".degree_weights: expected 1, of the degrees l = 0 to 0; found 0.",
                ".schedule.kind: expected one of `constant`, `linear`, `cosine`, `off`, found False. YAML takes off for "
                'False; write "off", in quotes.',
            ],
        ),
        (
            "relations",
            {**CRACK, "lmax": "all", "degree_weights": [0, 0]},
            [".degree_weights: all weights are 0; the term would have no effect. Leave the term out."],
        ),
        (
            "atom_energies",
            {**MSE, "tag_weights": dict.fromkeys(("subsurface", "surface", "adsorbate"), 0), "degree_weights": [1]},
            [
                ".tag_weights: all weights are 0; the term would have no effect. Leave the term out.",
                ".degree_weights: `atom_energies` has no such option; it is one of `relations`, `node_embeddings`.",
            ],
        ),
        # fields of the dataclass that are no options
        (
            "node_embeddings",
            {**MSE, "options": {}, "key": "relations"},
            [
                ".options: unknown option. Did you mean `reduction`?",
                ".key: unknown option. Did you mean `every`?",
            ],
        ),
    ],
)
def test_every_fault_of_a_term_is_told_at_once(key, options, lines):
    with pytest.raises(ValueError) as error:
        split_loss_functions([{"energy": MSE}, {key: options}])
    assert sorted(str(error.value).split("\n")) == sorted(f"loss_functions[1].{key}{line}" for line in lines)


def test_faults_of_all_terms_and_of_the_block_come_together():
    relations, energy = {"relations": CRACK}, {"energy": MSE}
    faulty = {"relations": {"fn": "crack", "coefficient": -1, "temprature": 4}}
    terms = [energy, 3, faulty, relations, {"node_embeddings": MSE}, {"vector_embeddings": None}]
    options = read_options({"distill": distill(labels="mine")}, terms)
    assert [fault.path for fault in options.faults] == [
        "loss_functions[1]",
        "loss_functions[2].relations.coefficient",
        "loss_functions[2].relations.temprature",
        "loss_functions[3].relations",
        "loss_functions[5].vector_embeddings.coefficient",
        "loss_functions[5].vector_embeddings.fn",
        "task.distill.labels",
    ]
    assert options.own_losses == [energy] and options.distill is None
    assert [term.key for term in options.terms] == ["node_embeddings"]


@pytest.mark.parametrize(
    "task, terms, lines",
    [
        ({}, [{"energy": MSE}], []),
        ({"distill": 3}, [{"energy": MSE}, {"relations": {**CRACK, "coefficient": 0}}], []),
        ({}, [{"energy": MSE}, 3], ["loss_functions[1]: expected a mapping of one term, found 3."]),
        (
            {"distill": distill()},
            {"relations": CRACK},
            ["loss_functions: expected a list with a mapping for each term, found"],
        ),
        (
            {"distil": {}},
            [{"relations": CRACK}],
            [
                "loss_functions: has only distillation terms; the student needs its own too, for example `energy`.",
                "task.distill: missing, but loss_functions has distillation terms; task has `distil`.",
            ],
        ),
        ({"distill": None}, [{"energy": MSE}, {"relations": CRACK}], ["task.distill: missing, but loss_functions has"]),
    ],
)
def test_terms_and_block_need_each_other(task, terms, lines):
    faults = read_options(task, terms).faults
    assert len(faults) == len(lines) and all(str(fault).startswith(line) for fault, line in zip(faults, lines))


@pytest.mark.parametrize("key, options", [("relations", CRACK), ("node_embeddings", MSE)])
def test_a_duplicate_term_is_refused(key, options):
    twice = rf"loss_functions\[2\]\.{key}: the term is given twice, in loss_functions\[0\] too"
    with pytest.raises(ValueError, match=twice):
        split_loss_functions([{key: options}, {"energy": MSE}, {key: options}])


def test_own_terms_stay_as_they_are_and_others_are_typed():
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
    for options in (parsed, parsed.teacher, parsed.relations, parsed.projection, term):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, dataclasses.fields(options)[0].name, "changed")


# ---- dataclasses of users


@dataclasses.dataclass(frozen=True)
class Inner:
    depth: int = 1


@dataclasses.dataclass(frozen=True)
class Own:
    power: float
    inner: Inner = dataclasses.field(default_factory=Inner)
    size: Union[int, str] = 1
    weights: Optional[dict[str, float]] = None

    def __post_init__(self):
        if self.power == 2:
            raise ValueError("power: 2 is taken.")
        if self.power == 3:
            raise ValueError("choose another.")


@pytest.mark.parametrize(
    "values, lines",
    [
        ({"power": 1, "inner": {"depth": 2}, "size": "all", "weights": {"a": 1}}, None),
        ({"power": 2}, ["own.power: 2 is taken."]),
        ({"power": 3, "size": 1.5}, ["own: choose another.", "own.size: expected an integer or text, found 1.5."]),
        (
            {"inner": {"dpth": 2, "depth": "2"}, "weights": {"a": float("nan")}, "powr": 1},
            [
                "own.inner.dpth: unknown option. Did you mean `depth`?",
                "own.inner.depth: expected an integer, found '2'. Write 2 without quotes.",
                "own.weights.a: expected a number, found nan.",
                "own.powr: unknown option. Did you mean `power`?",
                "own.power: missing; expected a number.",
            ],
        ),
    ],
)
def test_a_dataclass_of_users_is_read_as_strictly(values, lines):
    if lines is None:
        assert parse(Own, values, "own") == Own(1.0, Inner(2), "all", {"a": 1.0})
        return
    with pytest.raises(ValueError) as error:
        parse(Own, values, "own")
    assert sorted(str(error.value).split("\n")) == sorted(lines)
