"""Answers of a model version, compared with those of ``candid.inference.recommend``."""

import dataclasses
import datetime
import json

import numpy as np
import pytest
import torch

from candid.inference import recommend
from candid.runs import load_run
from candid.serve.bundle import open_bundle
from candid.serve.config import ServeConfig
from candid.serve.errors import RequestError
from candid.serve.model_version import ModelVersion
from candid.serve.requests import RecommendRequest, SimilarRequest

NOW = datetime.datetime(2026, 1, 31, 18, 30, tzinfo=datetime.UTC)
MICROSECONDS = round(NOW.timestamp() * 1e6)


def answer_of(version, **body):
    """Answer one request, which goes through JSON as in the server."""
    request = RecommendRequest.model_validate_json(json.dumps(body, default=str))
    [answer] = version.answer([version.prepare(request)])
    if isinstance(answer, RequestError):
        raise answer
    return json.loads(answer)


def offline(folder, **arguments):
    run = load_run(folder)
    recommendations = recommend(
        run.model,
        run.dataset,
        max_length=run.config.batches.max_length,
        context=run.context,
        **arguments,
    )
    return [
        (item + 100, score)
        for item, score in zip(
            recommendations.item_ids[0].tolist(), recommendations.scores[0].tolist(), strict=True
        )
        if item >= 0
    ]


def pairs(answer):
    return [(entry["item"], entry["score"]) for entry in answer["items"]]


