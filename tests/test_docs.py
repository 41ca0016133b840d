"""What the documentation tells a user to type works: every block of it, in its order, at toy size.

- Python blocks of a page run one after the other in one namespace, in a directory where the files that the page names lie;
  one whose first line is a comment with a file's name is that file, for the commands to import.
- YAML blocks parse; one whose first line is a comment with a file's name is that file for the commands of its page. The
  others of a page, laid over the demo's PaiNN, are the page's `my_student.yml`.
- Commands (`fairchem ...`, `fairchem-crack ...`, fairchem's scripts) run in this process, on one CPU rank, trainings for one
  epoch. Those on OC20 itself are parsed by fairchem, and their YAML is loaded with its overrides. Others (`pip`, `make`)
  are not run.
"""

from __future__ import annotations

import configparser
import gc
import json
import os
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Callable

import in_process
import lmdb
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read
from ase.optimize import BFGS
from fairchem.core.common.flags import flags
from fairchem.core.common.registry import registry
from fairchem.core.common.relaxation.ase_utils import batch_to_atoms
from fairchem.core.common.utils import build_config
from fairchem.core.datasets import LmdbDataset, data_list_collater
from fairchem.core.models.base import GraphModelMixin
from torch import nn

from fairchem_crack import keys
from fairchem_crack.adapters import base
from fairchem_crack.evaluation.speed.runs import RELAXES_IN_BATCHES
from fairchem_crack.teacher.cache import TeacherCache
from fairchem_crack.teacher.label.teachers import FRAMEWORKS

ROOT = Path(__file__).parents[1]
NAMES = (
    *("own-data", "evaluate", "use", "engines", "cache", "teachers", "energies", "generate", "explore"),
    *("architectures", "loss", "terms", "running", "development"),
)
PAGES = ("README.md", *(f"docs/{name}.md" for name in NAMES))
IDLE = (
    "accuracy",
    "api",
    "configuration",
    "demo",
    "how-it-works",
    "install",
    "internet-scale",
    "notebooks",
    "recipes",
    "security",
    "troubleshooting",
)
STUDENT = "runs/demo/checkpoints/crack-0/best_checkpoint.pt"
TEACHER = "configs/oc20/demo/teacher_equiformer_v2.pt"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?: {4}|\$ )?((?:fairchem|fairchem-crack|python -m fairchem\S*) (?:.*\\\n)*.*)$", re.MULTILINE)
# Commands that run no model, and so take no --cpu
NO_MODEL = ("init", "card", "configs", "evaluate-relaxations", "cache-finish", "export")
STANDS_FOR = {  # a teacher of another framework, which is not here, and the Python of its environment
    "sevennet:7net-0": "stub_labeller:function",
    "/envs/sevennet/bin/python": f"env PYTHONPATH={ROOT}:{ROOT}/tests {sys.executable}",
}
NEEDS_OC20 = "configs/oc20/s2ef/"
TOY = {  # what makes a command a matter of seconds, and what a page has the reader write into the YAML in a sentence
    "cache-teacher": ["--task.distill.teacher.cache=caches/eqV2-31M"],
    "train": ["--optim.max_epochs=1"],
    "run-relaxations": ["--task.relaxation_steps=2", "--task.relaxation_fmax=1e-4"],  # of models that know no forces yet
    "evaluate": ["--batch-sizes", "1"],
    "report": ["--systems=6"],
    "stability": ["--starts=1", "--temperatures", "300", "--ps=0.01", "--drift-ps=0.005"],
    "explore": ["--starts=2", "--ps=0.004", "--every=2", "--relax-steps=0", "--rounds=1", "--steps=1"],
    "bench": ["--atoms=13", "--batch-sizes=1", "--repeats=1", "--md-steps=2", "--relax-steps=2", "--relax-batch-size=2"],
}


