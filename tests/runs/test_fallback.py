"""Fallbacks for users without a history, and lists before the targets of a split."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import candid
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError, UnknownNameError
from candid.inference import tie_ranks

NUM_USERS, NUM_ITEMS, LENGTH = 30, 12, 6
RECENT = 12
"""A tenth of the 120 training targets."""


def films():
    """Users "u0", …; "u30" has no history and is of the red team. Times ascend with the user."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, NUM_ITEMS + 1)
    items = np.concatenate(
        [rng.choice(NUM_ITEMS, LENGTH, replace=False, p=weights / weights.sum())]
        + [
            rng.choice(NUM_ITEMS, LENGTH, replace=False, p=w / w.sum())
            for w in (np.roll(weights, user // 3) for user in range(1, NUM_USERS))
        ]
    )
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=offsets_of(np.append(np.full(NUM_USERS, LENGTH), 0)),
        roles=np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS).astype(np.uint8),
        users=pl.DataFrame(
            {
                "source_id": [f"u{user}" for user in range(NUM_USERS + 1)],
                "team": [["red", "blue"][user % 2] for user in range(NUM_USERS + 1)],
            }
        ),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS) + 100,
                "title": [f"Film {item}" for item in range(NUM_ITEMS)],
            }
        ),
        timestamps=np.arange(NUM_USERS * LENGTH) * 1_000_000,
        manifest={"fingerprint": "fallback films", "config": {"order": None}},
    )


