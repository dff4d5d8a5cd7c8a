from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, World

SMALL = {"num_items": 83, "num_users": 300, "num_topics": 5, "dim": 6, "interactions_mean": 12.0}
MODES = ("softmax", "topics")


def make(mode: str, **changes) -> World:
    return World(SyntheticConfig.model_validate({**SMALL, "mode": mode, **changes}))


def questions(world: World, histories: list[list[int]], user_ids=None):
    offsets = np.cumsum([0, *map(len, histories)])
    ids = np.array([i for h in histories for i in h], dtype=np.int64)
    users = np.arange(len(histories)) if user_ids is None else np.asarray(user_ids)
    return users, ids, offsets


HISTORIES = [[], [3], [7, 7], [1, 2, 3, 4, 5, 6], [80, 0, 41]]


@pytest.mark.parametrize("mode", MODES)
@given(
    num_items=st.integers(2, 60),
    num_topics=st.integers(1, 9),
    exponent=st.floats(0, 2.5),
    temperature=st.floats(0.02, 5),
    second=st.sampled_from([0.0, 0.2, 0.5]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one(mode, num_items, num_topics, exponent, temperature, second, data):
    world = make(
        mode,
        num_items=num_items,
        num_topics=min(num_topics, num_items),
        zipf_exponent=exponent,
        temperature=temperature,
        second_topic=second,
    )
    history = data.draw(st.lists(st.integers(0, num_items - 1), max_size=6))
    log_probs = world.log_probs(*questions(world, [[], history]))
    assert log_probs.shape == (2, num_items)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_log_prob_agrees_with_log_probs(mode):
    world = make(mode)
    asked = questions(world, HISTORIES)
    table = world.log_probs(*asked)
    items = np.array([0, 82, 5, 5, 17])
    np.testing.assert_allclose(
        world.log_prob(*asked, items), table[np.arange(5), items], rtol=1e-12
    )
    packed = np.array([9, 8, 7, 6])
    offsets = np.array([0, 1, 1, 3, 3, 4])
    np.testing.assert_allclose(
        world.log_prob(*asked, packed, offsets), table[[0, 2, 2, 4], packed], rtol=1e-12
    )


@pytest.mark.parametrize("exponent", [0.6, 1.3])
def test_softmax_is_dot_product_plus_popularity_bias(exponent):
    world = make("softmax", zipf_exponent=exponent)
    asked = questions(world, HISTORIES)
    query, choice = world.query(*asked), world._choice
    rank = world.catalog.rank(np.arange(83))
    assert sorted(rank) == list(range(83))
    for row, log_probs in enumerate(world.log_probs(*asked)):
        weights = [
            math.exp(float(query[row] @ choice.vectors[d])) / (rank[d] + 1) ** exponent
            for d in range(83)
        ]
        np.testing.assert_allclose(np.exp(log_probs), np.array(weights) / sum(weights), rtol=1e-10)


def test_item_vectors_give_the_true_logits():
    world = make("softmax")
    asked = questions(world, HISTORIES)
    queries = np.hstack([world.query(*asked), np.ones((5, 1))])
    weights = np.exp(queries @ world.item_vectors(np.arange(83)).T)
    np.testing.assert_allclose(
        weights / weights.sum(axis=1, keepdims=True), np.exp(world.log_probs(*asked)), rtol=1e-10
    )
    with pytest.raises(ConfigError, match="topics"):
        make("topics").item_vectors(np.arange(3))


@pytest.mark.parametrize("num_items", [83, 85])
def test_topics_is_a_mixture_over_topics(num_items):
    world = make("topics", num_items=num_items, second_topic=0.3, zipf_exponent=1.1)
    asked = questions(world, HISTORIES)
    first, second = world.catalog.topics(np.arange(num_items))
    rows = world.catalog.rank(np.arange(num_items)) // 5
    scores = world.query(*asked) @ world._choice.centres.T
    for scores_row, log_probs in zip(scores, world.log_probs(*asked), strict=True):
        topic = np.array([math.exp(s) / (t + 1) ** 1.1 for t, s in enumerate(scores_row)])
        topic /= topic.sum()
        expected = np.zeros(num_items)
        for t in range(5):
            own = {rows[d]: d for d in range(num_items) if first[d] == t}
            visiting = {rows[d]: d for d in range(num_items) if second[d] == t}
            assert own.keys() == visiting.keys()
            total = sum((r + 1) ** -1.1 for r in own)
            for r in own:
                share = topic[t] * (r + 1) ** -1.1 / total
                expected[own[r]] += 0.7 * share
                expected[visiting[r]] += 0.3 * share
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.02, 0.2, 3.0])
def test_samples_follow_the_stated_probabilities(mode, temperature):
    world = make(mode, temperature=temperature)
    num_draws = 20_000
    generator = np.random.default_rng(5)
    for user_id, history in enumerate([[], [3, 8, 60, 2]]):
        probs = np.exp(world.log_probs(*questions(world, [history], [user_id]))[0])
        drawn = world.sample(
            *questions(world, [history] * num_draws, [user_id] * num_draws), generator
        )
        counts = np.bincount(drawn, minlength=83)
        common = probs * num_draws >= 5
        observed = np.append(counts[common], counts[~common].sum())
        expected = np.append(probs[common], probs[~common].sum()) * num_draws
        if expected[-1] < 5:
            observed[:-1][0] += observed[-1]
            expected[:-1][0] += expected[-1]
            observed, expected = observed[:-1], expected[:-1]
        if len(expected) > 1:
            assert stats.chisquare(observed, expected).pvalue > 1e-4
        assert observed.sum() == num_draws


