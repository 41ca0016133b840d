"""Terms, losses and trainers of one's own: one way in, honoured by the stock command and by every command of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import recorder  # noqa: F401, the configs' logger
import torch
import yaml
from fairchem.core.common.registry import registry
from tolerances import REORDERED

from fairchem_crack import config, keys, plugins, shapes
from fairchem_crack.commands.cache_teacher import job as cache_teacher
from fairchem_crack.commands.cache_teacher.command import job_of, parser
from fairchem_crack.commands.check.context import TrainerParts, parts_of
from fairchem_crack.commands.cli import main
from fairchem_crack.commands.flags import read_or_refuse
from fairchem_crack.commands.launch import dotted_path
from fairchem_crack.config import split_loss_functions
from fairchem_crack.evaluation.s2ef import runs as evaluation_runs
from fairchem_crack.plugins import load_plugins
from fairchem_crack.training import scale_factors, terms
from fairchem_crack.training.losses import LossContext, build_loss
from fairchem_crack.training.terms import register_term

OWN_CODE = Path(__file__).parents[1] / "own_code.py"
MODULE = "my_own_code"


@pytest.fixture
def own(distilled, tmp_path, monkeypatch) -> dict:
    """A config with a term, a loss and a trainer of a module in the current directory, which Python does not look into."""
    shutil.copy(OWN_CODE, tmp_path / f"{MODULE}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.setattr(keys, "DISTILLATION_TERMS", list(keys.DISTILLATION_TERMS))
    registered = (terms.COMPARISONS, config.TERM_OPTIONS, shapes.SHAPES)
    mappings = (registry.mapping["loss_name_mapping"], registry.mapping["trainer_name_mapping"])
    before = [dict(mapping) for mapping in (*registered, *mappings)]
    distilled["task"]["distill"]["imports"] = [MODULE]
    distilled["loss_functions"].append({"own_lengths": {"fn": "own_cubes", "coefficient": 1, "power": 2}})
    distilled["trainer"] = "own_distill"
    yield distilled
    sys.modules.pop(MODULE, None)
    for mapping, content in zip((*registered, *mappings), before):
        mapping.clear()
        mapping.update(content)


def write(config: dict) -> list[str]:
    Path("student.yml").write_text(yaml.safe_dump(config))
    gc.collect()  # a former data set closes its LMDB when collected; one process opens it only once
    return ["--config-yml", "student.yml", "--cpu"]


def test_the_stock_command_trains_with_a_users_own_term(own, run):
    """The trainer is fairchem's to find: by PYTHONPATH, or ours with the module's terms."""
    own["trainer"] = "fairchem_crack.CrackDistillTrainer"
    trained = run(own)
    assert len(trained.steps) == 6 and all(record["loss_own_lengths"] > 0 for record in trained.steps)
    assert "own_atoms" not in trained.steps[0]
    first = trained.steps[0]["loss_own_lengths"]
    own["loss_functions"][-1]["own_lengths"]["power"] = 1.0
    assert run(own, name="other").steps[0]["loss_own_lengths"] != pytest.approx(first, rel=0.01)  # clearly another


def test_a_users_own_term_gets_its_options_and_loss(own, batch, teacher_checkpoint):
    """loss = mean | |a|^2 - |b|^2 |^3 over the atoms, by hand."""
    load_plugins([MODULE])
    _, parsed = split_loss_functions([own["loss_functions"][-1]])
    assert parsed[0].options.power == 2.0
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    context = type("Context", (), {"projected": student, "teacher": type("Outputs", (), {"node_embedding": teacher})})
    compared = terms.inputs_of(parsed[0], context)
    loss = build_loss(parsed[0], config.DistillConfig(config.TeacherConfig("t.pt")))(
        *compared, LossContext(torch.tensor([4]))
    )
    expected = sum(abs(float(a @ a) - float(b @ b)) ** 3 for a, b in zip(student, teacher)) / 4
    assert loss.item() == pytest.approx(expected, rel=REORDERED)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({}, None),
        ({"powr": 2}, "loss_functions[4].own_lengths.powr: unknown option. Did you mean `power`?"),
        ({"power": "2"}, "loss_functions[4].own_lengths.power: expected a number, found '2'. Write 2 without quotes."),
        ({"lmax": 1}, "loss_functions[4].own_lengths.lmax: `own_lengths` has no such option"),
        ({"fn": "l2mae"}, "`l2mae` takes the length of vectors; `own_lengths` has the shape (N, 1)"),
    ],
)
def test_check_examines_a_users_own_term(own, capsys, options, problem):
    own["loss_functions"][-1]["own_lengths"].update(options)
    with contextlib.suppress(SystemExit):
        main(["check", *write(own)])
    output = capsys.readouterr().out
    if problem is None:
        assert output.splitlines()[-1] == "No problem found."
        assert "does not know the short trainer name, `fairchem-crack train` does" in output
        assert re.search(r"^loss .*own_lengths [\d.]+", output, re.MULTILINE)
    else:
        assert problem in output


def test_check_runs_a_users_own_trainer(own, capsys):
    own["trainer"] = f"{MODULE}.OwnTrainer"
    with contextlib.suppress(SystemExit):
        main(["check", *write(own)])
    output = capsys.readouterr().out
    assert f"`fairchem` finds `{MODULE}.OwnTrainer` only with PYTHONPATH={os.getcwd()}" in output
    assert output.splitlines()[-1] == "No problem found."
    trainer = sys.modules[MODULE].OwnTrainer
    assert parts_of(trainer)._compute_metrics is trainer._compute_metrics and issubclass(parts_of(trainer), trainer)
    assert parts_of(trainer).load is TrainerParts.load and parts_of(registry.get_trainer_class("ocp")) is TrainerParts


def test_cache_teacher_keeps_what_a_users_own_term_reads(own):
    given = read_or_refuse(parser(), write(own))
    job = job_of(read_or_refuse(parser(), [*write(own), "--output", "cache"]))
    assert job.has_vectors and given.config["task"]["distill"]["imports"] == [MODULE]


def test_ranks_import_a_users_own_module(own, monkeypatch, tmp_path):
    loaded = []
    for module in (cache_teacher, evaluation_runs):
        monkeypatch.setattr(module, "load_plugins", lambda imports, *_: loaded.append(tuple(imports)))
    monkeypatch.setattr(cache_teacher.Job, "dataset", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache_teacher._rank(cache_teacher.Job(own, tmp_path), [], 0, None)
    devices = type("Queue", (), {"get": lambda self: 0})()
    monkeypatch.setattr("logging.disable", lambda level: None)
    evaluation_runs._start_process(devices, True, ("one", "two"))
    assert loaded == [(MODULE,), ("one", "two")]


def test_fit_scales_leaves_a_users_own_terms_out(own, monkeypatch):
    seen = []

    def fit(config: dict) -> dict:
        seen.extend(split_loss_functions(config["loss_functions"])[0])
        raise ValueError("seen")

    monkeypatch.setattr(scale_factors, "fit_scale_factors", fit)
    with pytest.raises(SystemExit, match="seen"):
        main(["fit-scales", *write(own), "--output", "scales.json"])
    assert [name for own_loss in seen for name in own_loss] == ["energy", "forces"]


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("evaluate", ["--checkpoint", "a.pt", "--data", "val=a"]),
        ("report", ["runs", "--teacher", "a.pt"]),
        ("bench", ["--checkpoint", "a.pt"]),
    ],
)
def test_commands_without_a_yaml_import_what_a_flag_names(own, command, arguments):
    with pytest.raises(SystemExit, match=rf"fairchem-crack {command}: --import: the module `gone` cannot be imported"):
        main([command, *arguments, "--cpu", "--import", MODULE, "gone"])
    assert "own_lengths" in terms.COMPARISONS


def test_a_trainer_is_passed_on_by_its_path(own):
    load_plugins([MODULE])
    assert dotted_path("own_distill") == f"{MODULE}.OwnTrainer"
    assert dotted_path("crack_distill") == "fairchem_crack.training.trainer.CrackDistillTrainer"
    assert dotted_path("ocp") is dotted_path("a.b") is dotted_path(None) is None


# ---- importing


def test_the_current_directory_is_looked_into_last(own):
    assert os.getcwd() not in sys.path
    load_plugins(["json"])
    assert sys.path[-1] == os.getcwd() and sys.path.count(os.getcwd()) == 1
    load_plugins([MODULE])
    assert sys.path.count(os.getcwd()) == 1
    assert sys.modules[MODULE].__file__ == str(Path(f"{MODULE}.py").absolute())


@pytest.mark.parametrize(
    "content, name, part",
    [
        ("", "gone", r"`gone` cannot be imported: ModuleNotFoundError: No module named 'gone'"),
        ("1 / 0", "broken", "`broken` cannot be imported: ZeroDivisionError: division by zero"),
        ("import gone", "broken", "`broken` cannot be imported: ModuleNotFoundError: No module named 'gone'"),
        ("a =", "broken", "`broken` cannot be imported: SyntaxError"),
        ("", "broken.py", r"Give the name of the module, without `\.py`"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(own, content, name, part):
    Path("broken.py").write_text(content)
    with pytest.raises(ValueError, match=part) as error:
        load_plugins([name])
    assert str(error.value).startswith("task.distill.imports: ") and os.getcwd() in str(error.value)
    sys.modules.pop("broken", None)


class EntryPoint:
    """As importlib.metadata has them."""

    def __init__(self, name: str, value: str, load=None) -> None:
        self.name, self.value, self.load = name, value, load


def test_installed_plugins_are_loaded_by_their_entry_points(monkeypatch):
    loaded = []
    points = [EntryPoint("mine", "my_package.terms", lambda: loaded.append("mine"))]
    groups = {plugins.GROUP: points, "others": [EntryPoint("no", "no", lambda: loaded.append("no"))]}
    for installed in (groups, type("Selectable", (), {"select": lambda self, group: groups[group]})()):  # Python 3.9, later
        monkeypatch.setattr(plugins, "entry_points", lambda installed=installed: installed)
        load_plugins()
    assert loaded == ["mine", "mine"]
    points[0].load = lambda: 1 / 0
    with pytest.raises(ValueError, match=r"The plugin `mine` \(entry point my_package\.terms .*ZeroDivisionError"):
        load_plugins()


# ---- registering


@pytest.mark.parametrize(
    "arguments, options, part",
    [
        (("energy", keys.ENERGY), None, "is the name of an output of the student"),
        (("mine", "node_embeding"), None, "a teacher has no `node_embeding`. Did you mean `node_embedding`?"),
        (("relations", keys.NODE_EMBEDDING), None, "The term `relations` is registered twice"),
        (("mine", keys.ENERGY), type("Plain", (), {}), "expected a frozen dataclass"),
    ],
)
def test_a_term_that_cannot_be_registered_is_named(arguments, options, part):
    with pytest.raises(ValueError) as error:
        register_term(*arguments, options=options)(lambda context, term: None)
    assert part in str(error.value)


def test_options_are_of_types_that_a_yaml_has():
    for name, hint, part in (("fn", str, "every term has"), ("numbers", torch.Tensor, "expected bool, int")):
        made = dataclasses.make_dataclass("Options", [(name, hint)], frozen=True)
        with pytest.raises(ValueError, match=part):
            register_term("mine", keys.ENERGY, options=made)(lambda context, term: None)
    assert "mine" not in config.TERM_OPTIONS
