"""Served answers are those of the command line, with probabilities of the whole softmax."""

import datetime
import json

import numpy as np
import pytest
import torch

from candid.runs import load_run
from candid.serve import recommend
from candid.serve.problems import Problem
from candid.serve.schemas import RecommendRequest, SimilarRequest

NOW = datetime.datetime(2026, 1, 31, 18, 30, tzinfo=datetime.UTC)
MICROSECONDS = round(NOW.timestamp() * 1e6)


def ask(served, **body):
    """One answer; the request goes through JSON as it does in service."""
    request = RecommendRequest.model_validate_json(json.dumps(body, default=str))
    [answer] = served.answer([served.question(request)])
    if isinstance(answer, Problem):
        raise answer
    return json.loads(answer)


def offline(run, served, **arguments):
    loaded = load_run(run)
    found = recommend(
        loaded.model,
        loaded.dataset,
        max_length=loaded.config.batches.max_length,
        context=loaded.features.context_of(loaded.dataset),
        **arguments,
    )
    return [
        (item + 100, score)
        for item, score in zip(*map(list, (found.item_ids[0], found.scores[0])), strict=True)
        if item >= 0
    ]


def pairs(answer):
    return [(entry["item"], entry["score"]) for entry in answer["items"]]


def assert_same(answer, expected):
    assert [item for item, _ in pairs(answer)] == [item for item, _ in expected]
    assert [s for _, s in pairs(answer)] == pytest.approx([s for _, s in expected], abs=1e-4)


