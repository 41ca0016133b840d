"""`fairchem-crack configs`, and the commands that find a YAML of the package by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from fairchem.core.common.utils import load_config

from fairchem_crack.commands import configs
from fairchem_crack.commands.cli import main
from fairchem_crack.commands.flags import parser_of, read

ROOT = Path(__file__).parents[1]
DEMO = "oc20/demo/painn_crack.yml"
TEACHER = "oc20/demo/teacher_equiformer_v2.pt"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A current directory without any config."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_yaml_is_listed_with_a_line_that_says_what_it_is(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    shipped = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yml"))
    assert [line.split()[0] for line in lines] == shipped
    assert all(10 < len(line.split("  ", 1)[1].strip()) < 100 for line in lines)
    assert "oc20/demo/optim.yml How every student of the demo is trained" in [" ".join(line.split()) for line in lines]


def test_a_yaml_is_printed_as_it_is(capsys):
    main(["configs", DEMO])
    assert capsys.readouterr().out == (ROOT / "configs" / DEMO).read_text()


@pytest.mark.parametrize("arguments", [["oc20/demo/pain_crack.yml"], ["oc20/demo/pain_crack.yml", "--copy", "mine"]])
def test_an_unknown_name_is_refused_with_the_nearest(arguments, elsewhere):
    with pytest.raises(SystemExit, match=f"pain_crack.yml: no such config. Did you mean `{DEMO}`?"):
        main(["configs", *arguments])
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", [DEMO, "oc20/s2ef/2M/painn_from_escn.yml"])
def test_a_copy_has_all_it_needs_and_works_from_anywhere(name, elsewhere, monkeypatch):
    main(["configs", name, "--copy", "mine"])
    (elsewhere / "below").mkdir()
    monkeypatch.chdir(elsewhere / "below")
    copied, _, _ = load_config(f"../mine/{name}")
    original, _, _ = load_config(str(ROOT / "configs" / name))
    if name == DEMO:
        expected = elsewhere / "mine" / TEACHER
        assert copied["task"]["distill"]["teacher"]["checkpoint"] == str(expected)
        assert expected.read_bytes() == (ROOT / "configs" / TEACHER).read_bytes()
        copied["task"]["distill"]["teacher"]["checkpoint"] = f"configs/{TEACHER}"
    assert copied == original


def test_all_are_copied_without_a_name(elsewhere, capsys):
    main(["configs", "--copy", "mine"])
    copies = sorted(path.relative_to("mine").as_posix() for path in Path("mine").rglob("*") if path.is_file())
    assert copies == configs.files() and capsys.readouterr().out == f"{len(copies)} files copied into mine.\n"


def test_no_file_is_overwritten_nor_any_other_written(elsewhere):
    (elsewhere / "mine/oc20/demo").mkdir(parents=True)
    (elsewhere / "mine/oc20/demo/optim.yml").write_text("optim: {batch_size: 3}")
    with pytest.raises(SystemExit, match=r"mine/oc20/demo/optim.yml: already there. Give another directory"):
        main(["configs", DEMO, "--copy", "mine"])
    assert [path.name for path in (elsewhere / "mine").rglob("*.*")] == ["optim.yml"]


def test_a_name_is_found_from_any_directory_with_its_teacher(capsys):
    given = read(parser_of("check"), ["--config-yml", DEMO])
    assert given.flags.config_yml == ROOT / "configs" / DEMO and given.problems == []
    assert given.config["task"]["distill"]["teacher"]["checkpoint"] == str(ROOT / "configs" / TEACHER)
    assert f"{DEMO}: the YAML that comes with fairchem-crack, {ROOT / 'configs' / DEMO}" in capsys.readouterr().err


def test_the_teacher_given_on_the_command_line_is_taken():
    given = read(parser_of("check"), ["--config-yml", DEMO, "--task.distill.teacher.checkpoint=own.pt"])
    assert given.config["task"]["distill"]["teacher"]["checkpoint"] == "own.pt"


def test_a_file_of_the_users_comes_before_the_shipped_one(elsewhere):
    (elsewhere / "oc20/demo").mkdir(parents=True)
    (elsewhere / DEMO).write_text(yaml.safe_dump({"optim": {"batch_size": 3}}))
    given = read(parser_of("check"), ["--config-yml", DEMO])
    assert given.flags.config_yml == Path(DEMO) and given.config["optim"] == {"batch_size": 3}


def test_a_name_that_is_not_shipped_is_reported_as_given():
    with pytest.raises(FileNotFoundError, match=r"oc20/demo/mine\.yml"):
        read(parser_of("check"), ["--config-yml", "oc20/demo/mine.yml"])
