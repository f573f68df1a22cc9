"""Sequences packed as a tree: against every sequence by itself, by numbers, by masks, and by a model's gradients."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from maskmod import causal, dense_mask, dfs_tree, lower
from maskmod.demo.attend import cacheless
from maskmod.demo.model import Config, Model
from maskmod.errors import MaskTypeError, MaskValueError
from maskmod.packing import PackedTree, pack_tree
from maskmod.trees import ends_from_parents


def beginnings(sequences) -> dict:
    """Every beginning that occurs, and in how many sequences."""
    found: dict = {}
    for tokens in sequences:
        for end in range(1, len(tokens) + 1):
            found[tuple(tokens[:end])] = found.get(tuple(tokens[:end]), 0) + 1
    return found


def spelled(tree: PackedTree, node: int) -> tuple:
    """The tokens from the root to a node."""
    tokens: tuple = ()
    while node >= 0:
        tokens = (int(tree.tokens[node]), *tokens)
        node = int(tree.parents[node])
    return tokens


def random_sequences(rng: random.Random) -> list:
    return [[rng.randrange(3) for _ in range(rng.randrange(8))] for _ in range(rng.randrange(9))]


@pytest.mark.parametrize("seed", range(40))
def test_a_tree_of_all_beginnings(seed):
    sequences = random_sequences(random.Random(seed))
    tree, want = pack_tree(sequences), beginnings(sequences)
    nodes = [spelled(tree, node) for node in range(tree.tokens.shape[0])]
    assert len(nodes) == len(set(nodes))
    assert {node: int(count) for node, count in zip(nodes, tree.counts, strict=True)} == want
    assert tree.position_ids.tolist() == [len(node) - 1 for node in nodes]
    assert torch.equal(tree.ends, ends_from_parents(tree.parents))
    assert tree.lengths.tolist() == [len(tokens) for tokens in sequences]
    assert [tree.tokens[row].tolist() for row in tree.rows()] == sequences
    flat = torch.tensor([token for tokens in sequences for token in tokens], dtype=torch.int64)
    assert torch.equal(tree.tokens[tree.gather], flat)
    assert torch.equal(flat[tree.scatter], tree.tokens)
    assert {values.dtype for values in tree} == {torch.int64}
    if nodes:
        visible = dense_mask(dfs_tree(tree.ends), 1, 1, len(nodes), len(nodes))[0, 0].tolist()
        assert visible == [[node[: len(other)] == other for other in nodes] for node in nodes]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_their_sequences(seed):
    rng = random.Random(seed)
    groups = [([rng.randrange(2) for _ in range(rng.randrange(5))], random_sequences(rng)) for _ in range(3)]
    tree = pack_tree([(torch.tensor(prompt, dtype=torch.int32), rest) for prompt, rest in groups])
    want = pack_tree([prompt + tokens for prompt, rest in groups for tokens in rest])
    for got, expected in zip(tree, want, strict=True):
        assert torch.equal(got, expected)


def test_branches_keep_their_order():
    tree = pack_tree([[1, 2], [9], [1, 3], (1, 2, 4)])
    assert tree.tokens.tolist() == [1, 2, 4, 3, 9]
    assert tree.parents.tolist() == [-1, 0, 1, 0, -1]
    assert [row.tolist() for row in tree.rows()] == [[0, 1], [4], [0, 3], [0, 1, 2]]


def test_padding_sees_itself():
    tree = pack_tree([[1, 2], [1, 3]]).padded(6, token=7)
    assert tree.tokens.tolist() == [1, 2, 3, 7, 7, 7]
    assert tree.ends.tolist() == [3, 2, 3, 4, 5, 6]
    assert tree.parents.tolist() == [-1, 0, 0, -1, -1, -1]
    assert torch.equal(tree.ends, ends_from_parents(tree.parents))
    assert tree.saved() == pack_tree([[1, 2], [1, 3]]).saved()
    assert dense_mask(dfs_tree(tree.ends), 1, 1, 6, 6)[0, 0, 3:].int().tolist() == [
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    with pytest.raises(MaskValueError, match=r"padded\(2\): the tree has 3 nodes. Pass 3 or more"):
        pack_tree([[1, 2], [1, 3]]).padded(2)


@pytest.mark.parametrize(
    "wrong", [[1, 2, 3], [[1.5]], [[True]], [torch.tensor([0.5])], [torch.zeros(2, 2).long()], ["ab"], [None]]
)
def test_what_holds_no_tokens_is_refused(wrong):
    with pytest.raises(MaskTypeError, match=r"pack_tree\(sequences\)"):
        pack_tree(wrong)


# -------------------------------------------------------------------------------------------------------- a model's


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(Config(width=32, hidden=48)).double()


def rollouts() -> list:
    rng = random.Random(3)
    prompt = [rng.randrange(250) for _ in range(9)]
    answers = [[rng.randrange(250) for _ in range(rng.randint(1, 6))] for _ in range(4)]
    answers.append(answers[0][:1] + answers[1])  # two answers that begin alike
    return [(prompt, answers), (prompt[:4] + [1], answers[:2])]


def losses_alone(model, sequences) -> list[torch.Tensor]:
    """The loss of each token but the first, sequence by sequence."""
    losses = []
    for tokens in sequences:
        row = torch.tensor([tokens])
        args = lower(causal(), "eager", 1, None, len(tokens), len(tokens), dtype=torch.float64)
        logits = model(row, torch.arange(len(tokens))[None], cacheless("eager", args))
        losses.append(F.cross_entropy(logits[0, :-1], row[0, 1:], reduction="none"))
    return losses


def losses_packed(model, tree: PackedTree) -> torch.Tensor:
    """The loss of each node's token; 0 for roots, which nothing foretells."""
    n = tree.tokens.shape[0]
    args = lower(dfs_tree(tree.ends), "eager", 1, None, n, n, dtype=torch.float64)
    logits = model(tree.tokens[None], tree.position_ids[None], cacheless("eager", args))[0]
    losses = F.cross_entropy(logits[tree.parents.clamp(min=0)], tree.tokens, reduction="none")
    return torch.where(tree.parents >= 0, losses, 0.0)


def gradients(model, loss) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_losses_and_gradients_are_those_of_rows(model):
    groups = rollouts()
    sequences = [prompt + answer for prompt, answers in groups for answer in answers]
    tree = pack_tree(groups)
    alone, packed = losses_alone(model, sequences), losses_packed(model, tree)
    for losses, row in zip(alone, tree.rows(), strict=True):
        torch.testing.assert_close(packed[row[1:]], losses, rtol=1e-12, atol=1e-12)
    weights = [torch.linspace(0.5, 2, len(losses), dtype=torch.float64) + i for i, losses in enumerate(alone)]
    weighted = sum((w * losses).sum() for w, losses in zip(weights, alone, strict=True))
    want = gradients(model, weighted)
    # Weights by token of each sequence, as advantages are: they meet the losses through `gather`.
    flat = torch.cat([torch.cat((torch.zeros(1, dtype=torch.float64), w)) for w in weights])
    got = gradients(model, (packed[tree.gather] * flat).sum())
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    # And the plain sum, by how many sequences each node belongs to.
    got = gradients(model, (losses_packed(model, tree) * tree.counts).sum())
    want = gradients(model, sum(losses.sum() for losses in losses_alone(model, sequences)))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    print(tree.saved())
    assert "8 sequences" not in tree.saved()
    assert tree.saved().startswith("7 sequences: ")
    assert tree.tokens.shape[0] < sum(map(len, sequences)) / 2
