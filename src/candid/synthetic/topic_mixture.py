"""Mode ``topics``: P(d | q) = Σ_t P(t | q) · P(d | t), for catalogs of any size.

P(t | q) is a softmax over topics of <q, centre_t> - exponent · log(t + 1). Topics follow Zipf's
law too; otherwise the T most popular items would all have the same popularity. Within a topic, a
row of the grid is sampled by Zipf's law. The choice is the item of that row with this first
topic or, with probability λ (``second_topic``), the item with this second topic. So

    P(d | q) = z(row) · [ (1 - λ) · P(first | q) / H(first) + λ · P(second | q) / H(second) ]

with z(row) = (row + 1)^-exponent and H(t) the sum of z over the rows of topic t.
"""

from __future__ import annotations

import numpy as np

from candid.synthetic.choice_model import ChoiceModel, log_sum_exp
from candid.synthetic.config import SyntheticConfig
from candid.synthetic.counter_rng import Floats, Ints, Keys, derive, uniform
from candid.synthetic.items import SyntheticItems


class TopicMixtureChoice(ChoiceModel):
    """A mixture of topics; only ``log_probs`` needs a [B, V] matrix.

    All items can be chosen at any time: ``times`` is ignored.
    """

    def __init__(
        self, config: SyntheticConfig, items: SyntheticItems, release_times: Ints | None = None
    ) -> None:
        super().__init__(config, items, release_times)
        # A topic has num_rows items, or one fewer if the last row of the grid is short.
        self._num_last = items.num_items - (items.num_rows - 1) * items.num_topics
        self._cumulative = np.concatenate([np.zeros(1), np.cumsum(items.row_weight)])
        topics = np.arange(items.num_topics)
        self._topic_rows = items.num_rows - (topics >= self._num_last)
        self._topic_mass = self._cumulative[self._topic_rows]
        self._topic_bias = -config.zipf_exponent * np.log(topics + 1.0)

    def context(self, item_ids: Ints) -> Floats:
        """Return vectors [..., D] that make the topics after the item's own more likely."""
        return self.blend(item_ids, step=1)

    def _log_topics(self, query: Floats) -> Floats:
        scores: Floats = query @ self.centres.T + self._topic_bias
        log_topics: Floats = scores - log_sum_exp(scores)[:, None]
        return log_topics

    def _log_scaled(self, query: Floats) -> Floats:
        """Return log P(t | q) / H(t): [B, T]."""
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
        """Return the logarithm of the equation in the module docstring: [M] float64."""
        scaled = self._log_scaled(query)
        first, second = self.items.topics(item_ids)
        grid_rows = self.items.rank(item_ids) // self.items.num_topics
        mixed = self._log_mix(scaled[rows, first], scaled[rows, second])
        return np.asarray(mixed + np.log(self.items.row_weight[grid_rows]))

    def log_probs(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return all log probabilities, for small catalogs: [B, V] float64."""
        num_queries, num_items = len(query), self.items.num_items
        rows = np.repeat(np.arange(num_queries), num_items)
        item_ids = np.tile(np.arange(num_items), num_queries)
        return self.log_prob(query, item_ids, rows).reshape(num_queries, num_items)

    def entropy(self, query: Floats, times: Ints | None = None) -> Floats:
        """Return the entropy [B] in closed form: rows of a shift share the mixture, O(T) per shift.

        With m(t, s) the bracket of the module's equation at shift s, the entropy is
        -Σ_rows z Σ_t m log m - Σ_rows z log z Σ_t m. Full rows are grouped by their shift; a
        short last row is a group of its own.
        """
        items = self.items
        scaled = self._log_scaled(query)
        weight = items.row_weight
        is_full = np.ones(items.num_rows, dtype=bool)
        is_full[-1] = self._num_last == items.num_topics
        entropy = np.zeros(len(query))
        for shift in np.unique(items.row_shift[is_full]):
            group = is_full & (items.row_shift == shift)
            second: Floats = np.roll(scaled, -shift, axis=1)
            log_mix = self._log_mix(scaled, second)
            entropy = entropy - _entropy_terms(log_mix, weight[group])
        if not is_full[-1]:
            last: Floats = scaled[:, : self._num_last]
            entropy = entropy - _entropy_terms(last, weight[-1:])
        return entropy

    def sample(self, query: Floats, keys: Keys, times: Ints | None = None) -> Ints:
        """Sample topic, row, then one of the row's two items, each by inverse CDF: [B] int64."""
        items = self.items
        cumulative = np.cumsum(np.exp(self._log_topics(query)), axis=1)
        pick = uniform(derive(keys, 0)) * cumulative[:, -1]
        topics = np.minimum((cumulative <= pick[:, None]).sum(axis=1), items.num_topics - 1)
        mass = uniform(derive(keys, 1)) * self._topic_mass[topics]
        grid_rows = np.searchsorted(self._cumulative, mass, side="right") - 1
        grid_rows = np.minimum(grid_rows, self._topic_rows[topics] - 1)
        is_second = uniform(derive(keys, 2)) < self.second_topic
        columns = np.where(is_second, topics - items.row_shift[grid_rows], topics)
        return items.items_at(grid_rows * items.num_topics + columns % items.num_topics)


def _entropy_terms(log_mix: Floats, weight: Floats) -> Floats:
    mix, log_weight = np.exp(log_mix), np.log(weight)
    in_mix = weight.sum() * (mix * log_mix).sum(axis=1)
    return np.asarray(in_mix + (weight * log_weight).sum() * mix.sum(axis=1))
