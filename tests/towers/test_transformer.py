"""The packed transformer against a reference that encodes one sequence at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from candid.batches import History, Queries, offsets_of
from candid.errors import ConfigError
from candid.features import FeatureTable
from candid.towers import CausalTransformer, ItemEmbedding, ItemFeatures, TowerContext

NUM_ITEMS, MAX_LENGTH = 30, 12
SETTINGS = {
    "num_items": NUM_ITEMS,
    "max_length": MAX_LENGTH,
    "num_blocks": 2,
    "hidden": None,
    "feed_forward": "gelu",
    "gated_residual": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "positions": "learned",
}


def make(dim=8, num_heads=2, **settings):
    torch.manual_seed(0)
    settings = SETTINGS | settings
    tower = CausalTransformer(dim=dim, num_heads=num_heads, **settings).double()
    with torch.no_grad():  # move norms and biases away from their initial values
        for parameter in tower.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return tower.eval()


def times_of(sequence):
    """Times by the items, two of them in one second, one out of order, one unknown."""
    gaps = [(item % 7) * 10 ** (item % 6) * SECOND // 3 for item in sequence]
    times = (10**15 + np.cumsum(gaps)).tolist()
    if len(times) > 4:
        times[3] -= gaps[3] + 3 * SECOND
        times[4] = -1
    return times


def pack(sequences, positions=None):
    lengths = np.array([len(s) for s in sequences])
    offsets = torch.from_numpy(offsets_of(lengths))
    total = int(offsets[-1])
    positions = torch.arange(total) if positions is None else torch.tensor(positions)
    return Queries(
        user_ids=torch.zeros(len(positions), dtype=torch.int64),
        history=History(
            item_ids=torch.tensor([i for s in sequences for i in s], dtype=torch.int64),
            offsets=offsets,
            query_positions=positions,
            times=torch.tensor([time for s in sequences for time in times_of(s)]),
        ),
    )


LIGR = {"feed_forward": "swiglu", "gated_residual": True, "hidden": 20}
TIME = {"read_time_gaps": True, "time_bias": True}
BLOCKS = {
    "plain": {},
    "swiglu": {"feed_forward": "swiglu"},
    "ligr": LIGR,
    "time": TIME,
    "time bias": LIGR | {"time_bias": True},
}
SECOND = 1_000_000


def norm(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt() * (layer.weight)
        + layer.bias
    )


def reference(tower, sequence, num_heads=2):
    """Encode one sequence with dense attention, an explicit mask and textbook formulas."""
    x = tower.items.weight[torch.tensor(sequence)] + tower.positions.weight[: len(sequence)]
    future = torch.ones(len(sequence), len(sequence)).triu(1).bool()
    times = times_of(sequence)
    if tower.time_gaps is not None:
        first = 0 if times[0] == -1 else 32
        x = x + tower.time_gaps.weight[[first, *map(bucket, times, times[1:])]]
    pairs = torch.tensor([[bucket(early, late) for early in times] for late in times])
    for block in tower.blocks:
        h = norm(x, block.attention_norm)
        q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
        heads = []
        width = x.shape[-1] // num_heads
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / width**0.5
            if tower.time_bias is not None:
                scores = scores + tower.time_bias[head][pairs]
            weights = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
            heads.append(weights @ v[:, part])
        branch = torch.cat(heads, dim=-1) @ block.out.weight.T + block.out.bias
        x = x + branch * gate(x, block.attention_gate)
        ff_norm, *_, down = block.feed_forward
        branch = hidden_layer(norm(x, ff_norm), block) @ down.weight.T + down.bias
        x = x + branch * gate(x, block.feed_forward_gate)
    return norm(x, tower.norm)


def bucket(early, late):
    gap = late // SECOND - early // SECOND
    return 0 if -1 in (early, late) or gap < 0 else (gap + 1).bit_length()


def gate(x, layer):
    return 1.0 if layer is None else 1 / (1 + torch.exp(-(x @ layer.weight.T + layer.bias)))


def hidden_layer(x, block):
    inner = block.feed_forward[1]
    if isinstance(inner, torch.nn.Linear):
        return F.gelu(x @ inner.weight.T + inner.bias)
    first, second = (x @ one.weight.T + one.bias for one in (inner.gate, inner.value))
    return first / (1 + torch.exp(-first)) * second


def random_sequences(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_ITEMS, n).tolist() for n in rng.integers(1, MAX_LENGTH + 1, count)]


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())
@pytest.mark.parametrize("count", [1, 3, 40])
def test_packed_equals_one_sequence_at_a_time(count, blocks):
    tower = make(**blocks)
    sequences = random_sequences(count)
    expected = torch.cat([reference(tower, s) for s in sequences])
    torch.testing.assert_close(tower(pack(sequences)), expected, rtol=1e-9, atol=1e-9)


def test_query_positions_select_the_states():
    tower = make()
    sequences = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    every = tower(pack(sequences))
    states = tower(pack(sequences, positions=[8, 0, 4, 4]))
    torch.testing.assert_close(states, every[[8, 0, 4, 4]])


def test_later_interactions_do_not_change_a_query():
    tower = make()
    first = tower(pack([[1, 2, 3, 4]]))
    changed = tower(pack([[1, 2, 9, 4]]))
    torch.testing.assert_close(first[:2], changed[:2])
    assert not torch.allclose(first[2:], changed[2:])


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())
def test_gradients_equal_those_of_the_reference(blocks):
    tower = make(**blocks)
    sequences = random_sequences(20, seed=1)
    direction = torch.randn(sum(map(len, sequences)), 8, dtype=torch.float64)
    (tower(pack(sequences)) * direction).sum().backward()
    packed = {n: p.grad.clone() for n, p in tower.named_parameters()}
    tower.zero_grad()
    (torch.cat([reference(tower, s) for s in sequences]) * direction).sum().backward()
    for name, parameter in tower.named_parameters():
        torch.testing.assert_close(packed[name], parameter.grad, rtol=1e-8, atol=1e-8, msg=name)
        assert parameter.grad.any(), name


def test_bfloat16_products_are_close_to_float32():
    tower = make(dim=16).float()
    queries = pack(random_sequences(9))
    exact = tower(queries)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(queries)
    assert not torch.equal(rounded.float(), exact)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_options_of_blocks_are_keys_of_a_recipe():
    context = TowerContext(1, NUM_ITEMS, MAX_LENGTH)
    settings = {"dim": 8, "num_blocks": 1, "input_items": "separate"}
    config = CausalTransformer.Config(**settings, feed_forward="swiglu", gated_residual=True)
    names = set(config.build(context).state_dict())
    plain_names = set(CausalTransformer.Config(**settings).build(context).state_dict())
    layers = (".1.gate", ".1.value", "attention_gate", "feed_forward_gate")
    assert sum(any(layer in name for layer in layers) for name in names) == 8
    assert not any(layer in name for name in plain_names for layer in layers)


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS.keys())
def test_dropout_acts_in_training_only(blocks):
    tower = make(dropout=0.5, **blocks)
    queries = pack([[1, 2, 3]])
    assert torch.equal(tower(queries), tower(queries))
    tower.train()
    assert not torch.equal(tower(queries), tower(queries))


def test_tied_tower_reads_the_item_table():
    items = ItemEmbedding(NUM_ITEMS, dim=8)
    tied = make(input_items=items.embedding, num_heads=1)
    assert tied.items.weight is items.embedding.weight
    assert make(num_heads=1).items.weight is not items.embedding.weight


def test_tied_tower_has_the_parameter_names_of_checkpoints():
    tower = make(input_items=ItemEmbedding(NUM_ITEMS, dim=8).embedding, num_blocks=1)
    assert list(tower.state_dict()) == [
        "items.weight",
        "positions.weight",
        *(
            f"blocks.0.{name}"
            for name in [
                "attention_norm.weight",
                "attention_norm.bias",
                "qkv.weight",
                "qkv.bias",
                "out.weight",
                "out.bias",
                "feed_forward.0.weight",
                "feed_forward.0.bias",
                "feed_forward.1.weight",
                "feed_forward.1.bias",
                "feed_forward.4.weight",
                "feed_forward.4.bias",
            ]
        ),
        "norm.weight",
        "norm.bias",
    ]


def test_tied_tower_reads_item_features(values_of):
    table = FeatureTable({}, {}, values_of(NUM_ITEMS))
    context = TowerContext(1, NUM_ITEMS, MAX_LENGTH, item_features=table)
    items = ItemFeatures.Config(dim=8, dropout=0.0, unknown_rate=0.0, id_dropout=0.0).build(context)
    tower = make(input_items=items)
    sequences = [[1, 2, 3, 2], [2], [7, 1]]
    encoded = []
    items.encoder.perceptron.register_forward_hook(lambda _, x, __: encoded.append(len(x[0])))
    vectors = tower(pack(sequences))
    assert encoded == [4]  # the distinct items
    by_table = make(input_items=None)
    by_table.load_state_dict(
        {name: value for name, value in tower.state_dict().items() if "items." not in name}
        | {"items.weight": items.catalog().detach()}
    )
    torch.testing.assert_close(vectors, by_table(pack(sequences)))
    vectors.sum().backward()
    assert all(field.table.weight.grad.any() for field in items.encoder.fields.fields[:3])


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="num_heads must divide dim 8, got 3"):
        make(num_heads=3)
    with pytest.raises(ConfigError, match=r"dim must equal item_tower\.dim 4"):
        make(input_items=ItemEmbedding(NUM_ITEMS, dim=4).embedding)
    with pytest.raises(ConfigError, match="'tied' needs an item tower"):
        CausalTransformer.Config().build(TowerContext(3, NUM_ITEMS, MAX_LENGTH))
    with pytest.raises(ConfigError, match=r"batches\.unit = 'sequence'"):
        make()(Queries(user_ids=torch.tensor([0])))


def test_event_types_are_read_if_configured():
    plain_tower = make()
    tower = make(num_event_types=2)
    with torch.no_grad():
        tower.event_types.weight[0] = 0  # its initial value, which make() changed
    tower.load_state_dict(plain_tower.state_dict(), strict=False)
    queries = pack([[1, 2, 3], [4, 5]])
    unknown = tower(queries)
    torch.testing.assert_close(unknown, plain_tower(queries))  # an unknown event type adds zero
    history = replace(queries.history, event_types=torch.tensor([1, 1, 1, 1, 2]))
    typed = tower(replace(queries, history=history))
    assert not torch.allclose(typed[0], unknown[0])
    other = replace(queries.history, event_types=torch.tensor([1, 1, 2, 1, 2]))
    changed = tower(replace(queries, history=other))
    torch.testing.assert_close(changed[[0, 1, 3, 4]], typed[[0, 1, 3, 4]])
    assert not torch.allclose(changed[2], typed[2])
    for key in (*TIME, "read_query_gap"):
        config = CausalTransformer.Config(**{key: True}, input_items="separate")
        with pytest.raises(ConfigError, match=rf"query_tower\.{key} needs the time .* data\.time"):
            config.build(TowerContext(2, NUM_ITEMS, MAX_LENGTH))
    with pytest.raises(ConfigError, match=r"data\.event_type"):
        CausalTransformer.Config(read_event_types=True, input_items="separate").build(
            TowerContext(2, NUM_ITEMS, MAX_LENGTH)
        )


def test_unknown_times_add_nothing():
    plain_tower, tower = make(), make(**TIME)
    with torch.no_grad():  # their initial values, which make() changed
        tower.time_gaps.weight[0] = 0
        tower.time_bias[:, 0] = 0
    tower.load_state_dict(plain_tower.state_dict(), strict=False)
    queries = pack([[1, 2, 3], [4, 5]])
    known = tower(queries)
    expected = plain_tower(queries)
    for times in (None, torch.full((5,), -1)):
        unknown = replace(queries, history=replace(queries.history, times=times))
        torch.testing.assert_close(tower(unknown), expected)
    assert not torch.isclose(known, expected).all(dim=1).any()


QUERY_GAPS = {"second": 0, "day": 86_400, "before": -5, "unknown": None}


def test_query_gap_scales_and_shifts_the_vector():
    plain_tower, tower = make(), make(read_query_gap=True)
    tower.load_state_dict(plain_tower.state_dict(), strict=False)
    sequences = [[1, 2, 3]] * len(QUERY_GAPS)
    ends = [3 * number + 2 for number in range(len(sequences))]
    queries = pack(sequences, ends)
    last = times_of(sequences[0])[-1]
    times = [-1 if gap is None else last + gap * SECOND for gap in QUERY_GAPS.values()]
    vectors = tower(replace(queries, times=torch.tensor(times)))
    plain = plain_tower(queries)
    for row, gap in enumerate([0, 86_400, None, None]):
        known = gap is not None
        inputs = [float(known), np.log(gap + 1) / 5 - 1 if known else 0.0]
        hidden = torch.tensor(inputs).double() @ tower.query_gap.hidden.weight.T
        film = F.gelu(hidden + tower.query_gap.hidden.bias) @ tower.query_gap.out.weight.T
        scale, shift = (film + tower.query_gap.out.bias).chunk(2)
        torch.testing.assert_close(
            vectors[row], plain[row] * (1 + scale) + shift, rtol=1e-6, atol=1e-6
        )
    unknown = vectors[3]
    torch.testing.assert_close(tower(queries)[0], unknown)
    no_times = replace(queries.history, times=None)
    torch.testing.assert_close(
        tower(replace(queries, history=no_times, times=torch.tensor(times)))[1], unknown
    )


def test_initial_query_gap_changes_nothing():
    torch.manual_seed(0)
    plain_tower = CausalTransformer(dim=8, num_heads=2, **SETTINGS).eval()
    torch.manual_seed(0)
    tower = CausalTransformer(dim=8, num_heads=2, **SETTINGS, read_query_gap=True).eval()
    queries = pack(random_sequences(5))
    times = queries.history.times.index_select(0, queries.history.query_positions) + 10**9
    torch.testing.assert_close(tower(replace(queries, times=times)), plain_tower(queries))


def test_training_hides_some_query_gaps():
    tower = make(read_query_gap=True).train()
    queries = pack([[1]] * 2000, list(range(2000)))
    times = torch.full((2000,), times_of([1])[0] + 10**12)
    vectors = tower(replace(queries, times=times))
    hidden = (vectors == tower(replace(queries, times=None))).all(dim=1).sum()
    assert 130 < hidden < 270  # a tenth of 2,000, five standard errors


def test_initial_time_bias_adds_nothing():
    torch.manual_seed(0)
    plain_tower = CausalTransformer(dim=8, num_heads=2, **SETTINGS).eval()
    torch.manual_seed(0)
    tower = CausalTransformer(dim=8, num_heads=2, **SETTINGS, time_bias=True).eval()
    queries = pack(random_sequences(5))
    torch.testing.assert_close(tower(queries), plain_tower(queries))


def test_later_times_do_not_change_a_query():
    tower = make(**TIME)
    queries = pack([[1, 2, 3, 4], [5, 6]])
    times = queries.history.times.clone()
    times[3] += 2**28 * SECOND + SECOND // 2  # a fraction would move all others
    moved = replace(queries, history=replace(queries.history, times=times))
    first, changed = tower(queries), tower(moved)
    same = [0, 1, 2, 4, 5]
    torch.testing.assert_close(changed[same], first[same])
    assert not torch.allclose(changed[3], first[3])


def test_attention_with_a_time_bias_has_dropout_and_bfloat16_products():
    tower = make(dim=16, attention_dropout=0.5, **TIME).float()
    queries = pack(random_sequences(9))
    exact = tower(queries)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(queries)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    tower.train()
    assert not torch.equal(tower(queries), tower(queries))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_empty_history_has_a_vector_and_changes_no_other(positions):
    tower = make(empty_histories=True, positions=positions)
    assert not tower.needs_history
    sequences = [[1, 2, 3], [], [4], [], [], [], [5, 6], [], []]
    stops = offsets_of(np.array([len(s) for s in sequences]))[1:]
    positions = [stop - 1 if s else -1 for s, stop in zip(sequences, stops, strict=True)]
    vectors = tower(pack(sequences, positions))
    full = [s for s in sequences if s]
    alone = tower(pack(full, np.cumsum([len(s) for s in full]) - 1))
    is_empty = torch.tensor([not s for s in sequences])
    torch.testing.assert_close(vectors[~is_empty], alone)
    assert torch.equal(vectors[is_empty], tower.empty_history.expand(6, -1))
    assert torch.equal(tower(pack([[], []], [-1, -1])), tower.empty_history.expand(2, -1))
    vectors.sum().backward()
    torch.testing.assert_close(tower.empty_history.grad, torch.full_like(tower.empty_history, 6.0))
