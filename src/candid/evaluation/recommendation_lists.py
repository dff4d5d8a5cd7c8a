"""Given lists of recommended items, of any system, and their evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from candid.batches import Ints, ranges
from candid.data import PreparedDataset, Role
from candid.data.source_ids import match_ids
from candid.errors import ConfigError, DataError
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.evaluation_pass import EvaluationPass
from candid.evaluation.metrics import Bools, Floats
from candid.evaluation.queries import catalog_mask, counts_or_stored, select_queries
from candid.evaluation.report import EvaluationReport
from candid.index import Exclusions, SearchResult
from candid.inference import StageProgress

USER: Final = "query"
"""Column with the source id of the user, as ``Run.recommend`` writes it."""
ITEM: Final = "item"
ORDERS: Final = ("rank", "score")
"""Columns that order a list: the lowest rank first, without ranks the highest score."""
NUMBERS: Final = (pl.Boolean, pl.String, pl.Null)
"""Types that ranks and scores may have beside numeric ones."""


@dataclass(frozen=True)
class RecommendationLists:
    """Lists of recommended items of the U users of a dataset, best first.

    Attributes:
        item_ids: [M] int64, packed by user; -1 for an item that the dataset does not have.
        groups: [M] int64, number of the tied group of each item within its list, from 0,
            ascending. An item that the dataset does not have is a group of its own.
        offsets: [U + 1] int64; the list of user u is ``offsets[u]:offsets[u + 1]``.
        unknown_users: number of users in the lists that the dataset does not have.
        unknown_items: number of rows with an item that the dataset does not have.
    """

    item_ids: Ints
    groups: Ints
    offsets: Ints
    unknown_users: int
    unknown_items: int

    @classmethod
    def of(
        cls, frame: pl.DataFrame, dataset: PreparedDataset, is_ranked: Bools | None = None
    ) -> RecommendationLists:
        """Read lists from a frame with one row per recommendation, in any order.

        The rank, or without ranks the score, gives the order only: gaps have no meaning. Equal
        values are ties. An item that the dataset does not have keeps its place; among ties it
        comes first. Rows of users that the dataset does not have are left out.

        Args:
            frame: columns ``query``, ``item``, and ``rank`` or ``score``.
            dataset: with the users and items.
            is_ranked: [V] bool, items that lists may contain; others are removed, and those below
                them move up. None: all.

        Raises:
            DataError: there are no rows; a column is missing or nested; a value is missing or not a
                number; an item is twice in one list; or no user or no item is known.
        """
        rows = _checked(frame)
        users = _dense(rows[USER], dataset.users["source_id"])
        items = _dense(rows[ITEM], dataset.items["source_id"])
        is_known = users >= 0
        unknown_users = rows[USER].filter(pl.Series(~is_known)).n_unique()
        _check_any("user", rows[USER], is_known, dataset.users["source_id"])
        _check_any("item", rows[ITEM], items >= 0, dataset.items["source_id"])
        _check_repeats(rows.filter(pl.Series(is_known)))
        if is_ranked is not None:
            is_known &= (items < 0) | is_ranked[items]
        users, items = users[is_known], items[is_known]
        keys = rows["order"].to_numpy()[is_known]
        order = np.lexsort((items >= 0, keys, users))
        users, items, keys = users[order], items[order], keys[order]
        is_first = np.ones(len(users), dtype=np.bool_)
        is_first[1:] = (
            (users[1:] != users[:-1]) | (keys[1:] != keys[:-1]) | (items[1:] < 0) | (items[:-1] < 0)
        )
        lengths = np.bincount(users, minlength=dataset.num_users)
        offsets = np.append(0, np.cumsum(lengths)).astype(np.int64)
        numbers = np.append(np.cumsum(is_first), 0)
        groups = numbers[:-1] - np.repeat(numbers[offsets[:-1]], lengths)
        return cls(items, groups, offsets, unknown_users, int((items < 0).sum()))

    def lengths(self, user_ids: Ints) -> Ints:
        """Return the number of items in the list of each user [n]: [n] int64."""
        return self.offsets[user_ids + 1] - self.offsets[user_ids]


class ListScores:
    """The lists of b users as scores of the catalog: minus the number of the tied group.

    Args:
        lists: of all users.
        user_ids: [b] int64.
        num_items: number of ranked items.
    """

    def __init__(self, lists: RecommendationLists, user_ids: Ints, num_items: int) -> None:
        self.num_items, self.device = num_items, torch.device("cpu")
        lengths = lists.lengths(user_ids)
        shape = (len(user_ids), int(lengths.max(initial=0)))
        packed = ranges(lists.offsets[user_ids], lengths)
        cells = np.arange(shape[1]) < lengths[:, None]
        self.item_ids = np.full(shape, -1, dtype=np.int64)
        self.scores = np.full(shape, -np.inf, dtype=np.float32)
        self.item_ids[cells] = lists.item_ids[packed]
        self.scores[cells] = -lists.groups[packed]

    def search(
        self, k: int, exclude: Exclusions | None, *, with_log_partition: bool
    ) -> tuple[SearchResult, Tensor | None]:
        """Return the first k ranks of each list as given; ``exclude`` changes nothing."""
        missing = max(k - self.item_ids.shape[1], 0)
        ids = np.pad(self.item_ids[:, :k], ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(self.scores[:, :k], ((0, 0), (0, missing)), constant_values=-np.inf)
        return SearchResult(torch.from_numpy(ids), torch.from_numpy(scores)), None

    def equal_scores(
        self, rows: Ints, scores: Tensor, exclude: Exclusions | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the items of one tied group of each of some lists."""
        is_member = (self.scores[rows] == scores.numpy()[:, None]) & (self.item_ids[rows] >= 0)
        row, column = np.nonzero(is_member)
        item_ids, position = np.unique(self.item_ids[rows][row, column], return_inverse=True)
        is_equal = np.zeros((len(rows), len(item_ids)), dtype=np.bool_)
        is_equal[row, position] = True
        yield torch.from_numpy(item_ids), torch.from_numpy(is_equal)

    def target_nll(self, target_rows: Tensor, target_ids: Tensor, log_z: Tensor) -> Tensor:
        """Refuse: a list has no likelihood."""
        raise NotImplementedError("given lists have no likelihood")