@pytest.mark.parametrize("event_type", [None, "view"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_a_user_is_answered_as_offline(runs, films, event_type, filter_seen):
    expected = offline(
        runs.films,
        films,
        user_ids=[3],
        k=12,
        time=MICROSECONDS,
        event_type=event_type,
        filter_seen=filter_seen,
    )
    body = {"user": "u3", "k": 12, "time": NOW.isoformat(), "filter_seen": filter_seen}
    assert_same(ask(films, **body, **({"event_type": event_type} if event_type else {})), expected)


def test_a_history_is_answered_as_offline(runs, films):
    expected = offline(runs.films, films, histories=[[4, 9, 1, 2, 3, 7]], k=20, time=MICROSECONDS)
    history = [104, 109, "101", 102, 103, 107]
    assert_same(ask(films, history=history, k=20, time=NOW.isoformat()), expected)


def test_features_are_answered_as_offline(runs, films):
    people = load_run(runs.films).features.people([{"age": 31}])
    expected = offline(
        runs.films, films, histories=[[4]], k=5, time=MICROSECONDS, user_features=people
    )
    found = ask(films, history=[104], features={"age": 31}, k=5, time=NOW.isoformat())
    assert_same(found, expected)
    other = ask(films, history=[104], features={"age": 59}, k=5, time=NOW.isoformat())
    assert pairs(other) != pairs(found)


def test_times_and_kinds_of_a_history_make_it_that_of_a_user(films):
    dataset = films.parts.dataset
    rows = slice(*dataset.user_offsets[3:5])
    moments = [
        datetime.datetime.fromtimestamp(int(t) / 1e6, datetime.UTC).isoformat()
        for t in dataset.timestamps[rows]
    ]
    history = [
        {"item": int(item) + 100, "time": moment, "kind": dataset.event_type_names[code]}
        for item, moment, code in zip(
            dataset.item_ids[rows], moments, dataset.event_types[rows], strict=True
        )
    ]
    time = NOW.isoformat()
    known = ask(films, user="u3", k=30, time=time)
    typed = ask(films, history=history, features={"age": 23}, k=30, time=time)
    assert_same(typed, pairs(known))
    untimed = [event | {"time": None} for event in history]
    assert pairs(ask(films, history=untimed, features={"age": 23}, k=30, time=time)) != pairs(known)


def test_probabilities_are_those_of_the_softmax_over_the_catalog(films):
    answer = ask(films, user="u3", k=30, filter_seen=False, time=NOW.isoformat())
    scores = np.array([entry["score"] for entry in answer["items"]])
    assert 0.1 < scores[0] - scores[9] < 20  # neither flat nor one item alone
    assert len(scores) == 30  # the whole catalog
    expected = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    found = [entry["probability"] for entry in answer["items"]]
    assert found == pytest.approx(expected.tolist(), rel=1e-4)
    assert sum(found) == pytest.approx(1, abs=1e-4)
    # What is left out of an answer keeps its share.
    some = ask(
        films,
        user="u3",
        k=3,
        deny=[answer["items"][0]["item"]],
        filter_seen=False,
        time=NOW.isoformat(),
    )
    assert [e["probability"] for e in some["items"]] == pytest.approx(found[1:4], rel=1e-5)


def test_probabilities_only_where_the_model_has_them(films, by_user):
    assert ask(by_user, user="u3")["items"][0]["probability"] is None
    with pytest.raises(Problem, match="pointwise loss") as caught:
        ask(by_user, user="u3", probability=True)
    assert (caught.value.code, caught.value.field) == ("unsupported", "probability")
    assert ask(films, user="u3", probability=False)["items"][0]["probability"] is None


def test_large_catalogs_compute_probabilities_on_request(films):
    films.is_cheap, before = False, films.is_cheap
    try:
        assert ask(films, user="u3")["items"][0]["probability"] is None
        assert ask(films, user="u3", probability=True)["items"][0]["probability"] > 0
        request = RecommendRequest(user="u3", probability=True)
        assert films.question(request).is_slow
    finally:
        films.is_cheap = before


def test_together_is_as_alone(films, by_user):
    bodies = [
        {"user": "u3"},
        {"history": [101]},
        {"history": [101], "features": {"age": 44}},
        {"user": "u5", "k": 3, "allow": [101, 102, 103, 104]},
        {"user": "u6", "k": 29},
        {"user": "u7", "filters": {"genres": ["Horror"]}},
    ]
    questions = [films.question(RecommendRequest(**body, time=NOW)) for body in bodies]
    questions.insert(2, films.similar_question(SimilarRequest(item=104)))
    together = films.answer(questions)
    for question, found in zip(questions, together, strict=True):
        [alone] = films.answer([question])
        for one, other in zip(json.loads(found)["items"], json.loads(alone)["items"], strict=True):
            assert one["item"] == other["item"]
            assert one["score"] == pytest.approx(other["score"], rel=1e-4, abs=1e-4)


def test_lists_and_filters_choose(films):
    def items(**body):
        return {entry["item"] for entry in ask(films, user="u3", k=40, **body)["items"]}

    everything = items(filter_seen=False)
    assert everything == set(range(100, 130))
    seen = everything - items()
    dataset = films.parts.dataset
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


def test_similar_items(films):
    [found] = films.answer([films.similar_question(SimilarRequest(item=104, k=3))])
    found = json.loads(found)
    with torch.inference_mode():
        vectors = films.parts.model.encode_catalog()
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[4:5])
    cosines[4] = -2
    best = cosines.topk(3)
    assert [entry["item"] - 100 for entry in found["items"]] == best.indices.tolist()
    assert [e["score"] for e in found["items"]] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_items_are_told_with_what_is_known(films):
    allow = [103, 105, 107]
    answer = ask(films, user="u9", allow=allow, filter_seen=False)
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
    counts = films.parts.dataset.train_counts
    assert [by_id[item]["popularity"] for item in allow] == [int(counts[i - 100]) for i in allow]
    assert [entry["rank"] for entry in answer["items"]] == [1, 2, 3]
    plain = ask(films, user="u9", allow=allow, filter_seen=False, attributes=False)
    assert "attributes" not in plain["items"][0]


def test_unknown_items_of_a_history(films):
    with pytest.raises(Problem, match="no item 999 in model 'films'") as caught:
        ask(films, history=[101, 999])
    assert caught.value.field == "history.1"
    assert ask(films, history=[101, 999, "x"], ignore_unknown=True)["ignored"] == 2


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"user": "nobody"}, "unknown_user", "user"),
        ({"user": "u40"}, "unsupported", "user"),  # has no history
        ({"history": []}, "unsupported", "history"),
        ({"user": "u3", "k": 1001}, "invalid", "k"),
        ({"history": [101] * 1001}, "invalid", "history"),
        ({"user": "u3", "event_type": "sell"}, "invalid", "event_type"),
        ({"history": [{"item": 101, "kind": "sell"}]}, "invalid", "history.0.kind"),
        ({"user": "u3", "filters": {"colour": ["red"]}}, "invalid", "filters.colour"),
        ({"history": [101], "features": {"height": 3}}, "invalid", "features.height"),
        ({"history": [101], "features": {"age": "old"}}, "invalid", "features"),
        ({"history": [101], "features": {"age": 10**30}}, "invalid", "features.age"),
        (
            {"history": [{"item": 101, "time": "2026-01-02"}, {"item": 102, "time": "2026-01-01"}]},
            "invalid",
            "history.1.time",
        ),
    ],
)
def test_what_cannot_be_answered(films, body, code, field):
    with pytest.raises(Problem) as caught:
        ask(films, **body)
    assert (caught.value.code, caught.value.field) == (code, field)


def test_models_of_users_know_no_strangers(by_user):
    assert len(ask(by_user, user="u40")["items"]) == 10
    for body in ({"history": [101]}, {"features": {"age": 3}}):
        with pytest.raises(Problem, match="knows the users it was trained on"):
            ask(by_user, **body)


def test_a_query_that_is_not_finite_fails_alone(films, monkeypatch):
    import candid.serve.served as module

    def broken(parts, askers):
        vectors = module_encoded(parts, askers)
        vectors[1] = torch.inf
        return vectors

    module_encoded = module.encoded
    monkeypatch.setattr(module, "encoded", broken)
    questions = [films.question(RecommendRequest(user=user)) for user in ("u1", "u2", "u3")]
    kinds = [type(answer) for answer in films.answer(questions)]
    assert kinds == [bytes, Problem, bytes]
