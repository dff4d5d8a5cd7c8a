"""``Run`` in source ids: recommendations, similar items, vectors and evaluation."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError, DataError

NUM_USERS, NUM_ITEMS, LENGTH = 30, 12, 6


def dataset():
    """Users "u0", … with films 100, 101, …; film 103 has no title."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    roles = np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS)
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame(
            {
                "source_id": [f"u{user}" for user in range(NUM_USERS)],
                "team": [["red", "blue"][user % 2] for user in range(NUM_USERS)],
            }
        ),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS) + 100,
                "title": [None if item == 3 else f"Film {item}" for item in range(NUM_ITEMS)],
            }
        ),
        timestamps=np.arange(len(items)) * 1_000_000,
        manifest={"fingerprint": "films", "config": {"order": None}},
    )


RECIPE = {
    "threads": 1,
    "device": "cpu",
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
    "loss": "full_softmax",
    "training": {"max_steps": 3, "trackers": []},
    "evaluation": {"ks": [1, 3], "metric": "ndcg@3", "intervals": False},
}
HISTORY_ONLY = {
    "features": {},
    "batches": {"max_length": 4},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": "bce",
    "sampler": {"type": "uniform", "num_candidates": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "films"
    return candid.train(dataset(), RECIPE, out=str(out))


@pytest.fixture(scope="module")
def history_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "history"
    return candid.train(dataset(), RECIPE | HISTORY_ONLY, out=out)


def expected_list(run, query, k, seen=(), allowed=None):
    """Items of largest float64 score, in source ids."""
    _, vectors = run.item_vectors()
    scores = vectors.astype(float) @ query.astype(float)
    order = [int(item) + 100 for item in np.argsort(-scores)]
    order = [item for item in order if item not in seen and (allowed is None or item in allowed)]
    return order[:k]


def films_of(run, user):
    start, stop = run.dataset.user_offsets[user : user + 2]
    return (run.dataset.item_ids[start:stop] + 100).tolist()


def test_train_returns_the_run_of_a_table_and_overrides(run, tmp_path):
    assert run.config.name == "films"
    assert run.config.training.max_steps == 3
    other = candid.train(
        dataset(),
        RECIPE,
        out=tmp_path / "other run",
        seed=7,
        training={"max_steps": 1},
        loss={"type": "bce"},
        sampler={"type": "uniform", "num_candidates": 2},
    )
    assert (other.config.name, other.config.seed) == ("other-run", 7)
    assert other.config.training.max_steps == 1
    assert other.config.training.trackers == ()
    assert other.config.sampler.num_candidates == 2
    with pytest.raises(ConfigError, match=r"training\.max_step"):
        candid.train(dataset(), RECIPE, out=tmp_path / "new", training={"max_step": 1})
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="already holds a run"):
        candid.train(dataset(), RECIPE, out=tmp_path / "other run")


def test_train_of_a_recipe_file_and_of_the_default_recipe(tmp_path):
    (tmp_path / "bce.toml").write_text('name = "bce"\nloss = "full_softmax"\n')
    settings = {"training": {"max_steps": 1, "trackers": []}, "device": "cpu", "threads": 1}
    settings["evaluation"] = {"ks": [1], "metric": "ndcg@1", "intervals": False}
    run = candid.train(dataset(), str(tmp_path / "bce.toml"), out=tmp_path / "r", **settings)
    assert run.config.name == "bce"
    assert run.model.query_tower.dim == 64
    run = candid.train(dataset(), out=str(tmp_path / "default"), **settings)
    assert run.config.name == "default"
    assert run.config.batches.batch_size == 16  # of few users
    assert run.config.sampler is None  # the full softmax of few items
    again = candid.load_run(str(tmp_path / "default"), dataset())
    assert torch.equal(again.model.encode_catalog(), run.model.encode_catalog())
    settings["loss"] = {"type": "sampled_softmax", "correction": "refined"}
    run = candid.train(dataset(), out=str(tmp_path / "sampled"), **settings)
    assert run.config.loss.correction == "refined"
    assert run.config.sampler is not None


def test_recommend_to_users(run):
    frame = run.recommend(users=["u7", "u0"], k=4)
    assert frame.columns == ["query", "rank", "item", "score", "title", "probability"]
    assert frame["query"].to_list() == ["u7"] * 4 + ["u0"] * 4
    assert frame["rank"].to_list() == [1, 2, 3, 4] * 2
    vectors = run.query_vectors(users=["u7", "u0"])
    assert vectors.shape == (2, 8)
    assert vectors.dtype == np.float32
    source_ids, items = run.item_vectors()
    assert source_ids.to_list() == list(range(100, 112))
    for user, query in ((7, vectors[0]), (0, vectors[1])):
        rows = frame.filter(pl.col("query") == f"u{user}")
        assert rows["item"].to_list() == expected_list(run, query, 4, seen=films_of(run, user))
        titles = [None if item == 103 else f"Film {item - 100}" for item in rows["item"]]
        assert rows["title"].to_list() == titles
        scores = items.astype(float) @ query.astype(float)
        softmax = np.exp(scores) / np.exp(scores).sum()
        position = rows["item"].to_numpy() - 100
        assert rows["score"].to_numpy() == pytest.approx(scores[position], rel=1e-5)
        assert rows["probability"].to_numpy() == pytest.approx(softmax[position], rel=1e-4)
    assert run.recommend("u7", k=4)["item"].to_list() == frame["item"][:4].to_list()
    everything = run.recommend("u7", k=NUM_ITEMS, filter_seen=False)
    assert sorted(everything["item"]) == list(range(100, 112))
    assert everything["probability"].sum() == pytest.approx(1, abs=1e-6)


def test_recommend_among_allowed_items(run):
    seen = films_of(run, 0)
    unseen = [item for item in range(100, 112) if item not in seen]
    query = run.query_vectors(users=["u0"])[0]
    allow = [seen[0], *unseen[:3]]
    frame = run.recommend("u0", k=10, allow=allow)
    assert frame["item"].to_list() == expected_list(run, query, 10, seen, allow)
    frame = run.recommend("u0", k=10, allow=allow, deny=unseen[:1])
    assert frame["item"].to_list() == expected_list(run, query, 10, seen, unseen[1:3])
    frame = run.recommend("u0", k=3, deny=unseen[:2])
    assert frame["item"].to_list() == expected_list(run, query, 3, [*seen, *unseen[:2]])
    with pytest.raises(ConfigError, match="no item is left"):
        run.recommend("u0", allow=[])


def test_recommend_to_anonymous_users(run):
    frame = run.recommend(histories=[[100, 101], []], features=[{"team": "red"}, {}], k=3)
    assert frame["query"].to_list() == [0, 0, 0, 1, 1, 1]
    assert not {100, 101} & set(frame["item"][:3])
    query = run.query_vectors(histories=[[100, 101]], features=[{"team": "red"}])[0]
    assert frame["item"][:3].to_list() == expected_list(run, query, 3, [100, 101])
    # A user of the dataset and an anonymous user with the same history and attributes.
    known = run.recommend("u2", k=3)
    same = run.recommend(histories=[films_of(run, 2)], features=[{"team": "red"}], k=3)
    assert same.drop("query", "score", "probability").equals(
        known.drop("query", "score", "probability")
    )
    assert same["score"].to_numpy() == pytest.approx(known["score"].to_numpy(), abs=1e-5)
    by_team = run.query_vectors(features=[{"team": "red"}, {"team": "blue"}])
    assert by_team.shape == (2, 8)
    assert not np.allclose(by_team[0], by_team[1])
    assert run.query_vectors(users=[]).shape == (0, 8)
    assert run.recommend(users=[]).is_empty()
    assert run.similar(np.int64(105), k=1).height == 1


def test_similar_items_have_the_largest_cosine(run):
    frame = run.similar([105, 100], k=11)
    assert frame.columns == ["query", "rank", "item", "score", "title"]
    vectors = run.item_vectors()[1].astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for item in (105, 100):
        rows = frame.filter(pl.col("query") == item)
        cosine = unit @ unit[item - 100]
        order = [int(other) + 100 for other in np.argsort(-cosine) if other != item - 100]
        assert rows["item"].to_list() == order
        assert rows["score"].to_numpy() == pytest.approx(cosine[np.array(order) - 100], abs=1e-6)
    assert run.similar(105, k=2)["item"].to_list() == frame["item"][:2].to_list()
    with pytest.raises(ConfigError, match="k 12 must be between 1 and the 11 other items"):
        run.similar(105, k=12)


def test_evaluate_a_split_with_other_settings(run):
    report = run.evaluate()
    assert report.settings["role"] == "test"
    assert set(report.metrics) >= {"ndcg@1", "ndcg@3", "nll"}
    validation = run.evaluate("validation", ks=(2,), metric="recall@2", nll=False)
    assert validation.settings["role"] == "validation"
    assert "recall@2" in validation.metrics
    assert "nll" not in validation.metrics
    with pytest.raises(ConfigError, match="unknown split 'train'"):
        run.evaluate("train")
    with pytest.raises(ConfigError, match=r"evaluate: .*'kss'"):
        run.evaluate(kss=(2,))


def test_probability_is_absent_where_the_loss_estimates_none(history_run):
    frame = history_run.recommend("u1", k=2)
    assert frame.columns == ["query", "rank", "item", "score", "title"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda run: run.recommend("u77"), DataError, "unknown user 'u77': did you mean 'u7'"),
        (lambda run: run.recommend("xyz"), DataError, "unknown user 'xyz': it is not in the data"),
        (lambda run: run.recommend(7), DataError, r"user ids of this dataset are String, got 7"),
        (lambda run: run.recommend(np.array([7])), DataError, "are String, got 7 "),
        (lambda run: run.recommend(pl.Series([7.5])), DataError, "are String, got 7.5 "),
        (lambda run: run.recommend(["u1", None]), DataError, "are String, got None"),
        (lambda run: run.recommend(pl.Series(["u1", None])), DataError, "are String, got None"),
        (lambda run: run.recommend({"u1": 1}), DataError, "must be one id or a list of ids, got {"),
        (lambda run: run.recommend(1.5), DataError, "must be one id or a list of ids, got 1.5"),
        (
            lambda run: run.recommend(pl.DataFrame({"user": ["u1"]})),
            DataError,
            "must be one id or a list of ids, got DataFrame",
        ),
        (lambda run: run.similar("100"), DataError, "item ids .* are Int64, got '100'"),
        (lambda run: run.similar(True), DataError, "item ids .* are Int64, got True"),
        (lambda run: run.similar([100, True]), DataError, "item ids .* are Int64, got True"),
        (lambda run: run.similar([2**70]), DataError, f"are Int64, got {2**70}"),
        (lambda run: run.similar(np.array([100.0])), DataError, "are Int64, got 100.0"),
        (lambda run: run.similar(np.array([[100]])), DataError, "are Int64, got array"),
        (lambda run: run.similar(None), DataError, "must be one id or a list of ids, got None"),
        (lambda run: run.similar(100, k="3"), ConfigError, "k must be a whole number, got '3'"),
        (lambda run: run.recommend("u1", k=2.5), ConfigError, "k must be a whole number, got 2.5"),
        (lambda run: run.recommend("u1", k=True), ConfigError, "k must be a whole number"),
        (
            lambda run: run.recommend(histories=[100, 101]),
            DataError,
            r"one list of items for each user, got 100 \(int\) in place 0: write histories=",
        ),
        (lambda run: run.recommend(histories="100"), DataError, "one list of items for each user"),
        (
            lambda run: run.query_vectors(histories=pl.DataFrame({"a": [100]})),
            DataError,
            "got a table: give one of its columns of lists",
        ),
        (lambda run: run.evaluate(config={"ks": [1]}), ConfigError, "settings as keywords"),
        (lambda run: run.recommend(histories=[[1]]), DataError, "unknown item 1: it is not in"),
        (lambda run: run.recommend(histories=[["Film"]]), DataError, "item ids .* got 'Film'"),
        (lambda run: run.recommend("u1", deny=[99]), DataError, "unknown item 99"),
        (lambda run: run.similar([5]), DataError, "unknown item 5"),
        (lambda run: run.recommend(), ConfigError, "either users or histories"),
        (lambda run: run.query_vectors(), ConfigError, "either users or histories"),
        (
            lambda run: run.recommend("u1", histories=[[100]]),
            ConfigError,
            "either users or histories",
        ),
        (lambda run: run.recommend("u1", k=13), ConfigError, "k 13 must be between 1 and the 12"),
        (lambda run: run.recommend("u1", time=3), ConfigError, "does not read the time"),
        (lambda run: run.recommend("u1", event_type="buy"), ConfigError, "the event type"),
        (
            lambda run: run.recommend(histories=[[]], features=[{}, {}]),
            ConfigError,
            "features of 2 users and 1 histories",
        ),
        (lambda run: run.recommend(features=[{"age": 3}]), DataError, "attribute of users 'age'"),
        (lambda run: run.recommend("u1", features=[{}]), ConfigError, "anonymous users"),
        (lambda run: run.evaluate(data=pl.DataFrame({"a": [1]})), ConfigError, "key 'data'"),
        (
            lambda run: candid.write_recommendations(run.dataset, "recs.csv"),
            ConfigError,
            "model must be a run, a fitted baseline or its folder, got PreparedDataset",
        ),
        (
            lambda run: candid.train(run.dataset, out="next", init=run.dataset),
            ConfigError,
            "init must be a run or its folder, got PreparedDataset",
        ),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(run, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(run)
    assert "\n" not in str(raised.value)


def test_requests_that_a_history_model_cannot_encode(history_run):
    with pytest.raises(ConfigError, match="history 1 is empty and the model needs one"):
        history_run.recommend(histories=[[100], []])
    with pytest.raises(ConfigError, match="history 0 is empty and the model needs one"):
        history_run.query_vectors(histories=[[]])
    with pytest.raises(ConfigError, match="reads no user features"):
        history_run.recommend(histories=[[100]], features=[{"team": "red"}])


IDS = ["u7", "u3", "u7"]


@pytest.mark.parametrize(
    "users",
    [
        IDS,
        tuple(IDS),
        (user for user in IDS),
        pl.Series(IDS),
        pl.Series(IDS, dtype=pl.Categorical),
        np.array(IDS),
        np.array(IDS, dtype=object),
    ],
    ids=["list", "tuple", "generator", "series", "categories", "array", "objects"],
)
def test_ids_of_users_in_every_form(run, users):
    frame = run.recommend(users=users, k=1)
    assert frame["query"].to_list() == IDS
    expected = [run.recommend(user, k=1)["item"][0] for user in IDS]
    assert frame["item"].to_list() == expected


@pytest.mark.parametrize(
    "items",
    [
        [107, 103],
        pl.Series([107, 103], dtype=pl.UInt8),
        np.array([107, 103], dtype=np.uint8),
        torch.tensor([107, 103]),
    ],
    ids=["list", "series", "array", "tensor"],
)
def test_ids_of_items_in_every_form(run, items):
    assert run.similar(items, k=1)["query"].to_list() == [107, 103]
    allowed = run.recommend("u1", k=12, allow=items, filter_seen=False)["item"].to_list()
    assert sorted(allowed) == [103, 107]
    assert run.recommend("u1", k=12, allow=103, filter_seen=False)["item"].to_list() == [103]


@pytest.mark.parametrize(
    "histories",
    [
        pl.Series([[107, 103], [100, 101]]),
        np.array([[107, 103], [100, 101]]),
        [np.array([107, 103]), pl.Series([100, 101])],
    ],
    ids=["series", "array", "mixed"],
)
def test_histories_in_every_form(run, histories):
    expected = run.query_vectors(histories=[[107, 103], [100, 101]])
    assert np.array_equal(run.query_vectors(histories=histories), expected)


def test_train_starts_from_a_run(run, tmp_path):
    other = candid.train(run.dataset, out=tmp_path / "next", init=run, measure=False)
    assert json.loads((other.folder / "run.json").read_text())["init"]["run"] == str(run.folder)


def test_train_takes_a_config(run, tmp_path):
    other = candid.train(dataset(), run.config, out=tmp_path / "other", measure=False, seed=1)
    assert other.config == run.config.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="recipe must be a file, a table of keys, a config or"):
        candid.train(dataset(), 3, out=tmp_path / "third")


def test_reports_have_a_short_repr(run):
    report = run.evaluate()
    expected = f"EvaluationReport(ndcg@3={report.metrics['ndcg@3'].value:.4f}, 30 users, "
    assert repr(report).startswith(expected)
    assert len(repr(report)) < 100


def test_repr_has_no_arrays(run):
    assert repr(run).startswith("Run(")
    assert "name='films', users=30, items=12" in repr(run)
    assert len(repr(run.dataset)) < 200


def test_lists_are_by_default_those_that_the_evaluation_measures(run):
    config = run.config.evaluation.model_copy(update={"filter_seen": False})
    shown = dataclasses.replace(run, config=run.config.model_copy(update={"evaluation": config}))
    hidden, every = (len(run.recommend(["u0"], filter_seen=seen)) for seen in (True, False))
    assert (hidden, every) == (6, 10)
    assert len(run.recommend(["u0"])) == hidden
    assert len(shown.recommend(["u0"])) == every


def test_number_of_results_follows_a_small_catalog(run):
    assert len(run.recommend(["u0"], filter_seen=False, k=12)) == 12
    few = dataclasses.replace(run.dataset, items=run.dataset.items.head(7))
    few = dataclasses.replace(few, item_ids=few.item_ids % 7)
    with pytest.raises(ConfigError, match="k 10 must be between 1 and the 7 items"):
        candid.train(few, RECIPE, out=run.folder.parent / "few").recommend(["u0"], k=10)
    small = candid.load_run(run.folder.parent / "few", few)
    assert len(small.recommend(["u0"], filter_seen=False)) == 7
    assert len(small.similar([100])) == 6
