"""Base class of the two true distributions: P(item | query vector), with exact sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from candid.errors import ConfigError
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, Keys, derive, normal, root_key
from candid.synthetic.items import SyntheticItems


class ChoiceModel(ABC):
    """A conditional distribution over the catalog given a query vector.

    With release times, the items that can be chosen depend on the time of the choice:
    ``times`` [B] int64, in the units of the release times. Without them ``times`` is None.

    Attributes:
        items: the catalog.
        release_times: [V] int64, the first time at which each item can be chosen; None: every
            item can be chosen at any time.
        centres: [T, D] float64, a unit vector for each topic.
    """

    def __init__(
        self, config: SyntheticConfig, items: SyntheticItems, release_times: Ints | None = None
    ) -> None:
        self.release_times = release_times
        self.items = items
        self.second_topic = config.second_topic
        keys = derive(root_key(config.seed, "topics"), np.arange(config.num_topics))
        self.centres = unit(normal(keys, config.dim))

    def blend(self, item_ids: Ints, step: int = 0) -> Floats:
        """Return the unit mixture of the centres of an item's topics.

        Args:
            item_ids: [...] int64.
            step: number that is added to both topics, modulo T.
        """
        num_topics = self.items.num_topics
        first, second = self.items.topics(item_ids)
        blend = (1.0 - self.second_topic) * self.centres[(first + step) % num_topics]
        blend = blend + self.second_topic * self.centres[(second + step) % num_topics]
        return unit(blend)

    @abstractmethod
    def context(self, item_ids: Ints) -> Floats:
        """Return the effect of a chosen item on the next query: ids [...] to [..., D] float64."""

    @abstractmethod
    def log_prob(
        self, query: Floats, item_ids: Ints, rows: Ints, times: Ints | None = None
    ) -> Floats:
        """Return the exact log P(item_ids[m] | query[rows[m]]): [M] float64.

        Args:
            query: [B, D] float64.
            item_ids: [M] int64.
            rows: [M] int64 in 0..B-1.
            times: [B] int64, time of each choice; needed with release times only.
        """

    @abstractmethod
    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return the exact log probabilities of all items, in id order: [B, V] float64."""

    @abstractmethod
    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return the exact entropy in nats: [B] float64."""

    @abstractmethod
    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Sample one item per query, exactly: [B] int64, a pure function of query and key."""

    def item_vectors(self, item_ids: Ints) -> Floats:
        """Return vectors [n, D + 1] whose dot products with the queries are the true logits.

        Raises:
            ConfigError: this distribution is not the softmax of a dot product.
        """
        raise ConfigError("mode 'topics' has no item vectors; set mode to 'softmax'")


def unit(vectors: Floats) -> Floats:
    """Scale vectors [..., D] to length 1; a zero vector stays zero."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1.0)


def log_sum_exp(values: Floats) -> Floats:
    """Return a stable log Σ exp over the last axis: [..., n] to [...]."""
    top = values.max(axis=-1)
    summed: Floats = top + np.log(np.exp(values - top[..., None]).sum(axis=-1))
    return summed
