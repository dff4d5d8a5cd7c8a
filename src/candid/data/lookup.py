"""From what a person types to dense ids: an item by source id or title, a user by source id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.dataset import PreparedDataset
from candid.errors import DataError

SHOWN = 5
"""How many suggestions an error lists."""
WORD = re.compile(r"\w+")


def item_ids_of(dataset: PreparedDataset, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Find items: by source id, else title, else title in any case, else a part of one title.

    Several items may have one title; only their ids tell them apart.

    Args:
        dataset: whose catalog.
        texts: what to look up.

    Returns:
        int64, one item id for each text, in their order.

    Raises:
        DataError: a text is blank, or fits no item (the message names near ones) or several.
    """
    known = dataset.items.select(pl.col("source_id").cast(pl.String)).to_series()
    titles = dataset.items["title"] if "title" in dataset.items.columns else None
    return np.array([_item_id(known, titles, text) for text in texts], dtype=np.int64)


def user_ids_of(dataset: PreparedDataset, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Find users by source id.

    Returns:
        int64, one user id for each text, in their order.

    Raises:
        DataError: no such user; the message names near ones.
    """
    known = dataset.users.select(pl.col("source_id").cast(pl.String)).to_series()
    found = [_only("user", text, known, known == text) for text in texts]
    for text, user_id in zip(texts, found, strict=True):
        if user_id is None:
            raise DataError(_unknown("user", text, known))
    return np.array(found, dtype=np.int64)


def _item_id(known: pl.Series, titles: pl.Series | None, text: str) -> int:
    if not text.strip():
        # Every title contains it.
        raise DataError(f"item {text!r} is blank; write an id or a title")
    found = _only("item", text, known, known == text)
    if found is None and titles is not None:
        lower = titles.str.to_lowercase()
        for mask in (
            titles == text,
            lower == text.lower(),
            lower.str.contains(text.lower(), literal=True),
        ):
            found = _only("item", text, titles, mask, known)
            if found is not None:
                break
    if found is None:
        raise DataError(_unknown("item", text, known if titles is None else titles))
    return found


def _only(
    kind: str, text: str, names: pl.Series, mask: pl.Series, ids: pl.Series | None = None
) -> int | None:
    """The one row where ``mask`` is true, None if there is none."""
    rows = mask.fill_null(False).arg_true()
    if len(rows) < 2:
        return int(rows[0]) if len(rows) else None
    first = rows.head(SHOWN)
    shown = [repr(name) for name in names.gather(first)]
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    way_out = "write more of it"
    if ids is not None:
        shown = [f"{name} (id {i})" for name, i in zip(shown, ids.gather(first), strict=True)]
        way_out = "write more of it, or the id"
    raise DataError(f"{text!r} fits several {kind}s: {', '.join(shown)}{more}; {way_out}")


def _unknown(kind: str, text: str, names: pl.Series) -> str:
    # "The Matrix" is near no letter of "Matrix, The (1999)", but shares every word with it.
    words = WORD.findall(text.lower())
    lower = names.str.to_lowercase()
    has_all = pl.Series([bool(words)] * len(names))
    for word in words:
        has_all &= lower.str.contains(word, literal=True).fill_null(False)
    alike = names.filter(has_all).head(SHOWN).to_list()
    by_lower = {name.lower(): name for name in names.drop_nulls()}
    close = difflib.get_close_matches(text.lower(), by_lower, n=SHOWN, cutoff=0.5)
    nearest = list(dict.fromkeys([*alike, *(by_lower[name] for name in close)]))[:SHOWN]
    hint = f"; near it: {', '.join(map(repr, nearest))}" if nearest else ""
    return f"no {kind} {text!r} in the dataset{hint}"