def blocks(page: str) -> list[tuple[str, str]]:
    """Kind and text of what the page has the reader run or write, in its order: "python", "yaml" and "command"."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = [(match.start(), match[1], match[2]) for match in BLOCK.finditer(text)]
    rest = BLOCK.sub(lambda match: "\n" * match[0].count("\n") + " " * (len(match[0]) - match[0].count("\n")), text)
    located = [
        *fenced,
        *((command.start(), "command", command[1]) for command in COMMAND.finditer(rest) if is_indented(command)),
    ]
    return [(kind, content) for _, kind, content in sorted(located)]


def is_indented(command: re.Match) -> bool:
    return command[0].startswith("    ")


def words(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "), comments=True)


def as_atoms(source: Path, count: int) -> list[Atoms]:
    """The first systems of an S2EF split, with their labels."""
    gc.collect()  # one process opens an LMDB only once
    dataset = LmdbDataset({"src": str(source)})
    systems = []
    for index in range(count):
        batch = data_list_collater([dataset[index]], otf_graph=True)
        systems += batch_to_atoms(batch)
        systems[-1].calc = SinglePointCalculator(systems[-1], energy=float(batch.y), forces=batch.force.numpy())
    return systems


def lay_over(below: dict, above: dict) -> dict:
    both = {key: value for key, value in below.items() if key not in above}
    for key, value in above.items():
        both[key] = lay_over(below.get(key) or {}, value) if isinstance(value, dict) else value
    return both


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, data) -> Path:
    """A directory like a clone of the repository in which `make demo` was run, at toy size."""
    place = tmp_path_factory.mktemp("docs")
    (place / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(data, place / "data/demo")
    write_is2re(place / "data/demo/val_id", place / "data/is2re/val_id")
    for split in ("id", "ood_ads", "ood_cat", "ood_both"):
        shutil.copytree(data / f"val_{split}", place / "data/s2ef" / f"test_{split}")
    (place / "checkpoints").mkdir()
    shutil.copy(ROOT / TEACHER, place / "checkpoints/eq2_31M_ec4_allmd.pt")
    before = Path.cwd()
    os.chdir(place)
    try:
        for config, name in (("painn.yml", "undistilled-0"), ("painn_crack.yml", "crack-0")):
            arguments = f"--config-yml configs/oc20/demo/{config} --run-dir runs/demo --timestamp-id {name}"
            run_command(["fairchem", "--mode", "train", *arguments.split(), "--optim.eval_every=1"])
        yield place
    finally:
        os.chdir(before)
    assert (place / STUDENT).is_file()


def write_is2re(source: Path, directory: Path) -> None:
    """Systems of an S2EF split with what OC20's IS2RE LMDBs have: `pos_relaxed`, and `y_relaxed` in eV, both of EMT."""
    relaxed = as_atoms(source, 6)
    dataset = LmdbDataset({"src": str(source)})
    directory.mkdir(parents=True)
    environment = lmdb.open(str(directory / "data.lmdb"), map_size=1 << 24, subdir=False, lock=False)
    with environment.begin(write=True) as transaction:
        for index in range(len(dataset)):
            record, atoms = dataset[index], relaxed[index]
            atoms.calc = EMT()
            start = atoms.get_potential_energy()
            BFGS(atoms, logfile=None).run(fmax=0.1, steps=20)
            record.pos_relaxed = torch.tensor(atoms.positions).float()
            record.y_relaxed = record.y + atoms.get_potential_energy() - start  # y is the adsorption energy at the start
            del record.y, record.force
            transaction.put(str(index).encode(), pickle.dumps(record, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(dataset)))
    environment.close()
    np.savez(directory / "metadata.npz", natoms=np.array([dataset[index].natoms for index in range(len(dataset))]))
    del dataset
    gc.collect()


def run_command(command: list[str]) -> None:
    """Run it in this process, on one CPU rank."""
    program, *arguments = command
    if program == "python":
        in_process.run_command(program, [STANDS_FOR.get(argument, argument) for argument in arguments])
        return
    name = arguments[arguments.index("--mode") + 1] if program == "fairchem" else arguments[0]
    arguments += [*TOY.get(name, []), *(["--cpu"] if "--cpu" not in arguments and name not in NO_MODEL else [])]
    try:
        in_process.run_command(program, arguments)
    except SystemExit as ended:
        if "--require" not in arguments or ended.code != 1:  # which these toys miss
            raise


def parse_command(command: list[str]) -> None:
    """Parse it as fairchem would, and load its YAML with its overrides."""
    options, overrides = flags.get_parser().parse_known_args(command[1:])
    assert all(re.fullmatch(r"--[\w.]+=.+", override) for override in overrides), overrides
    config = build_config(options, overrides)
    for override in overrides:
        name, _, value = override[2:].partition("=")
        option = config
        for part in name.split("."):
            option = option[part]
        assert str(option) == value


