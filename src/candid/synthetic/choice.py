"""What the two modes of a world share: how users choose, given their query vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from candid.synthetic.catalog import Catalog, Ints
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, Keys, derive, normal, root_key


class Choice(ABC):
    """A conditional distribution over the catalog given a query vector.

    Where items are released over time, what can be chosen also depends on when: ``times`` [B]
    int64, in the units of the releases. Elsewhere it is None.

    Attributes:
        catalog: the items.
        releases: [V] int64, when each item can first be chosen; None: all at any time.
        centres: [T, D] float64, a unit vector for each topic.
    """

    def __init__(
        self, config: SyntheticConfig, catalog: Catalog, releases: Ints | None = None
    ) -> None:
        self.releases = releases
        self.catalog = catalog
        self.second_topic = config.second_topic
        keys = derive(root_key(config.seed, "topics"), np.arange(config.num_topics))
        self.centres = unit(normal(keys, config.dim))

    def blend(self, item_ids: Ints, step: int = 0) -> Floats:
        """Unit mixture of the centres of an item's topics, each ``step`` topics further on."""
        num_topics = self.catalog.num_topics
        first, second = self.catalog.topics(item_ids)
        blend = (1.0 - self.second_topic) * self.centres[(first + step) % num_topics]
        blend = blend + self.second_topic * self.centres[(second + step) % num_topics]
        return unit(blend)

    @abstractmethod
    def context(self, item_ids: Ints) -> Floats:
        """What having chosen an item adds to the query: [..., D] float64 for ids [...]."""

    @abstractmethod
    def log_prob(
        self, query: Floats, item_ids: Ints, rows: Ints, times: Ints | None = None
    ) -> Floats:
        """Exact log P(item_ids[m] | query[rows[m]]): [M] float64.

        Args:
            query: [B, D] float64.
            item_ids: [M] int64.
            rows: [M] int64 in 0..B-1.
            times: [B] int64 or None, see the class.
        """

    @abstractmethod
    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """Exact log probabilities of the whole catalog, in id order: [B, V] float64."""

    @abstractmethod
    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """Exact entropy in nats: [B] float64."""

    @abstractmethod
    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Draw one item a query, exactly: [B] int64, a pure function of query and key."""


def unit(vectors: Floats) -> Floats:
    """Scale the last axis to length 1 (a zero vector stays zero)."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1.0)


def log_sum_exp(values: Floats) -> Floats:
    """Stable log Σ exp over the last axis."""
    top = values.max(axis=-1)
    summed: Floats = top + np.log(np.exp(values - top[..., None]).sum(axis=-1))
    return summed
