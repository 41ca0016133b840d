"""Flags, overrides and names in a YAML that are misspelt: none is dropped or added in silence."""

from __future__ import annotations

import contextlib
import inspect
import re

import pytest
import yaml
from fairchem.core.common import utils

import fairchem_crack
from fairchem_crack.commands import cli
from fairchem_crack.commands.cache_teacher import command as cache_teacher
from fairchem_crack.commands.flags import examine_overrides, parser_of, read, read_or_refuse
from fairchem_crack.evaluation.relaxations import command as relaxations_command
from fairchem_crack.evaluation.report import command as report_command
from fairchem_crack.evaluation.s2ef import command as evaluate
from fairchem_crack.evaluation.speed import command as bench_command
from fairchem_crack.training.spelling import BLOCKS, misspelt_names

CONFIG = {
    "trainer": "fairchem_crack.CrackDistillTrainer",
    "task": {"distill": {"teacher": {"checkpoint": "t.pt"}}},
    "model": {"name": "painn", "hidden_channels": 16},
    "optim": {"batch_size": 2, "num_workers": 0},
    "dataset": {"train": {"src": "a"}},
    "loss_functions": [{"energy": {"fn": "mae", "coefficient": 1}}],
}
FLAGS = ["--dtype", "--num-gpus", "--cpu"]


@pytest.mark.parametrize(
    "argument, part",
    [
        ("--dtpye=float32", "--dtpye: neither a flag nor an option of a block that fairchem reads. Did you mean `--dtype`?"),
        ("--num_gpus=2", "Did you mean `--num-gpus`?"),
        ("--optm.lr_initial=1e-3", "--optm.lr_initial: neither .* Did you mean `--optim`?"),
        ("--los_functions=3", "Did you mean `--loss_functions`?"),
        ("float32", "float32: expected a flag, or an override"),
        ("--optim.batch_size", "expected --optim.batch_size=value, with `=` and no space"),
        ("--dataset.train.src=a=b", "no override whose value holds `=`"),
        ("--model.regress_forces=false", "reads the value as Python; give --model.regress_forces=False."),
        ("--loss_functions.energy.coefficient=2", "`loss_functions` of the YAML is no mapping"),
        ("--model.name.x=2", "`model.name` of the YAML is no mapping"),
    ],
)
def test_what_is_no_override_is_refused(argument, part):
    overrides, problems, _ = examine_overrides([argument], CONFIG, FLAGS)
    assert overrides == [] and len(problems) == 1
    assert re.search(part, str(problems[0]))


def test_overrides_that_fairchem_reads_are_taken():
    given = [
        "--optim.batch_size=4",
        "--trainer=ocp",
        "--run_dir=x",
        "--model.otf_graph=True",
        "--slurm.x=1",
        "--logger=none",
    ]
    assert examine_overrides(given, CONFIG, FLAGS) == (given, [], [])


@pytest.mark.parametrize(
    "argument, near", [("--model.hiden_channels=8", "model.hidden_channels"), ("--optim.batch_sze=4", "optim.batch_size")]
)
def test_a_new_option_beside_a_like_one_is_warned_of(argument, near):
    overrides, problems, (warning,) = examine_overrides([argument], CONFIG, FLAGS)
    assert overrides == [argument] and problems == []
    assert str(warning).endswith(f"Did you mean `{near}`?")


@pytest.mark.parametrize(
    "name, value, problem",
    [
        (
            "los_functions",
            [],
            "los_functions: fairchem reads no block of this name and drops it. Did you mean `loss_functions`?",
        ),
        ("optm", {}, "Did you mean `optim`?"),
        ("eval_metrics", {}, "Did you mean `evaluation_metrics`?"),
        ("datasets", {}, "Did you mean `dataset`?"),
        ("task", {"distil": {}}, "task.distil: unknown block. Did you mean `distill`?"),
        ("task", {"distill": {"teachr": {}}}, "task.distill.teachr: unknown option. Did you mean `teacher`?"),
        ("task", {"distill": {"teacher": {"chekpoint": "a"}}}, "task.distill.teacher.chekpoint: unknown option."),
        (
            "task",
            {"distill": {"init_from_teacher": {"bloks": [1]}}},
            "task.distill.init_from_teacher.bloks: unknown",
        ),
        ("dataset", {"train": {}, "trian": {}}, "dataset.trian: fairchem reads train, val, test, relax"),
    ],
)
def test_a_misspelt_block_is_a_problem(name, value, problem):
    problems, warnings = misspelt_names({**CONFIG, name: value})
    assert len(problems) == 1 and problem in str(problems[0])
    assert warnings == []


