"""Evaluation of given lists: equal to that of the model that made them, and its rules by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest

from candid.data import Role
from candid.errors import ConfigError, DataError
from candid.evaluation import EvaluationConfig, compare, evaluate, evaluate_lists

KS = (1, 3, 10)
CONFIG = EvaluationConfig(
    ks=KS, batch_size=16, popularity_slices=4, intervals=False, nll=False,
    metrics=(
        "recall", "hit_rate", "ndcg", "mrr", "precision", "map", "serendipity", "popularity",
        "popularity_percentile", "mean_inv_user_freq", "coverage", "intra_list_diversity",
    ),
    diversity_attribute="genre",
)  # fmt: skip


def lists_of(dataset, model, k, filter_seen, order="rank"):
    """The best items of each user by a loop in float64, in shuffled rows."""
    scores = model.users.double().numpy() @ model.items.double().numpy().T
    rows = []
    for user in range(dataset.num_users):
        events = slice(*dataset.user_offsets[user : user + 2])
        history = dataset.item_ids[events][dataset.roles[events] == Role.TRAIN]
        hidden = set(history.tolist()) if filter_seen else set()
        ranked = [item for item in np.argsort(-scores[user]) if item not in hidden][:k]
        for rank, item in enumerate(ranked):
            place = 5 + 2 * rank if order == "rank" else -3.0 * rank
            rows.append((f"u{user}", f"i{item}", place))
    frame = pl.DataFrame(rows, schema=["query", "item", order], orient="row")
    return frame.sample(fraction=1.0, shuffle=True, seed=3)


def with_genres(dataset):
    dataset.items.insert_column(1, pl.Series("genre", [f"g{i % 5}" for i in range(50)]))
    return dataset


@pytest.mark.parametrize("order", ["rank", "score"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_lists_of_a_model_are_measured_as_the_model(make_random, filter_seen, order):
    dataset, model = make_random(max_targets=4, repeats=True)
    with_genres(dataset)
    model.needs_history = False
    config = CONFIG.model_copy(update={"filter_seen": filter_seen})
    expected = evaluate(model, dataset, config, max_length=5)
    lists = lists_of(dataset, model, 10, filter_seen, order)
    report = evaluate_lists(lists, dataset, config)
    assert set(report.metrics) == set(expected.metrics)
    for name, value in expected.metrics.items():
        assert report.metrics[name].value == pytest.approx(value.value, abs=1e-12), name
    assert set(report.slices) == set(expected.slices)
    for name, parts in expected.slices.items():
        for one, other in zip(parts, report.slices[name], strict=True):
            assert other.label == one.label
            assert other.metrics["ndcg@10"].value == pytest.approx(one.metrics["ndcg@10"].value)
    assert compare(report, expected, "ndcg@10").difference == pytest.approx(0, abs=1e-12)
    assert report.counts["users"] == dataset.num_users
    names = ("users_without_list", "short_lists", "unknown_users", "unknown_items")
    assert [report.counts[name] for name in names] == [0, 0, 0, 0]


def frame_of(rows, order="rank"):
    return pl.DataFrame(rows, schema=["query", "item", order], orient="row")


def one_user(make_dataset, targets=(7,)):
    """User u0 with item 0 in the history, and targets; user u1 with target 5; 20 items."""
    first = [(0, Role.TRAIN), *((item, Role.TEST) for item in targets)]
    return make_dataset([first, [(0, Role.TRAIN), (5, Role.TEST)]], 20)


def value_of(report, name, user=0):
    """Value of a metric for one user."""
    return report.per_user.to_frame()[name][user]


SMALL = EvaluationConfig(
    ks=(2, 4), metric="ndcg@4", intervals=False, popularity_slices=0, history_slices=()
)


def test_user_without_rows_counts_with_zero_and_is_reported(make_dataset):
    dataset = one_user(make_dataset)
    report = evaluate_lists(frame_of([("u0", "i7", 1), ("u0", "i3", 2)]), dataset, SMALL)
    assert report.metrics["recall@2"].value == 0.5
    assert report.counts["users_without_list"] == 1
    assert report.counts["users_ranked"] == 2
    assert report.counts["short_lists"] == 1  # two of four ranks
    # A list that does not exist has no popularity.
    assert report.metrics["popularity@2"].value == 0.0
    assert value_of(report, "popularity@2", 1) is None


def test_short_list_has_no_items_after_its_end(make_dataset):
    dataset = one_user(make_dataset, targets=(7, 8))
    report = evaluate_lists(frame_of([("u0", "i7", 1)]), dataset, SMALL)
    assert value_of(report, "precision@4") == 0.25
    assert value_of(report, "recall@4") == 0.5


def test_gaps_of_ranks_have_no_meaning_and_rank_goes_before_score(make_dataset):
    dataset = one_user(make_dataset)
    rows = pl.DataFrame(
        {
            "query": ["u0"] * 3,
            "item": ["i7", "i3", "i4"],
            "rank": [90, 8, -2],
            "score": [9.0, 1.0, 0.0],
        }
    )
    report = evaluate_lists(rows, dataset, SMALL)
    assert value_of(report, "mrr@4") == pytest.approx(1 / 3)


def test_equal_scores_are_the_mean_over_their_orders(make_dataset):
    """By enumeration of all orders, with ties inside the list and across the last rank."""
    dataset = one_user(make_dataset, targets=(7, 8))
    scores = {"i1": 3.0, "i7": 2.0, "i2": 2.0, "i8": 1.0, "i3": 1.0, "i4": 1.0}
    rows = [("u0", item, score) for item, score in scores.items()]
    report = evaluate_lists(frame_of(rows, "score"), dataset, SMALL)
    values = {"ndcg@4": [], "mrr@2": [], "recall@4": []}
    for first in itertools.permutations(["i7", "i2"]):
        for second in itertools.permutations(["i8", "i3", "i4"]):
            ranked = ["i1", *first, *second]
            gains = [item in ("i7", "i8") for item in ranked]
            ideal = 1 + 1 / math.log2(3)
            values["ndcg@4"].append(
                sum(g / math.log2(r + 2) for r, g in enumerate(gains[:4])) / ideal
            )
            values["mrr@2"].append(max(g / (r + 1) for r, g in enumerate(gains[:2])))
            values["recall@4"].append(sum(gains[:4]) / 2)
    for name, each in values.items():
        assert value_of(report, name) == pytest.approx(np.mean(each), abs=1e-12), name


def test_unknown_item_keeps_its_rank_and_unknown_user_is_left_out(make_dataset):
    dataset = one_user(make_dataset)
    rows = [("u0", "x", 1), ("u0", "i7", 2), ("u0", "y", 3), ("z", "i1", 1), ("z", "i2", 2)]
    report = evaluate_lists(frame_of(rows), dataset, SMALL)
    assert value_of(report, "mrr@4") == 0.5
    assert value_of(report, "precision@4") == 0.25
    # Mean over the items of the catalog in the first four ranks: i7 alone, without training count.
    assert value_of(report, "popularity@4") == 0.0
    assert report.counts["unknown_items"] == 2
    assert report.counts["unknown_users"] == 1


def test_list_with_an_unknown_first_item_is_a_list(make_dataset):
    dataset = one_user(make_dataset)
    rows = [("u0", "x", 1), ("u0", "i0", 2), ("u0", "i3", 3)]
    report = evaluate_lists(frame_of(rows), dataset, SMALL)
    # i0 has two training interactions, and i3 none.
    assert value_of(report, "popularity@2") == 2.0
    assert value_of(report, "popularity@4") == 1.0


def test_unknown_item_comes_first_among_ties(make_dataset):
    dataset = one_user(make_dataset)
    rows = [("u0", "i7", 1.0), ("u0", "x", 1.0), ("u0", "y", 1.0)]
    report = evaluate_lists(frame_of(rows, "score"), dataset, SMALL)
    assert value_of(report, "mrr@4") == pytest.approx(1 / 3)


def test_seen_item_keeps_its_rank_and_seen_target_is_not_relevant(make_dataset):
    dataset = one_user(make_dataset, targets=(0, 7))
    rows = frame_of([("u0", "i0", 1), ("u0", "i7", 2)])
    hidden = evaluate_lists(rows, dataset, SMALL)
    assert value_of(hidden, "mrr@4") == 0.5
    assert hidden.counts["targets_seen_before"] == 1
    shown = evaluate_lists(rows, dataset, SMALL.model_copy(update={"filter_seen": False}))
    assert value_of(shown, "mrr@4") == 1.0


def test_part_of_the_catalog_removes_the_other_items_of_lists(make_dataset):
    dataset = one_user(make_dataset)
    rows = frame_of([("u0", "i0", 1), ("u0", "i7", 2), ("u1", "i5", 1)])
    config = SMALL.model_copy(update={"catalog": "cold"})
    report = evaluate_lists(rows, dataset, config)
    assert value_of(report, "mrr@4") == 1.0


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        (pl.DataFrame({"user": ["u0"], "item": ["i1"], "rank": [1]}), "no column 'query': rename"),
        (pl.DataFrame({"query": ["u0"], "item": ["i1"]}), "neither a column 'rank' nor 'score'"),
        (frame_of([("u0", "i1", 1), ("u0", None, 2)]), "item in row 2 .* is missing"),
        (frame_of([("u0", "i1", 1), (None, "i2", 2)]), "query in row 2 .* is missing"),
        (frame_of([("u0", "i1", "1"), ("u0", "i2", "two")]), "row 2 .* 'two', which is not a"),
        (frame_of([("u0", "i1", 1.0), ("u0", "i2", math.nan)], "score"), "score in row 2"),
        (frame_of([("u0", "i1", 1), ("u0", "i1", 2)]), "item 'i1' is twice .* user 'u0'"),
        (frame_of([("u0", "i1", 1)]).clear(), "have no rows: give one row for each item"),
        (frame_of([("u0", ["i1", "i2"], 1)]), "column 'item' .* holds lists: write one row for"),
        (frame_of([(["u0"], "i1", 1)]), "column 'query' .* holds lists: write one row for"),
        (frame_of([("u0", "i1", [1])]), "column 'rank' .* holds lists: write one row for"),
        (frame_of([("u0", "i1", [0.5])], "score"), "column 'score' .* holds lists: write one row"),
        (frame_of([("u0", {"id": "i1"}, 1)]), "column 'item' .* holds records: write one row for"),
        (frame_of([("u0", "i1", b"1")]), "column 'rank' .* is of type Binary: convert it to num"),
        (frame_of([("a", "i1", 1)]), "no user of the recommendations, such as 'a': .* 'u0'"),
        (frame_of([("u0", "b", 1)]), "no item of the recommendations, such as 'b': .* 'i0'"),
    ],
)
def test_bad_rows_are_refused_in_one_sentence(make_dataset, frame, sentence):
    with pytest.raises(DataError, match=sentence):
        evaluate_lists(frame, one_user(make_dataset), SMALL)


def test_table_without_users_and_items_of_the_dataset_is_not_measured_as_zero(make_dataset):
    """Columns of a file without rows are text or have no type."""
    for dtype in (pl.String, pl.Null, pl.Int64):
        frame = pl.DataFrame(schema={"query": dtype, "item": dtype, "rank": dtype})
        with pytest.raises(DataError, match="have no rows"):
            evaluate_lists(frame, one_user(make_dataset), SMALL)


def test_intra_list_diversity_without_an_attribute_is_refused(make_dataset):
    config = SMALL.model_copy(update={"metrics": ("ndcg", "intra_list_diversity")})
    with pytest.raises(ConfigError, match=r"no item vectors: set evaluation\.diversity_attribute"):
        evaluate_lists(frame_of([("u0", "i1", 1)]), one_user(make_dataset), config)


def test_item_counts_may_be_a_list(make_dataset):
    dataset, lists = one_user(make_dataset), frame_of([("u0", "i7", 1)])
    counts = [float(item) for item in range(20)]
    report = evaluate_lists(lists, dataset, SMALL, item_counts=counts)
    assert value_of(report, "popularity@2") == 7.0
    with pytest.raises(DataError, match="item_counts must hold numbers: give one count per item"):
        evaluate_lists(lists, dataset, SMALL, item_counts=["many"] * 20)
    with pytest.raises(DataError, match=r"item_counts has shape \[2\]"):
        evaluate_lists(lists, dataset, SMALL, item_counts=[1, 2])


def test_cut_off_beyond_the_catalog_is_refused(make_dataset):
    config = SMALL.model_copy(update={"ks": (4, 30)})
    with pytest.raises(ConfigError, match="30 exceeds the 20 items"):
        evaluate_lists(frame_of([("u0", "i1", 1)]), one_user(make_dataset), config)


def test_ids_of_another_type_are_converted(make_dataset):
    """A file has text, and the dataset has numbers."""
    dataset = one_user(make_dataset)
    numbered = make_dataset([[(0, Role.TRAIN), (7, Role.TEST)]], 20)
    object.__setattr__(numbered, "users", pl.DataFrame({"source_id": [42]}))
    object.__setattr__(numbered, "items", pl.DataFrame({"source_id": np.arange(20) + 100}))
    assert dataset.num_users == 2
    rows = pl.DataFrame({"query": ["42", "42"], "item": ["x1", "107"], "rank": ["1", "2"]})
    report = evaluate_lists(rows, numbered, SMALL)
    assert value_of(report, "mrr@4") == 0.5
    assert report.counts["unknown_items"] == 1


@pytest.mark.parametrize(
    ("items", "reciprocal_rank", "unknown"),
    [
        (pl.Series([105.0, 107.0]), 0.5, 0),
        (pl.Series(["105.0", "107.0"]), 0.5, 0),
        (pl.Series([b"105", b"107"]), 0.5, 0),
        # An item 107.5 is not the item 107.
        (pl.Series([105.0, 107.5]), 0.0, 1),
    ],
    ids=["float", "text", "bytes", "fraction"],
)
def test_ids_written_as_floats_are_whole_numbers(make_dataset, items, reciprocal_rank, unknown):
    numbered = make_dataset([[(0, Role.TRAIN), (7, Role.TEST)]], 20)
    object.__setattr__(numbered, "users", pl.DataFrame({"source_id": [42]}))
    object.__setattr__(numbered, "items", pl.DataFrame({"source_id": np.arange(20) + 100}))
    rows = pl.DataFrame({"query": [42.0, 42.0], "item": items, "rank": [1, 2]})
    report = evaluate_lists(rows, numbered, SMALL)
    assert value_of(report, "mrr@4") == reciprocal_rank
    assert report.counts["unknown_items"] == unknown
