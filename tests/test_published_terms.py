"""The published training of the 22M EquiformerV2, and of ARK: our terms are the published formulas, written here again."""

from __future__ import annotations

from pathlib import Path

import oracle
import pytest
import torch
import yaml
from architectures import build
from fairchem.core.models.equiformer_v2.so3 import SO3_Embedding
from fairchem.core.models.equiformer_v2.transformer_block import FeedForwardNetwork
from stub_teacher import distillation_of
from tolerances import REORDERED

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, TermConfig, parse, split_loss_functions
from fairchem_crack.config.options import ProjectionConfig
from fairchem_crack.teacher.frozen import Teacher
from fairchem_crack.testing import collate, slabs
from fairchem_crack.training.distillation import Distillation
from fairchem_crack.training.projection import ALL, EquivariantProjection

CONFIG = yaml.safe_load((Path(__file__).parents[1] / "configs/oc20/s2ef/students/eqV2-22M.yml").read_text())
AVERAGE_ATOMS = 77.81317  # by which fairchem's EquiformerV2 divides what its energy head gives
PUBLISHED = 1e-6
ROWS = [1, 3, 5]  # of each degree, up to l = 2


class Read:
    """What the published code has of a model: its edges, all rows after the last norm, and what the energy head gives."""

    def __init__(self, model) -> None:
        model.edge_degree_embedding.register_forward_pre_hook(lambda _, args: setattr(self, "edges", args[2]))
        model.norm.register_forward_hook(lambda _, __, rows: setattr(self, "rows", rows.detach().double()))
        model.energy_block.register_forward_hook(
            lambda _, __, output: setattr(self, "energies", output.embedding[:, 0].detach().double())
        )


@pytest.fixture(scope="module")
def models() -> tuple:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        student, teacher = build("equiformer_v2", num_layers=2), build("equiformer_v2", num_layers=3)
        for parameter in (*student.parameters(), *teacher.parameters()):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return student, teacher, Read(student), Read(teacher)


def step_of(models, terms: list[TermConfig], **options) -> tuple[Distillation, dict, torch.Tensor]:
    """A distillation, the values of its terms in a step, and the pairs: the teacher's edges in one direction, each once."""
    student, teacher, _, read = models
    batch = collate(slabs())
    batch.fixed = torch.zeros(batch.num_nodes)
    distillation = distillation_of(student, Teacher("equiformer_v2", teacher, Path("t.pt")), terms, **options)
    try:
        distillation.preflight(batch)
        step = distillation.run_teacher(batch, 1)
        student.eval()  # without dropout
        losses = distillation.loss(step, student(batch))
        pairs = {(min(edge), max(edge)) for edge in read.edges.T.tolist() if edge[0] != edge[1]}
        pairs = torch.tensor(sorted(pairs)).T
        return distillation, {**losses.log, "total": losses.total}, pairs
    finally:
        distillation.close()


def test_the_22m_config_has_the_published_terms(models):
    """relations 10 of the invariant rows, n2n 100 of all rows, atom energies 0.5 of what the heads give; its own losses."""
    own = [{"energy": {"fn": "mae", "coefficient": 4}}, {"forces": {"fn": "l2mae", "coefficient": 100}}]
    assert CONFIG["loss_functions"][:2] == own
    terms = split_loss_functions(CONFIG["loss_functions"])[1]
    distillation, values, pairs = step_of(models, terms, projection=projection_of(CONFIG))
    *_, student, teacher = models
    module = distillation.projections.modules[keys.NODE_EMBEDDING]
    statistics = distillation.projection_training.statistics
    shifted = (student.rows[:, 0].float() - module.shift) / module.scale
    projected = statistics.restore(module.trainable(shifted)).detach().double()
    expected = {
        "loss_relations": oracle.crack(projected, teacher.rows[:, 0], pairs, temperature=0.15).loss,
        "loss_node_embeddings": float(((student.rows - teacher.rows) ** 2).mean()),
    }
    of_heads = float(((student.energies - teacher.energies) ** 2).mean())
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, rel=PUBLISHED), name
    published = 10 * expected["loss_relations"] + 100 * expected["loss_node_embeddings"] + 0.5 * of_heads
    assert float(values["total"]) == pytest.approx(published, rel=PUBLISHED)
    assert float(values["loss_atom_energies"]) * AVERAGE_ATOMS**2 == pytest.approx(of_heads, rel=PUBLISHED)


def projection_of(config: dict) -> ProjectionConfig:
    options = {"teacher": {"cache": "any"}, **config["task"]["distill"]}
    return parse(DistillConfig, options, "task.distill").projection


def test_an_mlp_is_the_published_projection_of_relations():
    """Row l = 0 of `proj_student`, a feed-forward network with a separable activation, which passes by its grid."""
    torch.manual_seed(0)
    module = EquivariantProjection(6, 12, 12)
    published: FeedForwardNetwork = module.trainable
    first, last = published.scalar_mlp[0], published.so3_linear_2
    mlp = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.SiLU(), torch.nn.Linear(12, 12))
    weights = {"0.weight": first.weight, "0.bias": first.bias, "2.weight": last.weight[0], "2.bias": last.bias}
    mlp.load_state_dict(weights)
    inputs = SO3_Embedding(5, [6], 12, torch.device("cpu"), torch.float32)
    inputs.set_embedding(torch.randn(5, 49, 12))
    torch.testing.assert_close(published(inputs.clone()).embedding[:, 0], mlp(inputs.embedding[:, 0]))


@pytest.mark.parametrize("kind", ["linear", "equivariant"])
def test_relations_per_degree_are_the_sum_of_a_loss_for_each(models, kind):
    """As ARK has them: InfoNCE of the rows of each degree, projected."""
    term = TermConfig(keys.RELATIONS, "crack", 1.0, lmax="all", per_degree=True)
    distillation, values, pairs = step_of(models, [term], projection=ProjectionConfig(kind))
    *_, student, teacher = models
    modules, statistics = distillation.projections.modules, distillation.projection_training.statistics
    rows = student.rows.float()
    if kind == "equivariant":
        projected = modules[ALL](rows)
    else:
        parts = zip(modules.values(), (rows[:, 0], rows[:, 1:4], rows[:, 4:]))
        node, vector, higher = (module(part) for module, part in parts)
        projected = torch.cat((node[:, None], vector, higher), dim=1)
    scale = torch.cat((statistics.channel_std[None], statistics.vector_rms[None], statistics.higher_rms))
    scale = scale.repeat_interleave(torch.tensor(ROWS), dim=0).double()
    target = teacher.rows.clone()
    target[:, 0] -= statistics.channel_mean
    target /= scale
    degrees = zip(projected.detach().double().split(ROWS, 1), target.split(ROWS, 1))
    expected = sum(oracle.crack(own.flatten(1), of_teacher.flatten(1), pairs).loss for own, of_teacher in degrees)
    assert float(values["loss_relations"]) == pytest.approx(expected, rel=REORDERED)