def test_rejection_and_the_exact_fallback_draw_from_one_distribution():
    # So cold that rejection rarely succeeds: most rows reach the exact draw.
    world = make("softmax", num_items=700, temperature=0.05, drift=2.0)
    num_draws = 20_000
    asked = questions(world, [[3, 5, 9]] * num_draws, [1] * num_draws)
    counts = np.bincount(world.sample(*asked, np.random.default_rng(1)), minlength=700)
    probs = np.exp(world.log_probs(*(part[:k] for part, k in zip(asked, (1, 3, 2), strict=True))))
    keep = probs[0] * num_draws >= 5
    expected = np.append(probs[0][keep], probs[0][~keep].sum()) * num_draws
    observed = np.append(counts[keep], counts[~keep].sum())
    assert keep.sum() > 3
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("num_items", "num_topics"), [(83, 5), (85, 5), (40, 40), (9, 1), (97, 12)]
)
def test_entropy_matches_brute_force(mode, num_items, num_topics):
    world = make(mode, num_items=num_items, num_topics=num_topics)
    asked = questions(world, [[], [3], [7, 7], [1, 2, 8], [4, 0, 6]])
    log_probs = world.log_probs(*asked)
    expected = [-sum(math.exp(x) * x for x in row) for row in log_probs]
    np.testing.assert_allclose(world.entropy(*asked), expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_recent_items_matter_and_they_do(mode):
    world = make(mode, memory=3)
    same, longer, other = world.log_probs(
        *questions(world, [[1, 2, 3], [9, 8, 1, 2, 3], [1, 2, 4]], [7, 7, 7])
    )
    np.testing.assert_allclose(same, longer, rtol=1e-12)
    assert np.abs(np.exp(same) - np.exp(other)).sum() > 0.05
    order, reverse = world.log_probs(*questions(world, [[1, 2, 3], [3, 2, 1]], [7, 7]))
    assert np.abs(order - reverse).max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_drift_moves_to_the_next_topic(mode):
    world = make(mode, second_topic=0.0, drift=4.0)
    first, _ = world.catalog.topics(np.arange(83))
    before = world.log_probs(*questions(world, [[]] * 5, [7] * 5))
    item_of = [int(np.flatnonzero(first == topic)[0]) for topic in range(5)]
    after = world.log_probs(*questions(world, [[item] for item in item_of], [7] * 5))
    for topic in range(5):
        following = first == (topic + 1) % 5
        assert np.exp(after[topic][following]).sum() > np.exp(before[topic][following]).sum()
    still = make(mode, drift=0.0)
    apart = still.log_probs(*questions(still, [[], [1, 2]], [7, 7]))
    np.testing.assert_allclose(apart[0], apart[1], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_interactions_are_drawn_from_the_stated_truth(mode):
    """Sequences have the likelihood that the entropy predicts: generation uses the truth."""
    world = make(mode, num_users=3_000, interactions_mean=10, interactions_max=20)
    frame = world.interactions(0, 3_000)
    users, items = frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
    starts = np.searchsorted(users, np.arange(3_000))
    step = np.arange(len(users)) - starts[users]
    histories = [items[max(0, i - s) : i].tolist() for i, s in enumerate(np.minimum(step, 3))]
    asked = questions(world, histories, users)
    surprise = -world.log_prob(*asked, items) - world.entropy(*asked)
    assert abs(surprise.mean()) < 4 * surprise.std() / math.sqrt(len(surprise))


def test_unlike_seeds_and_users_are_unlike():
    one, two = make("softmax").interactions(0, 50), make("softmax", seed=1).interactions(0, 50)
    assert not one.equals(two)
    first, second = one.filter(user_id=0)["item_id"], one.filter(user_id=1)["item_id"]
    assert first.to_list()[:5] != second.to_list()[:5]


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("mode", MODES)
def test_popularity_follows_zipf(mode, exponent):
    world = World(
        SyntheticConfig(mode=mode, num_items=1_000, num_users=3_000, zipf_exponent=exponent, dim=16)
    )
    counts = np.sort(np.bincount(world.interactions(0, 3_000)["item_id"], minlength=1_000))[::-1]
    ranks = np.arange(5, 400)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert -slope == pytest.approx(exponent, rel=0.17)


def test_ten_million_items():
    world = World(
        SyntheticConfig(mode="topics", num_items=10_000_000, num_topics=100, num_users=50)
    )
    frame = world.interactions(0, 50)
    assert frame["item_id"].max() < 10_000_000
    asked = questions(world, [[1, 9_999_999]] * 1_000, [3] * 1_000)
    drawn = world.sample(*asked, np.random.default_rng(0))
    assert len(np.unique(drawn)) > 300
    # -mean log P of own samples estimates the entropy, computed by another route.
    surprise = -world.log_prob(*asked, drawn) - world.entropy(*asked)
    assert abs(surprise.mean()) < 4 * surprise.std() / math.sqrt(1_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "softmax", "num_items": 100_001}, ["num_items", "topics"]),
        ({"num_topics": 90}, ["num_topics", "83"]),
        ({"interactions_mean": 3.0}, ["interactions_mean", "interactions_min"]),
        ({"interactions_min": 60, "interactions_max": 50}, ["interactions_max"]),
    ],
)
def test_settings_that_cannot_go_together(changes, words):
    with pytest.raises(ConfigError) as caught:
        make(**{"mode": "topics", **changes})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "changes", [{"temperature": 0}, {"num_items": 1}, {"mode": "mixture"}, {"items": 5}]
)
def test_settings_out_of_range(changes):
    with pytest.raises(pydantic.ValidationError):
        make(**{"mode": "topics", **changes})


def test_every_setting_is_described():
    assert all(field.description for field in SyntheticConfig.model_fields.values())
