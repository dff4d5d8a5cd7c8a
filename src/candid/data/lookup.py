"""Dense ids by text: items by source id or title, users by source id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.data.dataset import PreparedDataset
from candid.errors import DataError

MAX_SUGGESTIONS = 5
"""Suggestions in an error message."""
MAX_COMPARED = 20_000
"""Names compared letter by letter for suggestions, about a second; parts of names are compared
with all."""
WORD = re.compile(r"\w+")


def item_ids_of(dataset: PreparedDataset, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Find items by source id, else title, else title in any case, else a part of one title.

    Items with the same title can only be found by their ids.

    Args:
        dataset: dataset with the items.
        texts: source ids or titles.

    Returns:
        [n] int64, one item id for each text, in their order.

    Raises:
        DataError: a text is blank, or matches no item (the message suggests some) or several.

    Example:
        >>> item_ids_of(dataset, ["Alien (1979)", "1214"])  # doctest: +SKIP
        array([1120, 1120])
    """
    known = dataset.items.select(pl.col("source_id").cast(pl.String)).to_series()
    titles = dataset.items["title"] if "title" in dataset.items.columns else None
    return np.array([_item_id(known, titles, text) for text in texts], dtype=np.int64)


def user_ids_of(
    dataset: PreparedDataset, texts: Sequence[str], advice: str = ""
) -> npt.NDArray[np.int64]:
    """Find users by source id.

    Args:
        dataset: dataset with the users.
        texts: source ids.
        advice: last clause of the message about a user that does not exist.

    Returns:
        [n] int64, one user id for each text, in their order.

    Raises:
        DataError: a user does not exist; the message suggests some.
    """
    known = dataset.users.select(pl.col("source_id").cast(pl.String)).to_series()
    user_ids = [_single_match("user", text, known, known == text) for text in texts]
    for text, user_id in zip(texts, user_ids, strict=True):
        if user_id is None:
            raise DataError(with_advice(unknown_user(dataset, text), advice))
    return np.array(user_ids, dtype=np.int64)


def with_advice(message: str, advice: str) -> str:
    """Return a message with one more clause, which may be empty, also after a question."""
    if not advice:
        return message
    if message.endswith("?"):
        return f"{message} {advice[0].upper()}{advice[1:]}"
    return f"{message}; {advice}"


def unknown_user(dataset: PreparedDataset, text: str) -> str:
    """Return the start of a message that the dataset has no such user, with similar ones."""
    return _unknown_message("user", text, dataset.users["source_id"].cast(pl.String))


def _item_id(known: pl.Series, titles: pl.Series | None, text: str) -> int:
    if not text.strip():
        # Every title contains blank text.
        raise DataError(f"item {text!r} is blank; write an id or a title")
    item_id = _single_match("item", text, known, known == text)
    if item_id is None and titles is not None:
        lower = titles.str.to_lowercase()
        for mask in (
            titles == text,
            lower == text.lower(),
            lower.str.contains(text.lower(), literal=True),
        ):
            item_id = _single_match("item", text, titles, mask, known)
            if item_id is not None:
                break
    if item_id is None:
        raise DataError(_unknown_message("item", text, known if titles is None else titles))
    return item_id


def _single_match(
    kind: str, text: str, names: pl.Series, mask: pl.Series, ids: pl.Series | None = None
) -> int | None:
    """Return the only row where ``mask`` is true, or None."""
    rows = mask.fill_null(False).arg_true()
    if len(rows) < 2:
        return int(rows[0]) if len(rows) else None
    first = rows.head(MAX_SUGGESTIONS)
    examples = [repr(name) for name in names.gather(first)]
    more = f" and {len(rows) - MAX_SUGGESTIONS:,} more" if len(rows) > MAX_SUGGESTIONS else ""
    fix = "write more of it"
    if ids is not None:
        examples = [f"{name} (id {i})" for name, i in zip(examples, ids.gather(first), strict=True)]
        fix = "write more of it, or the id"
    raise DataError(f"{text!r} matches several {kind}s: {', '.join(examples)}{more}; {fix}")


def _unknown_message(kind: str, text: str, names: pl.Series) -> str:
    # "The Matrix" and "Matrix, The (1999)" share all words but differ in almost every position.
    words = WORD.findall(text.lower())
    lower = names.str.to_lowercase()
    has_all = pl.Series([bool(words)] * len(names))
    for word in words:
        has_all &= lower.str.contains(word, literal=True).fill_null(False)
    similar = names.filter(has_all).head(MAX_SUGGESTIONS).to_list()
    by_lower = {name.lower(): name for name in names.drop_nulls().head(MAX_COMPARED)}
    close = difflib.get_close_matches(text.lower(), by_lower, n=MAX_SUGGESTIONS, cutoff=0.5)
    nearest = list(dict.fromkeys([*similar, *(by_lower[name] for name in close)]))[:MAX_SUGGESTIONS]
    hint = f"did you mean {', '.join(map(repr, nearest))}?" if nearest else "check the spelling"
    return f"no {kind} {text!r} in the dataset; {hint}"
