"""Fitted baselines in source ids: recommendations, evaluation, and their folder."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import candid
from candid.baselines import BASELINES, measure_baselines
from candid.baselines.als import ALS
from candid.baselines.item_knn import ItemKNN
from candid.batches import offsets_of
from candid.checksums import sealed
from candid.data import PreparedDataset, Role, open_dataset
from candid.errors import ArtifactError, ConfigError, DataError
from candid.evaluation import EvaluationConfig
from candid.inference import tie_ranks
from candid.runs import FittedBaseline, Run, fitted_baseline, holds_baseline, load_baseline

NUM_USERS, NUM_ITEMS, LENGTH = 30, 12, 6
CONFIG = EvaluationConfig(ks=(1, 5), metric="ndcg@5")


def films():
    """Users "u0", … with films 100, 101, …; users with higher numbers watch later films."""
    rng = np.random.default_rng(0)
    weights = [np.exp(-((np.arange(NUM_ITEMS) - user / 3) ** 2) / 20) for user in range(NUM_USERS)]
    items = [rng.choice(NUM_ITEMS, LENGTH, replace=False, p=w / w.sum()) for w in weights]
    roles = np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS)
    return PreparedDataset(
        item_ids=np.concatenate(items).astype(np.int32),
        user_offsets=offsets_of(np.full(NUM_USERS, LENGTH)),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": [f"u{user}" for user in range(NUM_USERS)]}),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS) + 100,
                "title": [f"Film {item}" for item in range(NUM_ITEMS)],
            }
        ),
        timestamps=np.arange(NUM_USERS * LENGTH) * 1_000_000,
        manifest={"fingerprint": "films", "config": {"order": None}},
    )


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    replace(films(), manifest={"config": {"order": None}}).save(root / "data")
    return root


@pytest.fixture(name="data", scope="module")
def _data(folder):
    return open_dataset(folder / "data")


@pytest.fixture(name="knn", scope="module")
def _knn(data):
    return candid.fit_baseline(data, "item_knn", evaluation=CONFIG)


def oracle(data, history, k, seen):
    """Item kNN in float64 by its definition, with ties by popularity and then by the hash."""
    has = np.zeros((NUM_USERS, NUM_ITEMS))
    for user in range(NUM_USERS):
        has[user, data.item_ids[user * LENGTH : user * LENGTH + 4]] = 1
    norms = np.sqrt(has.sum(0))
    similarity = has.T @ has / (np.outer(norms, norms) + 2.0)
    np.fill_diagonal(similarity, 0)
    scores = sum(0.9**age * similarity[item] for age, item in enumerate(reversed(history)))
    counts = has.sum(0)
    ranks = tie_ranks(counts.astype(np.int64), data.items["source_id"])
    order = sorted(
        (i for i in range(NUM_ITEMS) if i not in seen),
        key=lambda i: (-round(float(scores[i]), 6), -counts[i], ranks[i]),
    )
    return [(100 + i, scores[i]) for i in order[:k]]


def test_recommendations_are_those_of_the_definition(data):
    settings = {"decay": 0.9, "shrinkage": 2.0, "neighbours": 100}
    baseline = candid.fit_baseline(data, "item_knn", settings=settings)
    assert baseline.settings == {"baseline": {"type": "item_knn", **settings}}
    users = baseline.recommend(users=["u3", "u17"], k=4)
    for user in (3, 17):
        history = data.item_ids[user * LENGTH : (user + 1) * LENGTH].tolist()
        rows = users.filter(pl.col("query") == f"u{user}")
        expected = oracle(data, history, 4, history)
        assert rows["item"].to_list() == [item for item, _ in expected]
        assert rows["score"].to_list() == pytest.approx([s for _, s in expected], rel=1e-5)
        assert rows["title"].to_list() == [f"Film {item - 100}" for item, _ in expected]
    histories = baseline.recommend(histories=[[102, 105]], k=5, filter_seen=False)
    assert histories["item"].to_list() == [item for item, _ in oracle(data, [2, 5], 5, [])]
    allowed = baseline.recommend(histories=[[102, 105]], k=5, allow=[101, 104, 105], deny=[104])
    assert allowed["item"].to_list() == [101]


def test_a_history_longer_than_any_user_has_is_read_whole(data):
    baseline = candid.fit_baseline(data, "ease", settings={"decay": 1.0})
    history = list(range(100, 111))
    scores = baseline.recommend(histories=[history], k=1)["score"].to_list()
    weights = baseline.model.weights.astype(np.float64)
    assert scores == pytest.approx([weights[:11, 11].sum()], rel=1e-5)


def test_tuning_and_report_are_those_of_measure_baselines(data, knn):
    measured = measure_baselines(data, CONFIG, names=["item_knn"]).best
    assert knn.model.config.model_dump(mode="json") == measured.settings
    assert knn.manifest["tuning"] == {
        "metric": "ndcg@5",
        "validation": measured.validation,
        "trials": measured.trials,
    }
    report = knn.evaluate()
    assert report.metrics == measured.report.metrics
    assert report.counts == measured.report.counts
    assert knn.evaluate("validation", ks=(5,)).summary()["ndcg@5"] == pytest.approx(
        measured.validation, rel=1e-12
    )


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "als"])
def test_a_saved_baseline_has_the_same_lists_and_report(data, name, tmp_path):
    baseline = candid.fit_baseline(data, name, evaluation=CONFIG)
    saved = baseline.save(tmp_path / "saved")
    assert holds_baseline(saved.folder)
    again = candid.load(tmp_path / "saved")
    assert repr(again) == repr(baseline) == f"FittedBaseline({name!r}, users=30, items=12)"
    users = [f"u{user}" for user in range(NUM_USERS)]
    assert again.recommend(users, k=12).equals(baseline.recommend(users, k=12))
    assert again.evaluate().metrics == baseline.evaluate().metrics
    assert again.manifest == saved.manifest
    ids = pl.read_parquet(tmp_path / "saved" / "items.parquet")["source_id"]
    assert ids.equals(data.items["source_id"])


def test_vectors_of_als_give_its_scores(data, tmp_path):
    factors = np.random.default_rng(2).normal(size=(NUM_ITEMS, 5)).astype(np.float32)
    model = ALS(ALS.Config(factors=5), data.train_counts.astype(np.float64), factors)
    fitted_baseline("als", model, data, CONFIG).save(tmp_path / "als")
    baseline = candid.load(tmp_path / "als")
    assert baseline.has_vectors
    ids, items = baseline.item_vectors()
    np.testing.assert_array_equal(items, factors)
    queries = baseline.query_vectors(["u4", "u9"])
    lists = baseline.recommend(["u4", "u9"], k=6)
    for row, user in enumerate(["u4", "u9"]):
        scores = dict(zip(ids.to_list(), (items @ queries[row]).tolist(), strict=True))
        shown = lists.filter(pl.col("query") == user)
        expected = [scores[item] for item in shown["item"]]
        assert shown["score"].to_list() == pytest.approx(expected, rel=1e-5)
    assert baseline.query_vectors(histories=[[]]).tolist() == [[0] * 5]
    assert baseline.query_vectors(users=[]).shape == (0, 5)


def test_vectors_of_a_baseline_without_vectors_are_refused(knn):
    assert not knn.has_vectors
    with pytest.raises(ConfigError, match="item_knn has no vectors"):
        knn.item_vectors()
    with pytest.raises(ConfigError, match="item_knn has no vectors"):
        knn.query_vectors(["u1"])


def test_arguments_that_a_baseline_does_not_read_are_refused(knn):
    for given in ({"time": 1}, {"event_type": "buy"}, {"attributes": [{}]}, {"new_items": 1}):
        with pytest.raises(ConfigError, match="the baseline item_knn does not read"):
            knn.recommend_ids(user_ids=[1], **given)
    with pytest.raises(DataError, match=r"""unknown user 'u99'.*\(fallback="popular"\)$"""):
        knn.recommend(["u99"])
    with pytest.raises(ConfigError, match="unknown split 'train'"):
        knn.evaluate("train")


@pytest.mark.parametrize("method", ["recommend", "query_vectors"])
def test_methods_take_the_arguments_of_a_run(method):
    expected, found = (
        inspect.signature(getattr(kind, method)).parameters for kind in (Run, FittedBaseline)
    )
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"times": [[1, 2]]}, "times of a history: leave out times"),
        ({"features": [{"age": 3}]}, "attributes of users: leave out features"),
        ({"time": 1}, "time of a query: leave out time"),
        ({"event_type": "buy"}, "event type of a query: leave out event_type"),
    ],
)
def test_arguments_of_a_run_are_refused_by_name(data, knn, given, advice):
    message = f"the baseline item_knn does not read .*{advice} "
    for fallback in (None, "popular"):
        # With an empty history the fallback alone answers, which reads none of them either.
        for histories in ([[102, 105]], [[]]):
            with pytest.raises(ConfigError, match=message):
                knn.recommend(histories=histories, fallback=fallback, **given)
    factors = np.ones((NUM_ITEMS, 2), dtype=np.float32)
    model = ALS(ALS.Config(factors=2), data.train_counts.astype(np.float64), factors)
    with pytest.raises(ConfigError, match=f"the baseline als does not read .*{advice} "):
        fitted_baseline("als", model, data, CONFIG).query_vectors(histories=[[102, 105]], **given)


def test_a_list_for_everyone_accepts_histories(data):
    baseline = candid.fit_baseline(data, "popularity", settings={})
    shown = baseline.recommend(histories=[[], [105]], k=12)
    by_count = sorted(range(NUM_ITEMS), key=lambda item: -data.train_counts[item])
    first = shown.filter(pl.col("query") == 0)["item"].to_list()
    assert [data.train_counts[i - 100] for i in first] == [data.train_counts[i] for i in by_count]
    assert shown.filter(pl.col("query") == 1)["item"].to_list() == [i for i in first if i != 105]


def test_names_and_settings_that_do_not_exist(data):
    with pytest.raises(ConfigError, match="unknown baseline 'knn'"):
        candid.fit_baseline(data, "knn")
    with pytest.raises(ConfigError, match="baseline item_knn: unknown config key 'window'"):
        candid.fit_baseline(data, "item_knn", settings={"window": 3})


def test_a_folder_with_content_is_not_replaced(knn, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        knn.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_no_folder(knn, tmp_path, monkeypatch):
    monkeypatch.setattr(ItemKNN, "state", ("target_counts", "missing"))
    with pytest.raises(AttributeError):
        knn.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_damaged_folders_and_other_datasets_are_refused(knn, folder, tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a run: it has no run\.json"):
        candid.load(tmp_path)
    with pytest.raises(ArtifactError, match=r"is not a saved baseline: it has no baseline\.json"):
        load_baseline(tmp_path)
    saved = knn.save(tmp_path / "saved").folder
    with pytest.raises(ArtifactError, match=r"saved baseline and this needs a trained run: name"):
        candid.load_run(saved)
    other = films()
    other.manifest["fingerprint"] = "other"
    with pytest.raises(ArtifactError, match="was fitted on another version of the dataset"):
        candid.load(saved, other)
    manifest = json.loads((saved / "baseline.json").read_text())
    cases = {
        "is damaged": {**manifest, "settings": None, "dataset": None},
        "unknown baseline 'mine'": {**manifest, "baseline": "mine"},
        "settings: unknown config key 'depth'": {**manifest, "settings": {"depth": 2}},
        "a baseline of format 3 and this version of candid reads format 2": {
            **manifest,
            "format": 3,
        },
    }
    for message, content in cases.items():
        (saved / "baseline.json").write_text(json.dumps(sealed(content)))
        with pytest.raises(ArtifactError, match=message):
            candid.load(saved)
    missing = {**manifest["dataset"], "path": str(tmp_path / "gone")}
    (saved / "baseline.json").write_text(json.dumps(sealed({**manifest, "dataset": missing})))
    with pytest.raises(ArtifactError, match="gone, which does not exist: pass the dataset"):
        candid.load(saved)
    assert candid.load(saved, folder / "data").name == "item_knn"
    (saved / "arrays.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"arrays\.safetensors is missing"):
        candid.load(saved, folder / "data")
