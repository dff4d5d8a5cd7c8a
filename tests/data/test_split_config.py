"""Refusal of split settings that do not fit together."""

import numpy as np
import polars as pl
import pytest

import candid
from candid.config.data_section import load_data_config
from candid.data import DataConfig, prepare_folder
from candid.errors import ConfigError

KINDS = {
    "leave-one-out": {},
    "leave-k-out": {"k": 2},
    "ratio": {},
    "temporal": {},
    "rolling": {"window": "7d"},
    "cross-validation": {},
    "column": {"column": "role"},
    "none": {},
}


def load(**split):
    values = {"data.interactions": "log.csv", "data.time": "t"}
    return load_data_config(None, values | {f"data.split.{k}": v for k, v in split.items()}, [])


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_each_kind_survive_json(kind):
    config = load(kind=kind, **KINDS[kind])
    assert DataConfig(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("kind", "unit"),
    [("temporal", "interaction"), ("rolling", "interaction"), ("cross-validation", "user")],
)
def test_default_unit_of_each_kind(kind, unit):
    assert load(kind=kind, **KINDS[kind]).split.unit == unit
    for given in ("user", "interaction"):
        assert load(kind=kind, unit=given, **KINDS[kind]).split.unit == given


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"kind": "leave-k-out"}, "needs split.k, such as 5"),
        ({"kind": "leave-k-out", "k": 1}, "split.k must be greater than or equal to 2, got 1"),
        ({"k": 3}, 'split.k has no effect with split.kind = "leave-one-out"'),
        ({"kind": "ratio", "test_ratio": 0}, "test_ratio must be greater than 0, got 0"),
        ({"kind": "ratio", "test_ratio": 1}, "test_ratio must be less than 1, got 1"),
        ({"kind": "ratio", "validation_ratio": 0}, "validation_ratio must be greater than 0"),
        ({"kind": "ratio", "validation_ratio": 0.95}, "add up to 1.05"),
        ({"kind": "ratio", "validation_ratio": 0.5, "test_ratio": 0.5}, "add up to 1, which"),
        ({"kind": "temporal", "test_ratio": 0.2}, 'set split.kind = "ratio"'),
        ({"kind": "ratio", "test": 0.8}, 'split.test has no effect with split.kind = "ratio"'),
        ({"kind": "rolling"}, "needs split.window"),
        ({"kind": "rolling", "window": "7"}, "days or hours such as '7d' or '12h', got '7'"),
        ({"kind": "rolling", "window": "0d"}, "got '0d'"),
        ({"kind": "rolling", "window": "7d", "fold": 5}, "between 0 and 4 with split.folds = 5"),
        ({"kind": "rolling", "window": "7d", "fold": -1}, "fold must be greater than or equal to"),
        ({"kind": "cross-validation", "folds": 2}, "needs split.folds of at least 3"),
        ({"kind": "cross-validation", "folds": 4, "fold": 4}, "between 0 and 3"),
        ({"kind": "temporal", "fold": 1}, '"rolling" or "cross-validation"'),
        ({"kind": "temporal", "unit": "session"}, "split.unit must be 'user' or 'interaction'"),
        ({"kind": "ratio", "unit": "interaction"}, 'split.unit has no effect with split.kind = "'),
        ({"kind": "none", "validation_users": 5}, "validation_users has no effect"),
        ({"kind": "folds"}, "split.kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(split, words):
    with pytest.raises(ConfigError) as caught:
        load(**split)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("leave-one-out", "`time` or `order`"),
        ("leave-k-out", "`time` or `order`"),
        ("ratio", "`time` or `order`"),
        ("cross-validation", "`time` or `order`"),
        ("temporal", "needs `time`;"),
        ("rolling", "needs `time`;"),
    ],
)
def test_a_split_without_the_order_that_it_needs_is_refused(tmp_path, kind, named):
    (tmp_path / "log.csv").write_text("user_id,item_id,created_at\n1,1,1\n")
    values = {"data.interactions": str(tmp_path / "log.csv"), "data.split.kind": kind}
    values |= {f"data.split.{key}": value for key, value in KINDS[kind].items()}
    config = load_data_config(None, values, [])
    with pytest.raises(ConfigError) as caught:
        prepare_folder(config, tmp_path / "out")
    assert "log.csv has created_at" in str(caught.value)
    assert f"a {kind} split needs" in str(caught.value)
    assert named in str(caught.value)


