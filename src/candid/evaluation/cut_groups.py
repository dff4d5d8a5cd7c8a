"""Tied groups that continue beyond the last rank of a list: counted over the whole catalog.

Only lists whose last score equals the next one need this second pass over the catalog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from candid.batches import Ints, offsets_of, ranges
from candid.evaluation.catalog_scores import CatalogScores
from candid.evaluation.metrics import Floats
from candid.evaluation.queries import Targets
from candid.evaluation.ties import Coverage, RankedLists
from candid.index import Exclusions

ItemValues = Floats | npt.NDArray[np.float32]
"""Values of items, [V] or [V, D]."""
MAX_ROWS = 256
"""Largest number of queries counted at once."""
MAX_PAIRS = 2**27
"""Largest number of (query, item) pairs held at once, one byte each."""


@dataclass(frozen=True, slots=True)
class CutGroups:
    """The tied groups at the last rank of b lists that continue beyond it.

    Attributes:
        sizes: [n] int64, by query with such a group, in order.
        means: by name of an item value, [b, …] float64, the mean over the group; 0 in other rows.
        rows: [m] int64, the query of each relevant item that is in the group of its query and
            not in its list.
        item_ids: [m] int64, these items.
    """

    sizes: Ints
    means: dict[str, Floats]
    rows: Ints
    item_ids: Ints

    @classmethod
    def none(cls, num_queries: int, item_values: Mapping[str, ItemValues]) -> CutGroups:
        """Return the record of lists without such a group."""
        no_items = np.zeros(0, dtype=np.int64)
        return cls(no_items, _zeros(num_queries, item_values), no_items, no_items)


def count_cut_groups(
    scores: CatalogScores,
    lists: RankedLists,
    exclude: Exclusions | None,
    targets: Targets,
    item_values: Mapping[str, ItemValues],
    coverage: Coverage,
) -> CutGroups:
    """Count the tied groups that continue beyond the last rank, and add them to the coverage.

    Args:
        scores: of the b queries over the ranked items.
        lists: of the b queries.
        exclude: items that the lists leave out, or None.
        targets: of the b queries.
        item_values: by name, [V, …].
        coverage: receives the items of the groups.
    """
    cut = np.flatnonzero(lists.is_cut)
    relevant_rows, relevant_ids = np.divmod(targets.relevant, targets.num_items)
    is_missing = lists.is_cut[relevant_rows] & ~targets.is_listed(lists.item_ids)
    relevant_rows, relevant_ids = relevant_rows[is_missing], relevant_ids[is_missing]
    is_tied = np.zeros(len(relevant_rows), dtype=np.bool_)

    sizes = np.zeros(len(cut), dtype=np.int64)
    means = _zeros(len(lists.scores), item_values)
    starts = lists.starts[cut, -1]
    step = max(1, min(MAX_ROWS, MAX_PAIRS // scores.num_items))
    for begin in range(0, len(cut), step):
        rows = cut[begin : begin + step]
        chosen = slice(begin, begin + len(rows))
        last_scores = torch.from_numpy(lists.scores[rows, -1]).to(scores.device)
        blocks = [
            (ids.cpu().numpy(), is_equal.cpu().numpy())
            for ids, is_equal in scores.equal_scores(rows, last_scores, _of_rows(exclude, rows))
        ]
        # A group holds at least the items that the search found; another rounding of the float64
        # products must not contradict that.
        found = lists.item_ids.shape[1] + 1 - starts[chosen]
        counts = sum(is_member.sum(axis=1) for _, is_member in blocks)
        sizes[chosen] = np.maximum(counts, found)
        inside = np.flatnonzero((relevant_rows >= rows[0]) & (relevant_rows <= rows[-1]))
        local = np.searchsorted(rows, relevant_rows[inside])
        for item_ids, is_member in blocks:
            members = is_member.astype(np.float64)
            coverage.add_groups(item_ids, members, starts[chosen], sizes[chosen])
            for name, values in item_values.items():
                means[name][rows] += members @ values[item_ids]
            column = np.searchsorted(item_ids, relevant_ids[inside])
            column = np.minimum(column, len(item_ids) - 1)
            is_here = item_ids[column] == relevant_ids[inside]
            is_tied[inside] |= is_here & is_member[local, column]
    for mean in means.values():
        mean[cut] = (mean[cut].T / sizes).T
    return CutGroups(sizes, means, relevant_rows[is_tied], relevant_ids[is_tied])


def _zeros(num_queries: int, item_values: Mapping[str, ItemValues]) -> dict[str, Floats]:
    return {
        name: np.zeros((num_queries, *values.shape[1:])) for name, values in item_values.items()
    }


def _of_rows(exclude: Exclusions | None, rows: Ints) -> Exclusions | None:
    """Return the exclusions of some rows, renumbered from 0."""
    if exclude is None:
        return None
    offsets = exclude.offsets.cpu().numpy()
    lengths = np.diff(offsets)[rows]
    device = exclude.item_ids.device
    chosen = torch.from_numpy(ranges(offsets[rows], lengths)).to(device)
    return Exclusions(exclude.item_ids[chosen], torch.from_numpy(offsets_of(lengths)).to(device))
