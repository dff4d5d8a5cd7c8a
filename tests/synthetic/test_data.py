from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

SMALL = {"num_items": 83, "num_users": 300, "num_topics": 5, "dim": 6, "interactions_mean": 12.0}
MODES = ("softmax", "topics")


def make(mode: str, **changes) -> SyntheticData:
    return SyntheticData(SyntheticConfig(**{**SMALL, "mode": mode, **changes}))


def make_queries(data: SyntheticData, histories: list[list[int]], user_ids=None):
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
    draw=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one(mode, num_items, num_topics, exponent, temperature, second, draw):
    data = make(
        mode,
        num_items=num_items,
        num_topics=min(num_topics, num_items),
        zipf_exponent=exponent,
        temperature=temperature,
        second_topic=second,
    )
    history = draw.draw(st.lists(st.integers(0, num_items - 1), max_size=6))
    log_probs = data.log_probs(*make_queries(data, [[], history]))
    assert log_probs.shape == (2, num_items)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_log_prob_agrees_with_log_probs(mode):
    data = make(mode)
    queries = make_queries(data, HISTORIES)
    table = data.log_probs(*queries)
    items = np.array([0, 82, 5, 5, 17])
    np.testing.assert_allclose(
        data.log_prob(*queries, items), table[np.arange(5), items], rtol=1e-12
    )
    packed = np.array([9, 8, 7, 6])
    offsets = np.array([0, 1, 1, 3, 3, 4])
    np.testing.assert_allclose(
        data.log_prob(*queries, packed, offsets), table[[0, 2, 2, 4], packed], rtol=1e-12
    )


@pytest.mark.parametrize("exponent", [0.6, 1.3])
def test_softmax_mode_is_dot_product_plus_popularity_bias(exponent):
    data = make("softmax", zipf_exponent=exponent)
    queries = make_queries(data, HISTORIES)
    query, choice = data.query(*queries), data._choice
    rank = data.items.rank(np.arange(83))
    assert sorted(rank) == list(range(83))
    for row, log_probs in enumerate(data.log_probs(*queries)):
        weights = [
            math.exp(float(query[row] @ choice.vectors[d])) / (rank[d] + 1) ** exponent
            for d in range(83)
        ]
        np.testing.assert_allclose(np.exp(log_probs), np.array(weights) / sum(weights), rtol=1e-10)


def test_item_vectors_give_the_true_logits():
    data = make("softmax")
    queries = make_queries(data, HISTORIES)
    vectors = np.hstack([data.query(*queries), np.ones((5, 1))])
    weights = np.exp(vectors @ data.item_vectors(np.arange(83)).T)
    np.testing.assert_allclose(
        weights / weights.sum(axis=1, keepdims=True), np.exp(data.log_probs(*queries)), rtol=1e-10
    )
    with pytest.raises(ConfigError, match="topics"):
        make("topics").item_vectors(np.arange(3))


@pytest.mark.parametrize("num_items", [83, 85])
def test_topics_mode_is_a_mixture_over_topics(num_items):
    data = make("topics", num_items=num_items, second_topic=0.3, zipf_exponent=1.1)
    queries = make_queries(data, HISTORIES)
    first, second = data.items.topics(np.arange(num_items))
    rows = data.items.rank(np.arange(num_items)) // 5
    scores = data.query(*queries) @ data._choice.centres.T
    for scores_row, log_probs in zip(scores, data.log_probs(*queries), strict=True):
        topic = np.array([math.exp(s) / (t + 1) ** 1.1 for t, s in enumerate(scores_row)])
        topic /= topic.sum()
        expected = np.zeros(num_items)
        for t in range(5):
            by_first_topic = {rows[d]: d for d in range(num_items) if first[d] == t}
            by_second_topic = {rows[d]: d for d in range(num_items) if second[d] == t}
            assert by_first_topic.keys() == by_second_topic.keys()
            total = sum((r + 1) ** -1.1 for r in by_first_topic)
            for r in by_first_topic:
                share = topic[t] * (r + 1) ** -1.1 / total
                expected[by_first_topic[r]] += 0.7 * share
                expected[by_second_topic[r]] += 0.3 * share
        np.testing.assert_allclose(np.exp(log_probs), expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.02, 0.2, 3.0])
def test_samples_follow_the_stated_probabilities(mode, temperature):
    data = make(mode, temperature=temperature)
    num_samples = 20_000
    generator = np.random.default_rng(5)
    for user_id, history in enumerate([[], [3, 8, 60, 2]]):
        probs = np.exp(data.log_probs(*make_queries(data, [history], [user_id]))[0])
        sampled = data.sample(
            *make_queries(data, [history] * num_samples, [user_id] * num_samples), generator
        )
        counts = np.bincount(sampled, minlength=83)
        common = probs * num_samples >= 5
        observed = np.append(counts[common], counts[~common].sum())
        expected = np.append(probs[common], probs[~common].sum()) * num_samples
        if expected[-1] < 5:
            observed[:-1][0] += observed[-1]
            expected[:-1][0] += expected[-1]
            observed, expected = observed[:-1], expected[:-1]
        if len(expected) > 1:
            assert stats.chisquare(observed, expected).pvalue > 1e-4
        assert observed.sum() == num_samples