class MyModel(nn.Module, GraphModelMixin):
    """What docs/architectures.md calls a model of one's own: one round of messages within the cutoff, then energies."""

    def __init__(self, *, cutoff: float, max_neighbors: int) -> None:
        super().__init__()
        self.hidden_channels, self.cutoff, self.max_neighbors = 8, cutoff, max_neighbors
        self.use_pbc, self.otf_graph, self.use_pbc_single = True, True, False
        torch.manual_seed(0)
        self.atom_emb = nn.Embedding(101, 8)
        self.messages = nn.ModuleList([Messages()])
        self.energy_head, self.force_head = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, batch) -> dict:
        graph = self.generate_graph(batch, enforce_max_neighbors_strictly=True)
        element = self.atom_emb(batch.atomic_numbers.long())
        weight = torch.cos(graph.edge_distance / self.cutoff * torch.pi / 2)[:, None] ** 2  # (E, 1)
        embedding = self.messages[0](element, weight, graph.edge_index)  # (N, 8)
        energy = torch.zeros(len(batch.natoms), 1).index_add(0, batch.batch, self.energy_head(embedding))
        source, target = graph.edge_index
        pushes = self.force_head(embedding)[source] * weight * graph.edge_distance_vec  # (E, 3)
        return {"energy": energy, "forces": torch.zeros_like(batch.pos).index_add(0, target, pushes)}


class Messages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(8, 8), nn.SiLU())

    def forward(self, element, weight, edge_index):
        source, target = edge_index
        return self.mix(element + torch.zeros_like(element).index_add(0, target, weight * element[source]))


def namespace_of(page: str, place: Path) -> dict:
    """What a page takes for granted."""
    if page == "docs/cache.md":  # `systems`, and a teacher of another framework
        systems = as_atoms(place / "data/demo/train", 5)
        random = np.random.default_rng(0)

        def run_teacher(atoms):
            count = len(atoms)
            pairs = np.stack(np.triu_indices(count, 1))
            return random.normal(size=(count, 64)), random.normal(size=count), random.normal(size=(count, 3)), pairs

        return {"systems": systems, "run_teacher": run_teacher}
    if page == "docs/teachers.md":
        for split, source, count in (("train", "train", 12), ("val", "val_id", 6)):
            with connect(f"{split}.db") as file:
                for atoms in as_atoms(place / "data/demo" / source, count):
                    file.write(atoms)
    return {"MyModel": MyModel} if page == "docs/architectures.md" else {}


def check_readme(namespace: dict, log: str) -> None:
    assert namespace["slab"].get_potential_energy() < 100


def check_own_data(namespace: dict, log: str) -> None:
    """What the commands left behind; and the ASE databases of the page, which have no command."""
    for name in ("oxides.db", "oxides_val.db"):
        with connect(name) as file:
            for atoms in as_atoms(Path("data/demo/val_ood_cat"), 6):
                file.write(atoms)
    run_command(["fairchem-crack", "check", "--config-yml", "oxides.yml"])
    assert len(TeacherCache(Path("caches/eqV2-31M"))) == 12


def check_evaluate(namespace: dict, log: str) -> None:
    """Both ways lead to the same submission."""
    ours, stock = np.load("runs/submission.npz"), np.load("runs/stock_submission.npz")
    assert set(ours) == set(stock) and len(ours) == 16
    assert all(np.array_equal(ours[name], stock[name]) for name in stock)
    assert Path("runs/demo/leaderboard.csv").is_file()
    assert len(json.loads(Path("runs/demo/stability.json").read_text())["checkpoints"]) == 3
    assert len(namespace["frames"]) == int(100 * namespace["survival"].ps + 1e-6)


def check_use(namespace: dict, log: str) -> None:
    for name in ("first", "student", "teacher"):
        assert len(np.load(f"runs/relax/results/{name}/relaxed_positions.npz")["ids"]) == 6
    assert np.isfinite(np.load("runs/predict/results/first/ocp_predictions.npz")["energy"]).all()
    assert "average_distance_within_threshold" in log and "energy_within_threshold" in log  # of IS2RS and IS2RE
    measured = json.loads(Path("runs/relax/is2re.json").read_text())
    assert [row["model"] for row in measured["rows"]] == ["student", "teacher"] and measured["notes"] == []
    assert all(len(row["metrics"]) == 5 and set(row["counted"].values()) == {6} for row in measured["rows"])
    assert len(read("dft.extxyz", ":")) == 6
    assert len(namespace["arrays"]["ids"]) == 6 and namespace["last"].get_potential_energy() < 100


