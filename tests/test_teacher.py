"""The teacher: loaded from any fairchem checkpoint, frozen, and without trace in the caller's training."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from architectures import MODELS, build
from conftest import SCN_MODEL, STUDENT_MODEL, TEACHER_MODEL
from tolerances import FLOAT32_SMALL
from torch.overrides import TorchFunctionMode, _len_torch_function_stack

from fairchem_crack import keys
from fairchem_crack.config import TeacherConfig
from fairchem_crack.io.checkpoints import UntrustedError
from fairchem_crack.teacher import frozen as teacher_module
from fairchem_crack.teacher.frozen import Teacher, _BatchIndependent, load_teacher
from fairchem_crack.teacher.responses import STEP, displaced, draw_displacement
from fairchem_crack.testing import collate, slabs

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(teacher_checkpoint) -> dict:
    """The content of the teacher's checkpoint, to be changed."""
    return torch.load(teacher_checkpoint, map_location="cpu", weights_only=False)


@pytest.fixture
def save(tmp_path):
    """Callable: write a content as a checkpoint and return its path."""

    def write(content: object, name: str = "changed.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def load(path: Path, **options):
    return load_teacher(TeacherConfig(checkpoint=str(path), **options), CPU)


def by_hand(weights: dict, batch) -> torch.Tensor:
    """Node embeddings of an EquiformerV2 built without this package."""
    from fairchem.core.common.registry import registry

    attributes = dict(TEACHER_MODEL)
    model = registry.get_model_class(attributes.pop("name"))(**attributes).eval()
    model.load_state_dict(weights, strict=True)
    embeddings: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda _, __, x: embeddings.append(x.detach()[:, 0]))
    with _BatchIndependent():  # the same frames and ties
        model(batch)
    return embeddings[0]


def own_weights(checkpoint: dict) -> dict:
    return {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}


def ema_weights(checkpoint: dict) -> dict:
    """The checkpoint's weights with the parameters, in the order a model lists them, taken from its EMA."""
    from fairchem.core.common.registry import registry

    attributes = dict(TEACHER_MODEL)
    model = registry.get_model_class(attributes.pop("name"))(**attributes)
    averages = dict(zip((name for name, _ in model.named_parameters()), checkpoint["ema"]["shadow_params"]))
    return {**own_weights(checkpoint), **averages}


# EquiformerV2's random edge frames change the last bits.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def test_ema_weights_are_taken_unless_refused(teacher_checkpoint, checkpoint, batch):
    averaged = load(teacher_checkpoint)(batch).node_embedding
    plain = load(teacher_checkpoint, use_ema=False)(batch).node_embedding
    torch.testing.assert_close(averaged, by_hand(ema_weights(checkpoint), batch), **ROUNDING)
    torch.testing.assert_close(plain, by_hand(own_weights(checkpoint), batch), **ROUNDING)
    assert not torch.allclose(averaged, plain, rtol=0.01, atol=0.01)  # clearly others


def test_a_checkpoint_without_ema_gives_its_own_weights(checkpoint, save, batch):
    checkpoint["ema"] = None
    embedding = load(save(checkpoint))(batch).node_embedding
    torch.testing.assert_close(embedding, by_hand(own_weights(checkpoint), batch), **ROUNDING)


def test_the_published_oc20_format_gives_the_same_outputs(teacher_checkpoint, checkpoint, save, batch):
    attributes = dict(TEACHER_MODEL)
    old = {
        "epoch": 1.5,
        "step": 7,
        "state_dict": {f"module.module.{key}": value for key, value in own_weights(checkpoint).items()},
        "normalizers": {key: {"mean": torch.tensor(0.5), "std": torch.tensor(2.0)} for key in ("target", "grad_target")},
        "config": {"task": {}, "model": attributes.pop("name"), "model_attributes": attributes},
        "val_metrics": None,
        "ema": None,
        "amp": None,
    }
    teacher, published = load(teacher_checkpoint, use_ema=False), load(save(old))
    assert torch.equal(teacher(batch).node_embedding, published(batch).node_embedding)
    assert teacher.fingerprint() == published.fingerprint()


def test_outputs_may_enter_a_students_graph(teacher_checkpoint, batch):
    outputs = load(teacher_checkpoint)(batch)
    assert outputs.node_embedding.shape == (batch.num_nodes, TEACHER_MODEL["sphere_channels"])
    for value in (outputs.node_embedding, outputs.edge_index):
        assert not value.is_inference() and not value.requires_grad
    scale = torch.ones((), requires_grad=True)
    (scale * outputs.node_embedding).square().sum().backward()
    assert scale.grad == pytest.approx(2 * float(outputs.node_embedding.square().sum()))


