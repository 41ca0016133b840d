"""The report: its numbers against fairchem's own evaluation and plain loops, its page, its refusals."""

from __future__ import annotations

import base64
import copy
import dataclasses
import gc
import json
import math
import re
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols
from conftest import DATASET, SCN_MODEL, distill_config, run_fairchem, stock_config
from matplotlib.colors import to_rgb
from tolerances import ENERGY, FLOAT32, FLOAT32_LARGE, REBATCHED, REORDERED, REPEATED

from fairchem_crack.commands.cli import main
from fairchem_crack.evaluation import drawing
from fairchem_crack.evaluation.intervals import Interval
from fairchem_crack.evaluation.report import collect as collect_module
from fairchem_crack.evaluation.report import command, embedding_figures, figures, numbers, relations
from fairchem_crack.evaluation.report.collect import Model
from fairchem_crack.evaluation.report.curves import read_curves
from fairchem_crack.evaluation.report.predict import Embeddings, Prediction, embed, load_model
from fairchem_crack.evaluation.report.request import ROLES, make_request
from fairchem_crack.evaluation.report.sections import columns, sections, tables, tiles
from fairchem_crack.evaluation.report.systems import Split, load_split
from fairchem_crack.evaluation.s2ef.data import as_labelled
from fairchem_crack.evaluation.s2ef.evaluator import CheckpointEvaluator
from fairchem_crack.evaluation.tables import digits

CPU = torch.device("cpu")
SPLITS = ("val_id", "val_ood_both")


# ---- one report on toy models -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data, teacher_checkpoint) -> Path:
    """A run directory with a distilled student `crack`, and an undistilled one."""
    directory = tmp_path_factory.mktemp("runs")
    for name, config in (("undistilled", stock_config(data)), ("crack", distill_config(data, teacher_checkpoint))):
        config["logger"] = "tensorboard"
        run_fairchem(directory, config, name=name)
    return directory


@pytest.fixture
def request_of(run_dir, data, teacher_checkpoint, tmp_path):
    """Callable: the request of a report of `crack` on two splits, or as the options say."""

    def make(**changed):
        options = {
            "name": "crack",
            "teacher": str(teacher_checkpoint),
            "data": [f"{split}={data / split}" for split in SPLITS],
            "undistilled": "undistilled",
            "cpu": True,
            "output": tmp_path / "report",
        }
        return make_request(run_dir, **{**options, **changed})

    return make


@pytest.fixture(scope="module")
def findings(run_dir, data, teacher_checkpoint):
    options = {
        "teacher": str(teacher_checkpoint),
        "undistilled": "undistilled",
        "cpu": True,
        "also": [str(run_dir / "checkpoints/crack/checkpoint.pt")],
    }
    request = make_request(run_dir, name="crack", data=[f"{split}={data / split}" for split in SPLITS], **options)
    gc.collect()
    with ties_broken_by_order():
        return collect_module.collect(request)


@contextmanager
def ties_broken_by_order():
    """fairchem's neighbor lists, and so its metrics, otherwise depend on the batch a system is in."""
    sort = torch.sort
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "sort", lambda *arguments, **options: sort(*arguments, **{**options, "stable": True}))
        yield


@pytest.fixture
def collected(findings, monkeypatch):
    """`write_report` with these findings instead of new ones."""
    monkeypatch.setattr(collect_module, "collect", lambda request: findings)
    return findings


@pytest.mark.slow
def test_the_students_metrics_are_those_of_fairchems_trainer(findings, run_dir, data):
    files = {"student": "crack/best_checkpoint.pt", "undistilled": "undistilled/best_checkpoint.pt"}
    for role, file in {**files, "crack": "crack/checkpoint.pt"}.items():
        gc.collect()
        evaluator = CheckpointEvaluator(run_dir / "checkpoints" / file, DATASET)
        for split in SPLITS:
            with ties_broken_by_order():
                expected, errors = evaluator.metrics_and_errors(data / split)
            metrics = findings.metrics[split][role]
            assert metrics == pytest.approx({metric: expected[metric] for metric in metrics}, rel=REORDERED, abs=REPEATED)
            part = next(candidate for candidate in findings.splits if candidate.name == split)
            own = numbers.energy_errors(part, findings.predictions[role][split])
            assert sorted(own) == pytest.approx(sorted(errors["energy"]), rel=REBATCHED, abs=ENERGY)
    progress = {role: model.progress for role, model in findings.models.items()}  # fairchem's best_checkpoint.pt has none
    unknown = "step not recorded"
    assert progress == {"student": "step 6, epoch 1", "crack": "step 6, epoch 1", "undistilled": unknown, "teacher": unknown}
    assert findings.facts["student"].endswith("best_checkpoint.pt, step 6, epoch 1")


