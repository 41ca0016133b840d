import pytest
import torch

from fairchem_crack.loss.relations import pair_difference, relation_vectors, unit_embedding, unordered_pairs


def pairs_of(*edges, num_atoms=9):
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T
    return [tuple(pair) for pair in unordered_pairs(edge_index, num_atoms).T.tolist()]


def random_embedding(num_atoms=7, width=5, dtype=torch.float64, device="cpu"):
    return torch.randn(num_atoms, width, dtype=dtype, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.parametrize(
    "edges, expected",
    [
        ([(0, 1), (1, 0)], [(0, 1)]),
        ([(1, 0)], [(0, 1)]),
        ([(0, 1), (0, 1), (0, 1)], [(0, 1)]),
        ([(2, 2), (0, 0)], []),
        ([(2, 2), (2, 1)], [(1, 2)]),
        ([], []),
        ([(8, 7), (0, 2), (5, 3), (1, 0), (3, 4), (2, 0)], [(0, 1), (0, 2), (3, 4), (3, 5), (7, 8)]),
    ],
    ids=["both directions", "one direction", "periodic images", "self-images only", "self-image beside", "none", "systems"],
)
def test_pairs_are_the_distinct_atoms_joined_by_an_edge(edges, expected):
    assert pairs_of(*edges) == expected


def test_pairs_of_random_edges_equal_a_set_of_tuples(device):
    edge_index = torch.randint(0, 30, (2, 300), generator=torch.Generator().manual_seed(1)).to(device)
    expected = sorted({(min(i, j), max(i, j)) for i, j in edge_index.T.tolist() if i != j})
    pairs = unordered_pairs(edge_index, 30)
    assert pairs.dtype == torch.long
    assert [tuple(pair) for pair in pairs.T.tolist()] == expected


def test_empty_edges_give_pairs_of_shape_2_by_0(device):
    assert unordered_pairs(torch.zeros(2, 0, dtype=torch.long, device=device), 4).shape == (2, 0)


@pytest.mark.parametrize("norm", [1e-15, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_embedding_keeps_the_direction_at_any_norm(norm, dtype):
    embedding = random_embedding(dtype=dtype)
    scaled = (norm * embedding).requires_grad_()
    unit = unit_embedding(scaled)
    torch.testing.assert_close(torch.linalg.vector_norm(unit, dim=-1), torch.ones(7, dtype=dtype))
    torch.testing.assert_close(unit, embedding / torch.linalg.vector_norm(embedding, dim=-1, keepdim=True))
    (gradient,) = torch.autograd.grad(unit[:, 0].sum(), scaled)
    assert gradient.isfinite().all() and gradient.any()


def test_unit_embedding_and_relation_vectors_pass_gradcheck():
    embedding = random_embedding(4, 3).requires_grad_()
    pairs = torch.triu_indices(4, 4, 1)
    assert torch.autograd.gradcheck(unit_embedding, embedding)
    assert torch.autograd.gradcheck(lambda z: relation_vectors(z, pairs), embedding)


@pytest.mark.parametrize("zero", [0.0, 1e-30])
def test_an_embedding_without_direction_has_no_relation(zero, device):
    embedding = random_embedding(dtype=torch.float32, device=device)
    embedding[3] = zero
    embedding.requires_grad_()
    unit = unit_embedding(embedding)
    relations = relation_vectors(embedding, torch.tensor([[0, 0], [1, 3]], device=device))
    (gradient,) = torch.autograd.grad(unit[:, 0].sum() + relations[:, 0].sum(), embedding)
    assert not unit[3].any() and not relations[1].any() and relations[0].any()
    assert gradient.isfinite().all() and not gradient[3].any() and gradient[0].any()


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_unit_embedding_is_at_least_single_precision(dtype, expected):
    unit = unit_embedding(random_embedding().to(dtype))
    assert unit.dtype == expected
    torch.testing.assert_close(torch.linalg.vector_norm(unit, dim=-1), torch.ones(7, dtype=expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relation_vectors_are_unit_differences(dtype):
    embedding, pairs = random_embedding(dtype=dtype), torch.triu_indices(7, 7, 1)
    relations, unit = relation_vectors(embedding, pairs), torch.nn.functional.normalize(embedding)
    torch.testing.assert_close(torch.linalg.vector_norm(relations, dim=-1), torch.ones(21, dtype=dtype))
    torch.testing.assert_close(relations, torch.nn.functional.normalize(unit[pairs[0]] - unit[pairs[1]]))


def test_relation_vectors_are_antisymmetric():
    embedding, pairs = random_embedding(), torch.triu_indices(7, 7, 1)
    assert torch.equal(relation_vectors(embedding, pairs.flip(0)), -relation_vectors(embedding, pairs))


@pytest.mark.parametrize("multiple", [1.0, 3.0, 0.7, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coinciding_embeddings_give_a_finite_gradient(multiple, dtype):
    embedding = random_embedding(dtype=dtype)
    embedding[1] = multiple * embedding[0]  # one unit embedding up to rounding
    embedding.requires_grad_()
    relations = relation_vectors(embedding, torch.tensor([[0, 0], [1, 2]]))
    assert not relations[0].any() and relations[1].any()
    (of_coinciding,) = torch.autograd.grad(relations[0].sum(), embedding, retain_graph=True)
    (of_all,) = torch.autograd.grad(relations[:, 0].sum(), embedding)
    assert not of_coinciding.any()
    assert of_all.isfinite().all() and of_all[2].any()


def test_pair_difference_tells_length_and_direction(device):
    embedding = random_embedding(device=device)
    embedding[1], embedding[4] = 2 * embedding[0], 0
    unit, pairs = unit_embedding(embedding.requires_grad_()), torch.triu_indices(7, 7, 1, device=device)
    difference, length, has_direction = pair_difference(unit, pairs)
    assert difference.requires_grad and length.requires_grad
    assert torch.equal(difference, unit[pairs[0]] - unit[pairs[1]])
    torch.testing.assert_close(length, difference.norm(dim=-1))
    without_direction = (pairs == 4).any(dim=0) | ((pairs[0] == 0) & (pairs[1] == 1))
    assert without_direction.sum() == 7
    assert torch.equal(~has_direction, without_direction)
