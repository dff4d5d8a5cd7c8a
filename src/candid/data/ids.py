"""Dense ids for source ids: by ascending source id, or after those of an earlier dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data import filters
from candid.data.columns import RawTable
from candid.data.dataset import IN_MEMORY, PreparedDataset
from candid.data.dataset_files import check_num_ids, read_manifest
from candid.data.store import read_table
from candid.errors import DataError

ID_COLUMNS = ("user", "item")


@dataclass(frozen=True)
class EarlierIds:
    """The ids of an earlier dataset, which a new one keeps.

    Attributes:
        path: folder of the earlier dataset; None for one in memory.
        fingerprint: of the earlier dataset.
        users: source id of each user, by id.
        items: source id of each item, by id.
    """

    path: Path | None
    fingerprint: str
    users: pl.Series
    items: pl.Series

    @classmethod
    def of(cls, dataset: PreparedDataset) -> EarlierIds:
        """Return the ids of a dataset that is open."""
        users, items = dataset.users["source_id"], dataset.items["source_id"]
        return cls(dataset.path, dataset.fingerprint, users, items)

    @property
    def origin(self) -> str:
        """What messages call the earlier dataset."""
        return IN_MEMORY if self.path is None else str(self.path)


def read_earlier_ids(path: Path | str) -> EarlierIds:
    """Read the ids of a prepared dataset.

    Raises:
        ArtifactError: not a dataset, of another version, or damaged; the message names the file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    users, items = (read_table(path, manifest, name)["source_id"] for name in ("users", "items"))
    return EarlierIds(path, manifest["fingerprint"], users, items)


def append_new(
    earlier: pl.Series, source_ids: pl.Series, kind: str, origin: str
) -> tuple[pl.Series, npt.NDArray[np.int32]]:
    """Number source ids as an earlier dataset does, and new ones after them.

    Whole numbers match text ids of the earlier dataset, if it has one of them: a night without any
    other id is read as numbers.

    Args:
        earlier: [n] source id by earlier id.
        source_ids: [m] distinct source ids, ascending.
        kind: "user" or "item", for messages.
        origin: what messages call the earlier dataset.

    Returns:
        source id by id: those of ``earlier`` in their order, then the new ones, ascending; and the
        id of each of ``source_ids``, [m] int32.

    Raises:
        DataError: one dataset has numbers and the other text, or both together have too many ids.
    """
    if earlier.dtype == pl.String and source_ids.dtype.is_integer():
        texts = source_ids.cast(pl.String)
        if texts.is_in(earlier.implode()).any():
            source_ids = texts
    if earlier.dtype != source_ids.dtype:
        if not (earlier.dtype.is_integer() and source_ids.dtype.is_integer()):
            raise DataError(
                f"{kind} ids are {_type_words(source_ids)}{_not_a_number(source_ids)} and those of "
                f"{origin} (ids_from) are {_type_words(earlier)}, so that no id can be kept: read "
                "the column as the same type, or prepare once without ids_from"
            )
        # UInt64 occurs only for numbers that Int64 cannot hold.
        both = pl.concat([earlier.cast(pl.Int128), source_ids.cast(pl.Int128)])
        fits = both.max() < 2**63  # type: ignore[operator]
        dtype = pl.Int64 if fits else pl.UInt64
        if not fits and both.min() < 0:  # type: ignore[operator]
            raise DataError(
                f"{kind} ids of the data and of {origin} (ids_from) are below 0 and above "
                "2**63 - 1, which no integer type holds: prepare once without ids_from"
            )
        earlier, source_ids = earlier.cast(dtype), source_ids.cast(dtype)
    known = pl.DataFrame(
        {"source_id": earlier, "id": np.arange(len(earlier), dtype=np.int32)},
        schema_overrides={"id": pl.Int32},
    )
    joined = pl.DataFrame({"source_id": source_ids}).join(
        known, on="source_id", how="left", maintain_order="left"
    )
    is_new = joined["id"].is_null()
    ids = joined["id"].fill_null(-1).to_numpy().copy()
    new = source_ids.filter(is_new)
    check_num_ids(len(earlier) + len(new), f"{kind}s", f"the data and {origin} (ids_from)")
    # Ascending as numbers is not ascending as text.
    rank = new.rank("ordinal").to_numpy().astype(np.int32) - np.int32(1)
    ids[is_new.to_numpy()] = rank + np.int32(len(earlier))
    return pl.concat([earlier, new.sort()]).rename("source_id"), ids


def _not_a_number(source_ids: pl.Series) -> str:
    """Return the clause of a message with the first text that is not a whole number."""
    if source_ids.dtype != pl.String:
        return ""
    texts = source_ids.filter(source_ids.cast(pl.Int64, strict=False).is_null()).head(1)
    return "".join(f", such as {text!r}," for text in texts)


def _type_words(source_ids: pl.Series) -> str:
    return "integers" if source_ids.dtype.is_integer() else "text"


def encode_ids(
    table: RawTable, query: pl.LazyFrame, origin: str
) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Collect ``query`` with users and items replaced by dense ids, rows in the same order.

    Text becomes a code while it streams, so that memory holds each distinct id once.

    Args:
        table: source of ``query``.
        query: columns user and item (Int64, UInt64 or String), and any others.
        origin: what messages call the interactions.

    Returns:
        the rows, with user and item as Int32; and the source ids of each, ascending.

    Raises:
        DataError: there are more users or items than ids can number.
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
        encode = _encode_text if is_text else _encode_numbers
        check = partial(check_num_ids, names=f"{name}s", origin=origin)
        ids, source_ids[name] = encode(frame[name], check)
        frame = frame.with_columns(pl.Series(name, ids))
    return frame, source_ids


def _encode_text(
    values: pl.Series, check: Callable[[int], None]
) -> tuple[npt.NDArray[np.int32], pl.Series]:
    distinct = values.unique()
    check(len(distinct))
    names = distinct.cast(pl.String)
    order = names.arg_sort()
    category = distinct.to_physical().gather(order).to_numpy()
    rank = np.zeros(int(category.max()) + 1, dtype=np.int32)
    rank[category] = np.arange(len(category), dtype=np.int32)
    return rank[values.to_physical().to_numpy()], names.gather(order)


def _encode_numbers(
    values: pl.Series, check: Callable[[int], None]
) -> tuple[npt.NDArray[np.int32], pl.Series]:
    source = values.to_numpy()
    low, high = int(source.min()), int(source.max())
    if high - low < 4 * len(source) + 2**20:
        # A narrow range: one slot for each value between the extremes avoids the sort.
        ids, present = filters.compact(source - source.dtype.type(low))
        check(len(present))  # ids of more would not be right
        return ids, pl.Series(present.astype(source.dtype) + source.dtype.type(low))
    distinct = values.unique().sort()
    check(len(distinct))
    return distinct.search_sorted(values).to_numpy().astype(np.int32), distinct
