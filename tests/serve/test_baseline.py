"""Saved baselines as served models: the answers are those of ``FittedBaseline.recommend``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import candid
from candid.baselines.als import ALS
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig
from candid.runs import fitted_baseline
from candid.serve.browse import model_info
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.item_updates import delete_item, put_item
from candid.serve.map import ItemMaps
from candid.serve.model_version import ModelVersion
from candid.serve.requests import RecommendRequest, SimilarRequest
from candid.serve.score_search import LiveItems, ScoreSearch
from candid.serve.update_log import ItemUpdate

NAMES = ("item_knn", "popularity", "session_knn", "als")


@pytest.fixture(scope="module", name="folders")
def _folders(runs, tmp_path_factory):
    """Folder of each saved baseline; ALS, whose fit needs another package, has random factors."""
    root = tmp_path_factory.mktemp("baselines")
    data = runs.films.parent / "data"
    for name in NAMES[:-1]:
        candid.fit_baseline(data, name, settings={}).save(root / name)
    dataset = candid.open_dataset(data)
    factors = np.random.default_rng(3).normal(size=(dataset.num_items, 6)).astype(np.float32)
    counts = dataset.train_counts.astype(np.float64)
    model = ALS(ALS.Config(factors=6), counts, factors)
    fitted_baseline("als", model, dataset, EvaluationConfig(ks=(10,))).save(root / "als")
    return {name: root / name for name in NAMES}


def version_of(folder):
    return ModelVersion(open_bundle(folder), name=folder.name, number=1, config=ServeConfig())


def answers_of(version, *bodies):
    """Answer requests as one batch; each goes through JSON as in the server."""
    requests = [RecommendRequest.model_validate_json(json.dumps(body)) for body in bodies]
    return [json.loads(answer) for answer in version.answer([version.prepare(r) for r in requests])]


def pairs(answer):
    return [(entry["item"], entry["score"]) for entry in answer["items"]]


def offline(baseline, *arguments, **options):
    frame = baseline.recommend(*arguments, **options)
    return list(zip(frame["item"].to_list(), frame["score"].to_list(), strict=True))


def assert_same(answer, expected):
    assert [item for item, _ in pairs(answer)] == [item for item, _ in expected]
    assert [s for _, s in pairs(answer)] == pytest.approx([s for _, s in expected], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_those_of_python(folders, name):
    version, baseline = version_of(folders[name]), candid.load(folders[name])
    by_user, everything, by_history, listed = answers_of(
        version,
        {"user": "u3", "k": 12},
        {"user": "u7", "k": 30, "filter_seen": False},
        {"history": [104, "109", 101], "k": 9, "deny": [100, 102]},
        {"history": [104, 109], "k": 5, "allow": [104, 111, 112, 113, 999]},
    )
    assert_same(by_user, offline(baseline, ["u3"], k=12))
    assert_same(everything, offline(baseline, ["u7"], k=30, filter_seen=False))
    assert_same(by_history, offline(baseline, histories=[[104, 109, 101]], k=9, deny=[100, 102]))
    allowed = offline(baseline, histories=[[104, 109]], k=5, allow=[104, 111, 112, 113])
    assert_same(listed, allowed)
    assert len(allowed) == 3
    assert by_user["items"][0]["probability"] is None
    assert by_user["items"][0]["title"]


@pytest.mark.parametrize("name", NAMES)
def test_a_user_without_history_gets_popular_items(folders, name):
    version = version_of(folders[name])
    counts = version.bundle.dataset.train_counts
    for body in ({"user": "u40", "k": 30}, {"history": [], "k": 30}):
        [answer] = answers_of(version, body)
        shown = [int(counts[item - 100]) for item, _ in pairs(answer)]
        assert shown == sorted(counts.tolist(), reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_filters_rank_the_items_that_pass(folders, name):
    version, baseline = version_of(folders[name]), candid.load(folders[name])
    body = {"user": "u3", "k": 4, "filters": {"year": {"min": 1999}, "genres": ["Drama"]}}
    [answer] = answers_of(version, body)
    passing = [100 + i for i in range(9, 30) if i % 4 in (0, 1)]
    assert_same(answer, offline(baseline, ["u3"], k=4, allow=passing))
    assert all(entry["attributes"]["year"] >= 1999 for entry in answer["items"])


def test_a_batch_larger_than_the_memory_for_scores_is_answered_in_parts(folders, monkeypatch):
    version = version_of(folders["item_knn"])
    bodies = [{"user": f"u{user}", "k": 3 + user % 2} for user in range(7)]
    whole = answers_of(version, *bodies)
    sizes = []
    encode = version.bundle.encode
    monkeypatch.setattr(ScoreSearch, "max_queries", 3)
    object.__setattr__(
        version.bundle, "encode", lambda queries: (sizes.append(len(queries)), encode(queries))[1]
    )
    assert answers_of(version, *bodies) == whole
    assert sizes == [3, 3, 1]


def test_a_deleted_item_is_not_recommended(folders):
    for name in NAMES:
        version = version_of(folders[name])
        [before] = answers_of(version, {"user": "u3", "k": 30})
        first = pairs(before)[0][0]
        delete_item(version, first)
        assert version.bundle.index.num_live == 29
        for body in ({"k": 30}, {"k": 30, "filters": {"year": {"min": 0}}}, {"allow": [first]}):
            [answer] = answers_of(version, {"user": "u3", **body})
            assert first not in [item for item, _ in pairs(answer)]
        [after] = answers_of(version, {"user": "u3", "k": 30})
        assert pairs(after) == pairs(before)[1:]
        with pytest.raises(RequestError, match="no item"):
            delete_item(version, first)


def test_requests_that_need_vectors_are_refused_without_vectors(folders):
    version = version_of(folders["item_knn"])
    refused = [
        lambda: version.prepare_similar(SimilarRequest(item=101)),
        lambda: ItemMaps().map_of(version, 5, []),
        lambda: put_item(version, 500, ItemUpdate("New", {})),
    ]
    for request in refused:
        with pytest.raises(RequestError, match="a baseline without item vectors") as error:
            request()
        assert error.value.code == "unsupported"
    for body, message in (
        ({"user": "u3", "probability": True}, "do not estimate probabilities"),
        ({"history": [101], "attributes": {"age": 3}}, "reads no attributes"),
    ):
        with pytest.raises(RequestError, match=message) as error:
            answers_of(version, body)
        assert error.value.code == "unsupported"


def test_vectors_of_als_are_served(folders):
    version, baseline = version_of(folders["als"]), candid.load(folders["als"])
    [answer] = version.answer([version.prepare_similar(SimilarRequest(item=104, k=3))])
    _, vectors = baseline.item_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit[4]
    cosine[4] = -2
    nearest = np.argsort(-cosine)[:3]
    assert pairs(json.loads(answer)) == [
        (100 + int(i), pytest.approx(float(cosine[i]), abs=1e-5)) for i in nearest
    ]
    assert len(ItemMaps().map_of(version, 5, [])["items"]) == 5
    with pytest.raises(RequestError, match="one embedding per item"):
        put_item(version, 500, ItemUpdate("New", {}))


def test_properties_of_a_served_baseline(folders):
    info = model_info(version_of(folders["item_knn"]))
    assert (info["dim"], info["index"], info["items"]) == (0, "none", 30)
    assert not info["vectors"]["supported"]
    assert "without item vectors" in info["vectors"]["reason"]
    assert not info["item_updates"]["supported"]
    assert not info["probability"]["supported"]
    assert info["fingerprint"] == candid.load(folders["item_knn"]).manifest["fingerprint"]
    info = model_info(version_of(folders["als"]))
    assert (info["dim"], info["index"]) == (6, "exact")
    assert info["vectors"] == {"supported": True, "reason": None}


def test_an_index_for_a_baseline_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="no index on disk: leave out --index"):
        open_bundle(folders["als"], tmp_path)


def test_ties_are_in_their_order_and_rows_without_items_are_empty():
    ranks = np.array([3, 0, 2, 1, 4])
    items = LiveItems(5)
    search = ScoreSearch(items, ranks)
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0], [0.0, 0.0, 5.0, 0.0, 0.0]])
    none = np.zeros(0, dtype=np.int64)
    [first, second] = search.nearest(scores, 3, [none, np.array([2, 1])])
    assert (first[0].tolist(), second[0].tolist()) == ([4, 1, 3], [3, 0, 4])
    items.delete(torch.tensor([4]))
    ids, top = search.best_of(scores[0], 2, np.arange(5))  # another request deleted 4 meanwhile
    assert (ids.tolist(), top.tolist()) == ([1, 3], [1, 1])
    items.delete(torch.arange(5))
    assert items.num_live == 0
    assert [len(ids) for ids, _ in search.nearest(scores, 3, [none, none])] == [0, 0]


def test_repeats_are_shown_where_they_were_measured(runs, tmp_path):
    dataset = candid.open_dataset(runs.films.parent / "data")
    config = EvaluationConfig(ks=(10,), filter_seen=False)
    baseline = candid.fit_baseline(dataset, "item_knn", settings={}, evaluation=config)
    version = version_of(baseline.save(tmp_path / "knn").folder)
    default, hidden = answers_of(
        version, {"user": "u3", "k": 30}, {"user": "u3", "k": 30, "filter_seen": True}
    )
    assert len(default["items"]) == 30
    assert_same(hidden, offline(baseline, ["u3"], k=30, filter_seen=True))