@pytest.mark.slow
def test_errors_by_element_and_adsorbate_are_plain_means(findings):
    sums: dict = {}
    for split in findings.splits:
        start = 0
        for index, system in enumerate(split.systems):
            prediction = findings.predictions["student"][split.name]
            adsorbate = sorted(chemical_symbols[int(z)] for z in system.atomic_numbers[system.tags == 2])
            energy = abs(float(prediction.energy[index]) - float(system.energy))
            sums.setdefault(("energy", "".join(adsorbate)), []).append(energy)
            for atom in range(int(system.natoms)):
                if system.fixed[atom] == 0:
                    error = np.abs(prediction.forces[start + atom] - system.forces[atom].numpy()).mean()
                    sums.setdefault(("element", chemical_symbols[int(system.atomic_numbers[atom])]), []).append(error)
            start += int(system.natoms)
    by_element = findings.elements
    assert set(by_element.names) == {name for kind, name in sums if kind == "element"}
    for name, count, error in zip(by_element.names, by_element.counts, by_element.errors["student"]):
        expected = pytest.approx(np.mean(sums["element", name]), rel=REBATCHED)
        assert (count, error.estimate) == (len(sums["element", name]), expected)
    assert by_element.counts == sorted(by_element.counts, reverse=True)
    by_adsorbate = findings.adsorbates["energy_mae"]
    for name, count, error in zip(by_adsorbate.names, by_adsorbate.counts, by_adsorbate.errors["student"]):
        atoms = [symbol for symbol, many in re.findall(r"([A-Z][a-z]?)(\d*)", name) for _ in range(int(many or 1))]
        expected = sums["energy", "".join(sorted(atoms))]
        assert (count, error.estimate) == (len(expected), pytest.approx(np.mean(expected), rel=REBATCHED))
    assert sum(by_adsorbate.counts) == 12 and by_adsorbate.systems == by_adsorbate.counts


@pytest.mark.slow
def test_the_projection_is_that_of_the_training_checkpoint(findings, run_dir, teacher_checkpoint):
    training = run_dir / "checkpoints/crack/checkpoint.pt"
    teacher, student = (
        load_model("teacher", str(teacher_checkpoint), CPU),
        load_model("student", str(training), CPU, use_ema=False),
    )
    systems = findings.splits[0].systems
    embeddings = embed(teacher, str(training), systems, batch_size=2, device=CPU)
    whole = embed(teacher, str(training), systems, batch_size=6, device=CPU)
    assert torch.equal(embeddings.pairs, whole.pairs) and torch.allclose(embeddings.teacher, whole.teacher, **FLOAT32)
    from fairchem.core.datasets import data_list_collater

    batch = data_list_collater(systems, otf_graph=True)
    kept = torch.load(training, map_location="cpu", weights_only=False)["crack_distill"]
    state, statistics = kept["projection"], kept["channel_statistics"]
    scaled = (student(batch).node_embedding - state["shift"]) / state["scale"]
    expected = scaled @ state["trainable.weight"].T + state["trainable.bias"]
    assert torch.allclose(embeddings.student, expected, **FLOAT32) and not embeddings.lacking
    expected = (teacher(batch).node_embedding - statistics["channel_mean"]) / statistics["channel_std"]
    assert torch.allclose(embeddings.teacher, expected, **FLOAT32_LARGE)
    same_system = batch.batch[embeddings.pairs]
    assert torch.equal(same_system[0], same_system[1])


