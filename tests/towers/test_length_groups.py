"""Padding of packed tokens, against one gather for each group from all tokens."""

from unittest import mock

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from candid.batches import History, Queries, offsets_of
from candid.towers import CausalTransformer, length_groups, transformer_block
from candid.towers.rotary import rotate

NUM_ITEMS, MAX_LENGTH, DIM = 50, 40, 16


def make_tower(**settings):
    torch.manual_seed(0)
    defaults = {
        "num_blocks": 2,
        "num_heads": 2,
        "hidden": None,
        "feed_forward": "gelu",
        "gated_residual": False,
        "dropout": 0.3,
        "attention_dropout": 0.0,
        "positions": "learned",
    }
    settings = defaults | settings
    return CausalTransformer(num_items=NUM_ITEMS, dim=DIM, max_length=MAX_LENGTH, **settings)


def random_offsets(count, seed=0, shortest=1):
    lengths = np.random.default_rng(seed).integers(shortest, MAX_LENGTH + 1, count)
    return torch.from_numpy(offsets_of(lengths))


def make_queries(offsets):
    total = int(offsets[-1])
    generator = torch.Generator().manual_seed(1)
    return Queries(
        user_ids=torch.zeros(total, dtype=torch.int64),
        history=History(
            item_ids=torch.randint(NUM_ITEMS, (total,), generator=generator),
            offsets=offsets,
            query_positions=torch.arange(total),
        ),
    )


def groups_by_loops(offsets, least=4, cells=256):
    """Return (packed position of each cell [S, L], cells that are tokens) of every group.

    A group takes sequences while there are fewer than ``least``, or ``cells`` cells hold one more.
    """
    starts, lengths = offsets[:-1].numpy(), offsets.diff().numpy()
    order = [seq for seq in np.argsort(-lengths, kind="stable") if lengths[seq] > 0]
    members = []
    for sequence in order:
        current = members[-1] if members else []
        if current and (len(current) < least or (len(current) + 1) * lengths[current[0]] <= cells):
            current.append(sequence)
        else:
            members.append([sequence])
    groups = []
    for current in members:
        longest = lengths[current[0]]
        gather = np.full((len(current), longest), starts[current[0]])
        for row, member in enumerate(current):
            gather[row, : lengths[member]] = starts[member] + np.arange(lengths[member])
        is_token = np.arange(longest) < lengths[current][:, None]
        groups.append((torch.from_numpy(gather), torch.from_numpy(np.flatnonzero(is_token))))
    return groups


def attend_with_one_gather_for_each_group(block, tokens, groups, factors):
    qkv = block.qkv(block.attention_norm(tokens))
    if factors is not None:
        qkv = rotate(qkv, factors, block.num_heads)
    outputs = []
    for gather, cells in groups:
        padded = qkv.index_select(0, gather.flatten()).view(*gather.shape, 3, block.num_heads, -1)
        query, key, value = padded.permute(2, 0, 3, 1, 4).unbind(0)
        heads = transformer_block.causal_attention(query, key, value)
        outputs.append(heads.transpose(1, 2).flatten(0, 1).flatten(1).index_select(0, cells))
    order = torch.cat([gather.flatten()[cells] for gather, cells in groups])
    return block.out(torch.cat(outputs).index_select(0, order.argsort()))


def outputs_and_gradients(tower, queries, bfloat16):
    tower.zero_grad()
    torch.manual_seed(2)  # the same dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        vectors = tower(queries)
    torch.sin(7 * vectors.float()).sum().backward()
    return vectors.detach(), {name: p.grad.clone() for name, p in tower.named_parameters()}


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("count", [1, 4, 33])
def test_outputs_and_gradients_equal_those_of_one_gather_for_each_group(count, positions, bfloat16):
    tower = make_tower(positions=positions)
    offsets = random_offsets(count)
    queries = make_queries(offsets)
    vectors, gradients = outputs_and_gradients(tower, queries, bfloat16)
    groups = groups_by_loops(offsets)

    def attend(block, tokens, _, factors, __):
        return attend_with_one_gather_for_each_group(block, tokens, groups, factors)

    with mock.patch.object(transformer_block.Block, "_attend", attend):
        expected, expected_gradients = outputs_and_gradients(tower, queries, bfloat16)
    assert torch.equal(vectors, expected)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected_gradients[name]), name
        assert gradient.any(), name


