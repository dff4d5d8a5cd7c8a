"""Any number of values out of a vocabulary: genres, tags, words."""

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
from candid.features.vocabulary import Kind, Vocabulary, stripped, typed


class Bag(Feature):
    """The codes of a row's members, in their order: 0 for each unknown one, 1.. the vocabulary.

    A column of lists, or text whose members stand between separators. Null, an empty list and
    empty text are an empty bag; null and empty members are left out, repeated ones stay.

    Args:
        vocabulary: the learnt members.
        separator: between the members of a text.
    """

    class Config(FeatureConfig):
        """Settings of ``Bag``."""

        separator: str = Field(
            "|", min_length=1, description="between the members where the column is text"
        )
        min_count: int = Field(
            2,
            ge=1,
            description="rarer members share the unknown bucket, which trains it for new ones",
        )
        max_values: int | None = Field(
            None, ge=1, description="keep this many members at most, the most frequent"
        )

        def fit(self, column: pl.Series) -> Bag:
            """Learn the vocabulary; see ``FeatureConfig.fit``."""
            kind, members, _ = _members(column, self.separator)
            vocabulary = Vocabulary.learn(kind, members, self.min_count, self.max_values)
            return Bag(vocabulary, self.separator)

        def restore(self, state: dict[str, Any]) -> Bag:
            """See ``FeatureConfig.restore``."""
            return Bag(Vocabulary.restore(state["vocabulary"]), self.separator)

    def __init__(self, vocabulary: Vocabulary, separator: str = "|") -> None:
        self.vocabulary = vocabulary
        self.separator = separator

    def encode(self, column: pl.Series) -> Bags:
        """Bags of n rows; see ``Feature.encode``."""
        kind, members, lengths = _members(column, self.separator)
        codes = self.vocabulary.codes(kind, members)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Bags(torch.from_numpy(codes), torch.from_numpy(offsets), 1 + len(self.vocabulary))

    def state(self) -> dict[str, Any]:
        """See ``Feature.state``."""
        return {"vocabulary": self.vocabulary.state()}


def _members(
    column: pl.Series, separator: str
) -> tuple[Kind | None, pl.Series, npt.NDArray[np.int64]]:
    """Kind and values of all members [T], row after row, and the number of each row [n]."""
    dtype = column.dtype
    if dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum):
        lists = column.cast(pl.String).str.split(separator)
    elif isinstance(dtype, pl.Array):
        lists = column.arr.to_list()
    elif isinstance(dtype, pl.List) or column.null_count() == len(column):
        lists = column
    else:
        raise DataError(
            f"values of type {dtype} are neither lists nor text; convert them or give the "
            "feature another type"
        )
    rows = pl.DataFrame({"row": np.arange(len(column)), "member": lists})
    if isinstance(lists.dtype, pl.List):
        rows = rows.explode("member")
    kind, members = typed(stripped(rows["member"]))
    is_given = members.is_not_null()
    lengths = np.bincount(rows["row"].filter(is_given).to_numpy(), minlength=len(column))
    return kind, members.filter(is_given), lengths.astype(np.int64)
