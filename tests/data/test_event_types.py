"""Event types: targets, history, and weights."""

import polars as pl
import pytest

from candid.config import load_data_config
from candid.data import DataConfig, Role, SplitConfig, held_out, open_dataset, prepare_folder
from candid.errors import ConfigError, DataError

# user, item, time, event type, weight
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
EVENT_TYPES = {"purchase": {"weight": 3.0}, "view": {"use": "history"}, "share": {"use": "drop"}}


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
    rows = []
    for user in range(dataset.num_users):
        for e in range(*dataset.user_offsets[user : user + 2]):
            weight = None if dataset.weights is None else float(dataset.weights[e])
            item = dataset.items["source_id"][int(dataset.item_ids[e])]
            event_type = dataset.event_type_names[dataset.event_types[e]]
            role = Role(dataset.roles[e]).name
            rows.append((dataset.users["source_id"][user], item, event_type, role, weight))
    return rows


def test_targets_are_split_and_other_types_are_history(log, tmp_path):
    prepared = prepare_folder(config(log, event_types=EVENT_TYPES), tmp_path / "out")
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
    queries = held_out(prepared.dataset, Role.TEST)
    # The history of user 1 ends with the purchase of 30, before the test target 40.
    assert (queries.history_stop - prepared.dataset.user_offsets[:-1]).tolist() == [4, 2, 4]
    again = open_dataset(tmp_path / "out")
    assert read(again) == read(prepared.dataset)
    assert prepare_folder(config(log, event_types=EVENT_TYPES), tmp_path / "out").up_to_date


def test_weights_multiply_and_all_types_are_targets_by_default(log, tmp_path):
    weighed = prepare_folder(
        config(log, weight="w", event_types=EVENT_TYPES), tmp_path / "weighed"
    ).dataset
    assert [row[4] for row in read(weighed)][:5] == [1.0, 6.0, 1.0, 3.0, 1.5]
    plain = prepare_folder(config(log), tmp_path / "plain").dataset
    assert plain.weights is None
    assert plain.event_type_names == ("purchase", "share", "view")
    assert (plain.roles == Role.HISTORY).sum() == 0
    other = prepare_folder(config(log, event_type=None), tmp_path / "other").dataset
    assert other.event_types is None
    assert other.manifest["fingerprint"] != plain.manifest["fingerprint"]


def test_dataset_stores_its_target_event_types(log, tmp_path):
    prepared = prepare_folder(config(log, event_types=EVENT_TYPES), tmp_path / "out")
    assert prepared.report["target_event_types"] == ["purchase"]
    assert open_dataset(tmp_path / "out").is_target_event_type.tolist() == [True, False]
    every = prepare_folder(config(log), tmp_path / "every").dataset
    assert every.target_event_types == every.event_type_names == ("purchase", "share", "view")
    none = prepare_folder(config(log, event_type=None), tmp_path / "none").dataset
    assert none.target_event_types == ()
    assert none.is_target_event_type is None


def test_temporal_split_has_targets_of_target_types_only(log, tmp_path):
    split = SplitConfig(kind="temporal", validation="3", test="4")
    dataset = prepare_folder(
        config(log, event_types=EVENT_TYPES, split=split), tmp_path / "out"
    ).dataset
    assert [row[3] for row in read(dataset)] == [
        *("HISTORY", "TRAIN", "HISTORY", "TEST", "TEST", "HISTORY"),
        *("TRAIN", "VALIDATION", "TEST"),
        *("TRAIN", "TRAIN", "VALIDATION", "TEST", "TEST"),
    ]


def test_deduplicate_compares_interactions_of_one_type(log, tmp_path):
    dataset = prepare_folder(config(log, deduplicate="first"), tmp_path / "out").dataset
    assert len(dataset.item_ids) == len(ROWS) - 1  # user 3 bought item 30 twice


EVERY = ("view", "purchase", "share")


@pytest.mark.parametrize(
    ("event_types", "sentence"),
    [
        (
            {"purchase": {}, "view": {}},
            r"'share' \(1 rows\), which data\.event_types does not list; known: purchase, view",
        ),
        ({name: {"use": "drop"} for name in EVERY} | {"like": {}}, r"no interaction of .* remains"),
        (
            {name: {"weight": 0.0} for name in EVERY},
            r"weight of event_types .* is 0 in every training interaction",
        ),
    ],
)
def test_event_types_that_do_not_fit_the_file_are_refused(log, tmp_path, event_types, sentence):
    with pytest.raises(DataError, match=sentence):
        prepare_folder(config(log, event_types=event_types), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_event_type_column_with_too_many_values_is_refused(tmp_path):
    path = tmp_path / "log.parquet"
    numbers = list(range(300))
    frame = pl.DataFrame({"user_id": numbers, "item_id": numbers, "t": numbers, "what": numbers})
    frame.write_parquet(path)
    with pytest.raises(DataError, match="300 values, but a dataset holds at most 255 event types"):
        prepare_folder(config(str(path)), tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"data.event_types": {"view": {}}}, "`event_types` needs `event_type`"),
        (
            {"data.event_type": "what", "data.event_types": {"view": {"use": "history"}}},
            "`event_types` has no target",
        ),
        (
            {"data.event_type": "what", "data.event_types": {"view": {"use": "look"}}},
            r"data\.event_types\.view\.use",
        ),
    ],
)
def test_contradictory_event_type_settings_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_data_config(None, {"data.interactions": "x", "data.time": "t"} | settings)


PLAIN = [(u, t, (t * (u + 1)) % 4) for u in (1, 2, 3, 4) for t in range(1, 7)]


def test_event_types_written_as_numbers_are_names(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user_id,item_id,t,what\n1,1,1,0\n1,2,2,1\n1,3,3,1\n2,1,1,1\n2,2,2,1\n2,3,3,1\n"
    )
    dataset = prepare_folder(
        config(str(path), event_types={"0": {"use": "history"}, "1": {}}), tmp_path / "o"
    )
    assert dataset.dataset.event_type_names == ("0", "1")
