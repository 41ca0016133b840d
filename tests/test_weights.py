"""What counts how much in a term: weights by tag and by degree, and distances of pairs, against double loops."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from test_terms import SIZES, VECTORS, WIDTH, step_of
from tolerances import REORDERED
from torch_geometric.data import Batch, Data

from fairchem_crack import keys
from fairchem_crack.config import DistillConfig, RelationsConfig, TagWeights, TeacherConfig, TermConfig
from fairchem_crack.training.losses import HuberLoss, LossContext, build_loss
from fairchem_crack.training.preflight import check_tag_weights, check_tags
from fairchem_crack.training.reduction import reduce_parts
from fairchem_crack.training.terms import element_weights, inputs_of, resolved

PAIRS = torch.tensor([[0, 0, 1, 5, 6, 5], [1, 3, 2, 6, 10, 7]])
TAGS = torch.tensor([0, 1, 1, 2, 2, 0, 0, 1, 1, 1, 2])
WEIGHTS = TagWeights(0.2, 1.0, 3.0)
OF_ATOMS = np.array([0.2, 1.0, 3.0])[TAGS]


def loss_of(term: TermConfig, device="cpu", **relations) -> tuple[float, tuple]:
    """A term's loss in a step of `test_terms`, and what it compares."""
    step = step_of(SIZES, device=device)
    step.pairs, step.batch.tags = PAIRS.to(device), TAGS.to(device)
    config = DistillConfig(TeacherConfig("any"), relations=RelationsConfig(**relations))
    inputs = inputs_of(term, step)
    context = LossContext(step.batch.natoms, step.pairs, weights=element_weights(term, step))
    loss = build_loss(term, config, widths=(WIDTH, VECTORS)).part(*inputs, context)
    return float(reduce_parts([loss])[0]), tuple(part.detach().cpu().double().numpy() for part in inputs)


def length(embedding: np.ndarray) -> np.ndarray:
    """(P,) distances in units of their mean."""
    distances = np.array([np.linalg.norm(embedding[i] - embedding[j]) for i, j in PAIRS.T])
    return distances / distances.mean()


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_lengths_are_compared_in_units_of_their_mean(projected, standardize, device):
    """Relational knowledge distillation, distance-wise; the student's own embedding is of another width."""
    term = TermConfig(keys.RELATION_LENGTHS, "huber", 1.0, projected=projected, standardize=standardize)
    loss, _ = loss_of(term, device)
    step = step_of(SIZES)
    nodes = inputs_of(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, standardize=standardize), step)
    student = nodes[0] if projected else 10 * step.student.node_embedding
    difference = np.abs(length(student.detach().double().numpy()) - length(nodes[1].detach().double().numpy()))
    expected = np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    assert loss == pytest.approx(expected, rel=REORDERED)


def test_huber_is_linear_from_one_on():
    zero = torch.zeros(3)
    assert HuberLoss()(torch.tensor([0.5, -1.0, 3.0]), zero, zero).tolist() == [0.125, 0.5, 2.5]


def test_coinciding_embeddings_have_no_length_and_a_gradient():
    step = step_of(SIZES)
    step.pairs = PAIRS[:, :2]
    step.student.node_embedding = torch.ones_like(step.student.node_embedding).requires_grad_()
    student, _ = inputs_of(TermConfig(keys.RELATION_LENGTHS, "mse", 1.0, projected=False), step)
    student.sum().backward()
    assert not student.any() and not step.student.node_embedding.grad.any()


@pytest.mark.parametrize(
    "key, fn",
    [
        (keys.NODE_EMBEDDINGS, "mse"),
        (keys.NODE_EMBEDDINGS, "l2mae"),
        (keys.VECTOR_EMBEDDINGS, "l2mae"),
        (keys.ATOM_ENERGIES, "mae"),
        (keys.RELATION_VECTORS, "mse"),
        (keys.RELATION_LENGTHS, "mae"),
    ],
)
def test_a_tags_weight_multiplies_the_loss_of_its_atoms(key, fn, device):
    """And of a pair the mean of its atoms' weights; the mean stays over all."""
    loss, (student, teacher) = loss_of(TermConfig(key, fn, 1.0, tag_weights=WEIGHTS), device)
    weights = OF_ATOMS[PAIRS].mean(axis=0) if key in keys.OF_PAIRS else OF_ATOMS
    weights = np.repeat(weights, len(student) // len(weights))
    errors = np.linalg.norm(student - teacher, axis=1) if fn == "l2mae" else np.abs(student - teacher)
    values = errors**2 if fn == "mse" else errors
    assert loss == pytest.approx((weights * values.T).mean(), rel=REORDERED)


@pytest.mark.parametrize("options", [{}, {"anchor": "symmetric"}, {"negatives": "system"}, {"max_pairs": 3}])
def test_a_pairs_weight_multiplies_its_loss_as_anchor(options, device):
    """A weight on one pair at a time gives that pair's share, whatever the order of the pairs in the loss."""
    step = step_of(SIZES)
    embeddings = inputs_of(TermConfig(keys.RELATIONS, "crack", 1.0), step)
    term = build_loss(
        TermConfig(keys.RELATIONS, "crack", 1.0), DistillConfig(TeacherConfig("any"), relations=RelationsConfig(**options))
    )
    pairs = PAIRS.flip(1)  # not sorted by system
    whole = term.elements(*embeddings, LossContext(step.batch.natoms, pairs))
    shares = [
        term.elements(*embeddings, LossContext(step.batch.natoms, pairs, weights=weights))
        for weights in torch.eye(len(PAIRS.T))
    ]
    assert all(share.number == whole.number for share in shares)
    torch.testing.assert_close(sum(share.values for share in shares), whole.values)
    if options:
        return
    weights = OF_ATOMS[PAIRS].mean(axis=0)
    loss, (student, teacher) = loss_of(TermConfig(keys.RELATIONS, "crack", 1.0, tag_weights=WEIGHTS), device)
    directed = np.concatenate((PAIRS.T, PAIRS.flip(0).T))
    relations = [[oracle.relation(embedding, *pair) for pair in directed] for embedding in (student, teacher)]
    losses = oracle._contrast([tuple(pair) for pair in directed.tolist()], *relations, relations[1])[0]
    assert loss == pytest.approx((np.tile(weights, 2) * losses).mean(), rel=REORDERED)


def test_info_nce_is_weighted_by_tag(device):
    loss, (student, teacher) = loss_of(TermConfig(keys.NODE_CONTRAST, "info_nce", 1.0, tag_weights=WEIGHTS), device)
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (student, teacher)]
    logits = units[0] @ units[1].T / 0.15
    losses = np.log(np.exp(logits).sum(axis=1)) - logits.diagonal()
    assert loss == pytest.approx((OF_ATOMS * losses).mean(), rel=REORDERED)


