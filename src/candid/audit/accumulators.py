"""Sums of the gradients of many repeats, by group, over the items that any repeat has touched.

The gradient of a repeat with respect to the logits is sparse: it touches the sampled candidates,
the exact candidates and the positive. An item gets a row in the sums when a repeat first touches
it. The results are inner products of the groups' sums with each other and with the exact
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.audit.audit_sampler import exact_ids
from candid.audit.full_softmax import FullSoftmaxReference
from candid.audit.gradients import gradients
from candid.audit.statistics import NUM_GROUPS, GroupMeans
from candid.candidates import ExactCandidates
from candid.losses.comparison import Comparison
from candid.losses.estimator import Estimator

CHUNK = 4096
"""Number of items of the sums that are multiplied at a time."""


class GradientAccumulator:
    """Sums over the repeats of a block of rows, for several estimators.

    Args:
        data: the audited model.
        exact: its full softmax.
        block: the rows.
        estimators: A estimators; the columns of the sums are ordered by estimator, B rows each.
    """

    def __init__(
        self,
        data: AuditInput,
        exact: FullSoftmaxReference,
        block: slice,
        estimators: Sequence[Estimator],
    ) -> None:
        self._estimators = estimators
        self._positive_ids = data.positive_ids[block]
        self._query = data.query[block].double()
        self._item_vectors = data.item_vectors
        self._nll = exact.nll[block]
        self._log_partition = exact.log_partition[block]
        self._sample_weight = exact.sample_weight[block]
        self._exact_squared_norm = exact.squared_norm[block]
        self._width = len(estimators) * len(self._positive_ids)
        # Row of each item in the sums; -1: not touched yet.
        self._row_of_item = torch.full((data.num_items,), -1, dtype=torch.int64)
        self._num_touched = 0
        self._sums = torch.zeros(0, NUM_GROUPS, self._width, dtype=torch.float64)
        self._log_others = self._log_partition + exact.sample_weight[block].log()
        # In this order: gradient of the positive, squared norm, loss gap, effective sample size,
        # Z' / Z and its square, where Z is without the positive.
        self._scalars = torch.zeros(6, NUM_GROUPS, self._width, dtype=torch.float64)

    def add(self, group: int, comparison: Comparison) -> None:
        """Add the gradients of one repeat to a group."""
        result = gradients(comparison, self._estimators, self._log_partition)
        squared_norm = result.positive.flatten().square()
        candidates = comparison.candidates
        squared_norm = squared_norm + self._add_part(
            group, candidates.by_row(candidates.ids), result.candidates
        )
        if candidates.exact is not None and result.exact is not None:
            ids = self._exact_ids(candidates.exact)
            squared_norm = squared_norm + self._add_part(group, ids, result.exact)
        self._scalars[0, group] += result.positive.flatten()
        self._scalars[1, group] += squared_norm
        self._scalars[2, group] += (result.loss - self._nll).flatten()
        self._scalars[3, group] += result.effective_sample_size.flatten()
        z_ratio = torch.exp(result.log_z - self._log_others)
        # Without other items there is nothing to estimate.
        z_ratio = z_ratio.masked_fill(self._log_others.isneginf(), 1.0).flatten()
        self._scalars[4, group] += z_ratio
        self._scalars[5, group] += z_ratio.square()

    def means(self, repeats: int) -> list[GroupMeans]:
        """Return the means of each estimator over ``repeats`` repeats.

        Args:
            repeats: number of repeats added so far; repeat i belongs to group i mod K.
        """
        counts = torch.tensor(
            [len(range(group, repeats, NUM_GROUPS)) for group in range(NUM_GROUPS)],
            dtype=torch.float64,
        )
        positive = self._scalars[0].T[:, :, None]
        gram = positive @ positive.mT
        projection = -self._sample_weight.repeat(len(self._estimators))[:, None] * positive[:, :, 0]
        touched = torch.nonzero(self._row_of_item >= 0)[:, 0]
        items = torch.empty_like(touched)
        items[self._row_of_item[touched]] = touched
        for begin in range(0, len(items), CHUNK):
            chunk = items[begin : begin + CHUNK]
            part = self._sums[begin : begin + len(chunk)].permute(2, 1, 0).contiguous()
            gram += part @ part.mT
            scores = self._query @ self._item_vectors[chunk].double().T
            exact = torch.exp(scores - self._log_partition[:, None])
            projection += (part @ exact.repeat(len(self._estimators), 1)[:, :, None])[:, :, 0]
        gram /= counts[:, None] * counts
        projection /= counts
        _, squared_norm, loss_gap, sample_size, z_ratio, z_square = (
            self._scalars / counts[:, None]
        ).transpose(1, 2)
        num_rows = len(self._positive_ids)
        return [
            GroupMeans(
                gram=gram[columns],
                projection=projection[columns],
                squared_norm=squared_norm[columns],
                loss_gap=loss_gap[columns],
                effective_sample_size=sample_size[columns],
                z_ratio=z_ratio[columns],
                z_square=z_square[columns],
                exact_squared_norm=self._exact_squared_norm,
                repeats=torch.full_like(self._positive_ids, repeats),
            )
            for columns in (
                slice(begin, begin + num_rows) for begin in range(0, self._width, num_rows)
            )
        ]

    def _exact_ids(self, exact: ExactCandidates) -> Tensor:
        if all(part.ids.ndim == 1 for part in exact.parts):
            return exact.ids
        return exact_ids(exact, len(self._positive_ids))

    def _add_part(self, group: int, ids: Tensor, values: Tensor) -> Tensor:
        """Add values [A, B, M] of items [M] or [B, M] and return their squared length [A·B].

        The values of an item that occurs several times are summed before squaring.
        """
        values = values.flatten(0, 1)
        if ids.ndim == 1:
            distinct, position = torch.unique(ids, return_inverse=True)
            summed = values.new_zeros(self._width, len(distinct)).index_add_(1, position, values)
            rows = self._sum_rows(distinct, group)
            self._sums.flatten(0, 1).index_add_(0, rows, summed.T.contiguous())
            return summed.square().sum(dim=1)
        ordered, order = ids.sort(dim=1)
        is_new = torch.ones_like(ids)
        is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        position = torch.empty_like(ids).scatter_(1, order, is_new.cumsum(dim=1) - 1)
        num_estimators = len(self._estimators)
        positions = position.repeat(num_estimators, 1)
        summed = torch.zeros_like(values).scatter_add_(1, positions, values)
        rows = self._sum_rows(ids, group) * self._width
        columns = torch.arange(self._width).view(num_estimators, -1, 1)
        self._sums.flatten().index_add_(0, (rows + columns).flatten(), values.flatten())
        return summed.square().sum(dim=1)

    def _sum_rows(self, ids: Tensor, group: int) -> Tensor:
        """Return the row of each item and group in the flattened sums; adds rows for new items."""
        row = self._row_of_item[ids]
        is_new = row < 0
        if bool(is_new.any()):
            new = torch.unique(ids[is_new])
            self._row_of_item[new] = torch.arange(self._num_touched, self._num_touched + len(new))
            self._num_touched += len(new)
            self._grow()
            row = self._row_of_item[ids]
        return row * NUM_GROUPS + group

    def _grow(self) -> None:
        size = len(self._sums)
        if self._num_touched > size:
            new_size = min(max(self._num_touched, 2 * size), len(self._row_of_item))
            grown = self._sums.new_zeros(new_size, *self._sums.shape[1:])
            grown[:size] = self._sums
            self._sums = grown