def evaluate_lists(
    recommendations: pl.DataFrame,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    *,
    role: Role = Role.TEST,
    item_counts: Floats | None = None,
    progress: StageProgress | None = None,
) -> EvaluationReport:
    """Evaluate given lists on every user with targets of ``role``, as ``evaluate`` does.

    A list is measured as it is: ranks after its end have no item, and a seen item keeps its rank.
    A user without a list counts with 0. There is no NLL.

    Args:
        recommendations: as for ``RecommendationLists.of``.
        dataset: the prepared dataset with the targets.
        config: metrics, users and items of the evaluation. With ``filter_seen`` a target that is
            in the user's history is not relevant.
        role: whose targets are predicted, ``Role.VALIDATION`` or ``Role.TEST``.
        item_counts: as for ``evaluate``.
        progress: called with (stage, done, total) after each batch of users.

    Returns:
        the report; ``counts`` also has ``users_without_list``, ``short_lists`` (of users that
        have a list of fewer items than the largest k), ``unknown_users``, and ``unknown_items``
        (rows).

    Raises:
        DataError: as for ``RecommendationLists.of``; or there are no targets.
        ConfigError: a cut-off k is larger than the catalog, or intra-list diversity is to be
            reported and ``config`` has no attribute for its distances.
    """
    if "intra_list_diversity" in config.metrics and config.diversity_attribute is None:
        raise ConfigError(
            "intra_list_diversity of given lists needs an item attribute, because they have no "
            "item vectors: set evaluation.diversity_attribute"
        )
    counts = counts_or_stored(dataset, item_counts)
    is_ranked = catalog_mask(dataset, counts, config.catalog)
    config.check_fits(int(is_ranked.sum()))
    config = config.model_copy(update={"nll": False})
    queries = select_queries(
        dataset,
        role,
        needs_history=False,
        max_users=config.max_users,
        seed=config.seed,
        catalog=config.catalog,
        item_counts=counts,
    )
    lists = RecommendationLists.of(recommendations, dataset, is_ranked)
    evaluation = EvaluationPass(is_ranked, dataset, config, queries, counts, None, None)
    user_ids = queries.held_out.user_ids
    for begin in range(0, len(user_ids), config.batch_size):
        rows = slice(begin, min(begin + config.batch_size, len(user_ids)))
        evaluation.add_batch(rows, ListScores(lists, user_ids[rows], int(is_ranked.sum())))
        if progress is not None:
            progress("evaluating users", rows.stop, len(user_ids))
    report = evaluation.report(role, None, "interactions" if item_counts is None else "targets")
    lengths = lists.lengths(user_ids)
    found = {
        "users_without_list": int((lengths == 0).sum()),
        "short_lists": int(((lengths > 0) & (lengths < config.ks[-1])).sum()),
        "unknown_users": lists.unknown_users,
        "unknown_items": lists.unknown_items,
    }
    return replace(report, counts={**report.counts, **found})


