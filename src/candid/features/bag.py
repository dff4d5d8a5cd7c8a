"""Any number of values from a vocabulary: genres, tags, words."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import Field

from candid.errors import DataError
from candid.features.protocol import Feature, FeatureConfig
from candid.features.values import Bags
from candid.features.vocabulary import ValueKind, Vocabulary, strip_text, to_kind


class Bag(Feature):
    """The codes of the members of a row, in order: 0 for an unknown one, 1.. for the vocabulary.

    The column contains lists, or text with separators between members. Null, an empty list and
    empty text are an empty bag. Null and empty members are left out; repeated ones stay.

    Args:
        vocabulary: fitted members.
        separator: between the members of a text.

    Example:
        >>> genres = Bag.Config(min_count=1).fit(pl.Series(["crime|drama", "drama"]))
        >>> genres.encode(pl.Series(["drama|western", None]))
        Bags(2 rows, ids=[2], num_codes=3)
    """

    class Config(FeatureConfig):
        """Settings of ``Bag``."""

        separator: str = Field("|", min_length=1, description="between the members of a text")
        min_count: int = Field(
            2,
            ge=1,
            description="minimum count of a member; rarer ones train the unknown bucket",
        )
        max_values: int | None = Field(
            None, ge=1, description="maximum vocabulary size; the most frequent members stay"
        )

        def fit(self, column: pl.Series) -> Bag:
            """Fit the vocabulary on the values of training rows."""
            kind, members, _ = _members(column, self.separator)
            vocabulary = Vocabulary.fit(kind, members, self.min_count, self.max_values)
            return Bag(vocabulary, separator=self.separator)

        def extend(self, feature: Bag, column: pl.Series) -> Bag:
            """Return the feature with the frequent members that are new."""
            kind, members, _ = _members(column, self.separator)
            vocabulary = feature.vocabulary.extend(kind, members, self.min_count, self.max_values)
            return Bag(vocabulary, separator=self.separator)

        def restore(self, state: dict[str, Any]) -> Bag:
            """Rebuild the feature from its ``state``."""
            return Bag(Vocabulary.restore(state["vocabulary"]), separator=self.separator)

    def __init__(self, vocabulary: Vocabulary, *, separator: str) -> None:
        self.vocabulary = vocabulary
        self.separator = separator

    def __repr__(self) -> str:
        return f"Bag({self.vocabulary!r}, separator={self.separator!r})"

    def encode(self, column: pl.Series) -> Bags:
        """Encode n rows as bags of codes."""
        kind, members, lengths = _members(column, self.separator)
        codes = self.vocabulary.codes(kind, members)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Bags(torch.from_numpy(codes), torch.from_numpy(offsets), 1 + len(self.vocabulary))

    def state(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {"vocabulary": self.vocabulary.state()}


def _members(
    column: pl.Series, separator: str
) -> tuple[ValueKind | None, pl.Series, npt.NDArray[np.int64]]:
    """Return kind and values of all members [T], row by row, and the count of each row [n]."""
    dtype = column.dtype
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum) or dtype.is_integer():
        # A text file whose bags have one number each is read as a column of integers.
        lists = column.cast(pl.String).str.split(separator)
    elif isinstance(dtype, pl.Array):
        lists = column.arr.to_list()
    elif isinstance(dtype, pl.List) or column.null_count() == len(column):
        lists = column
    else:
        raise DataError(
            f"values must be lists or text, got {dtype}; convert them or give the feature another "
            "type"
        )
    rows = pl.DataFrame({"row": np.arange(len(column)), "member": lists})
    if isinstance(lists.dtype, pl.List):
        rows = rows.explode("member")
    kind, members = to_kind(strip_text(rows["member"]))
    is_present = members.is_not_null()
    lengths = np.bincount(rows["row"].filter(is_present).to_numpy(), minlength=len(column))
    return kind, members.filter(is_present), lengths.astype(np.int64)
