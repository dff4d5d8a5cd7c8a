"""The contract suite over all registered features, and a new feature."""

import datetime
import importlib.util
import math

import polars as pl
import pytest
import torch
from pydantic import Field

from candid.features import (
    FEATURES,
    Feature,
    FeatureConfig,
    FeaturesConfig,
    Numbers,
    fit_table,
)
from candid.testing import check_feature

NOON, DAY = datetime.datetime(2026, 1, 31, 12), datetime.timedelta(days=1)
LISTS = [["a", "b"], ["b"], ["a", "a"], [], None, ["c"]]
# Settings, a column to fit, one with new values and nulls, and one of a wrong type.
EXAMPLES = {
    "categorical": [
        ({}, ["a", "b", "a", "b", "c", None], ["b", "new", None, "c", ""], [1.5]),
        ({"min_count": 1}, [3, 1, None, 2], [1, 7, None], ["1"]),
        ({}, [True, False, True], [False, True, None], [1]),
    ],
    "hashed": [
        ({"num_buckets": 50, "num_hashes": 3}, ["u1", "u2"], ["u2", "new", None, "é", ""], [1]),
        ({"num_buckets": 7}, [10, 20], [20, -5, None], ["20"]),
    ],
    "bag": [
        ({}, ["a|b", "b", "a", "", None, "c"], ["b|new|a|other", None, "", "c"], [1.5]),
        ({"min_count": 1}, LISTS, [["c", None, "new"], None, [], ["b"]], [[1, 2]]),
        ({"min_count": 1}, [[1, 2], [2]], [[2, 9], [], None], [["1"]]),
    ],
    "clock": [
        ({}, [NOON, None], [NOON, None, NOON + DAY / 3], ["noon"]),
        ({}, ["2026-01-31T12:00", ""], ["2026-01-31", None, "2026-01-31 12:00:00Z"], ["1.5"]),
        ({"utc_offset": -3.5}, [NOON.date()], [None, NOON.date()], [5]),
    ],
    "number": [
        ({}, [1, 2, None, 6], [2, 100, None, -3], [["1"]]),
        ({}, ["1.5", "", "3"], ["2", "1e3", None, ""], ["two"]),
        ({"scale": "log"}, [1.0, 10.0, math.nan], [0.0, -5.0, None, 1e300], ["x"]),
        ({"scale": "quantile", "num_buckets": 3}, [1.0, 2.0, 3.0, 9.0], [0.0, 9.5, None], ["x"]),
    ],
    "vector": [
        ({}, [[1.0, 2.0], None], [[0.0, 0.0], None, [3.0, -4.0]], ["1,2"]),
        ({"normalize": True}, [[1, 2]], [[0, 0], [3, -4], None], [1.0]),
    ],
    "text": [
        ({}, ["Toy Story", None], ["Toy Story", "Heat (1995)", None, " "], [1]),
        ({"dim": 64}, ["Toy Story"], ["Babe", None], [["Babe"]]),
    ],
}
NEEDS = {"text": "wordllama"}


def cases():
    for name, component in FEATURES.items():
        package = NEEDS.get(name)
        is_installed = package is None or importlib.util.find_spec(package) is not None
        marks = [] if is_installed else [pytest.mark.skip(f"{package} is not installed")]
        for number, (settings, *columns) in enumerate(EXAMPLES[name]):
            train, other, wrong = (pl.Series("x", column) for column in columns)
            config = component.Config(**settings)
            yield pytest.param(config, train, other, wrong, id=f"{name}-{number}", marks=marks)


@pytest.mark.parametrize(("config", "train", "other", "wrong"), list(cases()))
def test_registered_feature_keeps_the_contract(config, train, other, wrong):
    check_feature(config, train=train, other=other, wrong=wrong)


def test_every_registered_feature_has_examples():
    assert set(EXAMPLES) == set(FEATURES)


class Length(Feature):
    """The number of characters of a text: a new type of feature."""

    class Config(FeatureConfig):
        at_most: int = Field(10, description="largest length")

        def fit(self, column):
            return Length(self.at_most)

        def restore(self, state):
            return Length(state["at_most"])

    def __init__(self, at_most):
        self.at_most = at_most

    def encode(self, column):
        lengths = column.cast(pl.String).str.len_chars().clip(0, self.at_most).fill_null(0)
        return Numbers(torch.from_numpy(lengths.cast(pl.Float32).to_numpy().copy())[:, None])

    def state(self):
        return {"at_most": self.at_most}


def test_new_feature_keeps_the_contract():
    check_feature(
        Length.Config(at_most=4),
        train=pl.Series(["Babe", None]),
        other=pl.Series(["Heat 2", "", None]),
    )


def test_contract_reports_a_broken_promise():
    class Forgetful(Length):
        def state(self):
            return {"at_most": self.at_most - 1}

    class Config(Length.Config):
        def fit(self, column):
            return Forgetful(self.at_most)

    with pytest.raises(AssertionError, match="must encode as the fitted one"):
        check_feature(Config(), train=pl.Series(["a" * 20]), other=pl.Series(["b"]))


def test_new_feature_is_one_class_and_one_registry_line(monkeypatch):
    monkeypatch.setitem(FEATURES, "length", Length)
    config = FeaturesConfig.model_validate({"item": {"title": {"type": "length", "at_most": 4}}})
    frame = pl.DataFrame({"title": ["Babe", "Heat 2", None]})
    table = fit_table(config.item, frame, [True, True, False], "features.item")
    assert table.values["title"].values.tolist() == [[4.0], [4.0], [0.0]]
    assert config.model_dump()["item"]["title"]["type"] == "length"