def assert_same(answer, expected):
    assert [item for item, _ in pairs(answer)] == [item for item, _ in expected]
    assert [s for _, s in pairs(answer)] == pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.parametrize("event_type", [None, "view"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_answer_for_a_user_equals_recommend(runs, films, event_type, filter_seen):
    expected = offline(
        runs.films,
        user_ids=[3],
        k=12,
        time=MICROSECONDS,
        event_type=event_type,
        filter_seen=filter_seen,
    )
    body = {"user": "u3", "k": 12, "time": NOW.isoformat(), "filter_seen": filter_seen}
    assert_same(
        answer_of(films, **body, **({"event_type": event_type} if event_type else {})), expected
    )


@pytest.mark.parametrize("filter_seen", [True, False])
def test_seen_items_are_left_out_by_default_as_the_run_was_measured(runs, filter_seen):
    bundle = dataclasses.replace(open_bundle(runs.films), filter_seen=filter_seen)
    version = ModelVersion(bundle, name="films", number=1, config=ServeConfig())
    body = {"user": "u3", "k": 12, "time": NOW.isoformat()}
    assert pairs(answer_of(version, **body)) == pairs(
        answer_of(version, **body, filter_seen=filter_seen)
    )


def test_answer_for_a_history_equals_recommend(runs, films):
    expected = offline(runs.films, histories=[[4, 9, 1, 2, 3, 7]], k=20, time=MICROSECONDS)
    history = [104, 109, "101", 102, 103, 107]
    assert_same(answer_of(films, history=history, k=20, time=NOW.isoformat()), expected)


def test_answer_for_attributes_equals_recommend(runs, films):
    features = load_run(runs.films).features.encode_users([{"age": 31}])
    expected = offline(runs.films, histories=[[4]], k=5, time=MICROSECONDS, user_features=features)
    answer = answer_of(films, history=[104], attributes={"age": 31}, k=5, time=NOW.isoformat())
    assert_same(answer, expected)
    other = answer_of(films, history=[104], attributes={"age": 59}, k=5, time=NOW.isoformat())
    assert pairs(other) != pairs(answer)


def test_history_with_times_and_event_types_equals_the_user(films):
    dataset = films.bundle.dataset
    rows = slice(*dataset.user_offsets[3:5])
    times = [
        datetime.datetime.fromtimestamp(int(t) / 1e6, datetime.UTC).isoformat()
        for t in dataset.timestamps[rows]
    ]
    history = [
        {"item": int(item) + 100, "time": time, "event_type": dataset.event_type_names[code]}
        for item, time, code in zip(
            dataset.item_ids[rows], times, dataset.event_types[rows], strict=True
        )
    ]
    time = NOW.isoformat()
    of_user = answer_of(films, user="u3", k=30, time=time)
    of_history = answer_of(films, history=history, attributes={"age": 23}, k=30, time=time)
    assert_same(of_history, pairs(of_user))
    untimed = [event | {"time": None} for event in history]
    without_times = answer_of(films, history=untimed, attributes={"age": 23}, k=30, time=time)
    assert pairs(without_times) != pairs(of_user)


def scored(version, user):
    """Return a user, the answer with all items, and its scores."""
    answer = answer_of(version, user=user, k=30, filter_seen=False, time=NOW.isoformat())
    return user, answer, np.array([entry["score"] for entry in answer["items"]])


def test_probabilities_equal_the_softmax_over_all_items(films):
    user, answer, scores = min(
        (scored(films, f"u{number}") for number in range(8)), key=lambda one: one[2][0] - one[2][9]
    )
    assert 0.1 < scores[0] - scores[9] < 20  # several items have a notable share
    assert len(scores) == 30  # all items
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    probabilities = [entry["probability"] for entry in answer["items"]]
    assert probabilities == pytest.approx(expected.tolist(), rel=1e-4)
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    # Items that are left out keep their share.
    shorter = answer_of(
        films,
        user=user,
        k=3,
        deny=[answer["items"][0]["item"]],
        filter_seen=False,
        time=NOW.isoformat(),
    )
    assert [e["probability"] for e in shorter["items"]] == pytest.approx(
        probabilities[1:4], rel=1e-5
    )


def test_probabilities_are_refused_without_a_softmax_loss(films, by_user):
    assert answer_of(by_user, user="u3")["items"][0]["probability"] is None
    with pytest.raises(RequestError, match="pointwise loss") as caught:
        answer_of(by_user, user="u3", probability=True)
    assert (caught.value.code, caught.value.field) == ("unsupported", "probability")
    assert answer_of(films, user="u3", probability=False)["items"][0]["probability"] is None


def test_probabilities_of_many_items_only_on_request(films):
    films.has_cheap_probability, before = False, films.has_cheap_probability
    try:
        assert answer_of(films, user="u3")["items"][0]["probability"] is None
        assert answer_of(films, user="u3", probability=True)["items"][0]["probability"] > 0
        request = RecommendRequest(user="u3", probability=True)
        assert films.prepare(request).is_slow
    finally:
        films.has_cheap_probability = before


def test_probabilities_of_a_batch_are_those_of_its_single_queries(films):
    bodies = [
        {"user": "u3", "probability": True},
        {"user": "u4", "probability": False},
        {"user": "u5", "filters": {"genres": ["Horror"]}, "probability": True},
        {"user": "u6", "k": 5, "probability": True},
    ]
    queries = [films.prepare(RecommendRequest(**body, time=NOW)) for body in bodies]
    for body, answer in zip(bodies, films.answer(queries), strict=True):
        alone = answer_of(films, **body, time=NOW.isoformat())
        together = [entry["probability"] for entry in json.loads(answer)["items"]]
        expected = [entry["probability"] for entry in alone["items"]]
        if body["probability"]:
            # The query vectors of a batch are rounded differently.
            assert together == pytest.approx(expected, rel=1e-4)
        else:
            assert set(together) == set(expected) == {None}


@pytest.mark.parametrize(
    ("scores_all", "limit", "cheap"), [(True, 0, True), (False, 5000, True), (False, 3, False)]
)
def test_probabilities_by_default_need_an_exhaustive_index_or_few_items(
    films, monkeypatch, scores_all, limit, cheap
):
    monkeypatch.setattr(type(films.bundle.index.built), "scores_all_items", scores_all)
    config = films.config.model_copy(update={"probability_items": limit})
    version = ModelVersion(films.bundle, name="films", number=1, config=config)
    assert version.has_cheap_probability == cheap
    request = RecommendRequest(user="u3", time=NOW)
    assert version.prepare(request).probability == cheap
    # Log Z would cost a pass over all vectors where few items are scored.
    for restriction in ({"filters": {"genres": ["Horror"]}}, {"allow": [1]}):
        restricted = RecommendRequest(user="u3", time=NOW, **restriction)
        assert version.prepare(restricted).probability == (limit == 5000)
        asked = restricted.model_copy(update={"probability": True})
        assert version.prepare(asked).probability


def test_batch_equals_single_queries(films, by_user):
    bodies = [
        {"user": "u3"},
        {"history": [101]},
        {"history": [101], "attributes": {"age": 44}},
        {"user": "u5", "k": 3, "allow": [101, 102, 103, 104]},
        {"user": "u6", "k": 29},
        {"user": "u7", "filters": {"genres": ["Horror"]}},
    ]
    queries = [films.prepare(RecommendRequest(**body, time=NOW)) for body in bodies]
    queries.insert(2, films.prepare_similar(SimilarRequest(item=104)))
    together = films.answer(queries)
    for query, answer in zip(queries, together, strict=True):
        [alone] = films.answer([query])
        for one, other in zip(json.loads(answer)["items"], json.loads(alone)["items"], strict=True):
            assert one["item"] == other["item"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-4, abs=1e-4)


def test_lists_and_filters_restrict_the_items(films):
    def items(**body):
        return {entry["item"] for entry in answer_of(films, user="u3", k=40, **body)["items"]}

    everything = items(filter_seen=False)
    assert everything == set(range(100, 130))
    seen = everything - items()
    dataset = films.bundle.dataset
    rows = slice(*dataset.user_offsets[3:5])
    bought = dataset.item_ids[rows][dataset.event_types[rows] == 0]
    assert seen == {int(item) + 100 for item in bought}
    assert items(filter_seen=False, deny=[100, 101, 999]) == everything - {100, 101}
    assert items(filter_seen=False, allow=[100, "101", 999]) == {100, 101}
    assert items(filter_seen=False, allow=[100, 101], deny=[100]) == {101}
    assert items(filter_seen=False, allow=[]) == set()
    horror = {item for item in everything if item % 4 == 2}
    assert items(filter_seen=False, filters={"genres": ["Horror"]}) == horror
    assert items(filter_seen=False, filters={"genres": ["Horror"]}, allow=[102, 103]) == {102}


def test_similar_items_equal_all_cosines(films):
    [answer] = films.answer([films.prepare_similar(SimilarRequest(item=104, k=3))])
    answer = json.loads(answer)
    with torch.inference_mode():
        vectors = films.bundle.model.encode_catalog()
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[4:5])
    cosines[4] = -2
    best = cosines.topk(3)
    assert [entry["item"] - 100 for entry in answer["items"]] == best.indices.tolist()
    assert [e["score"] for e in answer["items"]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_items_are_described(films):
    allow = [103, 105, 107]
    answer = answer_of(films, user="u9", allow=allow, filter_seen=False)
    by_id = {entry["item"]: entry for entry in answer["items"]}
    assert by_id[103]["title"] is None
    assert by_id[105]["title"] == "The 5th Film"
    assert by_id[105]["attributes"] == {
        "genres": ["Comedy", "Drama"],
        "tags": None,
        "year": None,
        "score": 0.5,
    }
    assert by_id[107]["attributes"]["score"] is None  # JSON has no NaN
    counts = films.bundle.dataset.train_counts
    assert [by_id[item]["popularity"] for item in allow] == [int(counts[i - 100]) for i in allow]
    assert [entry["rank"] for entry in answer["items"]] == [1, 2, 3]
    plain = answer_of(films, user="u9", allow=allow, filter_seen=False, include_attributes=False)
    assert "attributes" not in plain["items"][0]


def test_unknown_items_of_a_history(films):
    with pytest.raises(RequestError, match="no item 999 in model 'films'") as caught:
        answer_of(films, history=[101, 999])
    assert caught.value.field == "history.1"
    assert answer_of(films, history=[101, 999, "x"], ignore_unknown=True)["ignored"] == 2


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"user": "unknown"}, "unknown_user", "user"),
        ({"user": "u40"}, "unsupported", "user"),  # has no history
        ({"history": []}, "unsupported", "history"),
        ({"user": "u3", "k": 1001}, "invalid", "k"),
        ({"history": [101] * 1001}, "invalid", "history"),
        ({"user": "u3", "event_type": "sell"}, "invalid", "event_type"),
        ({"history": [{"item": 101, "event_type": "sell"}]}, "invalid", "history.0.event_type"),
        ({"user": "u3", "filters": {"colour": ["red"]}}, "invalid", "filters.colour"),
        ({"history": [101], "attributes": {"height": 3}}, "invalid", "attributes.height"),
        ({"history": [101], "attributes": {"age": "old"}}, "invalid", "attributes"),
        ({"history": [101], "attributes": {"age": 10**30}}, "invalid", "attributes.age"),
        (
            {"history": [{"item": 101, "time": "2026-01-02"}, {"item": 102, "time": "2026-01-01"}]},
            "invalid",
            "history.1.time",
        ),
    ],
)
def test_bad_requests_name_the_field(films, body, code, field):
    with pytest.raises(RequestError) as caught:
        answer_of(films, **body)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_model_of_users_refuses_histories(by_user):
    assert len(answer_of(by_user, user="u40")["items"]) == 10
    for body in ({"history": [101]}, {"attributes": {"age": 3}}):
        with pytest.raises(RequestError, match="only supports users of its training data"):
            answer_of(by_user, **body)


def test_query_that_is_not_finite_fails_alone(films, monkeypatch):
    import candid.serve.bundle as module

    def broken(model, queries, **arguments):
        vectors = encode_queries(model, queries, **arguments).clone()
        vectors[1] = torch.inf
        return vectors

    encode_queries = module.encode_queries
    monkeypatch.setattr(module, "encode_queries", broken)
    queries = [films.prepare(RecommendRequest(user=user)) for user in ("u1", "u2", "u3")]
    types = [type(answer) for answer in films.answer(queries)]
    assert types == [bytes, RequestError, bytes]
