"""Conversion of source ids of users and items to dense ids, vectorised."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.batches import Ints
from candid.data import PreparedDataset
from candid.data.lookup import with_advice
from candid.errors import ConfigError, DataError

SourceId = int | str
"""An id as the user's files have it."""
SourceIds = SourceId | Iterable[SourceId] | pl.Series | npt.NDArray[Any]
"""One source id, or several: a list, tuple or set, a Polars or pandas series, a numpy array, or a
tensor. A text is one id."""
Histories = Iterable[Iterable[SourceId]] | pl.Series | npt.NDArray[Any]
"""Source ids of the items of several users: a list of lists or arrays, or a column of lists."""
Attributes = Mapping[str, Any]
"""Attributes of an anonymous user, by column of the user table."""
NUM_SUGGESTIONS: Final = 3
MAX_SHOWN: Final = 60
"""Longest text of a value in a message."""
MAX_SUGGESTED_FROM: Final = 100_000
"""Most ids among which similar ones are searched: the search is linear and slow."""


def dense_ids(source_ids: pl.Series, ids: SourceIds, kind: str, advice: str = "") -> Ints:
    """Return the dense id of each source id: [n] int64.

    Args:
        source_ids: [V] source ids in the order of the dense ids.
        ids: source ids, in any order and with repeats; see ``SourceIds``.
        kind: "user" or "item", for messages.
        advice: last clause of the message about an unknown id.

    Raises:
        DataError: an id is of another type than the source ids, or is not among them.
    """
    dense, series = dense_ids_or_unknown(source_ids, ids, kind)
    if (dense < 0).any():
        first = series[int((dense < 0).argmax())]
        message = f"unknown {kind} {first!r}{_suggestion(first, source_ids)}"
        raise DataError(with_advice(message, advice))
    return dense


def dense_ids_or_unknown(
    source_ids: pl.Series, ids: SourceIds, kind: str
) -> tuple[Ints, pl.Series]:
    """Return the dense id of each source id, -1 for unknown ones.

    Args:
        source_ids: [V] source ids in the order of the dense ids.
        ids: source ids, in any order and with repeats; see ``SourceIds``.
        kind: "user" or "item", for messages.

    Returns:
        dense ids [n] int64, and ``ids`` in the type of the source ids.

    Raises:
        DataError: an id is of another type than the source ids.
    """
    series = typed_ids(ids, source_ids.dtype, kind)
    known = pl.DataFrame({"source_id": source_ids, "id": np.arange(len(source_ids))})
    joined = pl.DataFrame([series]).join(known, on="source_id", how="left", maintain_order="left")
    return joined["id"].fill_null(-1).to_numpy().astype(np.int64), series


def typed_ids(ids: SourceIds, dtype: pl.DataType, kind: str) -> pl.Series:
    """Return ids as a series of the type of the source ids.

    Args:
        ids: source ids, in any order and with repeats; see ``SourceIds``.
        dtype: of the source ids of the dataset.
        kind: "user" or "item", for messages.

    Raises:
        DataError: ``ids`` is something else, or an id is of another type or missing.
    """
    values = [ids] if isinstance(ids, str | numbers.Integral) else ids
    if isinstance(values, np.ndarray) and values.dtype.kind not in "iu" and values.ndim == 1:
        values = values.tolist()
    elif not isinstance(values, pl.Series | np.ndarray) and hasattr(values, "tolist"):
        values = values.tolist()  # pandas, torch
    is_table = hasattr(values, "columns")
    if is_table or isinstance(values, Mapping | bytes) or not isinstance(values, Iterable):
        raise DataError(
            f"{kind} ids must be one id or a list of ids, got {_shown(ids)}: give them as they "
            f"are in dataset.{kind}s"
        )
    if not isinstance(values, pl.Series | np.ndarray):
        values = list(values)
        expected = numbers.Integral if dtype.is_integer() else str
        for value in values:
            if not isinstance(value, expected) or isinstance(value, bool):
                raise _wrong_type(value, dtype, kind)
    elif isinstance(values, np.ndarray) and values.ndim != 1:
        raise _wrong_type(values[0] if values.ndim else values, dtype, kind)
    try:
        series = pl.Series("source_id", values)
        if isinstance(series.dtype, pl.Categorical | pl.Enum):
            series = series.cast(pl.String)
        is_right = series.dtype.is_integer() if dtype.is_integer() else series.dtype == dtype
        if not is_right and series.null_count() < len(series):
            raise _wrong_type(series.drop_nulls()[0], dtype, kind)
        series = series.cast(dtype)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        # The values are integers: a text is never converted.
        raise _wrong_type(max(values, key=abs), dtype, kind) from None
    if series.null_count():
        raise _wrong_type(None, dtype, kind)
    return series


