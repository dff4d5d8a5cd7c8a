"""Dense ids for source ids: numbered from 0 by ascending source id."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters
from candid.data.columns import RawTable

NAMES = ("user", "item")


def encode(table: RawTable, query: pl.LazyFrame) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Collect ``query`` with users and items replaced by their dense ids, in the same order.

    Text becomes a code while it streams by, so that memory holds each distinct id once.

    Args:
        table: what ``query`` reads.
        query: columns user and item (Int64, UInt64 or String), and others to carry along.

    Returns:
        The rows, with user and item as Int32; and for each of them its source ids, ascending.
    """
    schema = query.collect_schema()
    text = [
        # Categories of its own: the codes of other tables would leave gaps.
        pl.col(name).cast(pl.Categorical(pl.Categories.random()))
        for name in NAMES
        if schema[name] == pl.String
    ]
    frame = table.run(query.with_columns(text))
    source_ids = {}
    for name in NAMES:
        number = _number_text if isinstance(frame.schema[name], pl.Categorical) else _number
        codes, source_ids[name] = number(frame[name])
        frame = frame.with_columns(pl.Series(name, codes))
    return frame, source_ids


def _number_text(values: pl.Series) -> tuple[npt.NDArray[np.int32], pl.Series]:
    present = values.unique()
    names = present.cast(pl.String)
    order = names.arg_sort()
    category = present.to_physical().gather(order).to_numpy()
    rank = np.zeros(int(category.max()) + 1, dtype=np.int32)
    rank[category] = np.arange(len(category), dtype=np.int32)
    return rank[values.to_physical().to_numpy()], names.gather(order)


def _number(values: pl.Series) -> tuple[npt.NDArray[np.int32], pl.Series]:
    source = values.to_numpy()
    low, high = int(source.min()), int(source.max())
    if high - low < 4 * len(source) + 2**20:
        # Close together: a place for each value between the extremes, and no sort.
        codes, present = filters.compact(source - source.dtype.type(low))
        return codes, pl.Series(present.astype(source.dtype) + source.dtype.type(low))
    distinct = values.unique().sort()
    return distinct.search_sorted(values).to_numpy().astype(np.int32), distinct
