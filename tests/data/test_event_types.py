"""Kinds of interaction: what is asked for, what is only read, and what each weighs."""

import json

import polars as pl
import pytest

from candid.config import load_data_config
from candid.data import DataConfig, Role, SplitConfig, held_out, open_dataset, prepare
from candid.errors import ConfigError, DataError

# user, item, time, what happened, a weight of the row
ROWS = [
    (1, 10, 1, "view", 1.0),
    (1, 10, 2, "purchase", 2.0),
    (1, 20, 3, "view", 1.0),
    (1, 30, 4, "purchase", 1.0),
    (1, 40, 5, "purchase", 0.5),
    (1, 50, 6, "view", 1.0),
    (2, 20, 1, "purchase", 1.0),
    (2, 10, 2, "share", 1.0),
    (2, 30, 3, "purchase", 1.0),
    (2, 10, 4, "purchase", 1.0),
    *((3, item, t, "purchase", 1.0) for t, item in enumerate((30, 40, 10, 20, 30), start=1)),
]
ACTIONS = {"purchase": {"weight": 3.0}, "view": {"use": "history"}, "share": {"use": "drop"}}


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.parquet"
    columns = ["user_id", "item_id", "t", "what", "w"]
    pl.DataFrame(ROWS, schema=columns, orient="row").write_parquet(path)
    return str(path)


def config(log, **settings):
    return DataConfig(**{"interactions": log, "time": "t", "event_type": "what"} | settings)


def read(dataset):
    """(user, item, event_type, role, weight) of each interaction, in order."""
    found = []
    for user in range(dataset.num_users):
        for e in range(*dataset.user_offsets[user : user + 2]):
            weight = None if dataset.weights is None else float(dataset.weights[e])
            item = dataset.items["source_id"][int(dataset.item_ids[e])]
            event_type = dataset.event_type_names[dataset.event_types[e]]
            role = Role(dataset.roles[e]).name
            found.append((dataset.users["source_id"][user], item, event_type, role, weight))
    return found


def test_targets_are_split_and_the_rest_is_history(log, tmp_path):
    prepared = prepare(config(log, event_types=ACTIONS), tmp_path / "out")
    assert read(prepared.dataset) == [
        (1, 10, "view", "HISTORY", 1.0),
        (1, 10, "purchase", "TRAIN", 3.0),
        (1, 20, "view", "HISTORY", 1.0),
        (1, 30, "purchase", "VALIDATION", 3.0),
        (1, 40, "purchase", "TEST", 3.0),
        (1, 50, "view", "HISTORY", 1.0),
        (2, 20, "purchase", "TRAIN", 3.0),
        (2, 30, "purchase", "VALIDATION", 3.0),
        (2, 10, "purchase", "TEST", 3.0),
        (3, 30, "purchase", "TRAIN", 3.0),
        (3, 40, "purchase", "TRAIN", 3.0),
        (3, 10, "purchase", "TRAIN", 3.0),
        (3, 20, "purchase", "VALIDATION", 3.0),
        (3, 30, "purchase", "TEST", 3.0),
    ]
    assert prepared.report["dropped"] == {"event_type": 1}
    assert prepared.report["event_types"] == ["purchase", "view"]
    questions = held_out(prepared.dataset, Role.TEST)
    # Of user 1 the test asks after the view of 20 and the purchase of 30, before the last view.
    assert (questions.history_stop - prepared.dataset.user_offsets[:-1]).tolist() == [4, 2, 4]
    again = open_dataset(tmp_path / "out")
    assert read(again) == read(prepared.dataset)
    assert prepare(config(log, event_types=ACTIONS), tmp_path / "out").up_to_date


def test_weights_multiply_and_all_are_targets_where_nothing_is_said(log, tmp_path):
    weighed = prepare(config(log, weight="w", event_types=ACTIONS), tmp_path / "weighed").dataset
    assert [row[4] for row in read(weighed)][:5] == [1.0, 6.0, 1.0, 3.0, 1.5]
    plain = prepare(config(log), tmp_path / "plain").dataset
    assert plain.weights is None
    assert plain.event_type_names == ("purchase", "share", "view")
    assert (plain.roles == Role.HISTORY).sum() == 0
    other = prepare(config(log, event_type=None), tmp_path / "other").dataset
    assert other.event_types is None
    assert other.manifest["fingerprint"] != plain.manifest["fingerprint"]


