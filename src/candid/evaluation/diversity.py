"""Intra-list diversity: the mean distance of the pairs of items in a list.

The distance of two items is 1 - cosine, of the model's item vectors or of the values of an item
attribute (one coordinate for each value, so that two items with one value each have distance 0 or
1). The mean over pairs needs no pairs: with unit vectors v, Σ_{i≠j} <v_i, v_j> = |Σ v|² - Σ |v|².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from candid.errors import ConfigError, UnknownNameError
from candid.evaluation.metrics import Floats
from candid.evaluation.ties import RankedLists
from candid.features import Bag

MAX_ATTRIBUTE_CELLS = 2**28
"""Largest number of items times values of an attribute, 4 bytes each."""
MAX_CELLS = 2**20
"""Largest number of coordinates of the items of lists held at once, 8 bytes each."""


class IntraListDiversity:
    """The expected intra-list diversity of lists, over the orders of tied items.

    Args:
        unit_vectors: [V, D] of length 1, or 0 for an item without a direction; its cosine with
            every item is 0.
        ks: cut-offs; those below 2 have no pair and are left out.

    Attributes:
        item_values: [V, D + 1] float32, the vectors and their squared length.
        ks: the cut-offs.
    """

    def __init__(self, unit_vectors: npt.NDArray[np.float32], ks: Sequence[int]) -> None:
        squares = np.square(unit_vectors).sum(axis=1, keepdims=True)
        self.item_values = np.concatenate([unit_vectors, squares], axis=1)
        self.ks = tuple(k for k in ks if k > 1)

    @classmethod
    def by_vectors(cls, item_vectors: Tensor, ks: Sequence[int]) -> IntraListDiversity:
        """Measure distances by item vectors [V, D]."""
        return cls(F.normalize(item_vectors.float(), dim=1).cpu().numpy(), ks)

    @classmethod
    def by_attribute(cls, items: pl.DataFrame, name: str, ks: Sequence[int]) -> IntraListDiversity:
        """Measure distances by the values of an item attribute.

        Args:
            items: V rows.
            name: column of text, of lists, or of integers; text is divided at "|".
            ks: cut-offs.

        Raises:
            ConfigError: no such column, a column of another type, or too many values.
        """
        if name not in items.columns:
            known = [column for column in items.columns if column != "source_id"]
            raise UnknownNameError("evaluation.diversity_attribute", name, known)
        column = items[name]
        if column.dtype.is_integer():
            column = column.cast(pl.String)
        if not (column.dtype == pl.String or isinstance(column.dtype, pl.List | pl.Array)):
            raise ConfigError(
                f"evaluation.diversity_attribute: {name!r} is of type {column.dtype}; name an "
                "attribute of text, lists or integers"
            )
        bags = Bag.Config(min_count=1).fit(column).encode(column)
        if len(items) * bags.num_codes > MAX_ATTRIBUTE_CELLS:
            raise ConfigError(
                f"evaluation.diversity_attribute: {name!r} has {bags.num_codes - 1:,} values, too "
                f"many for {len(items):,} items; name an attribute of fewer values"
            )
        rows = torch.arange(len(items)).repeat_interleave(bags.offsets.diff())
        counts = torch.zeros(len(items), bags.num_codes)
        counts.index_put_((rows, bags.ids), torch.ones(len(rows)), accumulate=True)
        return cls.by_vectors((counts > 0).float(), ks)

    def values(self, lists: RankedLists, cut_means: Floats) -> dict[str, Floats]:
        """Compute the metric of each list.

        Of a tied group of n items that begins after s ranks, t = k - s of them are in the first k:
        an item with probability t/n, two of them with t(t - 1)/(n(n - 1)).

        Args:
            lists: the first K ranks of b queries.
            cut_means: [b, D + 1], the mean of ``item_values`` over the group that continues
                beyond rank K; not read in other rows.

        Returns:
            ``intra_list_diversity@k`` -> [b]; NaN for a list of fewer than two items.
        """
        num_lists, depth = lists.item_ids.shape
        result = np.full((num_lists, len(self.ks)), np.nan)
        step = max(1, MAX_CELLS // ((depth + 1) * self.item_values.shape[1]))
        for begin in range(0, num_lists, step):
            rows = slice(begin, begin + step)
            sums = self._sums(lists.item_ids[rows])
            for c, k in enumerate(self.ks):
                result[rows, c] = _of_cut_off(lists, cut_means, rows, sums, k)
        return {f"intra_list_diversity@{k}": result[:, c] for c, k in enumerate(self.ks)}

    def _sums(self, item_ids: npt.NDArray[np.int64]) -> Floats:
        """Return the sums of ``item_values`` over the first 0, 1, …, K ranks: [b, K + 1, D + 1]."""
        shape = (len(item_ids), item_ids.shape[1] + 1, self.item_values.shape[1])
        sums = np.zeros(shape)
        values = self.item_values[item_ids]
        values[item_ids < 0] = 0.0
        np.cumsum(values, axis=1, dtype=np.float64, out=sums[:, 1:])
        return sums


def _of_cut_off(lists: RankedLists, cut_means: Floats, rows: slice, sums: Floats, k: int) -> Floats:
    """Return the diversity of some lists at one cut-off, from their sums [b, K + 1, D + 1]."""
    depth = sums.shape[1] - 1
    index = np.arange(len(sums))
    starts, sizes = lists.starts[rows, k - 1], lists.sizes[rows, k - 1]
    length = (lists.item_ids[rows, :k] >= 0).sum(axis=1)
    is_whole = (starts + sizes <= k) | ~np.isfinite(lists.scores[rows, k - 1])
    certain = sums[index, np.where(is_whole, k, starts)]
    group = sums[index, np.minimum(starts + sizes, depth)] - sums[index, starts]
    is_cut = lists.is_cut[rows] & (starts + sizes > depth)
    group = np.where(is_cut[:, None], cut_means[rows] * sizes[:, None], group)
    chosen = np.where(is_whole, 0, k - starts)
    one = chosen / sizes
    two = one * (chosen - 1) / np.maximum(sizes - 1, 1)
    products = (
        _pair_sum(certain)
        + 2 * one * (certain[:, :-1] * group[:, :-1]).sum(axis=1)
        + two * _pair_sum(group)
    )
    pairs = length * (length - 1)
    return np.where(pairs > 0, 1 - products / np.maximum(pairs, 1), np.nan)


def _pair_sum(sums: Floats) -> Floats:
    """Return Σ_{i≠j} <v_i, v_j> from the sums of vectors and squared lengths: [b]."""
    result: Floats = np.square(sums[:, :-1]).sum(axis=1) - sums[:, -1]
    return result