def test_sample_rejection_and_exact_fallback_have_one_distribution():
    # At this temperature rejection rarely succeeds: most rows are sampled exactly.
    data = make("softmax", num_items=700, temperature=0.05, history_weight=2.0)
    num_samples = 20_000
    queries = make_queries(data, [[3, 5, 9]] * num_samples, [1] * num_samples)
    counts = np.bincount(data.sample(*queries, np.random.default_rng(1)), minlength=700)
    probs = np.exp(data.log_probs(*(part[:k] for part, k in zip(queries, (1, 3, 2), strict=True))))
    keep = probs[0] * num_samples >= 5
    expected = np.append(probs[0][keep], probs[0][~keep].sum()) * num_samples
    observed = np.append(counts[keep], counts[~keep].sum())
    assert keep.sum() > 3
    assert stats.chisquare(observed, expected).pvalue > 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("num_items", "num_topics"), [(83, 5), (85, 5), (40, 40), (9, 1), (97, 12)]
)
def test_entropy_equals_brute_force(mode, num_items, num_topics):
    data = make(mode, num_items=num_items, num_topics=num_topics)
    queries = make_queries(data, [[], [3], [7, 7], [1, 2, 8], [4, 0, 6]])
    log_probs = data.log_probs(*queries)
    expected = [-sum(math.exp(x) * x for x in row) for row in log_probs]
    np.testing.assert_allclose(data.entropy(*queries), expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_log_probs_depend_on_recent_items_only(mode):
    data = make(mode, history_length=3)
    same, longer, other = data.log_probs(
        *make_queries(data, [[1, 2, 3], [9, 8, 1, 2, 3], [1, 2, 4]], [7, 7, 7])
    )
    np.testing.assert_allclose(same, longer, rtol=1e-12)
    assert np.abs(np.exp(same) - np.exp(other)).sum() > 0.05
    order, reverse = data.log_probs(*make_queries(data, [[1, 2, 3], [3, 2, 1]], [7, 7]))
    assert np.abs(order - reverse).max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_history_weight_moves_choices_to_the_next_topic(mode):
    data = make(mode, second_topic=0.0, history_weight=4.0)
    first, _ = data.items.topics(np.arange(83))
    before = data.log_probs(*make_queries(data, [[]] * 5, [7] * 5))
    item_of = [int(np.flatnonzero(first == topic)[0]) for topic in range(5)]
    after = data.log_probs(*make_queries(data, [[item] for item in item_of], [7] * 5))
    for topic in range(5):
        is_next_topic = first == (topic + 1) % 5
        assert (
            np.exp(after[topic][is_next_topic]).sum() > np.exp(before[topic][is_next_topic]).sum()
        )
    without_history = make(mode, history_weight=0.0)
    log_probs = without_history.log_probs(*make_queries(without_history, [[], [1, 2]], [7, 7]))
    np.testing.assert_allclose(log_probs[0], log_probs[1], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_interactions_follow_the_stated_probabilities(mode):
    """Mean surprise of generated sequences equals the entropy."""
    data = make(mode, num_users=3_000, interactions_mean=10, interactions_max=20)
    frame = data.interactions(0, 3_000)
    users, items = frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
    starts = np.searchsorted(users, np.arange(3_000))
    step = np.arange(len(users)) - starts[users]
    histories = [items[max(0, i - s) : i].tolist() for i, s in enumerate(np.minimum(step, 3))]
    queries = make_queries(data, histories, users)
    surprise = -data.log_prob(*queries, items) - data.entropy(*queries)
    assert abs(surprise.mean()) < 4 * surprise.std() / math.sqrt(len(surprise))


def test_interactions_differ_between_seeds_and_users():
    one, two = make("softmax").interactions(0, 50), make("softmax", seed=1).interactions(0, 50)
    assert not one.equals(two)
    first, second = one.filter(user_id=0)["item_id"], one.filter(user_id=1)["item_id"]
    assert first.to_list()[:5] != second.to_list()[:5]


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("mode", MODES)
def test_popularity_follows_zipf(mode, exponent):
    data = SyntheticData(
        SyntheticConfig(mode=mode, num_items=1_000, num_users=3_000, zipf_exponent=exponent, dim=16)
    )
    counts = np.sort(np.bincount(data.interactions(0, 3_000)["item_id"], minlength=1_000))[::-1]
    ranks = np.arange(5, 400)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert -slope == pytest.approx(exponent, rel=0.17)


def test_topics_mode_with_ten_million_items():
    data = SyntheticData(
        SyntheticConfig(mode="topics", num_items=10_000_000, num_topics=100, num_users=50)
    )
    frame = data.interactions(0, 50)
    assert frame["item_id"].max() < 10_000_000
    queries = make_queries(data, [[1, 9_999_999]] * 1_000, [3] * 1_000)
    sampled = data.sample(*queries, np.random.default_rng(0))
    assert len(np.unique(sampled)) > 300
    # -mean log P of the samples estimates the entropy independently.
    surprise = -data.log_prob(*queries, sampled) - data.entropy(*queries)
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
def test_config_with_contradicting_settings_is_refused(changes, words):
    with pytest.raises(ConfigError) as caught:
        make(**{"mode": "topics", **changes})
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "changes", [{"temperature": 0}, {"num_items": 1}, {"mode": "mixture"}, {"items": 5}]
)
def test_config_with_a_setting_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError):
        make(**{"mode": "topics", **changes})


def test_config_describes_every_setting():
    assert all(field.description for field in SyntheticConfig.model_fields.values())