@pytest.mark.parametrize(
    "name, value, warning",
    [
        ("my_anchors", {}, "my_anchors: fairchem reads no block of this name and drops it."),
        ("optim", {"batch_size": 1, "clip_grad_nrm": 1}, "Did you mean `clip_grad_norm`?"),
        ("optim", {"scheduler": "CosineAnnealingLR", "T_mx": 1}, "Did you mean `T_max`?"),
        ("evaluation_metrics", {"metrcs": {}}, "Did you mean `metrics`?"),
        ("outputs", {"forces": {"train_on_free_atom": True}}, "Did you mean `train_on_free_atoms`?"),
        ("dataset", {"train": {"src": "a", "first_m": 3}}, "Did you mean `first_n`?"),
        ("dataset", {"src": "a"}, "dataset.src: fairchem reads train, val, test, relax and drops the rest."),
    ],
)
def test_what_may_be_a_misspelling_is_warned_of(name, value, warning):
    problems, warnings = misspelt_names({**CONFIG, name: value})
    assert problems == []
    assert len(warnings) == 1 and warning in str(warnings[0])


def test_names_of_a_training_and_of_its_scheduler_are_known():
    optim = {"scheduler": "OneCycleLR", "max_lr": 1e-3, "total_steps": 3, "pct_start": 0.1, "ema_decay": 0.9}
    assert misspelt_names({**CONFIG, "optim": optim, "logger": "none", "includes": []}) == ([], [])


def test_the_blocks_are_those_that_fairchem_forwards():
    source = inspect.getsource(utils.new_trainer_context)
    forwarded = set(re.findall(r"config(?:\.get\(|\[)\"(\w+)\"", source))
    assert set(BLOCKS) <= forwarded
    assert {"los_functions", "optm"}.isdisjoint(forwarded)


@pytest.fixture
def student(tmp_path):
    """Callable: write a YAML, and return the arguments that name it."""

    def write(config: dict) -> list[str]:
        (tmp_path / "student.yml").write_text(yaml.safe_dump(config))
        return ["--config-yml", str(tmp_path / "student.yml")]

    return write


def test_arguments_are_read_as_fairchem_reads_them(student):
    parser = parser_of("check")
    arguments = [*student(CONFIG), "--cpu", "--optim.batch_size=8", "--optm.x=1", "--task.distil.x=1"]
    arguments += ["--task.distill.x=1", "--task.distill.relations.false_negative_threshold=1e-1"]
    given = read(parser, arguments)
    assert given.flags.cpu and given.config["optim"]["batch_size"] == 8 and given.config["mode"] == "train"
    assert "optm" not in given.config
    assert [problem.path for problem in given.problems] == ["--optm.x", "task.distil", "task.distill.x"]
    assert given.config["task"]["distill"]["relations"] == {"false_negative_threshold": 0.1}  # read as Python, not as YAML
    with pytest.raises(ValueError, match=r"--optm\.x: neither.*\n.*task\.distil: unknown block"):
        read_or_refuse(parser, arguments)


@pytest.mark.parametrize("text, part", [("a: [", "cannot be read as a config"), ("- 1", "cannot be read as a config")])
def test_a_yaml_that_is_no_config_is_named(tmp_path, text, part):
    (tmp_path / "broken.yml").write_text(text)
    with pytest.raises(ValueError, match=rf"--config-yml .*broken\.yml: {part}"):
        read(parser_of("check"), ["--config-yml", str(tmp_path / "broken.yml")])


@pytest.mark.parametrize("command", ["train", "cache-teacher", "fit-scales"])
def test_a_misspelt_flag_ends_the_command(student, command, tmp_path):
    flags = ["--output", str(tmp_path / "x.json")] if command == "fit-scales" else []
    with pytest.raises(SystemExit, match=rf"fairchem-crack {command}: --timestmp-id: neither .* `--timestamp-id`"):
        cli.main([command, *student(CONFIG), "--cpu", *flags, "--timestmp-id=float32"])
    with pytest.raises(SystemExit, match=rf"fairchem-crack {command}: optm: fairchem reads no block"):
        cli.main([command, *student({**CONFIG, "optm": {}}), "--cpu", *flags])
    assert [path.name for path in tmp_path.iterdir()] == ["student.yml"]


def test_check_lists_a_misspelt_override_among_the_problems(student, capsys):
    with contextlib.suppress(SystemExit):
        cli.main(["check", *student(CONFIG), "--cpu", "--task.distil.teacher.cache=x", "--dtpye=float32"])
    output = capsys.readouterr().out
    assert "\n- --dtpye: neither a flag nor" in output
    assert "\n- task.distil: unknown block. Did you mean `distill`?" in output


PARSERS = {
    "train": lambda: parser_of("train"),
    "cache-teacher": cache_teacher.parser,
    "evaluate": evaluate.parser,
    "bench": bench_command.parser,
    "report": report_command.parser,
    "evaluate-relaxations": relaxations_command.parser,
}


@pytest.mark.parametrize("command", PARSERS)
def test_flags_are_not_abbreviated(command):
    assert PARSERS[command]().allow_abbrev is False


def test_fairchems_own_parser_is_left_as_it_is():
    from fairchem.core.common.flags import flags

    parser = cache_teacher.parser()
    assert parser.parse_known_args(["--config-yml", "a"])[0].dtype == "float16"
    assert flags.get_parser().allow_abbrev and "--dtype" not in flags.get_parser().format_help()


def test_the_command_prints_its_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"fairchem-crack {fairchem_crack.__version__}\n"


def test_the_package_lists_what_it_exports():
    assert set(fairchem_crack.__all__) == set(fairchem_crack._HOMES) <= set(dir(fairchem_crack))
