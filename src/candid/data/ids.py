"""Dense ids for source ids: numbered from 0 by ascending source id."""

from __future__ import annotations

import numpy as np
import polars as pl

from candid.data.columns import RawTable

NAMES = ("user", "item")


def encode(
    table: RawTable, query: pl.LazyFrame, ranges: dict[str, tuple[int, int]], rows: int
) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Collect ``query`` with users and items replaced by their dense ids, in the same order.

    Integers that lie close together go through an array indexed by source id (a third of the
    time); all others through a join with their distinct values, streaming.

    Args:
        table: what ``query`` reads.
        query: columns user and item, and others to carry along.
        ranges: least and greatest value of the integer ones among user and item.
        rows: about how many rows ``query`` has.

    Returns:
        The rows, with user and item as Int32; and for each of them its source ids, ascending.
    """
    source_ids = {}
    close = [n for n in NAMES if n in ranges and ranges[n][1] - ranges[n][0] < 4 * rows + 2**20]
    for name in NAMES:
        if name not in close:
            source_ids[name] = table.run(query.select(pl.col(name).unique()))[name].sort()
            query = _join(query, name, source_ids[name])
    frame = table.run(query)
    for name in close:
        codes, source_ids[name] = _number(frame[name])
        frame = frame.with_columns(codes)
    return frame, source_ids


def _join(query: pl.LazyFrame, name: str, source_ids: pl.Series) -> pl.LazyFrame:
    codes = pl.DataFrame(
        {name: source_ids, "_code": np.arange(len(source_ids), dtype=np.int32)}
    ).lazy()
    joined = query.join(codes, on=name, how="left", maintain_order="left")
    return joined.drop(name).rename({"_code": name})


def _number(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Number integers by an array with a place for each value between the extremes."""
    source = values.to_numpy()
    low = source.min()
    offsets = source - low
    present = np.zeros(int(offsets.max()) + 1, dtype=np.bool_)
    present[offsets] = True
    codes = np.cumsum(present, dtype=np.int32) - np.int32(1)
    distinct = pl.Series(np.flatnonzero(present) + low).cast(values.dtype)
    return pl.Series(values.name, codes[offsets]), distinct
