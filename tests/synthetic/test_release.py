"""Items released over time: the truth is the world's without releases, over what is out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from candid.data import DataConfig, Role, SplitConfig, prepare
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig, World

SETTINGS = {"num_items": 83, "num_users": 300, "num_topics": 5, "dim": 6, "interactions_mean": 12.0}
HISTORIES = [[], [3], [7, 7], [1, 2, 3, 4, 5, 6], [80, 0, 41]]


def make(share: float, **changes) -> World:
    return World(SyntheticConfig.model_validate({**SETTINGS, "released_share": share, **changes}))


def questions():
    offsets = np.cumsum([0, *map(len, HISTORIES)])
    ids = np.array([i for h in HISTORIES for i in h], dtype=np.int64)
    return np.arange(len(HISTORIES)), ids, offsets


def quarters(world: World) -> np.ndarray:
    """Five moments: the start of the timeline, three quarters, and past its end."""
    first, last = world.releases.min(), world.releases.max()
    return first + (last - first) * np.arange(5) // 4 + np.array([0, 0, 0, 0, 1])


def truth(world: World) -> tuple[np.ndarray, np.ndarray]:
    """What is out, and the probabilities by brute force from the same world without releases."""
    is_out = world.releases[None, :] <= quarters(world)[:, None]
    free = np.exp(make(0.0).log_probs(*questions())) * is_out
    return is_out, free / free.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("share", [0.01, 0.4, 0.99])
def test_the_share_is_released_evenly_and_without_regard_to_popularity(share):
    world = make(share, num_items=4_000)
    start = world.releases.min()
    late = np.sort(world.releases[world.releases > start])
    assert len(late) == round(share * 4_000)
    day = 86_400 * 10**6
    edges = np.array([start, *late, start + 180 * day])
    assert np.ptp(np.diff(edges)) <= 1
    ranks = world.catalog.rank(np.flatnonzero(world.releases > start))
    assert stats.kstest(ranks / 4_000, "uniform").pvalue > 1e-3
    assert stats.spearmanr(world.releases[world.releases > start], ranks).pvalue > 1e-3
    assert np.array_equal(world.releases, make(share, num_items=4_000).releases)


def test_probabilities_are_those_of_the_items_that_are_out():
    world, asked = make(0.4), questions()
    is_out, expected = truth(world)
    assert is_out[0].sum() == 50
    assert is_out[4].all()
    times = quarters(world)
    with np.errstate(divide="ignore"):
        wanted = np.log(expected)
    np.testing.assert_allclose(world.log_probs(*asked, times=times), wanted, rtol=1e-10)
    every = np.tile(np.arange(83), 5)
    offsets = np.arange(6) * 83
    packed = world.log_prob(*asked, every, offsets, times=times)
    np.testing.assert_allclose(packed.reshape(5, 83), wanted, rtol=1e-10)
    entropy = [stats.entropy(row) for row in expected]
    np.testing.assert_allclose(world.entropy(*asked, times=times), entropy, rtol=1e-10)


@pytest.mark.parametrize("share", [0.4, 0.98])
def test_samples_follow_the_probabilities(share):
    """At 0.98 nearly every try is refused at first: the exact draw has to take over."""
    world, (users, ids, offsets) = make(share), questions()
    _, expected = truth(world)
    times, draws = quarters(world), 20_000
    for query in range(5):
        history = ids[offsets[query] : offsets[query + 1]]
        drawn = world.sample(
            np.repeat(users[query], draws),
            np.tile(history, draws),
            np.arange(draws + 1) * len(history),
            np.random.default_rng(query),
            times=np.repeat(times[query], draws),
        )
        counts = np.bincount(drawn, minlength=83)
        assert not counts[expected[query] == 0].any()
        common = expected[query] * draws >= 5
        observed = np.append(counts[common], counts[~common].sum())
        wanted = np.append(expected[query][common], expected[query][~common].sum()) * draws
        if wanted[-1] == 0:
            observed, wanted = observed[:-1], wanted[:-1]
        if len(wanted) > 1:
            assert stats.chisquare(observed, wanted).pvalue > 1e-4


def test_nobody_chooses_what_is_not_out_and_a_temporal_split_has_cold_items(tmp_path):
    world = make(0.4, num_items=600, num_users=2_000)
    paths = world.write(tmp_path)
    items = pl.read_parquet(paths["items"])
    assert items["released"].dtype == pl.Datetime("us", "UTC")
    assert np.array_equal(items["released"].to_physical().to_numpy(), world.releases)
    frame = pl.read_parquet(paths["interactions"])
    waited = frame.join(items, on="item_id").select(pl.col("timestamp") - pl.col("released"))
    assert waited.to_series().min() >= pl.Series([0], dtype=pl.Duration("us")).item()
    assert world.interactions(41, 43).equals(frame.filter(pl.col("user_id").is_in([41, 42])))
    split = SplitConfig(kind="temporal")
    config = DataConfig(interactions=str(paths["interactions"]), time="timestamp", split=split)
    dataset = prepare(config, tmp_path / "data").dataset
    tested = dataset.item_ids[dataset.roles == Role.TEST]
    cold = dataset.train_counts[tested] == 0
    assert 0.02 < cold.mean() < 0.3


def test_what_depends_on_time_asks_for_it():
    world, asked = make(0.4), questions()
    for ask in (world.log_probs, world.entropy):
        with pytest.raises(ConfigError, match="pass times"):
            ask(*asked)
    with pytest.raises(ConfigError, match="pass times"):
        world.log_prob(*asked, np.zeros(5, np.int64))
    with pytest.raises(ConfigError, match="pass times"):
        world.sample(*asked, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="change with time"):
        world.item_vectors(np.arange(3))
    with pytest.raises(ConfigError, match=r"needs world\.mode 'softmax'"):
        make(0.4, mode="topics")


def test_without_releases_time_changes_nothing():
    world, asked = make(0.0), questions()
    assert world.releases is None
    times = np.zeros(5, np.int64)
    assert np.array_equal(world.log_probs(*asked, times=times), world.log_probs(*asked))
    assert "released" not in world.items(0, 3).columns
