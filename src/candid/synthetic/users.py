"""The users of a world: what each likes, and what a table of users would say of it."""

from __future__ import annotations

import numpy as np
import polars as pl

from candid.synthetic.catalog import Catalog, Ints
from candid.synthetic.choice import unit
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, derive, normal, root_key, uniform

_TASTE_SPREAD = 0.5
"""Length of a taste's own part beside its favourite topics' part of length 1."""
_UNTOLD = 0.05
"""Share of users who name no favourite."""
_MISTOLD = 0.15
"""Share of users who name a genre drawn at random, their favourite or not."""
_AGES = (16, 80)
"""Youngest and oldest user."""


class Users:
    """Tastes and attributes of any user.

    Args:
        config: the settings of the world.
        catalog: the items, for the names of topics.
        centres: [T, D] float64, a unit vector for each topic.
    """

    def __init__(self, config: SyntheticConfig, catalog: Catalog, centres: Floats) -> None:
        self._config = config
        self._names = pl.Series(catalog.topic_names(), dtype=pl.String)
        self._centres = centres

    def favourites(self, user_ids: Ints) -> tuple[Ints, Floats]:
        """Two favourite topics of each user, [B, 2] int64, and the share of the first, [B]."""
        keys = derive(root_key(self._config.seed, "tastes"), user_ids)
        topics = uniform(derive(keys[:, None], 0, np.arange(2))) * self._config.num_topics
        return topics.astype(np.int64), uniform(derive(keys, 1))

    def tastes(self, user_ids: Ints) -> Floats:
        """A vector near the two favourites: [B, D] float64, unit length."""
        topics, share = self.favourites(user_ids)
        favourites = self._centres[topics]
        first = share[:, None]
        blend = unit(first * favourites[:, 0] + (1.0 - first) * favourites[:, 1])
        keys = derive(root_key(self._config.seed, "tastes"), user_ids)
        own = unit(normal(derive(keys, 2), self._config.dim))
        return unit(blend + _TASTE_SPREAD * own)

    def frame(self, start: int, stop: int) -> pl.DataFrame:
        """Users start..stop-1 as a table: user_id (int64), favourite (string), age (int64).

        ``favourite`` is the genre of the stronger favourite topic, of some users a genre drawn
        at random, of a few null. ``age`` has nothing to do with anything.
        """
        user_ids = np.arange(start, stop, dtype=np.int64)
        topics, share = self.favourites(user_ids)
        stronger = np.where(share >= 0.5, topics[:, 0], topics[:, 1])
        keys = derive(root_key(self._config.seed, "user attributes"), user_ids)
        told = uniform(derive(keys, 0))
        random = (uniform(derive(keys, 1)) * len(self._names)).astype(np.int64)
        named = np.where(told < _UNTOLD + _MISTOLD, random, stronger)
        youngest, oldest = _AGES
        ages = youngest + (uniform(derive(keys, 2)) * (oldest + 1 - youngest)).astype(np.int64)
        favourite = pl.when(pl.Series(told >= _UNTOLD)).then(self._names.gather(named))
        return pl.select(
            pl.lit(pl.Series(user_ids)).alias("user_id"),
            favourite.alias("favourite"),
            pl.lit(pl.Series(ages)).alias("age"),
        )
