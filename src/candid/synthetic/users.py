"""Synthetic users: taste vectors and a table of attributes."""

from __future__ import annotations

import numpy as np
import polars as pl

from candid.synthetic.choice_model import unit
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, derive, normal, root_key, uniform
from candid.synthetic.items import SyntheticItems

_OWN_WEIGHT = 0.5
"""Length of a taste's individual component, relative to its topic component of length 1."""
_MISSING_SHARE = 0.05
"""Share of users whose ``favourite`` is null."""
_RANDOM_SHARE = 0.15
"""Share of users whose ``favourite`` is a random genre."""
_AGES = (16, 80)
"""Youngest and oldest user."""


class SyntheticUsers:
    """Tastes and attributes of users.

    Args:
        config: the settings.
        items: the items, for the names of topics.
        centres: [T, D] float64, a unit vector for each topic.
    """

    def __init__(self, config: SyntheticConfig, items: SyntheticItems, centres: Floats) -> None:
        self._config = config
        self._genres = pl.Series(items.topic_names(), dtype=pl.String)
        self._centres = centres

    def favourites(self, user_ids: Ints) -> tuple[Ints, Floats]:
        """Return two favourite topics of each user [B, 2], and the weight of the first [B]."""
        keys = derive(root_key(self._config.seed, "tastes"), user_ids)
        topics = uniform(derive(keys[:, None], 0, np.arange(2))) * self._config.num_topics
        return topics.astype(np.int64), uniform(derive(keys, 1))

    def tastes(self, user_ids: Ints) -> Floats:
        """Return a vector near the two favourite topics: [B, D] float64, unit length."""
        topics, share = self.favourites(user_ids)
        favourites = self._centres[topics]
        first = share[:, None]
        blend = unit(first * favourites[:, 0] + (1.0 - first) * favourites[:, 1])
        keys = derive(root_key(self._config.seed, "tastes"), user_ids)
        own = unit(normal(derive(keys, 2), self._config.dim))
        return unit(blend + _OWN_WEIGHT * own)

    def frame(self, start: int, stop: int) -> pl.DataFrame:
        """Return users start..stop-1: user_id (int64), favourite (string), age (int64).

        ``favourite`` is the genre of the stronger favourite topic; for 15 % of the users it is
        a random genre, for 5 % null. ``age`` is independent of everything else.
        """
        user_ids = np.arange(start, stop, dtype=np.int64)
        topics, share = self.favourites(user_ids)
        stronger = np.where(share >= 0.5, topics[:, 0], topics[:, 1])
        keys = derive(root_key(self._config.seed, "user attributes"), user_ids)
        position = uniform(derive(keys, 0))
        random = (uniform(derive(keys, 1)) * len(self._genres)).astype(np.int64)
        genre_ids = np.where(position < _MISSING_SHARE + _RANDOM_SHARE, random, stronger)
        youngest, oldest = _AGES
        ages = youngest + (uniform(derive(keys, 2)) * (oldest + 1 - youngest)).astype(np.int64)
        is_stated = pl.Series(position >= _MISSING_SHARE)
        favourite = pl.when(is_stated).then(self._genres.gather(genre_ids))
        return pl.select(
            pl.lit(pl.Series(user_ids)).alias("user_id"),
            favourite.alias("favourite"),
            pl.lit(pl.Series(ages)).alias("age"),
        )
