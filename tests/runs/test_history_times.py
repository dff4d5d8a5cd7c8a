"""Times of anonymous histories: in Python, on the command line, and in messages."""

from __future__ import annotations

import datetime
import json

import numpy as np
import polars as pl
import pytest

import candid
from candid.cli import run as candid_cli
from candid.data import DataConfig, open_dataset, prepare_folder
from candid.errors import ConfigError, DataError
from candid.runs.history_times import history_times

HOUR = 3_600_000_000
START = 1_600_000_000_000_000
NUM_USERS, LENGTH = 20, 6
RECIPE = {
    "threads": 1,
    "device": "cpu",
    "batches": {"max_length": 4, "batch_size": 8},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": "full_softmax",
    "training": {"max_steps": 5, "lr": 0.05, "trackers": []},
    "evaluation": {"ks": [1, 3], "metric": "ndcg@3", "filter_seen": False},
}
READS_TIMES = {"model.query_tower.read_time_gaps": True, "model.query_tower.time_bias": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Films 100, 101, …, chosen minutes to months apart."""
    rng = np.random.default_rng(0)
    gaps = np.exp(rng.uniform(np.log(HOUR / 60), np.log(2000 * HOUR), (NUM_USERS, LENGTH)))
    table = pl.DataFrame(
        {
            "user_id": np.repeat([f"u{user}" for user in range(NUM_USERS)], LENGTH),
            "item_id": 100 + rng.integers(0, 12, NUM_USERS * LENGTH),
            "time": START + np.cumsum(gaps, axis=1).astype(np.int64).ravel(),
        }
    )
    root = tmp_path_factory.mktemp("data")
    table.write_parquet(root / "log.parquet")
    prepare_folder(DataConfig(interactions=str(root / "log.parquet"), time="time"), root / "films")
    return open_dataset(root / "films")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "films"
    return candid.train(data, RECIPE, out=out, **READS_TIMES)


def history_of(data, user):
    """Return the items of a user in source ids, and their times."""
    start, stop = data.user_offsets[user : user + 2]
    items = data.items["source_id"].gather(data.item_ids[start:stop]).to_list()
    return items, [int(time) for time in data.timestamps[start:stop]]


def test_history_with_times_has_the_answer_of_the_user(run, data):
    users = [data.users["source_id"][user] for user in range(5)]
    histories, times = zip(*(history_of(data, user) for user in range(5)), strict=True)
    expected = run.query_vectors(users)
    vectors = run.query_vectors(histories=histories, times=times)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(run.query_vectors(histories=histories) - expected).max() > 0.01
    listed = run.recommend(histories=histories, times=times)
    assert listed.drop("query").equals(run.recommend(users).drop("query"))


def test_query_gap_is_that_of_the_request(data, tmp_path):
    settings = {"model.query_tower.read_query_gap": True, "training.max_steps": 30}
    run = candid.train(data, RECIPE, out=tmp_path / "run", **settings)
    users = [data.users["source_id"][user] for user in range(5)]
    histories, times = zip(*(history_of(data, user) for user in range(5)), strict=True)
    soon = max(map(max, times)) + HOUR // 60
    for moment in (soon, soon + 5000 * HOUR):
        expected = run.query_vectors(users, time=moment)
        vectors = run.query_vectors(histories=histories, times=times, time=moment)
        np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - run.query_vectors(users, time=soon)).max() > 1e-3
    # Without times the gap is unknown at any moment.
    unknown = run.query_vectors(histories=histories, time=moment)
    np.testing.assert_array_equal(unknown, run.query_vectors(histories=histories))
    assert run.reads_query_time


def test_time_of_a_query_is_a_datetime_or_microseconds(data, tmp_path):
    settings = {"model.query_tower.read_query_gap": True, "training.max_steps": 30}
    run = candid.train(data, RECIPE, out=tmp_path / "run", **settings)
    users = data.users["source_id"][:3]
    zone = datetime.timezone(datetime.timedelta(hours=2))
    later = datetime.datetime(2031, 1, 1, 12, tzinfo=zone)
    moment = int(later.timestamp()) * 1_000_000
    given = (later, datetime.datetime(2031, 1, 1, 10), np.int64(moment))
    expected, lists = run.query_vectors(users, time=moment), run.recommend(users, time=moment)
    assert (expected != run.query_vectors(users, time=START + HOUR)).any()
    for time in given:
        np.testing.assert_array_equal(run.query_vectors(users, time=time), expected)
        assert run.recommend(users, time=time).equals(lists)
        assert (
            run.recommend(users, time=time, fallback="popular").drop("recommended_by").equals(lists)
        )
        candid.write_recommendations(run, tmp_path / "lists.csv", users=users, time=time)
        written = pl.read_csv(tmp_path / "lists.csv")
        assert written["item"].equals(lists["item"])
    for time in ("2031-01-01", 1.5, True, datetime.date(2031, 1, 1)):
        with pytest.raises(ConfigError, match="time must be a datetime, or microseconds"):
            run.recommend(users, time=time)
        with pytest.raises(ConfigError, match="time must be a datetime, or microseconds"):
            run.query_vectors(users, time=time)
        with pytest.raises(ConfigError, match="time must be a datetime, or microseconds"):
            candid.write_recommendations(run, tmp_path / "x.csv", users=users, time=time)


def test_query_before_the_last_interaction_has_an_unknown_gap(data, tmp_path):
    settings = {"model.query_tower.read_query_gap": True, "training.max_steps": 30}
    run = candid.train(data, RECIPE, out=tmp_path / "run", **settings)
    items, times = history_of(data, 0)
    before = run.query_vectors(histories=[items], times=[times], time=times[-1] - HOUR)
    np.testing.assert_array_equal(before, run.query_vectors(histories=[items]))
    # Training hides some times, so that an unknown one has an effect of its own.
    assert np.abs(run.model.query_tower.query_gap.out.bias.detach().numpy()).max() > 0


def test_unknown_times_are_given_as_none(run, data):
    items, times = history_of(data, 0)
    unknown = run.query_vectors(histories=[items], times=[[None] * LENGTH])
    np.testing.assert_array_equal(unknown, run.query_vectors(histories=[items]))
    some = run.query_vectors(histories=[items], times=[[None, *times[1:]]])
    # The first of six items is beyond the window of four.
    np.testing.assert_array_equal(some, run.query_vectors(histories=[items], times=[times]))
    assert (some != unknown).any()


def test_unknown_times_add_nothing(data, tmp_path):
    """A model that reads times, asked without, is the same model without tables of time."""
    reads = candid.train(data, RECIPE, out=tmp_path / "reads", **READS_TIMES)
    plain = candid.train(data, RECIPE, out=tmp_path / "plain")
    left_out = plain.model.load_state_dict(reads.model.state_dict(), strict=False)
    assert len(left_out.unexpected_keys) == 2
    items, _ = history_of(data, 3)
    expected = plain.query_vectors(histories=[items])
    np.testing.assert_allclose(reads.query_vectors(histories=[items]), expected, atol=1e-6)


def test_datetimes_and_microseconds_are_the_same_times():
    zone = datetime.timezone(datetime.timedelta(hours=2))
    times = [
        datetime.datetime(2020, 1, 1, 12),
        datetime.datetime(2020, 1, 1, 15, tzinfo=zone),
        np.int64(1_577_890_800_000_000),
        None,
    ]
    before_1970 = datetime.datetime(1969, 12, 31, 23, 59, 59)
    assert history_times([[1]], [[before_1970]]) == [[-1_000_000]]
    assert history_times([[1, 2, 3, 4]], [times]) == [
        [1_577_880_000_000_000, 1_577_883_600_000_000, 1_577_890_800_000_000, None]
    ]


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([], "times of 0 histories and 2 histories"),
        ([[1], [1]], "history 0 has 2 items and 1 times"),
        ([[2, 1], [1]], "history 0: time 1 is before an earlier one"),
        ([[2, None], [-1]], "history 1: time 0 is -1: give a datetime, or microseconds"),
        ([[2, "now"], [1]], "history 0: time 1 is 'now'"),
        ([[2, True], [1]], "history 0: time 1 is True"),
    ],
)
def test_wrong_times_are_one_sentence(run, times, words):
    with pytest.raises(DataError, match=words):
        run.recommend(histories=[[100, 101], [102]], times=times)


def test_times_that_are_not_read_are_refused(run, data, tmp_path):
    plain = candid.train(data, RECIPE, out=tmp_path / "plain")
    with pytest.raises(ConfigError, match="does not read the times of a history: leave out times"):
        plain.recommend(histories=[[100]], times=[[START]])
    with pytest.raises(DataError, match="times and no histories: leave the times out"):
        run.recommend(["u1"], times=[[START]])


def test_command_line_reads_times(run, data, capsys):
    items, times = history_of(data, 1)
    stamps = [datetime.datetime.fromtimestamp(time / 1e6, datetime.UTC) for time in times]
    exact = [
        (stamp.replace(microsecond=0) + datetime.timedelta(microseconds=time % 1_000_000))
        for stamp, time in zip(stamps, times, strict=True)
    ]
    flags = [part for item in items for part in ("--history", str(item))]
    flags += [part for time in exact for part in ("--history-time", time.isoformat())]
    assert candid_cli(["recommend", str(run.folder), *flags, "--json"]) == 0
    [answer] = json.loads(capsys.readouterr().out)["answers"]
    expected = run.recommend(histories=[items], times=[times])
    assert [one["item"] for one in answer["items"]] == expected["item"].to_list()
    assert [one["score"] for one in answer["items"]] == pytest.approx(
        expected["score"].to_list(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--history-time", "noon"], 2, "--history-time 'noon' is not a time such as"),
        (["--history-time", "", "--history-time", ""], 2, "are 1 --history and 2 --history-time"),
    ],
)
def test_wrong_times_on_the_command_line(run, capsys, flags, code, words):
    assert candid_cli(["recommend", str(run.folder), "--history", "100", *flags]) == code
    assert words in capsys.readouterr().err


def test_times_of_a_user_are_refused_on_the_command_line(run, capsys):
    flags = ["--user", "u1", "--history-time", "2020-01-01"]
    assert candid_cli(["recommend", str(run.folder), *flags]) == 2
    assert "--history-time goes with --history" in capsys.readouterr().err


def test_last_time_is_that_of_the_context(data, tmp_path):
    """A tower that reads the time since the last interaction needs it too."""
    recipe = RECIPE | {
        "features": {"context": {"gap": {"type": "number", "column": "since", "scale": "log"}}},
        "model": {
            "query_tower": {
                "type": "joined",
                "dim": 8,
                "towers": [RECIPE["model"]["query_tower"], {"type": "context_features", "dim": 8}],
            },
            "item_tower": {"type": "item_embedding", "dim": 8},
        },
    }
    run = candid.train(data, recipe, out=tmp_path / "run")
    items, times = history_of(data, 2)
    now = times[-1] + 5 * HOUR
    expected = run.query_vectors([data.users["source_id"][2]], time=now)
    vectors = run.query_vectors(histories=[items], times=[times], time=now)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
