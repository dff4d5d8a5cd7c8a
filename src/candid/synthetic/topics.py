"""Mode ``topics``: P(d | q) = Σ_t P(t | q) · P(d | t), at any size of the catalog.

P(t | q) is a softmax over topics of <q, centre_t> - exponent · log(t + 1): topics, too, follow
Zipf's law, without which the head of the catalog would be T items of one popularity. Within a
topic a row of the grid is drawn by Zipf's law; the item is the topic's own of that row, or
with probability λ (``second_topic``) the one that has the topic as its second. So

    P(d | q) = z(row) · [ (1 - λ) · P(first | q) / H(first) + λ · P(second | q) / H(second) ]

with z(row) = (row + 1)^-exponent and H(t) its sum over the rows of topic t.
"""

from __future__ import annotations

import numpy as np

from candid.synthetic.catalog import Catalog, Ints
from candid.synthetic.choice import Choice, log_sum_exp
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counters import Floats, Keys, derive, uniform


class TopicsChoice(Choice):
    """A mixture of topics; nothing it does needs a [B, V] matrix except ``log_probs``.

    All items are there from the start: ``times`` says nothing.
    """

    def __init__(
        self, config: SyntheticConfig, catalog: Catalog, releases: Ints | None = None
    ) -> None:
        super().__init__(config, catalog, releases)
        # A topic has num_rows items, or one fewer where the last row of the grid is short.
        self._num_last = catalog.num_items - (catalog.num_rows - 1) * catalog.num_topics
        self._cumulative = np.concatenate([np.zeros(1), np.cumsum(catalog.row_weight)])
        topics = np.arange(catalog.num_topics)
        self._topic_rows = catalog.num_rows - (topics >= self._num_last)
        self._topic_mass = self._cumulative[self._topic_rows]
        self._topic_bias = -config.zipf_exponent * np.log(topics + 1.0)

    def context(self, item_ids: Ints) -> Floats:
        """A choice makes the topics after its own more likely: [..., D] float64."""
        return self.blend(item_ids, step=1)

    def _log_topics(self, query: Floats) -> Floats:
        scores: Floats = query @ self.centres.T + self._topic_bias
        log_topics: Floats = scores - log_sum_exp(scores)[:, None]
        return log_topics

    def _log_scaled(self, query: Floats) -> Floats:
        """Log of P(t | q) / H(t): [B, T]."""
        scaled: Floats = self._log_topics(query) - np.log(self._topic_mass)
        return scaled

    def _log_mix(self, first: Floats, second: Floats) -> Floats:
        if self.second_topic == 0:
            return first
        mixed: Floats = np.logaddexp(
            np.log1p(-self.second_topic) + first, np.log(self.second_topic) + second
        )
        return mixed

    def log_prob(
        self, query: Floats, item_ids: Ints, rows: Ints, times: Ints | None = None
    ) -> Floats:
        """See the module's equation."""
        scaled = self._log_scaled(query)
        first, second = self.catalog.topics(item_ids)
        grid_rows = self.catalog.rank(item_ids) // self.catalog.num_topics
        mixed = self._log_mix(scaled[rows, first], scaled[rows, second])
        return np.asarray(mixed + np.log(self.catalog.row_weight[grid_rows]))

    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """For small catalogs: [B, V] float64."""
        num_queries, num_items = len(query), self.catalog.num_items
        rows = np.repeat(np.arange(num_queries), num_items)
        item_ids = np.tile(np.arange(num_items), num_queries)
        return self.log_prob(query, item_ids, rows).reshape(num_queries, num_items)

    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """In closed form: rows of one shift share the mixture, so it costs O(T) a shift.

        With m(t, s) the bracket of the module's equation at shift s, the entropy is
        -Σ_rows z Σ_t m log m - Σ_rows z log z Σ_t m, full rows grouped by their shift and a
        short last row on its own.
        """
        catalog = self.catalog
        scaled = self._log_scaled(query)
        weight = catalog.row_weight
        is_full = np.ones(catalog.num_rows, dtype=bool)
        is_full[-1] = self._num_last == catalog.num_topics
        entropy = np.zeros(len(query))
        for shift in np.unique(catalog.row_shift[is_full]):
            group = is_full & (catalog.row_shift == shift)
            second: Floats = np.roll(scaled, -shift, axis=1)
            log_mix = self._log_mix(scaled, second)
            entropy = entropy - _entropy_terms(log_mix, weight[group])
        if not is_full[-1]:
            last: Floats = scaled[:, : self._num_last]
            entropy = entropy - _entropy_terms(last, weight[-1:])
        return entropy

    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Topic, then row, then which of the two items: three inverse CDFs."""
        catalog = self.catalog
        cumulative = np.cumsum(np.exp(self._log_topics(query)), axis=1)
        pick = uniform(derive(keys, 0)) * cumulative[:, -1]
        topics = np.minimum((cumulative <= pick[:, None]).sum(axis=1), catalog.num_topics - 1)
        mass = uniform(derive(keys, 1)) * self._topic_mass[topics]
        grid_rows = np.searchsorted(self._cumulative, mass, side="right") - 1
        grid_rows = np.minimum(grid_rows, self._topic_rows[topics] - 1)
        is_second = uniform(derive(keys, 2)) < self.second_topic
        columns = np.where(is_second, topics - catalog.row_shift[grid_rows], topics)
        return catalog.items_at(grid_rows * catalog.num_topics + columns % catalog.num_topics)


def _entropy_terms(log_mix: Floats, weight: Floats) -> Floats:
    mix, log_weight = np.exp(log_mix), np.log(weight)
    in_mix = weight.sum() * (mix * log_mix).sum(axis=1)
    return np.asarray(in_mix + (weight * log_weight).sum() * mix.sum(axis=1))
