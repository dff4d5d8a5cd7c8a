"""The queries of an evaluation, their relevant items, and counts of those that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from candid.batches import Ints
from candid.data import (
    HeldOutTargets,
    PreparedDataset,
    Role,
    held_out_users,
    targets_of_users,
)
from candid.errors import DataError
from candid.evaluation.config import CatalogPart, EvaluationConfig
from candid.evaluation.metrics import Bools, Floats
from candid.index import Exclusions
from candid.inference import seen_items


@dataclass(frozen=True)
class EvaluationQueries:
    """The queries of an evaluation with their targets and histories.

    Attributes:
        held_out: Q queries, each with at least one target.
        history_lengths: [Q] int64, lengths of the whole histories, not cut to what a model reads.
        user_is_trained: [Q] bool, whether the user has an interaction that is trained on.
        counts: numbers of users, targets and items by name, including those left out.
    """

    held_out: HeldOutTargets
    history_lengths: Ints
    user_is_trained: Bools
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.held_out)

    @property
    def num_population(self) -> int:
        """Number of users from whom those of the queries were sampled."""
        return num_population(self.counts)


def num_population(counts: Mapping[str, int]) -> int:
    """Return the number of users from whom the users of an evaluation were sampled."""
    return counts["users_with_targets"] - counts["users_without_history"]


def select_queries(
    dataset: PreparedDataset,
    role: Role,
    *,
    needs_history: bool,
    max_users: int | None,
    seed: int,
    catalog: CatalogPart,
    item_counts: Floats,
) -> EvaluationQueries:
    """Select the queries of ``role``.

    Args:
        dataset: the prepared dataset.
        role: whose targets are predicted, ``Role.VALIDATION`` or ``Role.TEST``.
        needs_history: skip (and count) users without a history.
        max_users: size of a random sample of the remaining users; None: all.
        seed: of the sample.
        catalog: part of the catalog whose items are targets; users without a target in it are
            left out, and a history still ends before the user's first target of any part.
        item_counts: [V], how often training has each item as a target; cold items have 0.

    Raises:
        DataError: there is no query.
    """
    # Targets are collected of the sampled users only: they may be a fraction of all interactions.
    users, is_target = held_out_users(dataset, role), None
    if len(users) == 0:
        raise DataError(
            f"the dataset has no {role.name.lower()} split: measure on another split, or prepare "
            "the data with a split.kind that holds interactions out"
        )
    if catalog != "all":
        is_target = catalog_mask(dataset, item_counts, catalog)
        users = held_out_users(dataset, role, is_target)
        if len(users) == 0:
            other = "cold" if catalog == "warm" else "all"
            raise DataError(
                f"the dataset has no {role.name.lower()} target among its {catalog} items: set "
                f'evaluation.catalog = "{other}"'
            )
    lengths = users.history_stop - dataset.user_offsets[users.user_ids]
    rows = np.flatnonzero(lengths > 0) if needs_history else np.arange(len(users))
    if len(rows) == 0:
        raise DataError(
            f"no user with a {role.name.lower()} target has a history before it, and the model "
            'needs one: set split.unit = "user" in a temporal split of sessions, mark their '
            "earlier interactions as history in a column split, choose another split, or train "
            "with batches.empty_histories = true"
        )
    num_with_targets, num_skipped = len(users), len(users) - len(rows)
    if max_users is not None and max_users < len(rows):
        sample = np.random.default_rng(seed).choice(len(rows), max_users, replace=False)
        rows = rows[np.sort(sample)]
    queries = targets_of_users(dataset, role, users[rows], is_target)
    user_is_trained = dataset.user_is_trained[queries.user_ids]
    is_cold_target = item_counts[queries.target_ids] == 0
    num_retired = 0 if dataset.retired_items is None else int(dataset.retired_items.sum())
    counts = {
        "users_with_targets": num_with_targets,
        "users_without_history": num_skipped,
        "users": len(rows),
        "cold_users": int((~user_is_trained).sum()),
        "targets": len(queries.target_ids),
        "cold_targets": int(is_cold_target.sum()),
        "cold_target_items": len(np.unique(queries.target_ids[is_cold_target])),
        "items": dataset.num_items - num_retired,
        "cold_items": int((item_counts == 0).sum()) - num_retired,
    }
    return EvaluationQueries(queries, lengths[rows].astype(np.int64), user_is_trained, counts)


def counts_or_stored(dataset: PreparedDataset, item_counts: Floats | None) -> Floats:
    """Return the counts that an evaluation uses: [V] float64.

    Args:
        dataset: the prepared dataset.
        item_counts: [V], how often training has each item as a target, as
            ``candid.batches.target_counts`` states it; None: the stored training interactions.

    Raises:
        DataError: the counts are not numbers, or not one for each item.
    """
    counts = dataset.train_counts
    if item_counts is not None:
        try:
            counts = np.asarray(item_counts, dtype=np.float64)
        except (TypeError, ValueError):
            raise DataError(
                "item_counts must hold numbers: give one count per item, shape "
                f"[{dataset.num_items}]"
            ) from None
    if counts.shape != (dataset.num_items,):
        raise DataError(
            f"item_counts has shape {list(counts.shape)}; it must have one count per item, shape "
            f"[{dataset.num_items}]"
        )
    return counts.astype(np.float64)


def catalog_mask(dataset: PreparedDataset, item_counts: Floats, part: CatalogPart) -> Bools:
    """Return which items belong to a part of the catalog: [V] bool, retired items to none.

    Args:
        dataset: the prepared dataset.
        item_counts: [V], how often training has each item as a target.
        part: "all" items, "warm" ones (with a count) or "cold" ones (with count 0).
    """
    is_warm: Bools = item_counts > 0
    if part == "warm":
        return is_warm
    mask = np.ones_like(is_warm) if part == "all" else ~is_warm
    return mask if dataset.retired_items is None else mask & ~dataset.retired_items


def seen_items_of(dataset: PreparedDataset, queries: HeldOutTargets, rows: slice) -> Exclusions:
    """Collect the items of the whole histories of some queries that count as seen."""
    starts = dataset.user_offsets[queries.user_ids[rows]]
    return seen_items(dataset, starts, queries.history_stop[rows])


def check_has_relevant(
    dataset: PreparedDataset,
    config: EvaluationConfig,
    role: Role,
    *,
    needs_history: bool,
    item_counts: Floats | None = None,
) -> EvaluationQueries:
    """Refuse the evaluation of a run that would say nothing, before anything is encoded.

    Args:
        dataset: the prepared dataset.
        config: of the evaluation.
        role: whose targets are predicted.
        needs_history: as for ``select_queries``.
        item_counts: as for ``evaluate``.

    Returns:
        the queries of the evaluation.

    Raises:
        DataError: there is no query, ``config.filter_seen`` hides every target, or all targets are
            cold and ``config.catalog`` is not "cold".
    """
    queries = select_queries(
        dataset,
        role,
        needs_history=needs_history,
        max_users=config.max_users,
        seed=config.seed,
        catalog=config.catalog,
        item_counts=counts_or_stored(dataset, item_counts),
    )
    num_targets = queries.counts["targets"]
    if config.catalog != "cold" and queries.counts["cold_targets"] == num_targets:
        raise DataError(
            f"all {num_targets:,} {role.name.lower()} targets are cold items, which training never "
            "has as a target: change the split or the item ids, or, for an item tower that reads "
            'attributes, set evaluation.catalog = "cold" to rank them among such items'
        )
    if not config.filter_seen:
        return queries
    for begin in range(0, len(queries), config.batch_size):
        rows = slice(begin, min(begin + config.batch_size, len(queries)))
        seen = seen_items_of(dataset, queries.held_out, rows)
        if len(targets_of(queries.held_out, rows, dataset.num_items, seen).relevant):
            return queries
    raise no_relevant_error(role.name.lower(), num_targets, config.metric)


def no_relevant_error(role: str, num_targets: int, metric: str) -> DataError:
    """Return the error for queries whose targets are all hidden."""
    return DataError(
        f"{metric} is undefined: all {num_targets:,} {role} targets are already in their users' "
        "histories and evaluation.filter_seen hides them; set evaluation.filter_seen = false"
    )


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one batch of b queries.

    Attributes:
        rows: [M] int64 ascending, the query of each target, 0..b-1.
        item_ids: [M] int64; an item that is a target twice occurs twice.
        relevant: [R] int64, sorted distinct keys ``row · V + item`` of the items that a list
            should contain.
        num_items: V.
    """

    rows: Ints
    item_ids: Ints
    relevant: Ints
    num_items: int

    def is_relevant(self, recommended: Ints) -> Bools:
        """Return which of ``recommended`` [b, K] (-1: no item) are relevant: [b, K] bool."""
        keys = np.arange(len(recommended))[:, None] * self.num_items + recommended
        return _is_among(keys, self.relevant) & (recommended >= 0)

    def is_listed(self, recommended: Ints) -> Bools:
        """Return which of ``relevant`` are in ``recommended`` [b, K] (-1: no item): [R] bool."""
        rows, columns = np.nonzero(recommended >= 0)
        keys = np.sort(rows * self.num_items + recommended[rows, columns])
        return _is_among(self.relevant, keys)


def targets_of(
    queries: HeldOutTargets, rows: slice, num_items: int, seen: Exclusions | None
) -> Targets:
    """Collect the targets of some queries.

    Args:
        queries: all queries.
        rows: which of them.
        num_items: V.
        seen: items that these queries have seen and lists leave out; a target among them is not
            relevant. None: lists leave out nothing.
    """
    bounds = queries.target_offsets[rows.start : rows.stop + 1]
    item_ids = queries.target_ids[bounds[0] : bounds[-1]]
    target_rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    relevant = np.unique(target_rows * num_items + item_ids)
    if seen is not None:
        offsets = seen.offsets.numpy()
        seen_rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        seen_keys = np.sort(seen_rows * num_items + seen.item_ids.numpy())
        relevant = relevant[~_is_among(relevant, seen_keys)]
    return Targets(target_rows, item_ids, relevant, num_items)


def _is_among(keys: Ints, sorted_keys: Ints) -> Bools:
    """Return which of ``keys`` (any shape) occur in ``sorted_keys`` [n]."""
    if len(sorted_keys) == 0:
        return np.zeros(keys.shape, dtype=np.bool_)
    positions = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    is_among: Bools = sorted_keys[positions] == keys
    return is_among
