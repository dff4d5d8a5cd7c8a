"""The items of a world as arithmetic: popularity rank, topics, title and genres of any id.

Ranks are laid on a grid of T columns: the item of popularity rank k belongs to topic k mod T
and stands in row k // T, so that every topic has popular and rare items alike. Its second
topic is its own shifted by an amount that depends on the row alone: within a full row every
topic is once first and once second, which is what keeps probabilities and sampling exact
without a table of the catalog.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, derive, root_key
from candid.synthetic.words import ADJECTIVES, GENRES, NOUNS, PLACES

Ints = npt.NDArray[np.int64]

_MAX_SHIFT = 7
"""Distinct shifts between first and second topic; few, so that the entropy stays cheap."""


class Permutation:
    """A fixed shuffle of 0..n-1 without a table: x -> (a·x + c) mod n."""

    def __init__(self, size: int, seed: int, purpose: str) -> None:
        key = root_key(seed, purpose)
        self._size = size
        # A multiplier near n/φ spreads neighbours evenly; it must be coprime to n.
        self._multiplier = max(1, round(size / 1.6180339887))
        while math.gcd(self._multiplier, size) != 1:
            self._multiplier += 1
        self._shift = int(derive(key, 0)[0] % np.uint64(size))
        self._inverse = pow(self._multiplier, -1, size) if size > 1 else 0

    def forward(self, values: Ints) -> Ints:
        """Shuffle: any shape, int64 in 0..n-1."""
        return (values * self._multiplier + self._shift) % self._size

    def backward(self, values: Ints) -> Ints:
        """Undo ``forward``."""
        return (values - self._shift) % self._size * self._inverse % self._size


class Catalog:
    """V items on T topics.

    Attributes:
        num_items: V.
        num_topics: T.
        num_rows: rows of the grid; the last one may be short.
        row_shift: [num_rows] int64, second topic minus first topic, modulo T (0 in a short
            last row).
        row_weight: [num_rows] float64, popularity (row + 1)^-exponent of the items of a row
            within their topic.
    """

    def __init__(self, config: SyntheticConfig) -> None:
        self.num_items = config.num_items
        self.num_topics = config.num_topics
        self.num_rows = -(-config.num_items // config.num_topics)
        self._has_second = config.second_topic > 0
        self._ranks = Permutation(config.num_items, config.seed, "rank")
        self._titles = Permutation(config.num_items, config.seed, "title")
        rows = np.arange(self.num_rows)
        num_shifts = min(config.num_topics - 1, _MAX_SHIFT)
        self.row_shift = np.zeros(self.num_rows, dtype=np.int64)
        if num_shifts:
            keys = derive(root_key(config.seed, "second topic"), rows)
            self.row_shift += 1 + (keys % np.uint64(num_shifts)).astype(np.int64)
            if config.num_items % config.num_topics:
                self.row_shift[-1] = 0
        self.row_weight: Floats = np.power(rows + 1.0, -config.zipf_exponent)

    def rank(self, item_ids: Ints) -> Ints:
        """Popularity rank, 0 for the item meant to be most popular: same shape, int64."""
        return self._ranks.forward(item_ids)

    def items_at(self, ranks: Ints) -> Ints:
        """The items of given ranks; undoes ``rank``."""
        return self._ranks.backward(ranks)

    def topics(self, item_ids: Ints) -> tuple[Ints, Ints]:
        """First and second topic of items, each of the shape of ``item_ids``, int64."""
        ranks = self.rank(item_ids)
        first = ranks % self.num_topics
        return first, (first + self.row_shift[ranks // self.num_topics]) % self.num_topics

    def topic_names(self) -> list[str]:
        """The genre that each topic is called: T distinct names."""
        names = len(GENRES)
        return [
            GENRES[topic % names] + (f" {topic // names + 1}" if topic >= names else "")
            for topic in range(self.num_topics)
        ]

    def frame(self, start: int, stop: int) -> pl.DataFrame:
        """Items start..stop-1 as a table: item_id (int64), title, genres ("Drama|Crime")."""
        item_ids = np.arange(start, stop, dtype=np.int64)
        first, second = self.topics(item_ids)
        names = pl.Series(self.topic_names(), dtype=pl.String)
        columns = {"item_id": item_ids, "first": first, "second": second, **self._words(item_ids)}
        is_mixed = (pl.col("first") != pl.col("second")) & self._has_second
        return pl.DataFrame(columns).select(
            "item_id",
            pl.concat_str(
                pl.lit("The "),
                _word(ADJECTIVES, "adjective"),
                pl.lit(" "),
                _word(NOUNS, "noun"),
                _word(["", *(f" of {place}" for place in PLACES)], "place"),
                pl.when(pl.col("part") > 0)
                .then(pl.concat_str(pl.lit(", Part "), pl.col("part") + 1))
                .otherwise(pl.lit("")),
            ).alias("title"),
            pl.concat_str(
                pl.lit(names).gather(pl.col("first")),
                pl.when(is_mixed)
                .then(pl.concat_str(pl.lit("|"), pl.lit(names).gather(pl.col("second"))))
                .otherwise(pl.lit("")),
            ).alias("genres"),
        )

    def _words(self, item_ids: Ints) -> dict[str, Ints]:
        """The title of an item as digits of a mixed radix: distinct items, distinct titles."""
        digits: dict[str, Ints] = {}
        rest = self._titles.forward(item_ids)
        for name, size in (
            ("adjective", len(ADJECTIVES)),
            ("noun", len(NOUNS)),
            ("place", len(PLACES) + 1),
        ):
            digits[name] = rest % size
            rest = rest // size
        return {**digits, "part": rest}


def _word(words: list[str], column: str) -> pl.Expr:
    return pl.lit(pl.Series(words, dtype=pl.String)).gather(pl.col(column))
