"""Sums of the gradients of many draws, by group, over the items that draws ever touched.

A draw's gradient with respect to the logits is sparse: it touches the candidates, the head and
the positive. Items get a place in the sums when a draw first touches them; what is reported are
inner products of the groups' sums with each other and with the exact gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from candid.audit.estimators import Variant
from candid.audit.exact import ExactSoftmax
from candid.audit.gradients import Gradients, gradients
from candid.audit.moments import GROUPS, Moments
from candid.audit.sampler import exact_ids
from candid.audit.subject import Subject
from candid.losses.comparison import Comparison

CHUNK = 4096
"""Items of the sums that are multiplied at a time."""


class GradientSums:
    """Sums over the draws of a block of rows, for several variants.

    Args:
        subject: what is audited.
        exact: its full softmax.
        block: the rows.
        variants: corrections, A of them; columns are variant by variant, B rows each.
    """

    def __init__(
        self, subject: Subject, exact: ExactSoftmax, block: slice, variants: Sequence[Variant]
    ) -> None:
        self._variants = variants
        self._positive_ids = subject.positive_ids[block]
        self._query = subject.query[block].double()
        self._item_vectors = subject.item_vectors
        self._nll = exact.nll[block]
        self._log_partition = exact.log_partition[block]
        self._weight = exact.weight[block]
        self._exact_square = exact.square[block]
        self._width = len(variants) * len(self._positive_ids)
        self._place = torch.full((subject.num_items,), -1, dtype=torch.int64)
        self._num_placed = 0
        self._sums = torch.zeros(0, GROUPS, self._width, dtype=torch.float64)
        # Gradient of the positive, square, gap and effective number, in this order.
        self._scalars = torch.zeros(4, GROUPS, self._width, dtype=torch.float64)

    def add(self, group: int, comparison: Comparison) -> None:
        """Add the gradients of one draw."""
        found = gradients(comparison, self._variants)
        square = found.positive.flatten().square()
        drawn = comparison.sampled
        square = square + self._add_part(group, drawn.by_row(drawn.ids), found.candidates)
        if drawn.exact is not None and found.exact is not None:
            square = square + self._add_head(group, comparison, found)
        self._scalars[0, group] += found.positive.flatten()
        self._scalars[1, group] += square
        self._scalars[2, group] += (found.loss - self._nll).flatten()
        self._scalars[3, group] += found.effective.flatten()

    def moments(self, draws: int) -> list[Moments]:
        """Means over ``draws`` draws, dealt to the groups in turn: the moments of each variant."""
        counts = torch.tensor(
            [len(range(group, draws, GROUPS)) for group in range(GROUPS)], dtype=torch.float64
        )
        of_positive = self._scalars[0].T[:, :, None]
        gram = of_positive @ of_positive.mT
        projection = -self._weight.repeat(len(self._variants))[:, None] * of_positive[:, :, 0]
        placed = torch.nonzero(self._place >= 0)[:, 0]
        items = torch.empty_like(placed)
        items[self._place[placed]] = placed
        for begin in range(0, len(items), CHUNK):
            chunk = items[begin : begin + CHUNK]
            part = self._sums[begin : begin + len(chunk)].permute(2, 1, 0).contiguous()
            gram += part @ part.mT
            scores = self._query @ self._item_vectors[chunk].double().T
            exact = torch.exp(scores - self._log_partition[:, None])
            projection += (part @ exact.repeat(len(self._variants), 1)[:, :, None])[:, :, 0]
        gram /= counts[:, None] * counts
        projection /= counts
        _, square, gap, effective = (self._scalars / counts[:, None]).transpose(1, 2)
        num_rows = len(self._positive_ids)
        return [
            Moments(
                gram=gram[columns],
                projection=projection[columns],
                square=square[columns],
                gap=gap[columns],
                effective=effective[columns],
                exact_square=self._exact_square,
                draws=torch.full_like(self._positive_ids, draws),
            )
            for columns in (
                slice(begin, begin + num_rows) for begin in range(0, self._width, num_rows)
            )
        ]

    def _add_head(self, group: int, comparison: Comparison, found: Gradients) -> Tensor:
        exact = comparison.sampled.exact
        assert exact is not None
        assert found.exact is not None
        if all(part.ids.ndim == 1 for part in exact.parts):
            return self._add_part(group, exact.ids, found.exact)
        return self._add_part(group, exact_ids(exact, len(self._positive_ids)), found.exact)

    def _add_part(self, group: int, ids: Tensor, values: Tensor) -> Tensor:
        """Add values [A, B, M] of items [M] or [B, M]: their squared length [A·B].

        An item that comes several times has the sum of its values.
        """
        values = values.flatten(0, 1)
        if ids.ndim == 1:
            distinct, place = torch.unique(ids, return_inverse=True)
            together = values.new_zeros(self._width, len(distinct)).index_add_(1, place, values)
            rows = self._rows_of(distinct, group)
            self._sums.flatten(0, 1).index_add_(0, rows, together.T.contiguous())
            return together.square().sum(dim=1)
        ordered, order = ids.sort(dim=1)
        is_new = torch.ones_like(ids)
        is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        place = torch.empty_like(ids).scatter_(1, order, is_new.cumsum(dim=1) - 1)
        num_variants = len(self._variants)
        together = torch.zeros_like(values).scatter_add_(1, place.repeat(num_variants, 1), values)
        rows = self._rows_of(ids, group) * self._width
        columns = torch.arange(self._width).view(num_variants, -1, 1)
        self._sums.flatten().index_add_(0, (rows + columns).flatten(), values.flatten())
        return together.square().sum(dim=1)

    def _rows_of(self, ids: Tensor, group: int) -> Tensor:
        """The rows of the flattened sums for items in a group; new ones get a place."""
        place = self._place[ids]
        is_new = place < 0
        if bool(is_new.any()):
            new = torch.unique(ids[is_new])
            self._place[new] = torch.arange(self._num_placed, self._num_placed + len(new))
            self._num_placed += len(new)
            self._grow()
            place = self._place[ids]
        return place * GROUPS + group

    def _grow(self) -> None:
        size = len(self._sums)
        if self._num_placed > size:
            wanted = min(max(self._num_placed, 2 * size), len(self._place))
            grown = self._sums.new_zeros(wanted, *self._sums.shape[1:])
            grown[:size] = self._sums
            self._sums = grown
