"""Metrics of lists that ignore relevance: popularity, novelty and intra-list diversity."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from candid.data import PreparedDataset
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.cut_groups import ItemValues
from candid.evaluation.diversity import IntraListDiversity
from candid.evaluation.metrics import Floats, list_mean, popularity_percentile
from candid.evaluation.ties import RankedLists


class ListMetrics:
    """The metrics of lists that an evaluation reports, with the values of all items.

    Args:
        config: names of metrics, cut-offs, and the attribute that defines distances.
        dataset: the prepared dataset.
        counts: [V], how often training has each item as a target.
        item_vectors: [V, D]; None for a model without vectors, whose intra-list diversity needs
            an attribute and is left out without one.

    Attributes:
        item_values: by metric name, [V] or [V, D].

    Raises:
        ConfigError: the attribute does not exist or cannot be used.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        dataset: PreparedDataset,
        counts: Floats,
        item_vectors: Tensor | None,
    ) -> None:
        self._ks = config.ks
        self._means: dict[str, Floats] = {}
        if "popularity" in config.metrics:
            self._means["popularity"] = counts
        if "popularity_percentile" in config.metrics:
            self._means["popularity_percentile"] = popularity_percentile(counts)
        if "mean_inv_user_freq" in config.metrics:
            self._means["mean_inv_user_freq"] = inverse_user_frequency(dataset)
        self._diversity: IntraListDiversity | None = None
        attribute = config.diversity_attribute
        if "intra_list_diversity" in config.metrics:
            if attribute is not None:
                self._diversity = IntraListDiversity.by_attribute(
                    dataset.items, attribute, config.ks
                )
            elif item_vectors is not None:
                self._diversity = IntraListDiversity.by_vectors(item_vectors, config.ks)
        self.item_values: dict[str, ItemValues] = dict(self._means)
        if self._diversity is not None:
            self.item_values["intra_list_diversity"] = self._diversity.item_values

    def values(self, lists: RankedLists, cut_means: Mapping[str, Floats]) -> dict[str, Floats]:
        """Compute the metrics of b lists, expectations over the orders of tied items.

        Args:
            lists: the first K ranks, with all sizes.
            cut_means: by name of ``item_values``, the mean over the group that continues beyond
                rank K; not read in rows without one.

        Returns:
            by metric name with cut-off, [b]; NaN where a list does not define the metric.
        """
        is_present = lists.item_ids >= 0
        result: dict[str, Floats] = {}
        for name, values in self._means.items():
            expected = lists.expected_values(values, cut_means[name])
            means = list_mean(expected, is_present, self._ks)
            result |= {f"{name}@{k}": means[:, c] for c, k in enumerate(self._ks)}
        if self._diversity is not None:
            result |= self._diversity.values(lists, cut_means["intra_list_diversity"])
        return result


def inverse_user_frequency(dataset: PreparedDataset) -> Floats:
    """Return -log2(users of the item / users) over training interactions: [V] float64.

    The novelty of an item, as in RecTools: an item without users counts as one with one user.
    """
    num_users = max(int(dataset.user_is_trained.sum()), 1)
    result: Floats = np.log2(num_users) - np.log2(np.maximum(dataset.train_user_counts, 1))
    return result
