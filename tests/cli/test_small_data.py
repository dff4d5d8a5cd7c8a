"""Small and odd datasets: each verb gives a right result, or one sentence and its exit code."""

import math
import re
from collections import defaultdict

import numpy as np
import pytest

TIME = 1_600_000_000


def by_user(histories):
    """Return rows user, item, time; the interactions of all users take turns."""
    return [
        (f"u{user}", f"i{item}", TIME + 100 * position + user)
        for user, items in enumerate(histories)
        for position, item in enumerate(items)
    ]


def with_roles(rows, roles):
    return [(*row, role) for row, role in zip(rows, roles, strict=True)]


def short_sessions(num_users):
    """Return sessions of two items, one after the other in time."""
    return [(f"u{n // 2}", f"i{(n * n + n // 7) % 9}", TIME + n) for n in range(2 * num_users)]


def new_items():
    """Return rows whose validation and test items training never has."""
    return [
        (f"u{user}", item, TIME + 1000 * position + user, role)
        for user in range(10)
        for position, (item, role) in enumerate(
            [(f"i{(user + n) % 7}", "train") for n in range(4)]
            + [(f"v{user % 4}", "validation"), (f"w{user % 4}", "test")]
        )
    ]


PERMUTATIONS = [np.random.default_rng(user).permutation(12)[:6] for user in range(3)]
SESSION_ROLES = ["train"] * 60 + ["validation"] * 30 + ["test"] * 30
COLUMN = ["--split", "column", "--split-column", "role"]
TIMES = ["--time", "time"]

PREPARED = {
    "three-users": (by_user(PERMUTATIONS), TIMES),
    "three-users-by-time": (by_user(PERMUTATIONS), [*TIMES, "--split", "temporal"]),
    "three-users-without-order": (
        with_roles(by_user(PERMUTATIONS), (["train"] * 4 + ["validation", "test"]) * 3),
        COLUMN,
    ),
    "sessions-by-time": (
        short_sessions(60),
        [*TIMES, "--split", "temporal", "--split-unit", "user"],
    ),
    "one-training-row-each": (by_user([[0, 1, 2], [1, 0, 2], [2, 0, 1]]), TIMES),
    "two-items": (by_user([[0, 1, 0, 1, 1][: 3 + n % 3] for n in range(6)]), TIMES),
    "one-item-each": (by_user([[user % 3] * 6 for user in range(6)]), TIMES),
    "two-items-each": (by_user([[n % 4, (n + 1) % 4] * 3 for n in range(8)]), TIMES),
    "same-times": ([(*row[:2], TIME) for row in by_user(PERMUTATIONS)], TIMES),
    "without-validation": (
        with_roles(by_user(PERMUTATIONS), (["train"] * 5 + ["test"]) * 3),
        [*TIMES, *COLUMN],
    ),
    "one-test-user": (
        with_roles(by_user(PERMUTATIONS), ["train"] * 4 + ["validation", "test"] + ["train"] * 12),
        [*TIMES, *COLUMN],
    ),
}
"""Name -> rows and options of ``prepare``; every verb works on them."""

NOT_PREPARED = {
    "no-order": (by_user(PERMUTATIONS), [], 2, "--split cross-validation --split-unit interaction"),
    "one-interaction-each": (by_user([[0], [1]]), TIMES, 3, "a user with three interactions"),
    "two-interactions-each": (short_sessions(30), TIMES, 3, "a user with three interactions"),
    "one-item": (by_user([[0] * 4] * 5), TIMES, 3, "only one item after filtering ('i0')"),
    "only-test": (
        with_roles(by_user(PERMUTATIONS), ["test"] * 18),
        COLUMN,
        3,
        "no training interaction",
    ),
    "only-training": (
        with_roles(by_user(PERMUTATIONS), ["train"] * 18),
        COLUMN,
        3,
        "no validation or test interaction",
    ),
    "same-times-by-time": (
        [(*row[:2], TIME) for row in by_user(PERMUTATIONS)],
        [*TIMES, "--split", "temporal"],
        2,
        "must be before split.test",
    ),
}