def test_no_graph_is_built_inside(teacher_checkpoint, batch):
    # EquiformerV2 switches gradients on in its own forward: torch.no_grad() around it would not do
    teacher = load(teacher_checkpoint)
    seen: list[bool] = []
    for module in teacher.model.modules():
        module.register_forward_hook(
            lambda _, __, output: (
                seen.append(getattr(output, "embedding", output).grad_fn is not None)
                if torch.is_tensor(getattr(output, "embedding", output))
                else None
            )
        )
    teacher(batch)
    assert len(seen) > 20 and not any(seen)


def test_nothing_of_it_can_be_trained(teacher_checkpoint, batch):
    teacher = load(teacher_checkpoint)
    before = copy.deepcopy(teacher.model.state_dict())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    modes: list[bool] = []
    teacher.model.blocks[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    for _ in range(3):
        teacher.model.train()  # as model.train() of a parent module would
        teacher(batch)
    assert modes == [False] * 3 and not any(module.training for module in teacher.model.modules())
    after = teacher.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[key]) for key, value in before.items())


def test_only_the_batch_decides_outputs_and_global_rng_stays(teacher_checkpoint, batch):
    teacher = load(teacher_checkpoint)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = teacher(batch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = teacher(batch)
    assert torch.equal(first.node_embedding, second.node_embedding) and torch.equal(first.edge_index, second.edge_index)


def test_outputs_for_a_system_do_not_depend_on_the_others(teacher_checkpoint, batch):
    from fairchem.core.datasets import data_list_collater

    teacher, systems = load(teacher_checkpoint), batch.to_data_list()
    together = teacher(batch).node_embedding.split(batch.natoms.tolist())
    for pair in ([0, 1], [1, 0]):
        of_pair = data_list_collater([systems[index] for index in pair], otf_graph=True)
        for index, embedding in zip(pair, teacher(of_pair).node_embedding.split(of_pair.natoms.tolist())):
            torch.testing.assert_close(embedding, together[index], **FLOAT32_SMALL)


class Choices(TorchFunctionMode):
    """Names the calls whose result torch may choose: random numbers, and the order of equals in rows that are sorted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_choice = "rand" in name or name in ("normal_", "uniform_", "bernoulli_")
        is_unstable = name in ("sort", "argsort", "topk") and args[0].dim() == 2 and not kwargs.get("stable")
        self.seen += [name] * (is_choice or is_unstable)
        return func(*args, **kwargs)


ALL_FIELDS = (keys.ENERGY, keys.FORCES, keys.NODE_EMBEDDING)


@pytest.mark.parametrize("name", MODELS)
def test_a_forward_leaves_nothing_to_chance(name):
    few = {} if name == "schnet" or name.startswith("dimenet") else {"max_neighbors": 6}  # so that neighbors are left out
    teacher, batch = Teacher(name, build(name, **few), Path("toy.pt")), collate(slabs())
    with Choices() as choices:
        outputs = teacher(batch, ALL_FIELDS)
    assert choices.seen == []
    with _BatchIndependent():  # all of the forward, as the caches of version 0.1.0 were made
        whole = teacher(batch, ALL_FIELDS)
    for field in (*ALL_FIELDS, "edge_index"):
        assert torch.equal(outputs[field], whole[field]), field


@pytest.mark.parametrize("fields", [ALL_FIELDS, (keys.NODE_EMBEDDING,)], ids=["all", "embeddings"])
@pytest.mark.parametrize("name", MODELS)
def test_messages_are_passed_at_the_models_own_speed(name, fields):
    """Without the mode through which each call of torch takes a detour in Python."""
    model = build(name)
    teacher, modes = Teacher(name, model, Path("toy.pt")), []
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: modes.append(_len_torch_function_stack()))
    teacher(collate(slabs()), fields)
    assert set(modes) == {0}


@pytest.mark.parametrize("name", ["equiformer_v2", "painn", "esen hydra, gradient forces"])
def test_responses_are_differences_of_the_teachers_outputs(name):
    teacher, batch = Teacher(name, build(name), Path("toy.pt")), collate(slabs())
    fields = (keys.EMBEDDING_RESPONSE, keys.FORCE_RESPONSE)
    both, alone = teacher(batch, fields, seed=3), teacher(batch, fields[:1], seed=3)
    displacement = draw_displacement(batch, 3)
    with teacher.features.edges_at(batch.pos):
        ends = [teacher(displaced(batch, part * displacement), ALL_FIELDS) for part in (0, 1)]
    for response, field in zip(fields, (keys.NODE_EMBEDDING, keys.FORCES)):
        assert torch.equal(both[response].displacement, displacement)
        expected = (ends[1][field] - ends[0][field]) / STEP
        torch.testing.assert_close(both[response].values, expected, **FLOAT32_SMALL)
        assert expected.abs().max() > 0
    torch.testing.assert_close(both.embedding_response.values, alone.embedding_response.values, **FLOAT32_SMALL)
    assert alone.force_response is None


@pytest.mark.parametrize("name", MODELS)
def test_edges_of_other_positions_have_lengths_of_their_own(name):
    """Where no edge differs, a run with the edges of the atoms at rest is the run of the moved atoms."""
    teacher, batch = Teacher(name, build(name), Path("toy.pt")), collate(slabs())
    moved = displaced(batch, 0.05 * draw_displacement(batch, 0))
    expected = teacher(moved, ALL_FIELDS)
    with teacher.features.edges_at(batch.pos):
        outputs = teacher(moved, ALL_FIELDS)
    assert torch.equal(outputs.edge_index, expected.edge_index)
    for field in ALL_FIELDS:
        torch.testing.assert_close(outputs[field], expected[field], rtol=1e-4, atol=1e-5)
    assert not torch.equal(outputs.node_embedding, teacher(batch).node_embedding)


@pytest.mark.parametrize("name", ["equiformer_v2", "painn", "gemnet_t"])
def test_a_displacement_within_the_context_changes_no_edge(name):
    teacher, batch = Teacher(name, build(name, max_neighbors=6), Path("toy.pt")), collate(slabs())
    rest, moved = teacher(batch).edge_index, displaced(batch, 20 * draw_displacement(batch, 0))
    with teacher.features.edges_at(batch.pos):
        assert torch.equal(teacher(moved).edge_index, rest)
    after = teacher(moved).edge_index
    assert after.shape != rest.shape or not torch.equal(after, rest)
    assert "generate_graph" not in vars(teacher.features.backbone)


def test_a_forward_that_fails_leaves_nothing_behind(teacher_checkpoint, batch):
    teacher = load(teacher_checkpoint)
    batch.cell = batch.cell[:0]  # of which no graph can be made
    with pytest.raises((IndexError, RuntimeError)):
        teacher(batch)
    assert _len_torch_function_stack() == 0 and "generate_graph" not in vars(teacher.features.backbone)


def test_the_batch_is_as_it_was(teacher_checkpoint, batch):
    before = batch.clone()
    load(teacher_checkpoint)(batch)
    assert sorted(batch.keys()) == sorted(before.keys())
    for key, value in before.items():
        if torch.is_tensor(value):
            assert torch.equal(value, batch[key]) and not batch[key].requires_grad and not batch[key].is_inference(), key


def test_loading_leaves_the_callers_random_numbers(teacher_checkpoint):
    before = torch.get_rng_state()
    load(teacher_checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_keeps_nothing_of_a_batch(teacher_checkpoint, batch):
    teacher = load(teacher_checkpoint)
    teacher(batch)
    with pytest.raises(KeyError):
        _ = teacher.features.node_embedding


def test_the_fingerprint_is_of_the_weights_and_not_of_the_file(teacher_checkpoint, checkpoint, save):
    first = load(teacher_checkpoint).fingerprint()
    checkpoint["step"] = 12
    assert load(save(checkpoint)).fingerprint() == first
    assert load(teacher_checkpoint, use_ema=False).fingerprint() != first
    checkpoint["ema"]["shadow_params"][-1].view(-1)[0] += 1e-3
    assert load(save(checkpoint)).fingerprint() != first


def test_a_painn_can_teach(save, batch):
    from fairchem.core.common.registry import registry

    attributes = dict(STUDENT_MODEL)
    model = registry.get_model_class(attributes.pop("name"))(**attributes)
    content = {"config": {"model": dict(STUDENT_MODEL)}, "state_dict": model.state_dict(), "ema": None}
    embeddings: list[torch.Tensor] = []
    model.eval().out_energy.register_forward_pre_hook(lambda _, args: embeddings.append(args[0].detach()))
    model(batch)
    assert torch.equal(load(save(content))(batch).node_embedding, embeddings[0])


def test_a_pretrained_name_is_looked_up_in_the_local_cache(teacher_checkpoint, tmp_path, monkeypatch):
    lookups = []

    def local_file(name, local_cache):
        lookups.append((name, local_cache))
        return str(teacher_checkpoint)

    monkeypatch.setattr(teacher_module, "model_name_to_local_file", local_file)
    monkeypatch.chdir(tmp_path)
    name = "EquiformerV2-31M-S2EF-OC20-All+MD"
    teacher = load(Path(name), local_cache="cache")
    assert lookups == [(name, "cache")]
    assert teacher.fingerprint() == load(teacher_checkpoint).fingerprint()


def test_a_teacher_that_needs_code_is_loaded_with_trust_only(teacher_checkpoint, checkpoint, save):
    checkpoint["config"]["share"] = Fraction(1, 3)
    path = save(checkpoint)
    with pytest.raises(UntrustedError, match=r"it needs `fractions\.Fraction`.*task\.distill\.teacher\.trust: True"):
        load(path)
    assert load(path, trust=True).fingerprint() == load(teacher_checkpoint).fingerprint()


def truncated(content: dict, path: Path) -> None:
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[:5000])


def changed(change):
    """A writer of the checkpoint after `change(content)`."""

    def write(content: dict, path: Path) -> None:
        change(content)
        torch.save(content, path)

    return write


UNREADABLE = {
    "truncated": (truncated, r"cannot be read as a checkpoint.*5000 bytes.*cut short"),
    "empty": (lambda _, path: path.write_bytes(b""), r"cannot be read as a checkpoint.*0 bytes.*cut short"),
    "text": (lambda _, path: path.write_text("a web page: 404"), "cannot be read as a checkpoint"),
    "a tensor": (lambda _, path: torch.save(torch.ones(2), path), "is not a fairchem checkpoint: .*found Tensor"),
    "bare weights": (
        lambda content, path: torch.save(content["state_dict"], path),
        "is not a fairchem checkpoint: expected `state_dict` and `config`",
    ),
    "no model": (changed(lambda content: content["config"].pop("model")), "its config has no 'model'"),
    "no model name": (changed(lambda content: content["config"]["model"].pop("name")), "its config has no 'name'"),
    "unknown model": (
        changed(lambda content: content["config"]["model"].update(name="equiformer_v9")),
        "is a `equiformer_v9`, which this fairchem does not have",
    ),
    "unknown argument": (
        changed(lambda content: content["config"]["model"].update(from_the_future=1)),
        "`equiformer_v2`.*from_the_future",
    ),
    "other width": (
        changed(lambda content: content["config"]["model"].update(sphere_channels=8)),
        "its weights do not fit the `equiformer_v2`",
    ),
    "weight missing": (
        changed(lambda content: content["state_dict"].pop("module.norm.affine_weight")),
        r"its weights do not fit the `equiformer_v2`[\s\S]*norm.affine_weight",
    ),
    "EMA of fewer parameters": (changed(lambda content: content["ema"]["shadow_params"].pop()), "EMA"),
    "EMA of more parameters": (changed(lambda content: content["ema"]["shadow_params"].append(torch.ones(1))), "EMA"),
    "no adapter": (
        changed(lambda content: content.update(scn())),
        "teacher .*is a `scn`.*it has those of .*`equiformer_v2`, .*`painn`",
    ),
}


def scn() -> dict:
    from fairchem.core.common.registry import registry

    attributes = {key: value for key, value in SCN_MODEL.items() if key != "name"}
    model = registry.get_model_class("scn")(**attributes)
    return {"config": {"model": SCN_MODEL}, "state_dict": model.state_dict(), "ema": None}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unusable_checkpoint_is_refused_by_path_and_reason(checkpoint, tmp_path, kind):
    write, message = UNREADABLE[kind]
    write(checkpoint, tmp_path / "teacher.pt")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "teacher.pt")
    assert str(tmp_path / "teacher.pt") in str(error.value)


def test_a_missing_file_is_neither_file_nor_pretrained_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"task.distill.teacher.checkpoint: .*gone.pt.*available_pretrained_models"):
        load(tmp_path / "gone.pt")
