"""Checks of the contract that every feature must keep."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import polars as pl
import torch
from torch import Tensor

from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Bags, Codes, Numbers, Values


def check_feature(
    config: FeatureConfig, *, train: pl.Series, other: pl.Series, wrong: pl.Series | None = None
) -> None:
    """Check that a feature keeps the promises of ``Feature`` and ``FeatureConfig``.

    Args:
        config: settings of the feature.
        train: values to fit, with a null.
        other: further values, new ones and null among them.
        wrong: values that the feature must refuse; None: no such check.

    Raises:
        AssertionError: a promise is broken; the message states which one.

    Example:
        >>> from candid.features import Number
        >>> check_feature(
        ...     Number.Config(),
        ...     train=pl.Series([1.0, 3.0, None]),
        ...     other=pl.Series([2.0, 9.0, None]),
        ...     wrong=pl.Series(["two"]),
        ... )
    """
    name = type(config).__qualname__
    for key, field in type(config).model_fields.items():
        _check(bool(field.description), f"{name}.{key} must have a description")
    feature = config.fit(train)
    _check(isinstance(feature, Feature), f"{name}.fit must return a Feature, got {feature!r}")
    for column in (train, other):
        _check_form(feature.encode(column), len(column))
    _check_state(config, feature, train, other)
    _check_extend(config, feature, train, other)
    _check_rows(feature, other)
    _check_encode_changes_nothing(feature, train, other)
    _check_empty(feature, train)
    for state in ({}, {"vocabulary": {}, "width": 0, "kind": "none"}):
        _check_refuses_state(config, state)
    if wrong is not None:
        _check_refuses(feature, wrong)


def _check_form(values: Values, num_rows: int) -> None:
    _check(len(values) == num_rows, f"encode must return {num_rows} rows, got {len(values)}")
    if isinstance(values, Numbers):
        _check(values.values.dtype == torch.float32, "Numbers.values must be float32")
        _check(values.values.ndim == 2, "Numbers.values must be [n, M]")
        _check(bool(values.values.isfinite().all()), "Numbers.values must be finite")
        return
    _check(isinstance(values, Codes | Bags), f"encode must return Values, got {values!r}")
    in_range = bool(((values.ids >= 0) & (values.ids < values.num_codes)).all())
    _check(values.ids.dtype == torch.int64, "ids must be int64")
    _check(in_range, "ids must be 0..num_codes - 1")
    if isinstance(values, Codes):
        _check(values.ids.ndim == 2, "Codes.ids must be [n, K]")
    else:
        offsets = values.offsets
        _check(offsets.dtype == torch.int64, "Bags.offsets must be int64")
        _check(bool((offsets.diff() >= 0).all()), "Bags.offsets must ascend")
        ends = offsets[[0, -1]].tolist()
        _check(ends == [0, len(values.ids)], "Bags.offsets must begin at 0 and end at len(ids)")


def _check_state(
    config: FeatureConfig, feature: Feature, train: pl.Series, other: pl.Series
) -> None:
    stored = json.dumps(feature.state(), allow_nan=False)
    restored = config.restore(json.loads(stored))
    _check(json.dumps(restored.state()) == stored, "restore must undo state")
    for column in (train, other):
        same = is_equal(feature.encode(column), restored.encode(column))
        _check(same, "a restored feature must encode as the fitted one")


def _check_extend(
    config: FeatureConfig, feature: Feature, train: pl.Series, other: pl.Series
) -> None:
    state = json.dumps(feature.state())
    same = json.dumps(config.extend(feature, train).state()) == state
    _check(same, "extend must change nothing where no value is new")
    before, extended = feature.encode(train), config.extend(feature, other)
    after = extended.encode(train)
    _check(json.dumps(feature.state()) == state, "extend must not change its argument")
    _check(config.restore(extended.state()).state() == extended.state(), "restore must undo state")
    if isinstance(before, Codes | Bags):
        assert isinstance(after, Codes | Bags)
        _check(after.num_codes >= before.num_codes, "extend must keep all codes")
        is_known = before.ids > 0
        same = torch.equal(before.ids[is_known], after.ids[is_known])
        _check(same, "extend must keep the codes of known values")
    else:
        _check(is_equal(before, after), "extend must keep the numbers of known values")


def _check_rows(feature: Feature, other: pl.Series) -> None:
    together = feature.encode(other)
    for row in range(len(other)):
        alone = feature.encode(other.slice(row, 1))
        same = is_equal(alone, together.take(torch.tensor([row])))
        _check(same, f"row {row} must be encoded alone as among others")


def _check_encode_changes_nothing(feature: Feature, train: pl.Series, other: pl.Series) -> None:
    values, state, column = feature.encode(train), json.dumps(feature.state()), other.clone()
    feature.encode(other)
    _check(other.equals(column), "encode must not change its argument")
    _check(json.dumps(feature.state()) == state, "encode must not change the state")
    _check(is_equal(values, feature.encode(train)), "encode must not depend on earlier calls")


def _check_empty(feature: Feature, train: pl.Series) -> None:
    for empty in (train.clear(), pl.Series("x", [], dtype=pl.Null)):
        _check(len(feature.encode(empty)) == 0, "encode must accept a column without rows")
    nulls = pl.Series("x", [None, None])
    same = is_equal(feature.encode(nulls), feature.encode(nulls.cast(train.dtype)))
    _check(same, "a column of nulls must be encoded alike for every dtype")


def _check_refuses_state(config: FeatureConfig, state: dict[str, Any]) -> None:
    try:
        config.restore(state)
    except (KeyError, TypeError, ValueError):
        return
    raise AssertionError(f"restore must raise KeyError, TypeError or ValueError for {state}")


def _check_refuses(feature: Feature, wrong: pl.Series) -> None:
    try:
        feature.encode(wrong)
    except DataError as error:
        _check("\n" not in str(error), f"the message must be one line, got {error}")
        return
    raise AssertionError(f"encode must raise DataError for {wrong.to_list()}")


def is_equal(first: Values, second: Values) -> bool:
    """Return whether two encodings have the same form, dtypes and values."""
    if type(first) is not type(second):
        return False
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, Tensor):
            if one.dtype != other.dtype or not torch.equal(one, other):
                return False
        elif one != other:
            return False
    return True


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
