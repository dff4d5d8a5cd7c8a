"""Release times: probabilities over the items released by the time of the choice."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from candid.data import DataConfig, Role, SplitConfig, prepare_folder
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

SETTINGS = {"num_items": 83, "num_users": 300, "num_topics": 5, "dim": 6, "interactions_mean": 12.0}
HISTORIES = [[], [3], [7, 7], [1, 2, 3, 4, 5, 6], [80, 0, 41]]


def make(share: float, **changes) -> SyntheticData:
    return SyntheticData(
        SyntheticConfig.model_validate({**SETTINGS, "released_share": share, **changes})
    )


def make_queries():
    offsets = np.cumsum([0, *map(len, HISTORIES)])
    ids = np.array([i for h in HISTORIES for i in h], dtype=np.int64)
    return np.arange(len(HISTORIES)), ids, offsets


def query_times(data: SyntheticData) -> np.ndarray:
    """Five times: the start of the period, its quarters, and past the last release."""
    first, last = data.release_times.min(), data.release_times.max()
    return first + (last - first) * np.arange(5) // 4 + np.array([0, 0, 0, 0, 1])


def expected_probs(data: SyntheticData) -> tuple[np.ndarray, np.ndarray]:
    """Whether each item is released, and the probabilities by brute force over those items."""
    is_released = data.release_times[None, :] <= query_times(data)[:, None]
    free = np.exp(make(0.0).log_probs(*make_queries())) * is_released
    return is_released, free / free.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_release_times_are_even_and_independent_of_popularity(share):
    data = make(share, num_items=4_000)
    start = data.release_times.min()
    late = np.sort(data.release_times[data.release_times > start])
    assert len(late) == round(share * 4_000)
    day = 86_400 * 10**6
    edges = np.array([start, *late, start + 180 * day])
    assert np.ptp(np.diff(edges)) <= 1
    ranks = data.items.rank(np.flatnonzero(data.release_times > start))
    assert stats.kstest(ranks / 4_000, "uniform").pvalue > 1e-3
    assert stats.spearmanr(data.release_times[data.release_times > start], ranks).pvalue > 1e-3
    assert np.array_equal(data.release_times, make(share, num_items=4_000).release_times)


def test_log_probs_with_release_times_are_over_released_items():
    data, queries = make(0.4), make_queries()
    is_released, expected = expected_probs(data)
    assert is_released[0].sum() == 50
    assert is_released[4].all()
    times = query_times(data)
    with np.errstate(divide="ignore"):
        expected_log_probs = np.log(expected)
    np.testing.assert_allclose(
        data.log_probs(*queries, times=times), expected_log_probs, rtol=1e-10
    )
    every = np.tile(np.arange(83), 5)
    offsets = np.arange(6) * 83
    packed = data.log_prob(*queries, every, offsets, times=times)
    np.testing.assert_allclose(packed.reshape(5, 83), expected_log_probs, rtol=1e-10)
    entropy = [stats.entropy(row) for row in expected]
    np.testing.assert_allclose(data.entropy(*queries, times=times), entropy, rtol=1e-10)


@pytest.mark.parametrize("share", [0.4, 0.98])
def test_sample_with_release_times_follows_the_probabilities(share):
    """At 0.98 rejection sampling nearly always fails at first: exact sampling takes over."""
    data, (users, ids, offsets) = make(share), make_queries()
    _, expected = expected_probs(data)
    times, num_samples = query_times(data), 20_000
    for query in range(5):
        history = ids[offsets[query] : offsets[query + 1]]
        sampled = data.sample(
            np.repeat(users[query], num_samples),
            np.tile(history, num_samples),
            np.arange(num_samples + 1) * len(history),
            np.random.default_rng(query),
            times=np.repeat(times[query], num_samples),
        )
        counts = np.bincount(sampled, minlength=83)
        assert not counts[expected[query] == 0].any()
        common = expected[query] * num_samples >= 5
        observed = np.append(counts[common], counts[~common].sum())
        expected_counts = (
            np.append(expected[query][common], expected[query][~common].sum()) * num_samples
        )
        if expected_counts[-1] == 0:
            observed, expected_counts = observed[:-1], expected_counts[:-1]
        if len(expected_counts) > 1:
            assert stats.chisquare(observed, expected_counts).pvalue > 1e-4


def test_interactions_with_release_times_give_a_temporal_split_with_cold_items(tmp_path):
    data = make(0.4, num_items=600, num_users=2_000)
    paths = data.write(tmp_path)
    items = pl.read_parquet(paths["items"])
    assert items["released"].dtype == pl.Datetime("us", "UTC")
    assert np.array_equal(items["released"].to_physical().to_numpy(), data.release_times)
    frame = pl.read_parquet(paths["interactions"])
    waited = frame.join(items, on="item_id").select(pl.col("timestamp") - pl.col("released"))
    assert waited.to_series().min() >= pl.Series([0], dtype=pl.Duration("us")).item()
    assert data.interactions(41, 43).equals(frame.filter(pl.col("user_id").is_in([41, 42])))
    split = SplitConfig(kind="temporal")
    config = DataConfig(interactions=str(paths["interactions"]), time="timestamp", split=split)
    dataset = prepare_folder(config, tmp_path / "data").dataset
    tested = dataset.item_ids[dataset.roles == Role.TEST]
    cold = dataset.train_counts[tested] == 0
    assert 0.02 < cold.mean() < 0.3


def test_methods_without_times_are_refused_with_release_times():
    data, queries = make(0.4), make_queries()
    for method in (data.log_probs, data.entropy):
        with pytest.raises(ConfigError, match="pass times"):
            method(*queries)
    with pytest.raises(ConfigError, match="pass times"):
        data.log_prob(*queries, np.zeros(5, np.int64))
    with pytest.raises(ConfigError, match="pass times"):
        data.sample(*queries, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="change with time"):
        data.item_vectors(np.arange(3))
    with pytest.raises(ConfigError, match="needs mode 'softmax'"):
        make(0.4, mode="topics")


def test_times_without_release_times_are_ignored():
    data, queries = make(0.0), make_queries()
    assert data.release_times is None
    times = np.zeros(5, np.int64)
    assert np.array_equal(data.log_probs(*queries, times=times), data.log_probs(*queries))
    assert "released" not in data.item_table(0, 3).columns