def test_a_dataset_knows_which_kinds_are_targets(log, tmp_path):
    prepared = prepare(config(log, event_types=ACTIONS), tmp_path / "out")
    assert prepared.report["target_event_types"] == ["purchase"]
    assert open_dataset(tmp_path / "out").is_target_event_type.tolist() == [True, False]
    every = prepare(config(log), tmp_path / "every").dataset
    assert every.target_event_types == every.event_type_names == ("purchase", "share", "view")
    none = prepare(config(log, event_type=None), tmp_path / "none").dataset
    assert none.target_event_types == ()
    assert none.is_target_event_type is None


def test_an_older_dataset_that_does_not_say_is_read_and_prepared_again(log, tmp_path):
    settings, out, lines = config(log, event_types=ACTIONS), tmp_path / "out", []
    before = prepare(settings, out).report
    manifest = {key: value for key, value in before.items() if key != "target_event_types"}
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert open_dataset(out).is_target_event_type is None
    again = prepare(settings, out, progress=lines.append)
    assert not again.up_to_date
    assert "does not say which kinds of interaction are targets" in lines[0]
    assert again.dataset.target_event_types == ("purchase",)
    # What was trained on it before still belongs to it.
    assert again.report["fingerprint"] == before["fingerprint"]


def test_an_older_dataset_without_kinds_stays_up_to_date(log, tmp_path):
    settings, out = config(log, event_type=None), tmp_path / "out"
    manifest = prepare(settings, out).report
    del manifest["target_event_types"], manifest["event_types"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert prepare(settings, out).up_to_date


def test_a_temporal_split_asks_for_targets_alone(log, tmp_path):
    split = SplitConfig(kind="temporal", validation="3", test="4")
    dataset = prepare(config(log, event_types=ACTIONS, split=split), tmp_path / "out").dataset
    assert [row[3] for row in read(dataset)] == [
        *("HISTORY", "TRAIN", "HISTORY", "TEST", "TEST", "HISTORY"),
        *("TRAIN", "VALIDATION", "TEST"),
        *("TRAIN", "TRAIN", "VALIDATION", "TEST", "TEST"),
    ]


def test_a_view_is_no_repetition_of_a_purchase(log, tmp_path):
    dataset = prepare(config(log, deduplicate="first"), tmp_path / "out").dataset
    assert len(dataset.item_ids) == len(ROWS) - 1  # user 3 bought item 30 twice


EVERY = ("view", "purchase", "share")


@pytest.mark.parametrize(
    ("event_types", "sentence"),
    [
        (
            {"purchase": {}, "view": {}},
            r"'share' \(1 rows\), which data\.event_types does not list; known: purchase, view",
        ),
        ({name: {"use": "drop"} for name in EVERY} | {"like": {}}, r"nothing is left"),
        (
            {name: {"weight": 0.0} for name in EVERY},
            r"weight of event_types .* is 0 in every interaction",
        ),
    ],
)
def test_event_types_that_do_not_fit_the_file_are_refused(log, tmp_path, event_types, sentence):
    with pytest.raises(DataError, match=sentence):
        prepare(config(log, event_types=event_types), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_identifier_is_no_kind(tmp_path):
    path = tmp_path / "log.parquet"
    numbers = list(range(300))
    frame = pl.DataFrame({"user_id": numbers, "item_id": numbers, "t": numbers, "what": numbers})
    frame.write_parquet(path)
    with pytest.raises(DataError, match="300 values, more than the 255 kinds"):
        prepare(config(str(path)), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data.event_types": {"view": {}}}, "name it with `event_type`"),
        (
            {"data.event_type": "what", "data.event_types": {"view": {"use": "history"}}},
            "at least one event_type as a target",
        ),
        (
            {"data.event_type": "what", "data.event_types": {"view": {"use": "look"}}},
            r"data\.event_types\.view\.use",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_data_config(None, {"data.interactions": "x", "data.time": "t"} | settings)


PLAIN = [(u, t, (t * (u + 1)) % 4) for u in (1, 2, 3, 4) for t in range(1, 7)]


def test_kinds_written_as_numbers_are_names(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,t,what\n1,1,1,0\n1,2,2,1\n1,3,3,1\n2,1,1,1\n2,2,2,1\n2,3,3,1\n"
    )
    dataset = prepare(
        config(str(path), event_types={"0": {"use": "history"}, "1": {}}), tmp_path / "o"
    )
    assert dataset.dataset.event_type_names == ("0", "1")
