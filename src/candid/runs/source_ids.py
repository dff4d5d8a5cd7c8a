"""Conversion of source ids of users and items to dense ids, vectorised."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.batches import Ints
from candid.data import PreparedDataset
from candid.errors import ConfigError, DataError

SourceId = int | str
"""An id as the user's files have it."""
Attributes = Mapping[str, Any]
"""Attributes of an anonymous user, by column of the user table."""
NUM_SUGGESTIONS: Final = 3
MAX_SUGGESTED_FROM: Final = 100_000
"""Most ids among which similar ones are searched: the search is linear and slow."""


def dense_ids(source_ids: pl.Series, ids: Sequence[Any] | pl.Series, kind: str) -> Ints:
    """Return the dense id of each source id: [n] int64.

    Args:
        source_ids: [V] source ids in the order of the dense ids.
        ids: [n] source ids, in any order and with repeats.
        kind: "user" or "item", for messages.

    Raises:
        DataError: an id is of another type than the source ids, or is not among them.
    """
    dense, series = dense_ids_or_unknown(source_ids, ids, kind)
    if (dense < 0).any():
        first = series[int((dense < 0).argmax())]
        raise DataError(f"unknown {kind} {first!r}{_suggestion(first, source_ids)}")
    return dense


def dense_ids_or_unknown(
    source_ids: pl.Series, ids: Sequence[Any] | pl.Series, kind: str
) -> tuple[Ints, pl.Series]:
    """Return the dense id of each source id, -1 for unknown ones.

    Args:
        source_ids: [V] source ids in the order of the dense ids.
        ids: [n] source ids, in any order and with repeats.
        kind: "user" or "item", for messages.

    Returns:
        dense ids [n] int64, and ``ids`` in the type of the source ids.

    Raises:
        DataError: an id is of another type than the source ids.
    """
    dtype = source_ids.dtype
    try:
        series = pl.Series("source_id", ids, dtype=dtype, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        is_right = int if dtype.is_integer() else str
        wrong = next((one for one in ids if not isinstance(one, is_right)), ids[0])
        raise DataError(
            f"{kind} ids of this dataset are {dtype}, got {wrong!r} ({type(wrong).__name__}): "
            "give them as they are in the data"
        ) from None
    known = pl.DataFrame({"source_id": source_ids, "id": np.arange(len(source_ids))})
    joined = pl.DataFrame([series]).join(known, on="source_id", how="left", maintain_order="left")
    return joined["id"].fill_null(-1).to_numpy().astype(np.int64), series


def query_ids(
    dataset: PreparedDataset,
    users: SourceId | Sequence[SourceId] | None,
    histories: Sequence[Sequence[SourceId]] | None,
    features: Sequence[Attributes] | None,
) -> tuple[Ints | None, list[Ints] | None, Sequence[Attributes] | None]:
    """Convert users, or histories, of queries to dense ids.

    Args:
        dataset: the dataset of the run.
        users: one source id or several; None for anonymous users.
        histories: source ids of the items of B histories, or None.
        features: attributes of B anonymous users, or None.

    Returns:
        dense ids of the users [B], or None; dense ids of the items of B histories, or None (empty
        histories where only features are given); and the features.

    Raises:
        DataError: an id is unknown or of another type.
        ConfigError: there are not as many features as histories.
    """
    user_ids = item_ids = None
    if users is not None:
        user_ids = dense_ids(dataset.users["source_id"], as_list(users), "user")
    elif features is not None and histories is None:
        histories = [[] for _ in features]
    if histories is not None:
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


def allowed_items(
    dataset: PreparedDataset, allow: Sequence[SourceId] | None, deny: Sequence[SourceId] | None
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
    is_allowed[dense_ids(dataset.items["source_id"], allow or [], "item")] = True
    is_allowed[dense_ids(dataset.items["source_id"], deny or [], "item")] = False
    return is_allowed


def as_list(ids: SourceId | Sequence[SourceId]) -> Sequence[SourceId]:
    """Return a single id as a list; a text is one id, not a sequence."""
    return [ids] if isinstance(ids, str | int | np.integer) else ids


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