def check_explore(namespace: dict, log: str) -> None:
    """The training of the round was fairchem's own command, on more systems than before, and its student explores too."""
    trained = json.loads(Path("runs/explore/round-1/round.json").read_text())["training"]
    last = torch.load("runs/explore/round-1/run/checkpoints/student/checkpoint.pt", weights_only=False)
    assert trained["systems"] > 12 and last["step"] == trained["steps"] == last["scheduler"]["total_steps"]
    assert last["ema"]["decay"] == 0.99 and last["optimizer"]["state"]
    assert json.loads(Path("runs/explore/round-2/explored.json").read_text())["teacher_labels"] > 0


def check_cache(namespace: dict, log: str) -> None:
    assert [len(TeacherCache(Path(name))) for name in ("my_cache", "numpy_cache")] == [5, 5]


def check_teachers(namespace: dict, log: str) -> None:
    """What is trained on has its records, also as exported and generated; and `init` writes what the page's YAML has."""
    cache, trained = TeacherCache(Path("caches/7net")), connect("my_student_train.db").count()
    assert len(cache) == 12 == trained + connect("my_student_val.db").count() and trained >= 6
    exported = [row.data.crack_digest for row in connect("train_exported.db").select()]
    assert [cache.get(bytes.fromhex(digest)) is None for digest in exported] == trained * [False]
    made = json.loads(Path("generated/7net/generate.json").read_text())
    assert made["kept"]["parent"] == trained
    assert len(TeacherCache(Path("generated/7net/cache"))) == made["systems"] > 5 * trained
    shown = next(yaml.safe_load(content) for kind, content in blocks("docs/teachers.md") if kind == "yaml")
    written = yaml.safe_load(Path("validated.yml").read_text())
    assert written["dataset"]["val"] == {"src": "val.db"}  # otherwise read as train
    del shown["dataset"]["val"]["format"]
    assert lay_over(written, shown) == written


def check_architecture(namespace: dict, log: str) -> None:
    """The adapter of the page is found for its model, and passes the tests of the page."""
    suite = namespace["TestMyFeatures"]()
    tests = [name for name in dir(suite) if name.startswith("test_")]
    assert len(tests) > 10
    for name in tests:
        getattr(suite, name)()


def check_development(namespace: dict, log: str) -> None:
    """The page's training had the term of its module, which projects the student's embedding."""
    (last,) = Path("runs/own/checkpoints").glob("*/checkpoint.pt")
    assert torch.load(last, weights_only=False)[keys.CHECKPOINT_KEY][keys.PROJECTION]
    assert "embedding_lengths" in keys.DISTILLATION_TERMS


