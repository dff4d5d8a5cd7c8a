"""Metric sums: the contribution of each user to each metric, the source of all reported numbers.

A metric is a ratio of two sums over rows, Σ numerator / Σ denominator. A row belongs to one
query and one group of a slicing; without slicing a query has one row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints
from candid.distributed import Group
from candid.evaluation.intervals import Estimate, ratio_intervals
from candid.evaluation.metrics import RANKING_METRICS, Bools, Floats, is_share, is_signed
from candid.evaluation.queries import Targets
from candid.evaluation.serendipity import Serendipity
from candid.evaluation.ties import RankedTargets, rank_probabilities


@dataclass(frozen=True)
class MetricSums:
    """Numerators and denominators of the rows of one slicing.

    Attributes:
        queries: [P] int64 ascending, the query of each row, 0..Q-1.
        groups: [P] int64, the group of each row.
        names: C metrics.
        numerators: [P, C].
        denominators: [P, C]; 0 where a row does not define a metric (the numerator is then 0).
    """

    queries: Ints
    groups: Ints
    names: tuple[str, ...]
    numerators: Floats
    denominators: Floats

    def estimates(
        self, num_groups: int, *, confidence: float | None = None
    ) -> list[dict[str, Estimate]]:
        """Reduce to one estimate per group and metric.

        Args:
            num_groups: G.
            confidence: coverage of the intervals over users; None: no intervals.
        """
        both = np.concatenate([self.numerators, self.denominators], axis=1)
        # A sum in the order of rows, as np.add.at computes it in several times as long.
        cells = self.groups[:, None] * both.shape[1] + np.arange(both.shape[1])
        flat = np.bincount(cells.ravel(), both.ravel(), num_groups * both.shape[1])
        sums = flat.astype(np.float64).reshape(num_groups, -1)
        width = len(self.names)
        values = _ratio(sums[:, :width], sums[:, width:])
        low = high = np.full_like(values, np.nan)
        if confidence is not None:
            low, high = ratio_intervals(
                self.numerators,
                self.denominators,
                self.groups,
                num_groups=num_groups,
                is_share=np.array([is_share(name) for name in self.names]),
                is_signed=np.array([is_signed(name) for name in self.names]),
                confidence=confidence,
            )
        return [
            {
                name: Estimate(
                    _none_if_nan(values[g, c]), _none_if_nan(low[g, c]), _none_if_nan(high[g, c])
                )
                for c, name in enumerate(self.names)
            }
            for g in range(num_groups)
        ]

    def of_all(self, group: Group) -> MetricSums:
        """Return the rows of all processes, in the order of queries.

        Args:
            group: processes with different queries; rank 0 has some.
        """
        if group.is_single:
            return self
        # A process without queries has no names.
        names = tuple(group.broadcast_json(self.names))
        width = len(names)
        (counts,) = zip(*group.gather_counts([len(self.queries)]), strict=True)

        def gathered(values: Ints | Floats, *shape: int) -> Tensor:
            rows = torch.from_numpy(values.reshape(-1, *shape))
            return group.gather_rows(rows, counts, "gather of metrics")

        queries = gathered(self.queries).numpy()
        order = np.argsort(queries, kind="stable")
        return MetricSums(
            queries[order],
            gathered(self.groups).numpy()[order],
            names,
            gathered(self.numerators, width).numpy()[order],
            gathered(self.denominators, width).numpy()[order],
        )

    def regrouped(self, group_of_query: Ints) -> MetricSums:
        """Return the same rows under a slicing of queries: ``group_of_query`` [Q]."""
        return MetricSums(
            self.queries,
            group_of_query[self.queries],
            self.names,
            self.numerators,
            self.denominators,
        )


def concatenate(batches: Sequence[MetricSums]) -> MetricSums:
    """Join the sums of consecutive batches; their ``queries`` are already numbered throughout."""
    if not batches:
        none = np.zeros(0, dtype=np.int64)
        return MetricSums(none, none, (), np.zeros((0, 0)), np.zeros((0, 0)))
    return MetricSums(
        np.concatenate([batch.queries for batch in batches]),
        np.concatenate([batch.groups for batch in batches]),
        batches[0].names,
        np.concatenate([batch.numerators for batch in batches]),
        np.concatenate([batch.denominators for batch in batches]),
    )


def sum_metrics(
    ranked: RankedTargets,
    targets: Targets,
    group_of_item: Ints,
    *,
    num_groups: int,
    ks: Sequence[int],
    metrics: Collection[str],
    serendipity: Serendipity | None,
    has_list: Bools,
    list_values: Mapping[str, Floats],
    target_values: Mapping[str, Floats],
    first_query: int,
) -> MetricSums:
    """Compute the metric sums of one batch of b queries under a slicing of target items.

    A row is a query with its targets of one group. Only these targets are relevant in the row;
    the list stays the same. Values are expectations over the orders of tied items.

    Args:
        ranked: the relevant items that can be in the first K ranks, K the last cut-off.
        targets: of the batch.
        group_of_item: [V] int64.
        num_groups: G.
        ks: cut-offs.
        metrics: names of the ranking metrics to compute, without cut-off; others are ignored.
        serendipity: adds ``serendipity@k``; None: leave it out.
        has_list: [b] bool, whether the list of a query has any item.
        list_values: by metric name, one value per list [b], independent of the targets; NaN
            where a list does not define it. An empty list does not count.
        target_values: by metric name, one value per target [M], averaged over targets.
        first_query: number of the first query of the batch.
    """
    target_keys = targets.rows * num_groups + group_of_item[targets.item_ids]
    keys, row_of_target = np.unique(target_keys, return_inverse=True)
    queries, groups = keys // num_groups, keys % num_groups
    relevant_item = targets.relevant % targets.num_items
    relevant_keys = targets.relevant // targets.num_items * num_groups
    row_of_relevant = np.searchsorted(keys, relevant_keys + group_of_item[relevant_item])
    num_relevant = np.bincount(row_of_relevant, minlength=len(keys))
    ranked_keys = ranked.rows * num_groups + group_of_item[ranked.item_ids]
    row_of_ranked = np.searchsorted(keys, ranked_keys)
    ranks = rank_probabilities(
        row_of_ranked,
        ranked.starts,
        ranked.sizes,
        num_rows=len(keys),
        depth=ks[-1],
    )

    columns: list[tuple[str, Floats, Floats]] = []
    has_relevant = (num_relevant > 0).astype(np.float64)
    by_name = {
        name: metric(ranks, np.maximum(num_relevant, 1), ks)
        for name, metric in RANKING_METRICS.items()
        if name in metrics
    }
    if serendipity is not None:
        by_name["serendipity"] = serendipity.sums(ranked, row_of_ranked, len(keys), ks)
    for name, values in by_name.items():
        values = values * has_relevant[:, None]
        columns += [(f"{name}@{k}", values[:, c], has_relevant) for c, k in enumerate(ks)]
    list_weight = has_list[queries].astype(np.float64)
    for name, values in list_values.items():
        values = values[queries]
        weight = np.where(np.isnan(values), 0.0, list_weight)
        columns.append((name, np.where(weight > 0, values, 0.0), weight))
    num_targets = np.bincount(row_of_target, minlength=len(keys)).astype(np.float64)
    for name, values in target_values.items():
        total: Floats = np.bincount(row_of_target, weights=values, minlength=len(keys)).astype(
            np.float64
        )
        columns.append((name, total, num_targets))
    return MetricSums(
        queries + first_query,
        groups,
        tuple(name for name, _, _ in columns),
        np.stack([values for _, values, _ in columns], axis=1),
        np.stack([weight for _, _, weight in columns], axis=1),
    )


def _ratio(numerators: Floats, denominators: Floats) -> Floats:
    safe = np.where(denominators > 0, denominators, 1.0)
    return np.where(denominators > 0, numerators / safe, np.nan)


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
