"""Ranked lists with tied items, and the expectation over their orders.

Items of equal score form a tied group, and every order of a group is equally likely. A metric is
the expectation over these orders, in closed form: McSherry & Najork, "Computing Information
Retrieval Performance Measures Efficiently in the Presence of Tied Scores" (ECIR 2008). The ids of
items have no influence on it. Scores are tied if they are equal as float32, which is the score
that the search defines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from candid.batches import Ints, ranges
from candid.distributed import Group
from candid.evaluation.metrics import Bools, Floats, RankProbabilities


@dataclass(frozen=True, slots=True)
class RankedLists:
    """The first K ranks of b queries, divided into tied groups.

    Attributes:
        item_ids: [b, K] int64, best first, -1 after the end of a list, and in a given list at the
            place of an item that the catalog does not have. Inside a tied group the
            order has no meaning, and of a group that continues beyond rank K some items are
            missing.
        starts: [b, K] int64, the first rank of the item's group, from 0.
        sizes: [b, K] int64, the number of items in the group, those beyond rank K included.
        is_cut: [b] bool, whether the group at rank K continues beyond it.
        scores: [b, K] float32.
    """

    item_ids: Ints
    starts: Ints
    sizes: Ints
    is_cut: Bools
    scores: npt.NDArray[np.float32]

    @classmethod
    def of(cls, item_ids: Ints, scores: npt.NDArray[np.float32], k: int) -> RankedLists:
        """Divide search results into tied groups.

        Args:
            item_ids: [b, n] int64, best first, -1 after the end of a list.
            scores: [b, n] float32, -inf after the end.
            k: K; n is K + 1, or K if there are no more items.

        Returns:
            the lists; in rows of ``is_cut`` the size of the last group is not yet known, and
            ``sizes`` counts its items up to rank K.
        """
        has_next = scores.shape[1] > k
        is_cut = np.zeros(len(scores), dtype=np.bool_)
        if has_next:
            is_cut = (scores[:, k] == scores[:, k - 1]) & np.isfinite(scores[:, k])
        item_ids, scores = item_ids[:, :k], scores[:, :k]
        ranks = np.arange(k)
        begins = np.ones(scores.shape, dtype=np.bool_)
        begins[:, 1:] = scores[:, 1:] != scores[:, :-1]
        starts = np.maximum.accumulate(np.where(begins, ranks, 0), axis=1)
        ends = np.ones(scores.shape, dtype=np.bool_)
        ends[:, :-1] = begins[:, 1:]
        stops = np.where(ends, ranks + 1, k)[:, ::-1]
        stops = np.minimum.accumulate(stops, axis=1)[:, ::-1]
        return cls(item_ids, starts, stops - starts, is_cut, scores)

    @property
    def has_items(self) -> Bools:
        """Whether each list has an item: [b] bool."""
        present: Bools = np.any(self.item_ids >= 0, axis=1)
        return present

    def with_sizes(self, rows: Ints, sizes: Ints) -> RankedLists:
        """Set the size of the last group of some rows.

        Args:
            rows: [n] int64, rows of ``is_cut``.
            sizes: [n] int64.
        """
        filled = self.sizes.copy()
        is_last = self.starts[rows] == self.starts[rows, -1:]
        filled[rows] = np.where(is_last, sizes[:, None], filled[rows])
        return RankedLists(self.item_ids, self.starts, filled, self.is_cut, self.scores)

    def in_last_group(self) -> Bools:
        """Return which ranks belong to a group that continues beyond rank K: [b, K] bool."""
        is_last: Bools = (self.starts == self.starts[:, -1:]) & self.is_cut[:, None]
        return is_last

    def expected_values(self, values: Floats, cut_means: Floats) -> Floats:
        """Return the expectation of an item's value at each rank: the mean of the tied group.

        Args:
            values: [V] float64.
            cut_means: [b] float64, the mean over the group that continues beyond rank K; not read
                in other rows.

        Returns:
            [b, K] float64; 0 after the end of a list.
        """
        present = self.item_ids >= 0
        result: Floats = np.where(present, values[self.item_ids], 0.0)
        is_tied = present & (self.sizes > 1)
        if is_tied.any():
            groups = np.arange(len(result))[:, None] * result.shape[1] + self.starts
            sums = np.bincount(groups[is_tied], result[is_tied], minlength=result.size)
            result = np.where(is_tied, sums[groups] / self.sizes, result)
        if self.is_cut.any():
            result = np.where(self.in_last_group(), cut_means[:, None], result)
        return result


@dataclass(frozen=True, slots=True)
class RankedTargets:
    """The relevant items that some order of the ties puts into the first K ranks.

    Attributes:
        rows: [n] int64, the query of each, 0..b-1.
        item_ids: [n] int64.
        starts: [n] int64, the first rank of the item's group, from 0; below K.
        sizes: [n] int64, the number of items in the group.
    """

    rows: Ints
    item_ids: Ints
    starts: Ints
    sizes: Ints

    @classmethod
    def of(
        cls, lists: RankedLists, is_relevant: Bools, rows: Ints, item_ids: Ints
    ) -> RankedTargets:
        """Collect the relevant items of the lists, and those tied with the last rank.

        Args:
            lists: the lists, with all sizes.
            is_relevant: [b, K] bool.
            rows: [m] int64, the queries of relevant items that are in no list but belong to the
                group that continues beyond rank K.
            item_ids: [m] int64, these items.
        """
        in_list = np.nonzero(is_relevant)
        last = lists.item_ids.shape[1] - 1
        return cls(
            np.concatenate([in_list[0], rows]),
            np.concatenate([lists.item_ids[in_list], item_ids]),
            np.concatenate([lists.starts[in_list], lists.starts[rows, last]]),
            np.concatenate([lists.sizes[in_list], lists.sizes[rows, last]]),
        )


def rank_probabilities(
    rows: Ints, starts: Ints, sizes: Ints, *, num_rows: int, depth: int
) -> RankProbabilities:
    """Compute the probabilities of relevance at each rank, over the orders of tied items.

    With m relevant items among the n of a group, each rank of the group is relevant with
    probability m/n. The first relevant rank lies in the first group with a relevant item, at its
    i-th place (from 0) with the hypergeometric probability
    Π_{t<i} (n - m - t)/(n - t) · m/(n - i). Given that the item at place i is relevant, each other
    place of the group is relevant with probability (m - 1)/(n - 1).

    Args:
        rows: [n] int64, the row of each relevant item.
        starts: [n] int64, the first rank of its group, from 0, below ``depth``.
        sizes: [n] int64, the size of its group.
        num_rows: P.
        depth: K.

    Returns:
        probabilities [P, K].
    """
    keys, index, num_relevant = np.unique(
        rows * depth + starts, return_index=True, return_counts=True
    )
    group_sizes = sizes[index]
    lengths = np.minimum(group_sizes, depth - keys % depth)
    ranks = ranges(keys, lengths)
    share = np.repeat(num_relevant / group_sizes, lengths)
    relevant = np.zeros(num_rows * depth)
    relevant[ranks] = share

    first = np.zeros(num_rows * depth)
    is_first = np.ones(len(keys), dtype=np.bool_)
    is_first[1:] = keys[1:] // depth != keys[:-1] // depth

    # Relevant items of the earlier groups of the row: a sum over all rows, less that at its start.
    before = np.cumsum(num_relevant) - num_relevant
    before -= before[is_first][np.cumsum(is_first) - 1]
    other_share = (num_relevant - 1) / np.maximum(group_sizes - 1, 1)
    place = ranks - np.repeat(keys, lengths)
    up_to = np.zeros(num_rows * depth)
    up_to[ranks] = share * (
        np.repeat(before + 1, lengths) + place * np.repeat(other_share, lengths)
    )

    keys, lengths = keys[is_first], lengths[is_first]
    size, m = group_sizes[is_first][:, None], num_relevant[is_first][:, None]
    # Places after the end of a group are computed and dropped; the bounds prevent a division by 0.
    place = np.minimum(np.arange(lengths.max(initial=1)), size - 1)
    is_found = np.minimum(m / (size - place), 1.0)
    none_before = np.ones_like(is_found)
    none_before[:, 1:] = np.cumprod(1.0 - is_found[:, :-1], axis=1)
    mask = np.arange(is_found.shape[1]) < lengths[:, None]
    first[ranges(keys, lengths)] = (none_before * is_found)[mask]
    shape = (num_rows, depth)
    return RankProbabilities(relevant.reshape(shape), first.reshape(shape), up_to.reshape(shape))


class Coverage:
    """The expected share of the catalog that occurs in the first k ranks of any query.

    The orders of tied items are independent between queries, so an item is missing with the
    product over queries of 1 - P(item in the first k).

    Args:
        ks: C cut-offs, ascending.
        num_items: V.
    """

    def __init__(self, ks: tuple[int, ...], num_items: int) -> None:
        self._ks = ks
        self._missing = np.ones((len(ks), num_items))

    def add_lists(self, lists: RankedLists) -> None:
        """Add the items of lists, without groups that continue beyond the last rank."""
        present = (lists.item_ids >= 0) & ~lists.in_last_group()
        for c, k in enumerate(self._ks):
            chosen = present & (lists.starts < k)
            sure = chosen & (lists.starts + lists.sizes <= k)
            self._missing[c, lists.item_ids[sure]] = 0.0
            unsure = chosen & ~sure
            if unsure.any():
                share = (k - lists.starts[unsure]) / lists.sizes[unsure]
                np.multiply.at(self._missing[c], lists.item_ids[unsure], 1.0 - share)

    def add_groups(self, item_ids: Ints, members: Floats, starts: Ints, sizes: Ints) -> None:
        """Add groups that continue beyond the last rank, or a part of their items.

        Args:
            item_ids: [m] int64, distinct.
            members: [n, m] float64, 1 where an item belongs to the group of the query, else 0.
            starts: [n] int64, the first rank of each group, from 0.
            sizes: [n] int64.
        """
        share = np.clip(np.asarray(self._ks)[:, None] - starts, 0, None) / sizes
        self._missing[:, item_ids] *= np.exp(np.log1p(-share) @ members)

    def add_processes(self, group: Group) -> None:
        """Add the lists of all processes, each of which has other queries."""
        if not group.is_single:
            missing = group.gather_rows(
                torch.from_numpy(self._missing[None]), [1] * group.world_size, "gather of metrics"
            )
            self._missing = missing.numpy().prod(axis=0)

    def values(self, is_ranked: Bools) -> Floats:
        """Return the expected share of the ranked items [V] at each cut-off: [C]."""
        shares: Floats = (1.0 - self._missing[:, is_ranked]).mean(axis=1)
        return shares
