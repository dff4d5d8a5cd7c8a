"""What each user contributes to each metric: the sums that every reported number is made of.

A metric is a ratio of two sums over rows, Σ numerator / Σ denominator. A row belongs to one
query and one group of a slicing; without slicing a query has one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from candid.batches import Ints
from candid.evaluation.bootstrap import Estimate, intervals, resample
from candid.evaluation.metrics import RANKING_METRICS, Floats
from candid.evaluation.queries import Targets


@dataclass(frozen=True)
class MetricSums:
    """Rows of one slicing.

    Attributes:
        owners: [P] ascending, the query of each row, 0..Q-1.
        groups: [P].
        names: C metrics.
        numerators: [P, C].
        denominators: [P, C]; 0 where a row does not define a metric (the numerator is then 0).
    """

    owners: Ints
    groups: Ints
    names: tuple[str, ...]
    numerators: Floats
    denominators: Floats

    def estimates(
        self,
        num_groups: int,
        num_owners: int,
        *,
        bootstrap: int = 0,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> list[dict[str, Estimate]]:
        """Reduce to one estimate a group and metric.

        Args:
            num_groups: G.
            num_owners: Q.
            bootstrap: resamples of queries; 0 leaves the intervals out.
            confidence: coverage of the intervals.
            seed: of the resamples.
        """
        both = np.concatenate([self.numerators, self.denominators], axis=1)
        sums = np.zeros((num_groups, both.shape[1]))
        np.add.at(sums, self.groups, both)
        width = len(self.names)
        values = _ratio(sums[:, :width], sums[:, width:])
        low = high = np.full_like(values, np.nan)
        if bootstrap:
            drawn = resample(
                self.owners, self.groups, both, num_owners, num_groups, bootstrap, seed
            )
            low, high = intervals(drawn[:, :, :width], drawn[:, :, width:], confidence)
        return [
            {
                name: Estimate(_known(values[g, c]), _known(low[g, c]), _known(high[g, c]))
                for c, name in enumerate(self.names)
            }
            for g in range(num_groups)
        ]

    def regrouped(self, group_of_owner: Ints) -> MetricSums:
        """The same rows under a slicing of queries."""
        return MetricSums(
            self.owners,
            group_of_owner[self.owners],
            self.names,
            self.numerators,
            self.denominators,
        )


def concatenate(parts: Sequence[MetricSums]) -> MetricSums:
    """Join the tallies of consecutive batches; ``owners`` already count through all."""
    return MetricSums(
        np.concatenate([part.owners for part in parts]),
        np.concatenate([part.groups for part in parts]),
        parts[0].names,
        np.concatenate([part.numerators for part in parts]),
        np.concatenate([part.denominators for part in parts]),
    )


def tally(
    recommended: Ints,
    targets: Targets,
    group_of_item: Ints,
    num_groups: int,
    ks: Sequence[int],
    lists: Mapping[str, Floats],
    likelihoods: Mapping[str, Floats],
    first_owner: int,
) -> MetricSums:
    """Count one batch of b queries under a slicing of target items.

    A row is a query with the targets it has in one group; they alone are relevant in that
    row, while the list stays as it is.

    Args:
        recommended: [b, K], -1 after the end of a list.
        targets: of the batch.
        group_of_item: [V].
        num_groups: G.
        ks: cut-offs.
        lists: values of each query's list, [b] each, whatever its targets.
        likelihoods: values of each target, [M] each, averaged over targets.
        first_owner: number of the batch's first query.
    """
    target_keys = targets.rows * num_groups + group_of_item[targets.item_ids]
    rows, target_row = np.unique(target_keys, return_inverse=True)
    owners, groups = rows // num_groups, rows % num_groups
    relevant_item = targets.relevant % targets.num_items
    relevant_keys = targets.relevant // targets.num_items * num_groups
    relevant_row = np.searchsorted(rows, relevant_keys + group_of_item[relevant_item])
    num_relevant = np.bincount(relevant_row, minlength=len(rows))
    group_of_hit = group_of_item[recommended][owners]
    hits = targets.hits(recommended)[owners] & (group_of_hit == groups[:, None])

    columns: list[tuple[str, Floats, Floats]] = []
    defined = (num_relevant > 0).astype(np.float64)
    for name, metric in RANKING_METRICS.items():
        values = metric(hits, np.maximum(num_relevant, 1), ks) * defined[:, None]
        columns += [(f"{name}@{k}", values[:, c], defined) for c, k in enumerate(ks)]
    has_list = (recommended[owners, 0] >= 0).astype(np.float64)
    columns += [(name, values[owners] * has_list, has_list) for name, values in lists.items()]
    num_targets = np.bincount(target_row, minlength=len(rows)).astype(np.float64)
    for name, values in likelihoods.items():
        total: Floats = np.bincount(target_row, weights=values, minlength=len(rows)).astype(
            np.float64
        )
        columns.append((name, total, num_targets))
    return MetricSums(
        owners + first_owner,
        groups,
        tuple(name for name, _, _ in columns),
        np.stack([values for _, values, _ in columns], axis=1),
        np.stack([weight for _, _, weight in columns], axis=1),
    )


def _ratio(numerators: Floats, denominators: Floats) -> Floats:
    safe = np.where(denominators > 0, denominators, 1.0)
    return np.where(denominators > 0, numerators / safe, np.nan)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
