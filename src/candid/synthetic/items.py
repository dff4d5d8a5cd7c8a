"""Synthetic items: popularity rank, topics, title and genres computed from any item id.

Ranks are laid out on a grid of T columns: the item of popularity rank k belongs to topic k mod T
and is in row k // T, so every topic has popular and rare items. The second topic of an item is
its first topic plus a shift that depends only on the row. Within a full row every topic is the
first topic of one item and the second topic of one item. This keeps probabilities and sampling
exact without a table of the catalog.
"""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, derive, root_key
from candid.synthetic.title_words import ADJECTIVES, GENRES, NOUNS, PLACES

_MAX_SHIFT = 7
"""Number of different shifts between first and second topic; the cost of the entropy grows with
it."""


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
        """Shuffle values of any shape, int64 in 0..n-1."""
        return (values * self._multiplier + self._shift) % self._size

    def backward(self, values: Ints) -> Ints:
        """Invert ``forward``: same shape, int64."""
        return (values - self._shift) % self._size * self._inverse % self._size


class SyntheticItems:
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
        """Return the popularity rank, 0 for the most popular item: same shape, int64."""
        return self._ranks.forward(item_ids)

    def items_at(self, ranks: Ints) -> Ints:
        """Return the items of ranks [...] int64, the inverse of ``rank``: same shape, int64."""
        return self._ranks.backward(ranks)

    def topics(self, item_ids: Ints) -> tuple[Ints, Ints]:
        """Return first and second topic of items, each of the shape of ``item_ids``, int64."""
        ranks = self.rank(item_ids)
        first = ranks % self.num_topics
        return first, (first + self.row_shift[ranks // self.num_topics]) % self.num_topics

    def topic_names(self) -> list[str]:
        """Return the genre name of each topic: T distinct names."""
        names = len(GENRES)
        return [
            GENRES[topic % names] + (f" {topic // names + 1}" if topic >= names else "")
            for topic in range(self.num_topics)
        ]

    def frame(self, start: int, stop: int) -> pl.DataFrame:
        """Return items start..stop-1: item_id (int64), title, genres ("Drama|Crime")."""
        item_ids = np.arange(start, stop, dtype=np.int64)
        first, second = self.topics(item_ids)
        names = pl.Series(self.topic_names(), dtype=pl.String)
        columns = {
            "item_id": item_ids,
            "first": first,
            "second": second,
            **self._title_digits(item_ids),
        }
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

    def _title_digits(self, item_ids: Ints) -> dict[str, Ints]:
        """Return the title of an item as mixed-radix digits, so that titles are distinct."""
        digits: dict[str, Ints] = {}
        quotient = self._titles.forward(item_ids)
        for name, size in (
            ("adjective", len(ADJECTIVES)),
            ("noun", len(NOUNS)),
            ("place", len(PLACES) + 1),
        ):
            digits[name] = quotient % size
            quotient = quotient // size
        return {**digits, "part": quotient}


def _word(words: list[str], column: str) -> pl.Expr:
    return pl.lit(pl.Series(words, dtype=pl.String)).gather(pl.col(column))
