"""Negatives from impressions and lists, against values worked out by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from candid.data import DataConfig, SplitConfig, open_dataset, prepare_folder
from candid.errors import ArtifactError, ConfigError, DataError

EVENT_TYPES = {"buy": {}, "view": {"use": "history"}, "shown": {"use": "negative"}}
# user, item, time, event type; rows of the same time are written in the wrong order.
LOG = [
    (1, 10, 1, "buy"),
    (1, 20, 2, "shown"),
    (1, 30, 3, "view"),
    (1, 40, 3, "shown"),
    (1, 20, 5, "buy"),
    (1, 30, 5, "shown"),
    (1, 30, 6, "shown"),
    (1, 30, 7, "buy"),
    (1, 40, 9, "shown"),
    (2, 99, 1, "shown"),
    (2, 40, 2, "buy"),
    (2, 10, 3, "buy"),
    (2, 20, 4, "buy"),
]
# A user with every item, so that every item is trained; the expected values leave it out.
ALL, EVERYTHING = 9, list(enumerate((10, 20, 30, 40, 10, 10), start=20))
LOG += [(ALL, item, t, "buy") for t, item in EVERYTHING]


def config_of(path, **settings):
    return DataConfig(**{"interactions": str(path), "time": "t"} | settings)


def write(path, rows, columns):
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


def negatives_by_pair(dataset):
    """(user, item) -> negatives of each of its interactions, as source ids, in order."""
    source, negatives = dataset.items["source_id"].to_list(), {}
    for user in np.flatnonzero(dataset.users["source_id"] != ALL):
        for event in range(*dataset.user_offsets[user : user + 2]):
            ids = dataset.negative_ids[slice(*dataset.negative_offsets[event : event + 2])]
            key = dataset.users["source_id"][int(user)], source[dataset.item_ids[event]]
            negatives.setdefault(key, []).append([source[i] for i in ids])
    return negatives


def test_impressions_become_negatives_of_the_next_target(tmp_path):
    log = write(tmp_path / "log.parquet", LOG, ["user_id", "item_id", "t", "what"])
    config = config_of(log, event_type="what", event_types=EVENT_TYPES)
    prepared = prepare_folder(config, tmp_path / "out")
    assert negatives_by_pair(prepared.dataset) == {
        (1, 10): [[]],
        # 30 was shown before it was bought, and 20 before it was bought.
        (1, 30): [[], []],
        (1, 20): [[40, 30]],
        (2, 40): [[]],
        (2, 10): [[]],
        (2, 20): [[]],
    }
    assert prepared.dataset.event_type_names == ("buy", "view")
    assert prepared.report["dropped"] == {"shown": 6}
    # 99 was never chosen, so it is not an item; the last impression of 40 has no later target.
    assert prepared.report["negatives"] == {
        "stored": 2,
        "without_target": 1,
        "chosen": 2,
        "of_filtered_items": 1,
    }
    again = open_dataset(tmp_path / "out", verify=True)
    assert negatives_by_pair(again) == negatives_by_pair(prepared.dataset)


@pytest.mark.parametrize("form", ["parquet", "text ids", "csv"])
def test_column_of_lists_gives_negatives(tmp_path, form):
    rows = [
        (1, 10, 1, [20, 77]),
        (1, 20, 2, []),
        (1, 30, 3, None),
        (2, 10, 1, [30]),
        (2, 30, 2, [10, 10]),
        (2, 20, 3, [10]),
        *((ALL, item, t, []) for t, item in EVERYTHING if item != 40),
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "t", "shown"], orient="row")
    if form == "parquet":
        frame.write_parquet(tmp_path / "log.parquet")
    elif form == "text ids":
        texts = (
            pl.col("shown").cast(pl.List(pl.String)),
            pl.format("{}", "item_id").alias("item_id"),
        )
        frame.with_columns(texts).write_parquet(tmp_path / "log.parquet")
    else:
        lists = pl.col("shown").cast(pl.List(pl.String)).list.join("  ")
        frame.with_columns(lists).write_csv(tmp_path / "log.csv")
    path = tmp_path / ("log.csv" if form == "csv" else "log.parquet")
    prepared = prepare_folder(config_of(path, negatives="shown"), tmp_path / "out")
    assert negatives_by_pair(prepared.dataset) == {
        (1, 10): [[20]],
        (1, 20): [[]],
        (1, 30): [[]],
        (2, 10): [[30]],
        (2, 30): [[10, 10]],
        (2, 20): [[10]],
    }
    assert prepared.report["negatives"] == {"stored": 5, "of_no_interaction": 1}


@pytest.mark.parametrize("dtype", [pl.Int128, pl.UInt128])
@pytest.mark.parametrize(("offset", "items"), [(0, pl.Int64), (2**63, pl.UInt64), (2**70, None)])
def test_lists_of_128_bit_integers_match_the_items(tmp_path, dtype, offset, items):
    rows = {
        "user_id": [1, 1, 1, 2, 2, 2],
        "item_id": pl.Series([offset + n for n in (1, 2, 3, 3, 2, 1)], dtype=items or dtype),
        "t": range(6),
        "shown": pl.Series([[offset + n] for n in (2, 3, 1, 1, 3, 2)], dtype=pl.List(dtype)),
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    config = config_of(tmp_path / "log.parquet", negatives="shown")
    dataset = prepare_folder(config, tmp_path / "out").dataset
    source = dataset.items["source_id"]
    shown = [int(source[int(item)]) - offset for item in dataset.negative_ids]
    assert shown == [2, 3, 1, 1, 3, 2]


def test_lists_and_impressions_combine(tmp_path):
    rows = [(1, 10, 1, "buy", [30]), (1, 20, 2, "shown", None), (1, 30, 3, "buy", [10])]
    rows += [(ALL, item, t, "buy", None) for t, item in EVERYTHING]
    log = write(tmp_path / "log.parquet", rows, ["user_id", "item_id", "t", "what", "shown"])
    config = config_of(log, event_type="what", event_types=EVENT_TYPES, negatives="shown")
    negatives = negatives_by_pair(prepare_folder(config, tmp_path / "out").dataset)
    assert (negatives[1, 10], negatives[1, 30]) == ([[30]], [[10, 20]])


def test_item_chosen_before_the_target_does_not_become_a_negative(tmp_path):
    rows = [(1, item, 1, "shown") for item in (10, 20, 30, 40)]
    rows += [(1, 20, 2, "view"), (1, 30, 3, "buy"), (1, 10, 4, "view"), (1, 40, 5, "buy")]
    rows += [(ALL, item, t, "buy") for t, item in EVERYTHING]
    log = write(tmp_path / "log.parquet", rows, ["user_id", "item_id", "t", "what"])
    prepared = prepare_folder(
        config_of(log, event_type="what", event_types=EVENT_TYPES), tmp_path / "out"
    )
    # 10 is viewed, and 40 bought, only after 30 was chosen instead of them.
    negatives = negatives_by_pair(prepared.dataset)
    assert negatives[1, 30] == [[10, 40]]
    assert negatives[1, 40] == [[]]
    assert prepared.report["negatives"] == {"stored": 2, "chosen": 2}


@pytest.mark.parametrize("role", [None, "history", "train"])
def test_impressions_need_no_role(tmp_path, role):
    """A column split sorts by role before time; impressions are assigned by time alone."""
    rows = [
        (1, 10, 1, "buy", "train"),
        (1, 20, 2, "shown", role),
        (1, 30, 3, "buy", "train"),
        (1, 40, 4, "shown", role),
        (1, 10, 5, "buy", "validation"),
        (1, 20, 6, "buy", "test"),
        *((ALL, item, t, "buy", "train") for t, item in EVERYTHING),
    ]
    log = write(tmp_path / "log.parquet", rows, ["user_id", "item_id", "t", "what", "split"])
    split = SplitConfig(kind="column", column="split")
    config = config_of(log, event_type="what", event_types=EVENT_TYPES, split=split)
    prepared = prepare_folder(config, tmp_path / "out")
    assert negatives_by_pair(prepared.dataset) == {
        (1, 10): [[], [40]],
        (1, 30): [[20]],
        (1, 20): [[]],
    }
    assert prepared.report["negatives"] == {"stored": 2}


@pytest.mark.parametrize("empty", [None, [], [None], [""]])
def test_empty_lists_give_no_negatives(tmp_path, empty):
    rows = [(user, item, t, empty) for user in (1, 2) for t, item in enumerate("abab")]
    log = write(tmp_path / "log.parquet", rows, ["user_id", "item_id", "t", "shown"])
    dataset = prepare_folder(config_of(log, negatives="shown"), tmp_path / "out").dataset
    assert len(dataset.negative_ids) == 0
    assert dataset.negative_offsets.tolist() == [0] * 9


@settings(deadline=None, max_examples=20)
@given(
    log=st.lists(
        st.tuples(
            st.integers(1, 3),
            st.integers(1, 6),
            st.integers(0, 9),
            st.lists(st.integers(1, 8), max_size=3),
        ),
        min_size=12,
        max_size=40,
    ),
    core=st.integers(1, 3),
    deduplicate=st.sampled_from(["none", "first", "last"]),
)
def test_negatives_stay_with_their_interaction_through_every_filter(
    tmp_path_factory, log, core, deduplicate
):
    folder = tmp_path_factory.mktemp("log")
    # The weight is the row number, which identifies a row after sorting and filtering.
    rows = [(*row, float(number)) for number, row in enumerate(log)]
    path = write(folder / "log.parquet", rows, ["user_id", "item_id", "t", "shown", "w"])
    settings = {"k_core": core, "deduplicate": deduplicate, "weight": "w"}
    split = SplitConfig(kind="temporal", validation=0.5, test=0.8)
    try:
        dataset = prepare_folder(
            config_of(path, negatives="shown", split=split, **settings), folder / "out"
        ).dataset
    except (DataError, ConfigError):
        assume(False)  # too few interactions remain for a dataset
    items = dataset.items["source_id"].to_list()
    for event, number in enumerate(dataset.weights.astype(int)):
        ids = dataset.negative_ids[slice(*dataset.negative_offsets[event : event + 2])]
        expected = [item for item in log[number][3] if item in items]
        assert [items[i] for i in ids] == expected


def test_bad_lists_are_refused(tmp_path):
    log = write(
        tmp_path / "log.parquet",
        [(1, 10, 1, [1.5]), (1, 20, 2, [2.5])],
        ["user_id", "item_id", "t", "shown"],
    )
    with pytest.raises(DataError, match=r"'shown'.* must be lists of .*, got List\(Float64\)"):
        prepare_folder(config_of(log, negatives="shown"), tmp_path / "out")
    with pytest.raises(DataError, match="'nothing'"):
        prepare_folder(config_of(log, negatives="nothing"), tmp_path / "out")
    log = write(
        tmp_path / "log.parquet",
        [(1, "a", 1, ["x"]), (1, "b", 2, ["y"]), (1, "c", 3, [])],
        ["user_id", "item_id", "t", "shown"],
    )
    with pytest.raises(DataError, match=r"'shown' has 2 negatives, such as 'x', but none matches"):
        prepare_folder(config_of(log, negatives="shown"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_arrays_are_refused(tmp_path):
    log = write(tmp_path / "log.parquet", LOG, ["user_id", "item_id", "t", "what"])
    prepare_folder(config_of(log, event_type="what", event_types=EVENT_TYPES), tmp_path / "out")
    file = tmp_path / "out" / "negative_ids.npy"
    ids = np.load(file)
    np.save(file, np.where(ids == ids[0], 4, ids).astype(np.int32))
    with pytest.raises(ArtifactError, match=r"negative_ids\.npy differs from its checksum"):
        open_dataset(tmp_path / "out")
