"""What every feature promises, whatever it is: parametrised over the registry."""

import dataclasses
import datetime
import importlib.util
import json
import math

import polars as pl
import pytest
import torch
from torch import Tensor

from candid.errors import DataError
from candid.features import (
    FEATURES,
    Bags,
    Codes,
    Feature,
    FeatureConfig,
    FeaturesConfig,
    Numbers,
    fit_table,
)

NOON, DAY = datetime.datetime(2026, 1, 31, 12), datetime.timedelta(days=1)
LISTS = [["a", "b"], ["b"], ["a", "a"], [], None, ["c"]]
# Settings, a column to learn from, one with new values and nulls, and one of a wrong type.
# A new type of feature adds its line here.
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
        ({}, ["a|b", "b", "a", "", None, "c"], ["b|new|a|other", None, "", "c"], [1]),
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
        is_there = package is None or importlib.util.find_spec(package) is not None
        marks = [] if is_there else [pytest.mark.skip(f"{package} is not installed")]
        for number, (settings, *columns) in enumerate(EXAMPLES[name]):
            trained, asked, wrong = (pl.Series("x", column) for column in columns)
            config = component.Config(**settings)
            yield pytest.param(config, trained, asked, wrong, id=f"{name}-{number}", marks=marks)


def parts(values):
    """All that an encoding says."""
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


def assert_same(first, second):
    assert type(first) is type(second)
    for (name, one), other in zip(parts(first).items(), parts(second).values(), strict=True):
        if isinstance(one, Tensor):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert torch.equal(one, other), name
        else:
            assert one == other, name


@pytest.mark.parametrize(("config", "trained", "asked", "wrong"), list(cases()))
class TestEveryFeature:
    def test_values_have_the_promised_shapes_types_and_ranges(self, config, trained, asked, wrong):
        feature = config.fit(trained)
        assert isinstance(feature, Feature)
        for column in (trained, asked):
            values = feature.encode(column)
            assert len(values) == len(column)
            if isinstance(values, Numbers):
                assert values.values.dtype == torch.float32
                assert values.values.ndim == 2
                assert bool(values.values.isfinite().all())
                continue
            assert values.ids.dtype == torch.int64
            assert bool(((values.ids >= 0) & (values.ids < values.num_codes)).all())
            if isinstance(values, Codes):
                assert values.ids.ndim == 2
            else:
                assert isinstance(values, Bags)
                assert values.offsets.dtype == torch.int64
                assert bool((values.offsets.diff() >= 0).all())
                assert values.offsets[[0, -1]].tolist() == [0, len(values.ids)]

    def test_what_was_learnt_survives_json(self, config, trained, asked, wrong):
        feature = config.fit(trained)
        stored = json.dumps(feature.state(), allow_nan=False)
        restored = config.restore(json.loads(stored))
        assert json.dumps(restored.state()) == stored
        for column in (trained, asked):
            assert_same(feature.encode(column), restored.encode(column))

    def test_a_row_alone_is_the_row_among_others(self, config, trained, asked, wrong):
        feature = config.fit(trained)
        together = feature.encode(asked)
        for row in range(len(asked)):
            alone = feature.encode(asked.slice(row, 1))
            assert_same(alone, together.take(torch.tensor([row])))

    def test_encoding_learns_nothing(self, config, trained, asked, wrong):
        feature = config.fit(trained)
        before, state = feature.encode(trained), json.dumps(feature.state())
        kept = asked.clone()
        feature.encode(asked)
        assert asked.equals(kept)
        assert json.dumps(feature.state()) == state
        assert_same(before, feature.encode(trained))

    def test_no_rows_and_nulls_alone(self, config, trained, asked, wrong):
        feature = config.fit(trained)
        assert len(feature.encode(trained.clear())) == 0
        assert len(feature.encode(pl.Series("x", [], dtype=pl.Null))) == 0
        nulls = pl.Series("x", [None, None])
        assert_same(feature.encode(nulls), feature.encode(nulls.cast(trained.dtype)))
        assert len(feature.encode(nulls)) == 2

    def test_a_wrong_type_is_one_sentence(self, config, trained, asked, wrong):
        with pytest.raises(DataError) as error:
            config.fit(trained).encode(wrong)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("state", [{}, {"vocabulary": {}, "width": 0, "kind": "none"}])
    def test_another_state_is_refused(self, config, trained, asked, wrong, state):
        with pytest.raises((KeyError, TypeError, ValueError)):
            config.restore(state)


def test_every_registered_type_has_examples_and_described_settings():
    assert set(EXAMPLES) == set(FEATURES)
    for feature in FEATURES.values():
        assert all(field.description for field in feature.Config.model_fields.values())


class Length(Feature):
    """Characters of a text: the one file of a new type of feature."""

    class Config(FeatureConfig):
        at_most: int = 10

        def fit(self, column):
            return Length(self.at_most)

        def restore(self, state):
            return Length(state["at_most"])

    def __init__(self, at_most):
        self.at_most = at_most

    def encode(self, column):
        lengths = column.str.len_chars().clip(0, self.at_most).fill_null(0)
        return Numbers(torch.from_numpy(lengths.cast(pl.Float32).to_numpy().copy())[:, None])

    def state(self):
        return {"at_most": self.at_most}


def test_a_new_type_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(FEATURES, "length", Length)
    config = FeaturesConfig.model_validate({"item": {"title": {"type": "length", "at_most": 4}}})
    frame = pl.DataFrame({"title": ["Babe", "Heat 2", None]})
    table = fit_table(config.item, frame, [True, True, False], "features.item")
    assert table.values["title"].values.tolist() == [[4.0], [4.0], [0.0]]
    assert config.model_dump()["item"]["title"]["type"] == "length"