@pytest.mark.parametrize(
    ("lengths", "shapes"),
    [
        # Four sequences at least, more while 20 cells hold them, and none without tokens.
        ([2, 0, 5, 1, 5, 3, 0, 2, 4], [(4, 5), (3, 2)]),
        ([40, 9, 8, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1], [(4, 40), (10, 2)]),
        ([1] * 45, [(20, 1), (20, 1), (5, 1)]),
        ([0, 0], []),
        ([], []),
    ],
)
def test_cells_are_those_of_the_groups(lengths, shapes):
    offsets = torch.from_numpy(offsets_of(np.array(lengths, np.int64)))
    with mock.patch.dict(length_groups.CELLS_PER_GROUP, {"cpu": 20}):
        groups = length_groups.length_groups(offsets, sum(lengths))
    expected = groups_by_loops(offsets, cells=20)
    assert groups.shapes == [tuple(gather.shape) for gather, _ in expected] == shapes
    begin = 0
    for gather, cells in expected:
        tokens = gather.flatten()[cells]
        assert torch.equal(groups.cells[tokens], begin + cells)
        assert torch.equal(groups.gather[begin + cells], tokens)
        begin += gather.numel()
    assert len(groups.gather) == begin


def test_groups_of_other_sizes_give_the_same_vectors_and_gradients():
    tower = make_tower(dropout=0.0).double()
    queries = make_queries(random_offsets(33))
    vectors, gradients = outputs_and_gradients(tower, queries, bfloat16=False)
    for cells in (0, 40, 10_000):
        tower.zero_grad()
        with mock.patch.dict(length_groups.CELLS_PER_GROUP, {"cpu": cells}):
            others = outputs_and_gradients(tower, queries, bfloat16=False)
        torch.testing.assert_close(others, (vectors, gradients))


def test_padding_and_back_returns_the_tokens_and_their_gradients():
    offsets = random_offsets(9, shortest=0)
    tokens = torch.randn(int(offsets[-1]), 3, requires_grad=True)
    groups = length_groups.length_groups(offsets, len(tokens))
    back = groups.unpad(groups.split(groups.pad(tokens)))
    assert torch.equal(back, tokens)
    direction = torch.randn_like(tokens)
    (back * direction).sum().backward()
    assert torch.equal(tokens.grad, direction)


def test_offsets_on_the_cpu_replace_reading_the_lengths_from_the_device():
    offsets = random_offsets(33, shortest=0)
    # A tensor of the device "meta" has no values to read.
    with mock.patch.dict(length_groups.SEQUENCES_PER_GROUP, {"meta": 4}):
        groups = length_groups.length_groups(offsets.to("meta"), int(offsets[-1]), offsets)
        with pytest.raises(NotImplementedError):
            length_groups.length_groups(offsets.to("meta"), int(offsets[-1]))
    expected = [gather for gather, _ in groups_by_loops(offsets, cells=0)]
    assert groups.shapes == [tuple(gather.shape) for gather in expected]
    assert len(groups.gather) == sum(gather.numel() for gather in expected)
    # On another device the cells are computed as on the CPU: only the shapes come from the copy.
    on_cpu = length_groups.length_groups(offsets, int(offsets[-1]))
    with_copy = length_groups.length_groups(offsets, int(offsets[-1]), offsets.clone())
    assert with_copy.shapes == on_cpu.shapes
    assert torch.equal(with_copy.gather, on_cpu.gather)
    assert torch.equal(with_copy.cells, on_cpu.cells)


@pytest.mark.parametrize("count", [1, 3, 4, 33])
def test_number_of_groups_is_bounded_where_operations_cost_a_launch(count):
    tower = make_tower(dropout=0.0).double()
    offsets = random_offsets(count)
    queries = make_queries(offsets)
    expected = tower(queries)
    with mock.patch.dict(length_groups.MAX_GROUPS, {"cpu": 3}):
        assert len(length_groups.length_groups(offsets, int(offsets[-1])).shapes) <= 3
        torch.testing.assert_close(tower(queries), expected)


class WrittenElements(TorchDispatchMode):
    """Count the elements that operations write; views write none."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        in_place = func.overloadpacket.__name__.endswith("_")
        for output in result if isinstance(result, tuple | list) else [result]:
            if isinstance(output, torch.Tensor):
                is_view = output.untyped_storage().data_ptr() in inputs
                self.count += output.numel() if in_place or not is_view else 0
        return result


def test_a_position_writes_as_many_elements_in_a_large_batch():
    tower = make_tower()
    per_position = []
    for count in (8, 128):
        # The same lengths in every eight sequences, so that padding has the same share.
        lengths = torch.tensor([3, 40, 40, 21, 20, 21, 3, 20]).repeat(count // 8)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        queries = make_queries(offsets)
        with WrittenElements() as written:
            tower(queries).sum().backward()
        per_position.append(written.count / int(offsets[-1]))
    assert per_position[1] <= 1.1 * per_position[0]