def test_a_degrees_weight_multiplies_its_squared_error(device):
    plain = loss_of(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, lmax=1), device)[1]
    loss, _ = loss_of(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, lmax=1, degree_weights=(1.0, 0.25)), device)
    weights = np.repeat([1.0, 0.25], [WIDTH, 3 * VECTORS])
    assert loss == pytest.approx((weights * (plain[0] - plain[1]) ** 2).mean(), rel=REORDERED)


@pytest.mark.parametrize("per_degree", [True, False])
def test_relations_are_weighted_by_degree(per_degree, device):
    """A weight for the loss of each degree; or of one loss, for the squared length of each degree's part."""
    term = TermConfig(keys.RELATIONS, "crack", 1.0, lmax=1, per_degree=per_degree, degree_weights=(1.0, 0.25))
    loss, _ = loss_of(term, device)
    nodes = loss_of(TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, lmax=1), device)[1]
    parts = [np.split(part, [WIDTH], axis=1) for part in nodes]  # of student and teacher, each degree's
    if per_degree:
        of_degrees = [oracle.crack(student, teacher, PAIRS).loss for student, teacher in zip(*parts)]
        assert loss == pytest.approx(of_degrees[0] + 0.25 * of_degrees[1], rel=REORDERED)
        return
    units = [[part / np.linalg.norm(part, axis=1, keepdims=True) for part in of_model] for of_model in parts]
    joined = [np.concatenate((scalars, 0.5 * vectors), axis=1) for scalars, vectors in units]
    assert loss == pytest.approx(oracle.crack(*joined, PAIRS).loss, rel=REORDERED)


def test_weights_that_do_not_fit_teacher_or_data_are_refused():
    term = TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, lmax="all", degree_weights=(1.0, 0.5))
    assert resolved(term, 1).degree_weights == (1.0, 0.5)
    with pytest.raises(
        ValueError, match=r"node_embeddings.degree_weights: expected 3, of the degrees l = 0 to 2; found 2. The teacher"
    ):
        resolved(term, 2)
    term = TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, tag_weights=TagWeights(0, 0, 1))
    for tags, message in (
        ([0, 2], None),
        ([0, 1], "the weights of all atoms of a sample of dataset.train are 0; their tags are 0, 1"),
        ([0, 3], "here holds an atom of tag 3; expected 0"),
        (None, "loss_functions, node_embeddings.tag_weights: dataset.train has no tags"),
    ):
        batch = Batch.from_data_list([Data(pos=torch.zeros(2, 3), **({} if tags is None else {"tags": torch.tensor(tags)}))])
        if message is None:
            check_tags([term], batch, "here")
            check_tag_weights([term], batch)
            continue
        with pytest.raises(ValueError, match=message):
            check_tags([term], batch, "here")
            check_tag_weights([term], batch)


def test_weights_that_are_the_same_for_all_atoms_are_warned_of(caplog):
    term = TermConfig(keys.NODE_EMBEDDINGS, "mse", 1.0, tag_weights=TagWeights(subsurface=0.2, surface=0.2))
    warning = "node_embeddings.tag_weights: the weights of all atoms of a sample of dataset.train are 0.2"
    for tags, is_warned in (([0, 0], True), ([0, 1], True), ([0, 2], False)):
        caplog.clear()
        check_tag_weights([term], Batch.from_data_list([Data(pos=torch.zeros(2, 3), tags=torch.tensor(tags))]))
        assert (warning in caplog.text) == ("atoms.set_tags" in caplog.text) == is_warned