class Tags(HTMLParser):
    """The page's elements, in pairs, and the text in its table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.mark.slow
def test_the_page_is_whole_and_holds_its_numbers_and_pictures(collected, request_of):
    page, count = command.write_report(request_of())
    text = page.read_text(encoding="ascii")
    parsed = Tags()
    parsed.feed(text)
    assert not parsed.open
    pictures = {path.read_bytes() for path in page.parent.glob("*.png")}
    sources = [value for tag, name, value in parsed.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == len(pictures) == count
    for source in sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) in pictures
    without = re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert not re.search(r"https?:|file:|<script|<link|@import|url\(|<iframe", without)
    links = [value for tag, name, value in parsed.attributes if name in ("href", "srcset")]
    assert links and all(link.removeprefix("#") in [v for _, n, v in parsed.attributes if n == "id"] for link in links)
    assert all(value for tag, name, value in parsed.attributes if (tag, name) == ("img", "alt"))
    rows = list(collected.models)
    for name, heading in (("energy_mae", "energy MAE [eV]"), ("forces_mae", "force MAE [eV/Å]")):
        at = parsed.cells.index(heading)
        assert parsed.cells[at + 1 : at + 4] == [*SPLITS, "mean"]
        for number, role in enumerate(rows, start=1):
            row = at + 4 * number
            assert parsed.cells[row].startswith(role)
            errors = [collected.metrics[split][role][name] for split in SPLITS]
            assert parsed.cells[row + 1 : row + 4] == [digits(error) for error in (*errors, np.mean(errors))]
    written = json.loads((page.parent / "report.json").read_text())
    assert written["metrics"] == collected.metrics and "NaN" not in (page.parent / "report.json").read_text()
    assert sorted(path.suffix for path in page.parent.iterdir())[:2] == [".html", ".json"]
    assert not list(page.parent.glob("*.partial*"))


@pytest.mark.slow
def test_the_page_shows_what_stability_has_measured(collected, request_of, run_dir, tmp_path, monkeypatch):
    ended = {
        "ps": [0.2, 0.1],
        "reason": [None, "x"],
        "height": [1.5, None],
        "rdf_distance": [0.02, None],
        "detail": ["", "x"],
    }
    still = {"drift": [-3.0, None], "fluctuation": [0.5, None], "ps": [1, 0], "reason": [None, "x"], "detail": ["", "x"]}
    limits = {"max_temperature": 2000.0, "max_force": 50.0, "min_distance": 0.6}
    content = {
        "teacher": "teacher",
        "options": {"ps": 0.2, "time_step_fs": 1.0, "drift_ps": 1.0, "temperatures": [300.0], "limits": limits},
        "checkpoints": {"crack": {"path": "", "langevin": {"300": ended}, "constant_energy": still}},
    }
    file = tmp_path / "stability.json"
    with pytest.raises(ValueError, match=r"no runs of .*best_checkpoint\.pt; it has those of teacher\.pt"):
        content["checkpoints"]["crack"]["path"] = "teacher.pt"
        file.write_text(json.dumps(content))
        request_of(stability=file)
    content["checkpoints"]["crack"]["path"] = str(run_dir / "checkpoints/crack/best_checkpoint.pt")
    file.write_text(json.dumps(content))
    monkeypatch.setattr(
        collect_module, "collect", lambda request: dataclasses.replace(collected, stability=request.stability)
    )
    page, _ = command.write_report(request_of(stability=file))
    parsed = Tags()
    parsed.feed(page.read_text(encoding="ascii"))
    cells = [cell.strip() for cell in parsed.cells]
    assert cells[cells.index("RDF distance") + 1 :][:6] == [
        "crack",
        "300",
        "0.150 [0.100, 0.200]",
        "1 of 2",
        "1.50 [1.50, 1.50]",
        "0.0200 [0.0200, 0.0200]",
    ]
    assert "-3.00 [-3.00, -3.00]" in cells and "1 of 2" in cells[cells.index("drift [meV/atom/ps]") :]
    assert json.loads((page.parent / "report.json").read_text())["stability"] == content


@pytest.mark.slow
def test_every_part_has_its_pictures(collected):
    names = {section.anchor: {picture.name for picture in section.all_pictures} for section in sections(collected)}
    errors = ("energy_mae", "forces_mae")
    assert names["accuracy"] == {*(f"{name}_by_split" for name in errors), *(f"speed_{name}" for name in errors)}
    assert len(names["parity"]) == 4 and len(names["groups"]) == 3
    assert {f"curve_train_loss_{term}" for term in ("energy", "forces", "relations", "node_embeddings")} <= names["curves"]
    assert {"curve_train_relation_top1", "curve_train_relation_entropy", "curve_val_forces_mae"} <= names["curves"]
    assert names["embeddings"] == {"pca_teacher", "pca_student"}
    assert names["relations"] == {"relations_student", "relations_teacher", "relations_histogram"}
    assert collected.facts["loss terms"] == "energy, forces, relations, node_embeddings"
    steps = collected.curves["student"]["train/loss_relations"].steps
    assert steps.tolist() == [1, 2, 3, 4, 5, 6] and "val/forces_mae" in collected.curves["undistilled"]


@pytest.mark.slow
def test_what_is_missing_is_named_on_the_page(collected, request_of, tmp_path):
    without = {role: model for role, model in collected.models.items() if role != "undistilled"}
    bare = dataclasses.replace(
        collected,
        models=without,
        metrics={split: {role: by_role[role] for role in without} for split, by_role in collected.metrics.items()},
        average={},
        gaps={split: {} for split in SPLITS},
        average_gap={},
        elements=dataclasses.replace(
            collected.elements, errors={r: e for r, e in collected.elements.errors.items() if r in without}
        ),
        adsorbates={},
        curves={"student": {}},
        similarity=None,
        planes=dataclasses.replace(collected.planes, student=None, shared=False),
        lacking="the run has no training checkpoint",
    )
    shown = {section.anchor: section for section in sections(bare)}
    assert "no curves to show" in shown["curves"].text and not shown["curves"].pictures
    assert "the run has no training checkpoint" in shown["relations"].text and not shown["relations"].pictures
    assert [picture.name for picture in shown["embeddings"].pictures] == ["pca_teacher"]
    assert "No atom is tagged 2" in shown["groups"].text
    assert [row.heading for row in tables(bare)["energy MAE [eV]"]][:2] == ["student", "teacher"]
    assert columns(bare) == list(SPLITS) and len(tiles(bare)) == 3
    low, high = (float(end) for end in tiles(bare)[0].interval.strip("[]").split(", "))
    assert low <= float(tiles(bare)[0].value) <= high


@pytest.mark.slow
def test_the_first_screen_has_pictures_and_the_curves_are_folded(collected, request_of):
    page = command.write_report(request_of())[0].read_text(encoding="ascii")
    assert page.index('id="accuracy"') < page.index('id="table"') < page.index('id="parity"')
    inside = page[page.index("<details>") : page.index("</details>")]
    assert 'title="curve_train_loss_energy.png"' in inside and 'title="curve_val_forces_mae.png"' not in inside
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert any(caption.startswith("Loss of the energy term") for caption in captions)
    assert not any("_" in caption or ".png" in caption for caption in captions)


@pytest.mark.slow
def test_tiles_and_table_give_the_same_interval(collected):
    gaps = {"energy_mae": Interval(0.5, -0.1, 0.8), "forces_mae": Interval(math.nan)}
    shown = dataclasses.replace(collected, gaps={split: gaps for split in SPLITS}, average_gap=gaps)
    tile = tiles(shown)[0]
    assert (tile.value, tile.interval, "energy MAE" in tile.caption) == ("50%", "[-10%, 80%]", True)
    assert not any("force MAE" in tile.caption for tile in tiles(shown))
    closed = {heading: rows[-1].cells for heading, rows in tables(shown).items()}
    assert [(cell.value, cell.interval) for cell in closed["energy MAE [eV]"]] == 3 * [(tile.value, tile.interval)]
    assert [cell.value for cell in closed["force MAE [eV/Å]"]] == 3 * ["no gap"]


@pytest.mark.slow
def test_a_further_model_is_only_in_tables_and_speeds(collected):
    name = "crack"
    assert list(collected.models) == [*ROLES, name] and list(collected.metrics["val_id"]) == [*ROLES, name]
    assert all(name in [row.heading for row in rows] for rows in tables(collected).values())
    pictures = {picture.name: picture.alt for section in sections(collected) for picture in section.all_pictures}
    assert {picture for picture, alt in pictures.items() if name in alt} == {"speed_energy_mae", "speed_forces_mae"}
    mean = np.mean([collected.metrics[split][name]["energy_mae"] for split in SPLITS])
    assert collected.average[name]["energy_mae"] == pytest.approx(mean)


@pytest.mark.slow
def test_embeddings_are_compared_only_with_a_projection(findings, run_dir, teacher_checkpoint, tmp_path):
    systems = findings.splits[0].systems[:2]
    content = torch.load(teacher_checkpoint, map_location="cpu", weights_only=False)
    del content["ema"]
    torch.save(content, tmp_path / "other.pt")
    other_teacher = load_model("teacher", str(tmp_path / "other.pt"), CPU)
    training = str(run_dir / "checkpoints/crack/checkpoint.pt")
    embeddings = embed(other_teacher, training, systems, batch_size=2, device=CPU)
    assert "distilled from another teacher" in embeddings.lacking and embeddings.student.shape[1] == 16
    assert relations.similarity(embeddings) is None
    plain = embed(other_teacher, str(run_dir / "checkpoints/undistilled/checkpoint.pt"), systems, batch_size=2, device=CPU)
    assert "has no projection" in plain.lacking
    assert "no training checkpoint" in embed(other_teacher, None, systems, batch_size=2, device=CPU).lacking


# ---- pictures ---------------------------------------------------------------------------------------------------------


def test_models_are_drawn_at_their_speeds_and_look_different(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "canvas", kept(drawn))
    speeds = {"undistilled": 2000.0, "student": 2000.0, "teacher": 300.0, "other": 450.0, "one more": 500.0}
    models = {role: Model("PaiNN", "file.pt", 1, speed) for role, speed in speeds.items()}
    metrics = {
        split: {role: {"energy_mae": 0.1 + number + factor} for number, role in enumerate(speeds)}
        for factor, split in enumerate(SPLITS)
    }
    figures.speed_accuracy("energy_mae", models, metrics)
    lines = [line for line in drawn[0].axis.lines if not line.get_label().startswith("_")]
    for number, (line, (role, speed)) in enumerate(zip(lines, speeds.items())):
        assert line.get_label() == f"PaiNN, {role}"
        assert (*line.get_xdata(), *line.get_ydata()) == (speed, pytest.approx(0.6 + number))
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == len(speeds)
    low, high = drawn[0].axis.get_ylim()
    assert low == 0 and high > 5.1


def kept(drawn: list):
    """A `canvas` that leaves what was drawn in a list."""

    @contextmanager
    def canvas(*size):
        with drawing.canvas(*size) as drawing_area:
            drawn.append(drawing_area)
            yield drawing_area

    return canvas


def test_twelve_elements_have_twelve_colours():
    colors = np.array([to_rgb(color) for color in drawing.PALETTE])
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)[~np.eye(12, dtype=bool)]
    assert distances.min() > 0.25 and np.linalg.norm(colors - 1, axis=1).min() > 0.25


def test_no_element_hides_another(monkeypatch):
    """Of atoms of two elements at the same places, those of each are on top at about half of them."""
    drawn = []
    monkeypatch.setattr(embedding_figures, "canvas", kept(drawn))
    points = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), axis=-1).reshape(-1, 2)
    plane = relations.Plane(np.concatenate([points, points]), (0.6, 0.4))
    numbers_of_atoms = np.repeat([1, 29], len(points))
    embedding_figures.pca(relations.Planes(numbers_of_atoms, plane, None, False), {"teacher": "PaiNN"})
    marks = drawn[0].axis.collections[0]
    on_top = {tuple(place): tuple(color[:3]) for place, color in zip(marks.get_offsets().data, marks.get_facecolors())}
    assert len(on_top) == len(points)
    counts = [list(on_top.values()).count(to_rgb(color)) for color in drawing.PALETTE[:2]]
    assert sum(counts) == len(points) and min(counts) > 0.35 * len(points)


@pytest.mark.parametrize(
    ("tag", "caption"),
    [
        ("train/loss_node_embeddings", "Loss of the node embeddings term, before its weight,"),
        ("train/relation_top1", "Fraction of relations nearest to their own teacher relation"),
        ("val/forces_mae", "Force MAE"),
        ("val/my_metric", "My metric"),
    ],
)
def test_captions_are_words(tag, caption):
    assert figures.described(tag)[1] == caption


# ---- numbers ----------------------------------------------------------------------------------------------------------


def split_of(energy, forces, mask, natoms) -> Split:
    return Split(
        "val", "somewhere", len(natoms), [], np.array(natoms), np.full(sum(natoms), 29), np.array(mask, dtype=bool),
        np.array([], dtype=str), np.array(energy, dtype=np.float32), np.array(forces, dtype=np.float32),
    )  # fmt: skip


def test_gap_closed_is_of_the_errors_of_atoms_in_the_mask():
    split = split_of([0.0, 0.0], np.zeros((3, 3)), [True, False, True], [2, 1])

    def off_by(energy: float, forces: float) -> Prediction:
        far = np.full((3, 3), forces, dtype=np.float32)
        far[1] = 100.0  # a fixed atom
        return Prediction(np.array([energy, energy], dtype=np.float32), far)

    predictions = {"undistilled": off_by(1.0, 0.5), "student": off_by(0.4, 0.4), "teacher": off_by(0.2, 0.1)}
    predictions = {role: {"val": of_role} for role, of_role in predictions.items()}
    gaps = numbers.gap_closed([split], predictions)
    assert gaps["energy_mae"].estimate == pytest.approx(0.6 / 0.8)
    assert gaps["forces_mae"].estimate == pytest.approx(0.1 / 0.4)
    assert gaps["energy_mae"].low <= gaps["energy_mae"].estimate <= gaps["energy_mae"].high
    metrics = numbers.metrics(split, predictions["student"]["val"])
    assert (metrics["energy_mae"], metrics["forces_mae"]) == (pytest.approx(0.4), pytest.approx(0.4))
    worse = {**predictions, "teacher": {"val": off_by(2.0, 0.1)}}
    assert math.isnan(numbers.gap_closed([split], worse)["energy_mae"].estimate)
    assert numbers.gap_closed([split], {role: predictions[role] for role in ("student", "teacher")}) == {}
    second_split = dataclasses.replace(split, name="other")
    errors = {"undistilled": (1.0, 3.0), "student": (0.4, 1.0), "teacher": (0.2, 0.4)}
    both = {role: {"val": off_by(first, 0.1), "other": off_by(second, 0.1)} for role, (first, second) in errors.items()}
    assert numbers.gap_closed([split, second_split], both)["energy_mae"].estimate == pytest.approx((4.0 - 1.4) / (4.0 - 0.6))


def test_the_mean_over_splits_counts_each_the_same():
    average = numbers.average({"a": {"student": {"energy_mae": 1.0}}, "b": {"student": {"energy_mae": 3.0}}})
    assert average == {"student": {"energy_mae": 2.0}}


def test_groups_count_their_systems_and_have_intervals_over_them():
    names, system = np.array(["H", "H", "C", "H", "C"]), np.array([0, 0, 0, 1, 2])
    groups = numbers._grouped(names, system, {"student": np.array([1.0, 3.0, 5.0, 8.0, 5.0])})
    assert (groups.names, groups.counts, groups.systems) == (["H", "C"], [3, 2], [2, 2])
    hydrogen, carbon = groups.errors["student"]
    assert (hydrogen.estimate, hydrogen.low, hydrogen.high) == (4.0, 2.0, 8.0)  # either system by itself, or both
    assert (carbon.estimate, carbon.low, carbon.high) == (5.0, 5.0, 5.0)
    single = numbers._grouped(names[:3], system[:3], {"student": np.array([1.0, 3.0, 5.0])}).errors["student"][0]
    assert single.estimate == 2.0 and math.isnan(single.low)


def embeddings_of(student: torch.Tensor, teacher: torch.Tensor, atomic_numbers, pairs) -> Embeddings:
    return Embeddings(np.array(atomic_numbers), teacher, student, torch.tensor(pairs), "")


def test_relations_are_compared_as_a_double_loop_does():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 4, generator=generator) for _ in range(2))
    teacher[4] = teacher[3]  # the last pair has no direction
    atomic_numbers, pairs = [1, 8, 29, 6, 6], [[0, 0, 1, 2, 3], [1, 2, 3, 3, 4]]
    compared = relations.similarity(embeddings_of(student, teacher, atomic_numbers, pairs))

    def relation(embedding, i: int, j: int) -> np.ndarray:
        if atomic_numbers[i] > atomic_numbers[j]:
            i, j = j, i
        unit = [embedding[k].double().numpy() / np.linalg.norm(embedding[k].double().numpy()) for k in (i, j)]
        return (unit[0] - unit[1]) / np.linalg.norm(unit[0] - unit[1])

    of_pairs = list(zip(*pairs))[:4]
    cosines = np.array([[relation(student, *e) @ relation(teacher, *f) for f in of_pairs] for e in of_pairs])
    assert sorted(compared.own) == pytest.approx(sorted(np.diag(cosines)))
    assert sorted(compared.others) == pytest.approx(sorted(cosines[~np.eye(4, dtype=bool)]))
    nearest = [np.diag(cosines)[e] >= np.abs(np.delete(cosines[e], e)).max() for e in range(4)]
    assert compared.top1 == pytest.approx(np.mean(nearest))
    assert sorted(np.diag(compared.matrix)) == pytest.approx(sorted(compared.own))
    assert np.diag(compared.reference) == pytest.approx(1.0)


def test_a_perfect_student_has_the_teachers_relations_and_plane():
    teacher = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    pairs = [[i for i in range(39)], [i + 1 for i in range(39)]]
    perfect = embeddings_of(4 * teacher, teacher, [1 + i % 20 for i in range(40)], pairs)
    compared = relations.similarity(perfect)
    assert compared.own == pytest.approx(1.0) and compared.top1 == 1.0
    assert compared.matrix == pytest.approx(compared.reference) and compared.matrix.shape == (39, 39)
    drawn = relations.planes(perfect)
    assert drawn.shared and drawn.student.points == pytest.approx(drawn.teacher.points)
    unit = teacher.double().numpy() / np.linalg.norm(teacher.double().numpy(), axis=1, keepdims=True)
    variances = np.sort(np.linalg.eigvalsh(np.cov(unit.T)))[::-1]
    assert drawn.teacher.variance == pytest.approx(tuple(variances[:2] / variances.sum()))


def test_curves_of_a_resumed_training_are_one(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for first, last, value in ((1, 6, 1.0), (4, 9, 2.0)):  # the second resumes at step 4
        with SummaryWriter(str(tmp_path), filename_suffix=str(first)) as writer:
            for step in range(first, last + 1):
                writer.add_scalar("train/loss", value, step)
    curve = read_curves(tmp_path)["train/loss"]
    assert curve.steps.tolist() == list(range(1, 10))
    assert curve.values.tolist() == [1.0] * 3 + [2.0] * 6
    assert read_curves(tmp_path / "none") == {}


# ---- refusals ---------------------------------------------------------------------------------------------------------


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, arguments)])
    assert isinstance(stop.value.code, str), capsys.readouterr().err
    return stop.value.code


@pytest.mark.slow
def test_bad_arguments_are_refused_with_what_to_do(run_dir, data, teacher_checkpoint, tmp_path, capsys):
    def refused(*arguments, directory=run_dir, teacher=teacher_checkpoint, output=tmp_path / "none") -> str:
        message = refusal(capsys, directory, "--teacher", teacher, "--cpu", "--output", output, *arguments)
        assert message.startswith("fairchem-crack report: ") and not (tmp_path / "none").exists()
        return message

    crack = ("--name", "crack")
    assert "expected the --run-dir" in refused(directory=tmp_path / "nowhere")
    assert "it has none" in refused(directory=tmp_path)
    assert "holds crack, undistilled. Choose one with --name" in refused()
    assert "--name carck" in refused("--name", "carck") and "holds crack, undistilled" in refused("--name", "carck")
    assert "--systems: expected at least 1, found 0" in refused(*crack, "--systems", 0)
    assert "is given twice" in refused(*crack, "--data", f"val={data / 'val_id'}", f"val={data / 'train'}")
    assert "expected NAME=SRC" in refused(*crack, "--data", "val=")
    assert "does not exist" in refused(*crack, "--data", f"val={tmp_path / 'absent'}")
    (tmp_path / "empty").mkdir()
    assert "no *.lmdb file" in refused(*crack, "--data", tmp_path / "empty")
    assert "expected a checkpoint, or the name of a run" in refused(*crack, "--undistilled", "stock")
    absent = refused(*crack, "--also", teacher_checkpoint, tmp_path / "absent.pt")
    assert f"--also {tmp_path / 'absent.pt'}: expected a checkpoint, or the name of a run" in absent
    assert "--also" in refused(*crack, "--also", "crack", "crack") and "given twice" in refused(
        *crack, "--also", "crack", "crack"
    )
    assert "fairchem-crack stability writes it" in refused(*crack, "--stability", tmp_path / "absent.json")
    (tmp_path / "other.json").write_text("[]")
    assert "expected the JSON file that fairchem-crack stability" in refused(*crack, "--stability", tmp_path / "other.json")
    (tmp_path / "file").touch()
    assert "is a file; give a directory" in refused(*crack, output=tmp_path / "file")
    small = ("--data", data / "val_id", "--systems", 1)
    assert "neither a file" in refused(*crack, *small, teacher=tmp_path / "absent.pt")
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    assert "cannot be read as a checkpoint" in refused(*crack, *small, teacher=tmp_path / "broken.pt")
    message = refused(*crack, *small, "--also", tmp_path / "broken.pt")
    assert f"--also {tmp_path / 'broken.pt'}" in message and "cannot be read as a checkpoint" in message
    content = torch.load(teacher_checkpoint, map_location="cpu", weights_only=False)
    content["config"]["model"] = dict(SCN_MODEL)
    torch.save(content, tmp_path / "scn.pt")
    assert "The teacher" in refused(*crack, *small, teacher=tmp_path / "scn.pt")


def test_dollar_signs_are_no_formulas():
    errors = {"$x^$y": {"student": {"energy_mae": 1.0}}, "$a$": {"student": {"energy_mae": 2.0}}}
    assert figures.by_split("energy_mae", errors, ["student"], {split: {} for split in errors}).png
    with drawing.canvas() as drawn:
        assert not drawn.axis.text(0, 0, "$a$").get_parse_math()


@pytest.mark.slow
def test_systems_without_labels_are_refused(data):
    with pytest.raises(ValueError, match=r"has no `energy`.*it holds .*`force`"):
        load_split("val", {"src": str(data / "val_id")}, systems=2, free_atoms_only=True)
    gc.collect()
    with pytest.raises(ValueError, match="cannot be read"):
        load_split("val", {"src": str(data / "val_id"), "format": "cif"}, systems=2, free_atoms_only=True)


def test_a_sample_is_evenly_spaced_with_a_free_atom_mask(data):
    options = {**DATASET, "src": str(data / "train")}
    split = load_split("train", options, systems=4, free_atoms_only=True)
    assert [system.sid for system in split.systems] == [0, 3, 6, 9] and split.total == 12
    fixed = np.concatenate([system.fixed.numpy() for system in split.systems])
    assert np.array_equal(split.mask, fixed == 0) and len(split.adsorbates) == 4
    settings = {**options, "val_split_settings": {"first_n": 5}}
    assert load_split("train", settings, systems=400, free_atoms_only=True).total == 5
    whole = load_split("train", options, systems=400, free_atoms_only=False)
    assert len(whole.systems) == 12 and whole.mask.all()


@pytest.mark.slow
def test_the_default_data_are_the_trainings_validation(run_dir, data, teacher_checkpoint):
    options = make_request(run_dir, name="crack", teacher=str(teacher_checkpoint)).data
    assert options.keys() == {"val"} and options["val"]["src"] == str(data / "val_id")
    assert options["val"]["key_mapping"] == DATASET["key_mapping"]
    assert make_request(run_dir, name="crack", teacher="t").output == run_dir / "reports/crack"


@pytest.mark.slow
def test_options_that_choose_systems_stay_with_their_data(run_dir, data, teacher_checkpoint, tmp_path):
    source = run_dir / "checkpoints/crack/best_checkpoint.pt"
    content = copy.deepcopy(torch.load(source, map_location="cpu", weights_only=False))
    content["config"]["val_dataset"].update(first_n=2, metadata_path="elsewhere.npz")
    changed = tmp_path / "checkpoints/run/best_checkpoint.pt"
    changed.parent.mkdir(parents=True)
    torch.save(content, changed)
    own = make_request(tmp_path, teacher="t").data["val"]
    replaced = make_request(tmp_path, teacher="t", data=[str(data / "train")]).data["train"]
    assert own["first_n"] == 2 and not {"first_n", "metadata_path"} & replaced.keys()


def test_labels_of_a_named_output_are_read_by_their_property(data):
    mapping = {"y": "oc20_energy", "force": "oc20_forces"}
    named = as_labelled({**DATASET, "key_mapping": mapping}, {"energy": "oc20_energy", "forces": "oc20_forces"})
    splits = [
        load_split("val", {**options, "src": str(data / "val_id")}, systems=3, free_atoms_only=True)
        for options in (DATASET, named)
    ]
    assert np.array_equal(splits[0].energy, splits[1].energy) and np.array_equal(splits[0].forces, splits[1].forces)