AFTERWARDS: dict[str, Callable[[dict, str], None]] = {
    "README.md": check_readme,
    "docs/own-data.md": check_own_data,
    "docs/evaluate.md": check_evaluate,
    "docs/use.md": check_use,
    "docs/cache.md": check_cache,
    "docs/teachers.md": check_teachers,
    "docs/explore.md": check_explore,
    "docs/architectures.md": check_architecture,
    "docs/development.md": check_development,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_works(page, workplace, monkeypatch, caplog):
    monkeypatch.chdir(workplace)
    for left in (Path("caches"), *Path("checkpoints").glob("20*")):  # by another page; fairchem names a run by two minutes
        shutil.rmtree(left, ignore_errors=True)
    monkeypatch.setattr(base, "_ADAPTERS", dict(base._ADAPTERS))
    monkeypatch.setitem(registry.mapping["model_name_mapping"], "my_model", MyModel)
    of_page = blocks(page)
    Path("my_student.yml").unlink(missing_ok=True)
    if page != "docs/teachers.md":  # which writes it
        write_student([content for kind, content in of_page if kind == "yaml"], page)
    namespace = {"__name__": "docs", **namespace_of(page, workplace)}
    done: list[list[str]] = []
    for number, (kind, content) in enumerate(of_page):
        if kind == "python" and (named := re.match(r"# (\S+\.py)\n", content)):
            Path(named[1]).write_text(content)
        elif kind == "python":
            exec(compile(content, f"{page}, block {number}", "exec"), namespace)
        elif kind == "yaml":
            write_named(content)
        elif NEEDS_OC20 in content:
            parse_command(words(content))
        elif kind == "command":
            command = words(content.replace("--num-gpus 4", ""))  # one rank
            if "run-relaxations" in command and not RELAXES_IN_BATCHES:
                pytest.skip(f"fairchem's batched relaxations need ase < 3.26; the {number} blocks before them work")
            if command not in done:
                run_command(command)
            done.append(command)
    if page in AFTERWARDS:
        AFTERWARDS[page](namespace, caplog.text)


def write_named(content: str) -> None:
    """Write a YAML block under the name in its first line, if there is one."""
    named = re.match(r"# (\S+\.yml)\n", content)
    assert isinstance(yaml.safe_load(content), (dict, list))
    if named:
        for there, here in STANDS_FOR.items():
            content = content.replace(there, here)
        Path(named[1]).write_text(content)


def write_student(texts: list[str], page: str) -> None:
    """`my_student.yml`: the demo's PaiNN, what the README adds to a student, and what the page adds to that."""
    config: dict = {"includes": ["configs/oc20/demo/painn.yml"]}
    readme = next(content for kind, content in blocks("README.md") if kind == "yaml")
    for text in [readme, *(texts if page != "README.md" else [])]:
        added = yaml.safe_load(text)
        if isinstance(added, dict) and "includes" not in added and "init_from_teacher" not in text:
            config = lay_over(config, added)
    Path("my_student.yml").write_text(yaml.safe_dump(config))


def test_every_page_is_run_or_has_nothing_to_run():
    idle = {f"docs/{name}.md" for name in IDLE}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} == {*PAGES, *idle} - {"README.md"}
    assert all(kind == "yaml" for page in idle for kind, _ in blocks(page))


def test_page_make_and_dockerfile_install_alike():
    page, make = (ROOT / "docs/install.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text()
    image = (ROOT / "Dockerfile").read_text()
    commands = re.search(r"From nothing:\n\n((?: {4}.*\n)+)", page)[1]
    pins = re.findall(r'"([^"]+)"', commands)
    assert len(pins) == 5 and [pin for pin in pins if pin not in make + (ROOT / "setup.cfg").read_text()] == []
    assert [pin for pin in pins if pin not in image] == []
    assert all(
        part in text for part in ("CPPFLAGS=-g0", "ninja", "--no-build-isolation") for text in (commands, make, image)
    )


def test_the_page_of_the_rooms_has_those_of_the_contract():
    text = (ROOT / "docs/development.md").read_text(encoding="utf-8")
    table = text[text.index("| room |") :].split("\n\n")[0].splitlines()[2:]
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = config["importlinter:contract:rooms"]["layers"].split()
    assert [name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])] == layers
    package = ROOT / "fairchem_crack"
    rooms = {path.relative_to(package).with_suffix("").parts[0] for path in package.rglob("*.py")} - {"__init__", "host"}
    assert sorted(layers) == sorted(rooms)


def test_the_page_of_teachers_has_what_adapters_need():
    rows = re.findall(r"^\| `(\w+):.*?\| `([^`]+)`", (ROOT / "docs/teachers.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == {framework: package for framework, (package, _) in FRAMEWORKS.items()}


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    target = re.search(r"^lint: venv\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert [hook["entry"] for hook in hooks] == target.replace("\t$(BIN)/", ".venv/bin/").splitlines()


def test_blocks_are_found_in_their_order():
    kinds = [kind for kind, _ in blocks("docs/use.md")]
    assert kinds[0] == "python" and kinds.count("python") == 7 and kinds.count("yaml") == 3 and kinds.count("command") == 10
    assert kinds.index("yaml") > kinds.index("python")
    commands = [words(content) for page in PAGES[:2] for kind, content in blocks(page) if kind == "command"]
    assert ["fairchem", "--mode", "train", "--config-yml", "my_student.yml", "--num-gpus", "4"] in commands
    assert all(command[0] in ("fairchem", "fairchem-crack") and "#" not in command for command in commands)
    assert len([command for command in commands if any(NEEDS_OC20 in word for word in command)]) == 1