def _checked(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``query``, ``item`` and ``order``, the lower the better, without missing values."""
    by = next((name for name in ORDERS if name in frame.columns), None)
    if missing := [name for name in (USER, ITEM) if name not in frame.columns]:
        raise DataError(
            f"the recommendations have no column {missing[0]!r}: rename the column of the "
            f"{'users' if missing[0] == USER else 'items'} to it; columns: "
            f"{', '.join(frame.columns)}"
        )
    if by is None:
        raise DataError(
            "the recommendations have neither a column 'rank' nor 'score': add one of them, "
            f"which orders each list; columns: {', '.join(frame.columns)}"
        )
    for name in (USER, ITEM, by):
        _check_values(name, frame[name].dtype, is_number=name == by)
    if frame.is_empty():
        raise DataError("the recommendations have no rows: give one row for each item of a list")
    order = pl.col(by).cast(pl.Float64, strict=False).fill_nan(None)
    rows = frame.select(USER, ITEM, (order if by == "rank" else -order).alias("order"))
    for name, column in ((USER, USER), (ITEM, ITEM), (by, "order")):
        if rows[column].null_count():
            row = int(rows[column].is_null().arg_max() or 0)
            value = frame[name][row]
            what = "is missing" if value is None else f"is {value!r}, which is not a number"
            raise DataError(
                f"{name} in row {row + 1} of the recommendations {what}: correct or remove the row"
            )
    return rows


def _check_values(name: str, dtype: pl.DataType, *, is_number: bool) -> None:
    if dtype.is_nested():
        held = "records" if isinstance(dtype, pl.Struct) else "lists"
        raise DataError(
            f"column {name!r} of the recommendations holds {held}: write one row for each item"
        )
    if is_number and not (dtype.is_numeric() or dtype in NUMBERS):
        raise DataError(
            f"column {name!r} of the recommendations is of type {dtype}: convert it to numbers"
        )


def _dense(ids: pl.Series, source_ids: pl.Series) -> Ints:
    """Return the dense id of each source id [n], -1 for unknown ones: [n] int64."""
    known = pl.DataFrame({"id": source_ids, "dense": np.arange(len(source_ids), dtype=np.int64)})
    asked = pl.DataFrame({"id": match_ids(ids, source_ids.dtype)})
    joined = asked.join(known, on="id", how="left", maintain_order="left")
    return joined["dense"].fill_null(-1).to_numpy().astype(np.int64)


def _check_any(kind: str, ids: pl.Series, is_known: Bools, source_ids: pl.Series) -> None:
    if not is_known.any():
        raise DataError(
            f"the dataset has no {kind} of the recommendations, such as {ids[0]!r}: give "
            f"{kind} ids as they are in the data, such as {source_ids[0]!r}"
        )


def _check_repeats(rows: pl.DataFrame) -> None:
    is_repeated = rows.select(USER, ITEM).is_duplicated()
    if is_repeated.any():
        user, item = rows.select(USER, ITEM).row(int(is_repeated.arg_max() or 0))
        raise DataError(
            f"item {item!r} is twice in the list of user {user!r}: keep one row of each item of a "
            "list"
        )
