"""Fallbacks of the server, and a bulk recommendation that equals its answers."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch

import candid
from candid.data import Role
from candid.inference import tie_ranks
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.items import RequestIds
from candid.serve.model_version import ModelVersion
from candid.serve.query_builder import QueryBuilder
from candid.serve.requests import RecommendRequest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from serve_load import start_server

TIME = datetime.datetime(2026, 1, 31, 18, 30, tzinfo=datetime.UTC)


def answers_of(version, *bodies):
    """Answer some requests together."""
    requests = [RecommendRequest.model_validate_json(json.dumps(body)) for body in bodies]
    answers = version.answer([version.prepare(request) for request in requests])
    return [one if isinstance(one, RequestError) else json.loads(one) for one in answers]


def items_of(answer):
    return [entry["item"] for entry in answer["items"]]


def by_counts(version, name):
    """Source ids in the order of a fallback, by a loop over the training targets."""
    data = version.bundle.dataset
    targets = [int(item) for item in data.item_ids[data.roles == Role.TRAIN]]
    times = np.asarray(data.timestamps)[data.roles == Role.TRAIN].tolist()
    latest = sorted(zip(times, targets, strict=True))[-round(len(targets) / 10) :]
    recent = [item for _, item in latest]
    ranks = tie_ranks(data.train_counts, data.items["source_id"])

    def key(item):
        counts = [-targets.count(item), int(ranks[item])]
        return counts if name == "popular" else [-recent.count(item), *counts]

    return [item + 100 for item in sorted(range(data.num_items), key=key)]


@pytest.mark.parametrize("name", ["popular", "recent"])
def test_unknown_user_has_the_list_of_the_fallback(films, name):
    unknown, known, plain = answers_of(
        films,
        {"user": "stranger", "k": 30, "fallback": name},
        {"user": "u3", "k": 5, "fallback": name, "time": TIME.isoformat()},
        {"user": "u3", "k": 5, "time": TIME.isoformat()},
    )
    assert items_of(unknown) == by_counts(films, name)
    assert unknown["recommended_by"] == name
    assert {entry["probability"] for entry in unknown["items"]} == {None}
    assert [entry["rank"] for entry in unknown["items"]] == list(range(1, 31))
    assert known["recommended_by"] == plain["recommended_by"] == "model"
    assert items_of(known) == items_of(plain)


def test_user_without_history_has_the_fallback(films, by_user):
    body = {"user": "u40", "k": 4, "fallback": "popular"}
    for version in (films, by_user):
        [answer] = answers_of(version, body)
        assert answer["recommended_by"] == "popular"
        assert items_of(answer) == by_counts(version, "popular")[:4]


@pytest.mark.parametrize("needs_history", [True, False])
def test_attributes_without_history_have_the_fallback_where_a_history_is_needed(
    films, monkeypatch, needs_history
):
    monkeypatch.setattr(type(films.bundle.model), "needs_history", needs_history)
    expected = "recent" if needs_history else "model"
    bodies = [{"attributes": {"age": 30}}, {"user": "u40"}, {"attributes": {}}, {"history": []}]
    answers = [films.prepare(RecommendRequest(**body, fallback="recent")) for body in bodies]
    assert [one.fallback or "model" for one in answers] == [expected] * 2 + ["recent"] * 2


def test_empty_history_has_the_fallback(films, by_user):
    for version in (films, by_user):
        [answer] = answers_of(version, {"history": [], "k": 3, "fallback": "recent"})
        assert items_of(answer) == by_counts(version, "recent")[:3]


def test_history_of_unknown_items_has_the_fallback(films):
    body = {"history": ["x", 999], "ignore_unknown": True, "k": 3, "fallback": "popular"}
    [answer] = answers_of(films, body)
    assert (answer["recommended_by"], answer["ignored"]) == ("popular", 2)


def test_allow_deny_and_filters_hold_for_the_fallback(films):
    order = by_counts(films, "popular")
    allow = order[5:12]
    filtered = {"filters": {"year": {"min": 2000}}}
    bodies = [{"allow": allow}, {"deny": order[:3]}, filtered, {"allow": allow, **filtered}]
    answers = answers_of(
        films, *({"user": "x", "k": 4, "fallback": "popular", **body} for body in bodies)
    )
    years = dict(films.bundle.dataset.items.select("source_id", "year").rows())
    late = [item for item in order if (years[item] or 0) >= 2000]
    assert items_of(answers[0]) == allow[:4]
    assert items_of(answers[1]) == order[3:7]
    assert items_of(answers[2]) == late[:4]
    assert items_of(answers[3]) == [item for item in allow if item in late][:4]


def test_deleted_item_is_not_in_the_fallback(fresh):
    order = by_counts(fresh, "popular")
    fresh.bundle.index.delete(torch.tensor([order[0] - 100]))
    [answer] = answers_of(fresh, {"user": "x", "k": 3, "fallback": "popular"})
    assert items_of(answer) == order[1:4]


def test_setting_of_the_server_is_the_default_of_requests(runs):
    config = ServeConfig(fallback="recent")
    version = ModelVersion(open_bundle(runs.films), name="films", number=1, config=config)
    [answer] = answers_of(version, {"user": "x", "k": 3})
    assert answer["recommended_by"] == "recent"
    [answer] = answers_of(version, {"user": "x", "k": 3, "fallback": "popular"})
    assert answer["recommended_by"] == "popular"
    with pytest.raises(RequestError, match="no user 'x'"):
        answers_of(version, {"user": "x", "fallback": "none"})


@pytest.mark.parametrize("fallback", ["none", "popular"])
@pytest.mark.parametrize("user", ["abc", "007", 2**63])
def test_user_id_of_another_type_is_invalid(fresh, user, fallback):
    users = RequestIds(pl.Series(range(41)), kind="user", model="films")
    fresh.queries = QueryBuilder(fresh.bundle, fresh.items.ids, users, max_history=10)
    with pytest.raises(RequestError, match="user ids are 64-bit integers") as caught:
        answers_of(fresh, {"user": user, "fallback": fallback})
    assert (caught.value.code, caught.value.field) == ("invalid", "user")
    with pytest.raises(RequestError, match="no user 99 in"):
        answers_of(fresh, {"user": 99})
    one, other = answers_of(fresh, *({"user": user, "fallback": "popular"} for user in (99, "99")))
    assert one["recommended_by"] == other["recommended_by"] == "popular"


def test_without_a_fallback_unknown_users_are_refused(films):
    with pytest.raises(RequestError, match="no user 'x'"):
        answers_of(films, {"user": "x"})


def test_bulk_recommendation_equals_the_answers_of_a_server(runs, tmp_path):
    run, out = candid.load_run(runs.films), tmp_path / "recs.parquet"
    users = [*run.dataset.users["source_id"], "stranger"]
    candid.write_recommendations(
        run, out, users=users, k=7, time=round(TIME.timestamp() * 1e6), fallback="popular"
    )
    bulk = pl.read_parquet(out)
    with start_server(str(runs.films), "--fallback", "popular") as (_, address):
        queries = [{"user": user, "k": 7, "time": TIME.isoformat()} for user in users]
        answer = httpx.post(f"{address}/v1/recommend/batch", json={"queries": queries})
        assert answer.status_code == 200, answer.text
        answers = answer.json()["answers"]
    for user, one in zip(users, answers, strict=True):
        rows = bulk.filter(pl.col("query") == user)
        assert rows["item"].to_list() == items_of(one)
        assert rows["recommended_by"].unique().to_list() == [one["recommended_by"]]
        scores = [entry["score"] for entry in one["items"]]
        assert rows["score"].to_list() == pytest.approx(scores, abs=1e-5)
        probabilities = [entry["probability"] for entry in one["items"]]
        if one["recommended_by"] == "model":
            assert rows["probability"].to_list() == pytest.approx(probabilities, rel=1e-4)
        else:
            assert rows["probability"].to_list() == probabilities