HISTORY = {
    "threads": 1,
    "device": "cpu",
    "batches": {"max_length": 4, "batch_size": 8},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": "full_softmax",
    "training": {"max_steps": 3, "trackers": []},
    "evaluation": {"ks": [1, 3], "metric": "ndcg@3", "intervals": False},
}
ATTRIBUTES = HISTORY | {
    "features": {"user": {"team": "categorical"}},
    "batches": {"max_length": 4, "batch_size": 8, "empty_histories": True},
    "model": {
        "query_tower": {
            "type": "joined",
            "dim": 8,
            "towers": [
                {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
                {"type": "user_features", "id_mode": "none", "dim": 8, "field_dim": 8},
            ],
        },
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
}


@pytest.fixture(name="history_run", scope="module")
def _history_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "history"
    return candid.train(films(), HISTORY, out=out, measure=False, quiet=True)


@pytest.fixture(name="attribute_run", scope="module")
def _attribute_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "attributes"
    return candid.train(films(), ATTRIBUTES, out=out, measure=False, quiet=True)


@pytest.fixture(name="baseline", scope="module")
def _baseline():
    return candid.fit_baseline(films(), "item_knn", tuning=False)


def by_counts(name):
    """All source ids in the order of a fallback, by a loop over the training targets."""
    data = films()
    is_target = data.roles == Role.TRAIN
    items, times = data.item_ids[is_target].tolist(), data.timestamps[is_target].tolist()
    recent = [item for _, item in sorted(zip(times, items, strict=True))[-RECENT:]]
    ranks = tie_ranks(data.train_counts, data.items["source_id"])

    def key(item):
        counts = [-items.count(item), ranks[item]]
        return counts if name == "popular" else [-recent.count(item), *counts]

    return [item + 100 for item in sorted(range(NUM_ITEMS), key=key)]


def list_of(frame, query):
    return frame.filter(pl.col("query") == query)


@pytest.mark.parametrize("name", ["popular", "recent"])
@pytest.mark.parametrize("kind", ["history_run", "baseline"])
def test_users_without_history_have_the_list_of_the_fallback(request, kind, name):
    model = request.getfixturevalue(kind)
    frame = model.recommend(users=["u30", "u3", "stranger"], k=4, fallback=name)
    assert frame["query"].unique(maintain_order=True).to_list() == ["u30", "u3", "stranger"]
    for user in ("u30", "stranger"):
        one = list_of(frame, user)
        assert one["item"].to_list() == by_counts(name)[:4]
        assert one["rank"].to_list() == [1, 2, 3, 4]
        assert set(one["recommended_by"]) == {name}
        assert one["score"].is_sorted(descending=True)
    expected = model.recommend(users=["u3"], k=4)
    assert "recommended_by" not in expected.columns
    known = list_of(frame, "u3")
    assert set(known["recommended_by"]) == {"model"}
    assert_frame_equal(known.select(expected.columns), expected)


def test_probabilities_are_null_in_the_list_of_a_fallback(history_run):
    frame = history_run.recommend(users=["u30", "u3"], k=4, fallback="popular")
    assert list_of(frame, "u30")["probability"].null_count() == 4
    assert list_of(frame, "u3")["probability"].null_count() == 0
    alone = history_run.recommend(users=["u30"], k=4, fallback="popular")
    assert alone.schema == frame.schema


def test_recent_differs_from_popular():
    assert by_counts("recent") != by_counts("popular")


@pytest.mark.parametrize("name", ["popular", "recent"])
def test_allow_and_deny_hold_for_the_fallback(history_run, name):
    allow, deny = [105, 101, 102, 111], [102]
    frame = history_run.recommend(
        users=["u30", "u3"], k=4, allow=allow, deny=deny, fallback=name, filter_seen=False
    )
    expected = [item for item in by_counts(name) if item in (105, 101, 111)]
    assert list_of(frame, "u30")["item"].to_list() == expected
    assert set(list_of(frame, "u3")["item"]) == {105, 101, 111}


def test_model_that_reads_attributes_answers_users_without_history(attribute_run):
    frame = attribute_run.recommend(users=["u30", "u3", "new"], k=4, fallback="popular")
    makers = dict(frame.select("query", "recommended_by").unique().rows())
    assert makers == {"u30": "model", "u3": "model", "new": "popular"}
    expected = attribute_run.recommend(users=["u30"], k=4)
    # Vectors of another batch may differ in the last bits.
    assert_frame_equal(list_of(frame, "u30").select(expected.columns), expected)


def test_histories_may_be_empty_with_a_fallback(history_run, attribute_run):
    frame = history_run.recommend(histories=[[], [103, 104]], k=3, fallback="popular")
    assert list_of(frame, 0)["item"].to_list() == by_counts("popular")[:3]
    assert list_of(frame, 1)["recommended_by"].unique().to_list() == ["model"]
    described = attribute_run.recommend(
        histories=[[], []], features=[{"team": "red"}, {}], k=3, fallback="recent"
    )
    assert list_of(described, 0)["recommended_by"].unique().to_list() == ["model"]
    assert list_of(described, 1)["item"].to_list() == by_counts("recent")[:3]


def test_unknown_fallback_and_missing_queries_are_refused(history_run):
    with pytest.raises(UnknownNameError, match="unknown fallback 'popularity'"):
        history_run.recommend(users=["u3"], fallback="popularity")
    with pytest.raises(ConfigError, match="either users or histories"):
        history_run.recommend(fallback="popular")
    with pytest.raises(DataError, match="user ids of this dataset are String, got 7"):
        history_run.recommend(users=[7], fallback="popular")


def test_without_a_fallback_such_users_are_refused(history_run):
    advice = r"""unknown user 'stranger'.*; or add a fallback \(fallback="popular"\)$"""
    with pytest.raises(DataError, match=advice):
        history_run.recommend(users=["stranger"])
    with pytest.raises(ConfigError, match="'u30' has no history"):
        history_run.recommend(users=["u30"])


def test_fallback_without_training_targets_is_refused(history_run):
    held_out = np.full(len(history_run.dataset.roles), Role.TEST, dtype=np.uint8)
    other = dataclasses.replace(
        history_run, dataset=dataclasses.replace(history_run.dataset, roles=held_out)
    )
    with pytest.raises(DataError, match="no training interaction"):
        other.recommend(users=["u30"], fallback="popular")


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["history_run", "attribute_run"])
def test_lists_before_the_targets_of_a_split_are_those_of_the_evaluation(request, kind, split):
    model = request.getfixturevalue(kind)
    role = Role.VALIDATION if split == "validation" else Role.TEST
    lists = model.recommend_ids(user_ids=np.arange(NUM_USERS), k=6, role=role).to_frame()
    settings = {"ks": (1, 3, 6), "metric": "ndcg@3", "intervals": False, "nll": False}
    expected = model.evaluate(split, **settings)
    report = candid.evaluate_recommendations(
        lists, model.dataset, split, item_counts=model.item_counts, **settings
    )
    for name, value in expected.metrics.items():
        assert report.metrics[name].value == pytest.approx(value.value, abs=1e-12), name


def test_split_needs_users_with_targets_and_no_time(history_run):
    with pytest.raises(ConfigError, match="'u30' has no test target"):
        history_run.recommend_ids(user_ids=[30], role=Role.TEST)
    with pytest.raises(ConfigError, match="give users, and neither a time"):
        history_run.recommend_ids(histories=[[1]], role=Role.TEST)