def test_kinds_without_order_need_none():
    for split in ({"kind": "none"}, {"kind": "cross-validation", "unit": "interaction"}):
        assert DataConfig(interactions="log.csv", split=split).time is None


@pytest.mark.parametrize("cut", [1_700_000_000_123_456_789, "1700000000123456789"])
def test_a_whole_number_as_a_cut_keeps_its_digits(cut):
    config = load(kind="temporal", validation=cut, test="2024-01-01").split
    assert config.validation == 1_700_000_000_123_456_789
    assert isinstance(config.validation, int)
    assert load(kind="temporal", validation="0.7").split.validation == 0.7


def test_a_truth_value_as_a_cut_is_refused():
    with pytest.raises(ConfigError, match="must be a quantile, a date or a time, got true"):
        load(kind="temporal", validation=True)


def test_a_cut_in_nanoseconds_is_exact(tmp_path):
    start = 1_700_000_000_000_000_000
    rows = [(n % 2, n % 3, start + n * 1_000) for n in range(100)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    split = {"kind": "temporal", "validation": start + 51_000, "test": start + 77_000}
    roles = candid.prepare(table, time="t", split=split).roles
    assert np.bincount(roles, minlength=4).tolist() == [51, 0, 26, 23]


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (
            {"validation": 1_600_000_005, "test": 1_600_000_008},
            r"split.validation \(1970-01-01T00:26:40.000005Z\) is not after the first interaction "
            r"\(2020-09-13T12:26:40.000000Z\), .* a later cut in microseconds, .* an ISO date",
        ),
        (
            {"validation": "2020-01-01", "test": "2020-09-14"},
            r"\(2020-01-01T.*\) is not after the first interaction .*; choose a later cut$",
        ),
        (
            {"validation": 0.5, "test": 1_600_000_008_000_000_000},
            r"split.test \(.*\) is after the last .*earlier cut in microseconds",
        ),
    ],
)
def test_cuts_in_another_unit_are_named_with_both_times(cuts, words):
    rows = [(n % 2, n % 3, (1_600_000_000 + n) * 1_000_000) for n in range(10)]
    table = pl.DataFrame(rows, schema=["user_id", "item_id", "t"], orient="row")
    with pytest.raises(ConfigError, match=words):
        candid.prepare(table, time="t", split={"kind": "temporal"} | cuts)


RECIPE = """
[data]
interactions = "log.csv"
time = "t"
[data.split]
kind = "temporal"
validation = "2024-01-01"
test = "2024-02-01"
unseen = "drop"
validation_users = 5
"""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"kind": "leave-one-out"}, {"unseen": "drop", "validation_users": 5}),
        ({"kind": "ratio", "test_ratio": 0.2}, {"test_ratio": 0.2, "validation_users": 5}),
        ({"kind": "none"}, {"unseen": "drop", "validation_users": None}),
        ({"kind": "temporal", "test": "2024-03-01"}, {"validation": "2024-01-01"}),
    ],
)
def test_another_kind_of_split_leaves_out_the_settings_of_the_recipe(tmp_path, values, expected):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    flags = {f"data.split.{key}": value for key, value in values.items()}
    split = load_data_config(recipe, flags).split.model_dump()
    assert split | values | expected == split


def test_a_setting_on_the_command_line_of_another_kind_is_still_refused(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    flags = {"data.split.kind": "ratio", "data.split.k": 3}
    with pytest.raises(ConfigError, match=r"split\.k has no effect"):
        load_data_config(recipe, flags)
