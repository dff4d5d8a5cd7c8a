"""The state of an evaluation: metric sums over batches of queries, and their report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from candid.batches import Ints
from candid.data import HeldOutTargets, PreparedDataset, Role
from candid.distributed import Group
from candid.errors import DataError
from candid.evaluation.catalog_scores import CatalogScores
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.cut_groups import CutGroups, count_cut_groups
from candid.evaluation.intervals import Estimate
from candid.evaluation.item_metrics import ListMetrics
from candid.evaluation.metric_sums import MetricSums, concatenate, sum_metrics
from candid.evaluation.metrics import Bools, Floats
from candid.evaluation.queries import EvaluationQueries, Targets, seen_items_of, targets_of
from candid.evaluation.report import EvaluationReport, PerUser, Slice
from candid.evaluation.serendipity import Serendipity
from candid.evaluation.slices import Slicing, by_history_length, by_popularity, by_warmth
from candid.evaluation.ties import Coverage, RankedLists, RankedTargets
from candid.index import Exclusions

TrueLogProb = Callable[[HeldOutTargets], Floats]
"""Returns the true log P(target | user, history) of each of the M targets, [M] float64."""


@dataclass(frozen=True)
class _SlicedSums:
    """A slicing of target items and the metric sums of each batch under it."""

    slicing: Slicing
    batches: list[MetricSums]

    def concatenated(self) -> MetricSums:
        return concatenate(self.batches)


class EvaluationPass:
    """The state of one evaluation: the fixed inputs, and the sums over batches.

    Args:
        is_ranked: [V] bool, items that lists may contain.
        dataset: the prepared dataset.
        config: metrics, users and items of the evaluation.
        queries: with the targets.
        counts: [V], how often training has each item as a target.
        item_vectors: [V, D]; None: the model has no vectors.
        true_log_prob: of the targets, where they are known.
    """

    def __init__(
        self,
        is_ranked: Bools,
        dataset: PreparedDataset,
        config: EvaluationConfig,
        queries: EvaluationQueries,
        counts: Floats,
        item_vectors: Tensor | None,
        true_log_prob: TrueLogProb | None,
    ) -> None:
        self._dataset, self._config, self._queries = dataset, config, queries
        self._is_ranked = is_ranked
        self._list_metrics = ListMetrics(config, dataset, counts, item_vectors)
        self._serendipity: Serendipity | None = None
        if "serendipity" in config.metrics:
            self._serendipity = Serendipity.of(counts, int(is_ranked.sum()))
        self._coverage = Coverage(config.ks, dataset.num_items)
        self._true_log_prob = None if true_log_prob is None else true_log_prob(queries.held_out)
        targets = queries.held_out.target_ids
        if self._true_log_prob is not None and self._true_log_prob.shape != targets.shape:
            raise DataError(
                f"true log-probabilities have shape {list(self._true_log_prob.shape)}; they must "
                f"have one per target, shape [{len(targets)}]"
            )
        self._total = _SlicedSums(Slicing(("all",), np.zeros(len(counts), dtype=np.int64)), [])
        self._by_item_slice: dict[str, _SlicedSums] = {}
        if config.popularity_slices:
            popularity = by_popularity(counts, config.popularity_slices)
            self._by_item_slice["target_popularity"] = _SlicedSums(popularity, [])
        if 0 < queries.counts["cold_targets"] < queries.counts["targets"]:
            self._by_item_slice["target_warmth"] = _SlicedSums(by_warmth(counts), [])
        self._num_relevant = self._num_without_relevant = self._num_distinct = self._num_tied = 0

    def add_batch(self, rows: slice, scores: CatalogScores) -> None:
        """Add the metric sums of one batch of queries."""
        config, held_out = self._config, self._queries.held_out
        seen = seen_items_of(self._dataset, held_out, rows) if config.filter_seen else None
        targets = targets_of(held_out, rows, self._dataset.num_items, seen)
        exclude = None
        if seen is not None:
            exclude = Exclusions(seen.item_ids.to(scores.device), seen.offsets.to(scores.device))
        lists, ranked, list_values, log_z = self._rank(scores, exclude, targets)
        target_values: dict[str, Floats] = {}
        if log_z is not None:
            target_values = self._likelihoods(rows, scores, targets, log_z)
        for sums in (self._total, *self._by_item_slice.values()):
            sums.batches.append(
                sum_metrics(
                    ranked,
                    targets,
                    sums.slicing.groups,
                    num_groups=len(sums.slicing.labels),
                    ks=config.ks,
                    metrics=config.metrics,
                    serendipity=self._serendipity,
                    has_list=lists.has_items,
                    list_values=list_values,
                    target_values=target_values,
                    first_query=rows.start,
                )
            )
        num_items = self._dataset.num_items
        self._num_tied += int((ranked.sizes > 1).sum())
        self._num_relevant += len(targets.relevant)
        self._num_without_relevant += (
            rows.stop - rows.start - len(np.unique(targets.relevant // num_items))
        )
        self._num_distinct += len(np.unique(targets.rows * num_items + targets.item_ids))

    def add_processes(self, group: Group) -> None:
        """Add the sums of all processes, each of which has other batches."""
        if group.is_single:
            return
        for sums in (self._total, *self._by_item_slice.values()):
            sums.batches[:] = [sums.concatenated().of_all(group)]
        if "coverage" in self._config.metrics:
            self._coverage.add_processes(group)
        own = (
            self._num_relevant,
            self._num_without_relevant,
            self._num_distinct,
            self._num_tied,
        )
        counts = group.gather_counts(own)
        self._num_relevant, self._num_without_relevant, self._num_distinct, self._num_tied = map(
            sum, zip(*counts, strict=True)
        )

    def _rank(
        self, scores: CatalogScores, exclude: Exclusions | None, targets: Targets
    ) -> tuple[RankedLists, RankedTargets, dict[str, Floats], Tensor | None]:
        """Rank the items for one batch of queries, and add them to the coverage.

        Returns:
            the lists; the relevant items in their reach; by metric name one value per list [b];
            and the log partition of each query [b], if the NLL is reported.
        """
        depth = self._config.ks[-1]
        result, log_z = scores.search(
            min(depth + 1, scores.num_items), exclude, with_log_partition=self._config.nll
        )
        lists = RankedLists.of(result.item_ids.cpu().numpy(), result.scores.cpu().numpy(), depth)
        self._coverage.add_lists(lists)
        item_values = self._list_metrics.item_values
        groups = CutGroups.none(len(lists.scores), item_values)
        if lists.is_cut.any():
            groups = count_cut_groups(scores, lists, exclude, targets, item_values, self._coverage)
            lists = lists.with_sizes(np.flatnonzero(lists.is_cut), groups.sizes)
        ranked = RankedTargets.of(
            lists, targets.is_relevant(lists.item_ids), groups.rows, groups.item_ids
        )
        return lists, ranked, self._list_metrics.values(lists, groups.means), log_z

    def _likelihoods(
        self, rows: slice, scores: CatalogScores, targets: Targets, log_z: Tensor
    ) -> dict[str, Floats]:
        target_rows = torch.from_numpy(targets.rows).to(scores.device)
        target_ids = torch.from_numpy(targets.item_ids).to(scores.device)
        nll = scores.target_nll(target_rows, target_ids, log_z).cpu().numpy()
        if self._true_log_prob is None:
            return {"nll": nll}
        offsets = self._queries.held_out.target_offsets
        true_nll = -self._true_log_prob[offsets[rows.start] : offsets[rows.stop]]
        return {"nll": nll, "true_nll": true_nll, "excess_nll": nll - true_nll}

    def report(self, role: Role, max_length: int | None, item_counts: str) -> EvaluationReport:
        """Reduce the sums to a report.

        Args:
            role: of the targets.
            max_length: longest history that the model reads; None: given lists.
            item_counts: names what was counted.
        """
        config, queries = self._config, self._queries
        total = self._total.concatenated()
        metrics = dict(self._estimates(total, 1)[0])
        if "coverage" in config.metrics:
            coverage = self._coverage.values(self._is_ranked)
            for c, k in enumerate(config.ks):
                metrics[f"coverage@{k}"] = Estimate(float(coverage[c]))
        slices = {
            name: self._slices(
                sums.concatenated(), sums.slicing.labels, group_of_item=sums.slicing.groups
            )
            for name, sums in self._by_item_slice.items()
        }
        if config.history_slices:
            by_length = by_history_length(queries.history_lengths, config.history_slices)
            slices["history_length"] = self._query_slices(total, by_length)
        if 0 < queries.counts["cold_users"] < queries.counts["users"]:
            by_user = by_warmth(queries.user_is_trained.astype(np.int64))
            slices["user_warmth"] = self._query_slices(total, by_user)
        counts = queries.counts | {
            "targets_seen_before": self._num_distinct - self._num_relevant,
            "users_without_relevant": self._num_without_relevant,
            "users_ranked": len(queries) - self._num_without_relevant,
            "tied_targets": self._num_tied,
        }
        settings: dict[str, Any] = {
            "role": role.name.lower(),
            "max_length": max_length,
            "item_counts": item_counts,
            **config.model_dump(mode="json"),
        }
        return EvaluationReport(
            metrics=metrics,
            metric=config.metric,
            slices=slices,
            counts=counts,
            settings=settings,
            per_user=PerUser.of(queries.held_out.user_ids, total),
        )

    def _estimates(self, sums: MetricSums, num_groups: int) -> list[dict[str, Estimate]]:
        confidence = self._config.confidence if self._config.intervals else None
        return sums.estimates(num_groups, confidence=confidence)

    def _query_slices(self, total: MetricSums, slicing: Slicing) -> tuple[Slice, ...]:
        return self._slices(total.regrouped(slicing.groups), slicing.labels, group_of_item=None)

    def _slices(
        self, sums: MetricSums, labels: tuple[str, ...], *, group_of_item: Ints | None
    ) -> tuple[Slice, ...]:
        """Reduce a slicing of items (``group_of_item`` [V] given) or of queries."""
        held_out = self._queries.held_out
        num_queries = np.bincount(sums.groups, minlength=len(labels))
        if group_of_item is None:
            group_of_target = np.repeat(sums.groups, np.diff(held_out.target_offsets))
        else:
            group_of_target = group_of_item[held_out.target_ids]
        num_targets = np.bincount(group_of_target, minlength=len(labels))
        estimates: list[Mapping[str, Estimate]] = list(self._estimates(sums, len(labels)))
        slices = []
        for g, label in enumerate(labels):
            is_in_group = sums.groups == g
            per_user = PerUser(
                held_out.user_ids[sums.queries[is_in_group]],
                sums.names,
                sums.numerators[is_in_group],
                sums.denominators[is_in_group],
            )
            if num_queries[g]:
                slices.append(
                    Slice(
                        label=label,
                        queries=int(num_queries[g]),
                        targets=int(num_targets[g]),
                        metrics=estimates[g],
                        per_user=per_user,
                    )
                )
        return tuple(slices)