def _wrong_type(value: object, dtype: pl.DataType, kind: str) -> DataError:
    # Text of whole numbers in the data has become integers, so that the data may hold text too.
    advice = "whole numbers" if dtype.is_integer() else "text"
    return DataError(
        f"{kind} ids of this dataset are {dtype}, got {_shown(value)}: give them as {advice}"
    )


def _shown(value: object) -> str:
    text = repr(value)
    if len(text) > MAX_SHOWN or "\n" in text:
        return type(value).__name__
    return f"{text} ({type(value).__name__})"


def query_ids(
    dataset: PreparedDataset,
    users: SourceIds | None,
    histories: Histories | None,
    features: Sequence[Attributes] | None,
    advice: str = "",
) -> tuple[Ints | None, list[Ints] | None, Sequence[Attributes] | None]:
    """Convert users, or histories, of queries to dense ids.

    Args:
        dataset: the dataset of the run.
        users: one source id or several; None for anonymous users.
        histories: source ids of the items of B histories, or None.
        features: attributes of B anonymous users, or None.
        advice: last clause of the message about an unknown user.

    Returns:
        dense ids of the users [B], or None; dense ids of the items of B histories, or None (empty
        histories where only features are given); and the features.

    Raises:
        DataError: an id is unknown or of another type.
        ConfigError: there are not as many features as histories.
    """
    user_ids = item_ids = None
    if users is not None:
        user_ids = dense_ids(dataset.users["source_id"], users, "user", advice)
    elif features is not None and histories is None:
        histories = [[] for _ in features]
    if histories is not None:
        histories = _as_rows(histories)
        if features is not None and len(features) != len(histories):
            raise ConfigError(
                f"there are features of {len(features)} users and {len(histories)} histories: give "
                "one for each"
            )
        items = [item for history in histories for item in history]
        stops = np.cumsum([len(history) for history in histories])
        flat = dense_ids(dataset.items["source_id"], items, "item")
        item_ids = np.split(flat, stops[:-1])[: len(histories)]
    return user_ids, item_ids, features


def _as_rows(histories: Any) -> list[list[Any]]:
    """Return histories as a list with one list of items each.

    Raises:
        DataError: ``histories`` is one list of items, or something else.
    """
    advice = "histories must be a list with one list of items for each user"
    if hasattr(histories, "columns"):
        raise DataError(f"{advice}, got a table: give one of its columns of lists")
    if isinstance(histories, str | bytes | Mapping) or not isinstance(histories, Iterable):
        raise DataError(f"{advice}, got {_shown(histories)}: write histories=[[...]]")
    rows = []
    for number, row in enumerate(histories):
        if isinstance(row, str | bytes | Mapping) or not isinstance(row, Iterable):
            raise DataError(
                f"{advice}, got {_shown(row)} in place {number}: write histories=[[...]]"
            )
        rows.append(row.tolist() if hasattr(row, "tolist") else list(row))
    return rows


def allowed_items(
    dataset: PreparedDataset, allow: SourceIds | None, deny: SourceIds | None
) -> npt.NDArray[np.bool_] | None:
    """Return which items may be recommended: [V] bool; None: all.

    Args:
        dataset: the dataset of the model.
        allow: source ids of the only items; None: all that are not retired.
        deny: source ids of items that are left out; None: none.

    Raises:
        DataError: an item is unknown or of another type.
    """
    if allow is None and deny is None:
        return None
    is_allowed = np.full(dataset.num_items, allow is None)
    if allow is None and dataset.retired_items is not None:
        is_allowed &= ~dataset.retired_items
    is_allowed[dense_ids(dataset.items["source_id"], [] if allow is None else allow, "item")] = True
    is_allowed[dense_ids(dataset.items["source_id"], [] if deny is None else deny, "item")] = False
    return is_allowed


def _suggestion(source_id: object, source_ids: pl.Series) -> str:
    """Return the clause of the message that names similar text ids."""
    if not isinstance(source_id, str) or len(source_ids) > MAX_SUGGESTED_FROM:
        return ": it is not in the dataset"
    similar = difflib.get_close_matches(source_id, source_ids.to_list(), n=NUM_SUGGESTIONS)
    return (
        f": did you mean {', '.join(map(repr, similar))}?"
        if similar
        else (": it is not in the dataset")
    )
