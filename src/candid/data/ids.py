"""Dense ids for source ids: numbered from 0 by ascending source id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters
from candid.data.columns import RawTable

ID_COLUMNS = ("user", "item")


def encode_ids(table: RawTable, query: pl.LazyFrame) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Collect ``query`` with users and items replaced by dense ids, rows in the same order.

    Text becomes a code while it streams, so that memory holds each distinct id once.

    Args:
        table: source of ``query``.
        query: columns user and item (Int64, UInt64 or String), and any others.

    Returns:
        the rows, with user and item as Int32; and the source ids of each, ascending.
    """
    schema = query.collect_schema()
    text = [
        # Own categories: codes shared with other tables would have gaps.
        pl.col(name).cast(pl.Categorical(pl.Categories.random()))
        for name in ID_COLUMNS
        if schema[name] == pl.String
    ]
    frame = table.run(query.with_columns(text))
    source_ids = {}
    for name in ID_COLUMNS:
        is_text = isinstance(frame.schema[name], pl.Categorical)
        ids, source_ids[name] = (_encode_text if is_text else _encode_numbers)(frame[name])
        frame = frame.with_columns(pl.Series(name, ids))
    return frame, source_ids


def _encode_text(values: pl.Series) -> tuple[npt.NDArray[np.int32], pl.Series]:
    distinct = values.unique()
    names = distinct.cast(pl.String)
    order = names.arg_sort()
    category = distinct.to_physical().gather(order).to_numpy()
    rank = np.zeros(int(category.max()) + 1, dtype=np.int32)
    rank[category] = np.arange(len(category), dtype=np.int32)
    return rank[values.to_physical().to_numpy()], names.gather(order)


def _encode_numbers(values: pl.Series) -> tuple[npt.NDArray[np.int32], pl.Series]:
    source = values.to_numpy()
    low, high = int(source.min()), int(source.max())
    if high - low < 4 * len(source) + 2**20:
        # A narrow range: one slot for each value between the extremes avoids the sort.
        ids, present = filters.compact(source - source.dtype.type(low))
        return ids, pl.Series(present.astype(source.dtype) + source.dtype.type(low))
    distinct = values.unique().sort()
    return distinct.search_sorted(values).to_numpy().astype(np.int32), distinct