NOT_TRAINED = {
    "new-items": (new_items(), [*TIMES, *COLUMN], "all 10 validation targets are cold items"),
    "new-items-last": (
        by_user([[0, 1, 2, 3, 100 + user, 200 + user] for user in range(8)]),
        TIMES,
        "all 8 validation targets are cold items",
    ),
    "new-users": (
        with_roles(short_sessions(60), SESSION_ROLES),
        [*TIMES, *COLUMN],
        "train with batches.empty_histories = true",
    ),
    "new-users-by-time": (
        short_sessions(60),
        [*TIMES, "--split", "temporal"],
        "mark their earlier interactions as history in a column split",
    ),
    "seen-items": (
        with_roles(
            by_user([[n, n + 1, n + 2, n, n + 1] for n in range(6)]),
            (["train"] * 3 + ["validation", "test"]) * 6,
        ),
        [*TIMES, *COLUMN],
        "set evaluation.filter_seen = false",
    ),
}


@pytest.fixture
def prepare(candid, tmp_path):
    def call(rows, flags):
        header = ["user_id", "item_id", "time", "role"][: len(rows[0])]
        lines = [",".join(map(str, row)) for row in [header, *rows]]
        (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
        log = ["--interactions", tmp_path / "log.csv"]
        return candid("prepare", *log, *flags, "--out", tmp_path / "data", "--quiet")

    return call


def check_numbers(value, place=""):
    """Every number is finite, every interval has its low end first, every share is in [0, 1]."""
    if isinstance(value, float):
        assert math.isfinite(value), place
    if isinstance(value, list):
        for position, inner in enumerate(value):
            check_numbers(inner, f"{place}[{position}]")
    if isinstance(value, dict):
        for key, inner in value.items():
            check_numbers(inner, f"{place}.{key}")
        if value.get("low") is not None:
            middle = value.get("value", value.get("difference"))
            # The NLL of a certain prediction is 0 up to the rounding of float32.
            assert value["low"] - 1e-6 <= middle <= value["high"] + 1e-6, place
            assert "difference" in value or value["low"] >= 0, place
        for name, inner in value.items():
            if re.match(r"(ndcg|recall|precision|map|mrr|hit_rate)@", name):
                shares = list(inner.values()) if isinstance(inner, dict) else [inner]
                shares = [abs(one) for one in shares if isinstance(one, float)]
                assert all(one <= 1 + 1e-9 for one in shares), place


@pytest.fixture
def succeed(candid):
    """Call a verb that must succeed, once with text and once with JSON, and check the numbers."""

    def call(*arguments):
        answer = candid(*arguments)
        assert answer.code == 0, answer.err
        assert not re.search(r"\b(nan|inf)\b", answer.out, re.IGNORECASE)
        assert "Warning" not in answer.err
        return answer

    def call_json(*arguments):
        document = call(*arguments, "--json").document
        check_numbers(document)
        return document

    call.json = call_json
    return call


SHORT = ["--set", "training.epochs=2"]


@pytest.mark.parametrize("name", PREPARED)
def test_every_verb_has_a_right_result(succeed, prepare, tmp_path, name):
    rows, options = PREPARED[name]
    assert prepare(rows, options).code == 0
    data, run, other = (tmp_path / one for one in ("data", "run", "other"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(succeed("recipe", "--data", data, *SHORT).out)
    two = ["--only", "markov", "--only", "ease"]
    assert len(succeed.json("baselines", data, *two)["baselines"]) == 2
    document = succeed.json("train", "--data", data, "--out", run, *SHORT)
    assert document["test"] is not None
    assert len(document["baselines"]["comparisons"]) == 5
    succeed("evaluate", run)
    check_lists(succeed, run, rows)
    succeed("train", recipe, "--data", data, "--out", other, "--no-baselines")
    succeed.json("compare", run, other, "--out", tmp_path / "page.html")
    succeed("index", run)


@pytest.mark.parametrize("name", ["three-users", "two-items", "one-item-each"])
def test_interactions_as_units_have_a_right_result(succeed, prepare, tmp_path, name):
    rows, options = PREPARED[name]
    prepare(rows, options)
    run = tmp_path / "run"
    flags = [*SHORT, "--set", "batches.unit=interaction", "--no-baselines"]
    document = succeed.json("train", "--data", tmp_path / "data", "--out", run, *flags)
    assert document["test"] is not None
    assert document["baselines"] is None
    check_lists(succeed, run, rows)


def check_lists(succeed, run, rows):
    """Lists have all items, or all that the user does not have, each once."""
    history = defaultdict(set)
    for user, item, *_ in rows:
        history[user].add(item)
    items = set.union(*history.values())
    user = rows[0][0]
    for flags, expected in (
        (["--include-seen"], items),
        (["--exclude-seen"], items - history[user]),
    ):
        [answer] = succeed.json("recommend", run, "--user", user, *flags)["answers"]
        listed = [one["item"] for one in answer["items"]]
        assert len(set(listed)) == len(listed) == min(len(expected), 10)
        assert set(listed) <= expected


@pytest.mark.parametrize("name", NOT_PREPARED)
def test_data_that_cannot_be_split_is_one_sentence(prepare, tmp_path, name):
    rows, options, code, words = NOT_PREPARED[name]
    answer = prepare(rows, options)
    check_sentence(answer, code, words)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_data_that_cannot_be_validated_is_one_sentence(candid, prepare, tmp_path, name):
    rows, options, words = NOT_TRAINED[name]
    assert prepare(rows, options).code == 0
    data, run = tmp_path / "data", tmp_path / "run"
    check_sentence(candid("train", "--data", data, "--out", run), 3, words)
    assert not run.exists()
    check_sentence(candid("tune", "--data", data, "--out", tmp_path / "tuned"), 3, words)


def check_sentence(answer, code, words):
    assert answer.code == code, answer.err
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in answer.err


def test_cold_items_are_named_with_the_condition_of_the_advice(candid, prepare, tmp_path):
    """A model of ids has no vectors for items that training never has."""
    assert prepare(new_items(), [*TIMES, *COLUMN]).code == 0
    log = ["--interactions", tmp_path / "log.csv", *TIMES, *COLUMN, "--out", tmp_path / "data"]
    printed = " ".join(candid("prepare", *log).out.split())
    assert (
        "validation: of 10 targets, 10 have an untrained item and 0 an untrained user; change the "
        "split or the item ids, or, for an item tower that reads attributes, set "
        'evaluation.catalog = "cold"' in printed
    )
    run = tmp_path / "run"
    cold = ["--set", 'evaluation.catalog="cold"', "--set", "evaluation.ks=[1, 2]"]
    answer = candid("train", "--data", tmp_path / "data", "--out", run, *cold)
    check_sentence(answer, 2, "an item tower without features learns nothing about them")
    assert not run.exists()


@pytest.mark.parametrize("name", ["new-users", "seen-items"])
def test_the_advice_of_the_sentence_works(succeed, prepare, tmp_path, name):
    rows, options, words = NOT_TRAINED[name]
    prepare(rows, options)
    setting = re.search(r"([a-z_]+\.[a-z_]+) = (true|false)", words)
    flags = ["--set", "training.epochs=1", "--set", f"{setting[1]}={setting[2]}"]
    document = succeed.json("train", "--data", tmp_path / "data", "--out", tmp_path / "run", *flags)
    assert document["test"] is not None


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ([*["train"] * 60, *["test"] * 60], "has a history before it"),
        ([*["train"] * 60, *["test"] * 58, "validation", "validation"], "has a history before it"),
    ],
    ids=["without-validation", "with-validation"],
)
def test_test_targets_that_cannot_be_measured_keep_the_training(
    candid, prepare, tmp_path, roles, words
):
    """A failure after hours of training would hide that the model is there."""
    rows = short_sessions(60)
    if "validation" in roles:
        rows[-2:] = [("u0", "i7", TIME + 500), ("u0", "i8", TIME + 501)]
    prepare(with_roles(rows, roles), [*TIMES, *COLUMN])
    run = tmp_path / "run"
    flags = ["--data", tmp_path / "data", "--out", run, "--set", "training.epochs=1", "--json"]
    answer = candid("train", *flags)
    assert answer.code == 0, answer.err
    assert words in answer.document["not_measured"]
    assert answer.document["test"] is None
    assert (run / "run.json").exists()


def test_lists_of_repeats_have_the_repeats(succeed, prepare, tmp_path):
    """The evaluation shows repeats, so that lists must as well."""
    rows, options = PREPARED["one-item-each"]
    prepare(rows, options)
    run = tmp_path / "run"
    succeed("train", "--data", tmp_path / "data", "--out", run, "--set", "training.lr=0.02")
    [answer] = succeed.json("recommend", run, "--user", "u0")["answers"]
    assert answer["items"][0]["item"] == "i0"
