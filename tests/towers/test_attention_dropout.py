"""Dropout of attention weights: its mask belongs to tokens, as that of all other dropout."""

import numpy as np
import pytest
import torch

from candid.batches import History, Queries, offsets_of, parts_of
from candid.towers import CausalTransformer
from candid.towers.length_groups import length_groups
from candid.towers.row_noise import RowNoise, rows_of, seed_noise
from candid.towers.transformer_block import Block

NUM_ITEMS, MAX_LENGTH, DIM, HEADS, P = 30, 12, 8, 2, 0.3
TOWERS = {"causal": {}, "time bias": {"time_bias": True}}


def make_block(p=P):
    torch.manual_seed(0)
    block = Block(
        DIM,
        num_heads=HEADS,
        hidden=DIM,
        feed_forward="gelu",
        gated_residual=False,
        dropout=0.0,
        attention_dropout=p,
    )
    return block.double().train()


def make_tower(dropout=0.0, attention_dropout=P, **settings):
    torch.manual_seed(0)
    tower = CausalTransformer(
        num_items=NUM_ITEMS,
        dim=DIM,
        num_blocks=2,
        num_heads=HEADS,
        max_length=MAX_LENGTH,
        hidden=None,
        feed_forward="gelu",
        gated_residual=False,
        dropout=dropout,
        attention_dropout=attention_dropout,
        positions="learned",
        **settings,
    )
    return tower.double().train()


def random_queries(count):
    rng = np.random.default_rng(0)
    offsets = torch.from_numpy(offsets_of(rng.integers(1, MAX_LENGTH + 1, count)))
    total = int(offsets[-1])
    history = History(
        item_ids=torch.from_numpy(rng.integers(0, NUM_ITEMS, total)),
        offsets=offsets,
        query_positions=torch.arange(total),
        times=torch.from_numpy(np.cumsum(rng.integers(0, 10**8, total))),
    )
    return Queries(user_ids=torch.zeros(total, dtype=torch.int64), history=history)


def reference(block, tokens, keys, bias):
    """Attend in one sequence, with a mask from the numbers of its tokens."""
    length = len(tokens)
    with rows_of(keys):
        levels = block.attention_dropout.levels(length, length * HEADS, tokens.device)
    qkv = block.qkv(block.attention_norm(tokens))
    heads = []
    for head, (query, key, value) in enumerate(
        zip(*(part.chunk(HEADS, dim=1) for part in qkv.chunk(3, dim=1)), strict=True)
    ):
        scores = query @ key.T / (DIM / HEADS) ** 0.5 + bias[head]
        later = torch.ones(length, length).triu(1).bool()
        weights = torch.softmax(scores.masked_fill(later, -torch.inf), dim=1)
        drops = levels[:, head::HEADS].long() + 32768 < round(P * 65536)
        heads.append((weights.masked_fill(drops, 0) / (1 - round(P * 65536) / 65536)) @ value)
    return block.out(torch.cat(heads, dim=1))


@pytest.mark.parametrize("has_bias", [False, True])
def test_outputs_and_gradients_equal_those_of_one_sequence_at_a_time(has_bias):
    block = make_block()
    lengths = [3, 12, 1, 7, 12, 2, 5]
    offsets = torch.from_numpy(offsets_of(np.array(lengths)))
    tokens = torch.randn(int(offsets[-1]), DIM, dtype=torch.float64)
    keys = torch.randperm(1000)[: len(tokens)]
    groups = length_groups(offsets, len(tokens))
    bias = torch.randn(HEADS, MAX_LENGTH, MAX_LENGTH, dtype=torch.float64)
    bias = bias if has_bias else torch.zeros_like(bias)
    later = torch.ones(MAX_LENGTH, MAX_LENGTH).triu(1).bool()
    biases = [
        bias.masked_fill(later, -torch.inf)[:, :length, :length].expand(size, -1, -1, -1)
        for size, length in groups.shapes
    ]
    seed_noise(block, 5)
    with rows_of(keys):
        out = block._attend(tokens, groups, None, biases if has_bias else None)
    expected = torch.cat(
        [
            reference(
                block, tokens[begin:end], keys[begin:end], bias[:, : end - begin, : end - begin]
            )
            for begin, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False)
        ]
    )
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    direction = torch.randn_like(out)
    (weight,) = torch.autograd.grad((out * direction).sum(), block.qkv.weight)
    (other,) = torch.autograd.grad((expected * direction).sum(), block.qkv.weight)
    torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        plain = block.eval()._attend(tokens, groups, None, biases if has_bias else None)
    assert not torch.allclose(plain, out, atol=1e-2)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("size", [1, 3])
def test_part_of_a_batch_has_the_dropout_of_the_whole(tower, size):
    """The parts have other groups, with other longest sequences."""
    model = make_tower(**TOWERS[tower])
    queries = random_queries(11)
    seed_noise(model, 3)
    whole = model(queries)
    for part in parts_of(queries, size):
        torch.testing.assert_close(model(part.queries), whole[part.rows], rtol=1e-12, atol=1e-12)
    seed_noise(model, 4)
    assert not torch.allclose(model(queries), whole)


@pytest.mark.parametrize("tower", TOWERS)
def test_products_are_float32_under_bfloat16(tower):
    model = make_tower(**TOWERS[tower]).float()
    queries = random_queries(5)
    seed_noise(model, 3)
    exact = model(queries)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(queries)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("tower", TOWERS)
def test_dropout_is_off_without_training(tower):
    model, plain = (make_tower(attention_dropout=p, **TOWERS[tower]).eval() for p in (P, 0.0))
    queries = random_queries(5)
    torch.testing.assert_close(model(queries), plain(queries), rtol=1e-12, atol=1e-12)


def test_without_dropout_of_attention_other_dropout_keeps_its_numbers():
    """Modules are seeded by their number: an idle one would move those after it."""
    model = make_tower(dropout=0.2, attention_dropout=0.0)
    names = [name for name, module in model.named_modules() if isinstance(module, RowNoise)]
    block = ["feed_forward.3", "branch_dropout", "feed_forward_dropout"]
    assert names == ["dropout", *(f"blocks.{n}.{name}" for n in (0, 1) for name in block)]
