"""Which questions an evaluation asks, what counts as an answer, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from candid.batches import Ints, offsets_of, ranges
from candid.data import HeldOut, PreparedDataset, Role, held_out
from candid.errors import DataError
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.item_subset import Ranked, is_ranked
from candid.evaluation.metrics import Bools
from candid.index import Exclusions


@dataclass(frozen=True)
class EvaluationQueries:
    """The queries of an evaluation with their histories.

    Attributes:
        held_out: Q queries, each with at least one target.
        history_lengths: [Q] whole histories, not cut to what a model reads.
        user_is_trained: [Q] whether the user has an interaction that is trained on.
        counts: what was asked and what was left out, by name.
    """

    held_out: HeldOut
    history_lengths: Ints
    user_is_trained: Bools
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.held_out)


def select(
    dataset: PreparedDataset,
    role: Role,
    *,
    needs_history: bool,
    max_users: int | None,
    seed: int,
    catalog: Ranked = "all",
) -> EvaluationQueries:
    """Collect the questions of ``role``.

    Args:
        dataset: the prepared dataset.
        role: whose targets are asked for.
        needs_history: skip (and count) users without a history.
        max_users: a random sample of so many of the rest; None: all.
        seed: of the sample.
        catalog: which part of the catalog is asked for; users without a target in it are left
            out, and a history still ends before the user's first target of any part.

    Raises:
        DataError: nothing can be asked.
    """
    everything = held_out(dataset, role)
    if len(everything) == 0:
        raise DataError(
            f"the dataset has no {role.name.lower()} targets: choose another role or a split "
            "that holds some out"
        )
    if catalog != "all":
        everything = _within(everything, is_ranked(dataset.train_counts, catalog))
        if len(everything) == 0:
            raise DataError(
                f"the dataset has no {role.name.lower()} target among its {catalog} items: set "
                'evaluation.catalog = "all"'
            )
    lengths = everything.history_stop - dataset.user_offsets[everything.user_ids]
    asked = np.flatnonzero(lengths > 0) if needs_history else np.arange(len(everything))
    if len(asked) == 0:
        raise DataError(
            f"no user with a {role.name.lower()} target has a history before it, and the model "
            "answers only from histories: choose another split"
        )
    skipped = len(everything) - len(asked)
    if max_users is not None and max_users < len(asked):
        chosen = np.random.default_rng(seed).choice(len(asked), max_users, replace=False)
        asked = asked[np.sort(chosen)]
    questions = _subset(everything, asked)
    trained = dataset.user_is_trained[questions.user_ids]
    warm_target = dataset.train_counts[questions.target_ids] > 0
    counts = {
        "users_with_targets": len(everything),
        "users_without_history": skipped,
        "users": len(asked),
        "cold_users": int((~trained).sum()),
        "targets": len(questions.target_ids),
        "cold_targets": int((~warm_target).sum()),
        "cold_target_items": len(np.unique(questions.target_ids[~warm_target])),
        "items": dataset.num_items,
        "cold_items": int((dataset.train_counts == 0).sum()),
    }
    return EvaluationQueries(questions, lengths[asked].astype(np.int64), trained, counts)


def _subset(questions: HeldOut, rows: Ints) -> HeldOut:
    lengths = np.diff(questions.target_offsets)[rows]
    return HeldOut(
        user_ids=questions.user_ids[rows],
        history_stop=questions.history_stop[rows],
        target_ids=questions.target_ids[ranges(questions.target_offsets[rows], lengths)],
        target_offsets=offsets_of(lengths),
    )


def _within(questions: HeldOut, chosen: Bools) -> HeldOut:
    """The targets among ``chosen`` [V], and the questions that have any."""
    kept = chosen[questions.target_ids]
    owners = np.repeat(np.arange(len(questions)), np.diff(questions.target_offsets))
    counts = np.bincount(owners[kept], minlength=len(questions))
    asked = counts > 0
    return HeldOut(
        user_ids=questions.user_ids[asked],
        history_stop=questions.history_stop[asked],
        target_ids=questions.target_ids[kept],
        target_offsets=offsets_of(counts[asked]),
    )


def seen(dataset: PreparedDataset, questions: HeldOut, rows: slice) -> Exclusions:
    """What some queries have seen, of their whole histories; see ``seen_between``."""
    starts = dataset.user_offsets[questions.user_ids[rows]]
    return seen_between(dataset, starts, questions.history_stop[rows])


def seen_between(dataset: PreparedDataset, starts: Ints, stops: Ints) -> Exclusions:
    """Items that must not be recommended because they were chosen before (on the CPU).

    Where interactions are of several kinds, those of a kind that is never a target do not
    count: what was only viewed may still be bought.

    Args:
        dataset: the prepared dataset.
        starts: [b], where in its interactions each history begins.
        stops: [b], where it ends.
    """
    lengths = stops - starts
    events, offsets = ranges(starts, lengths), offsets_of(lengths)
    is_target = dataset.is_target_event_type
    if is_target is not None and dataset.event_types is not None:
        counts = is_target[dataset.event_types[events]]
        events, offsets = events[counts], offsets_of(counts.astype(np.int64))[offsets]
    item_ids = dataset.item_ids[events].astype(np.int64)
    return Exclusions(torch.from_numpy(item_ids), torch.from_numpy(offsets))


def check_relevant(
    dataset: PreparedDataset, config: EvaluationConfig, role: Role, *, needs_history: bool
) -> None:
    """Refuse an evaluation in which no target can be recommended, before anything is encoded.

    Args:
        dataset: the prepared dataset.
        config: of the evaluation.
        role: whose targets are asked for.
        needs_history: as for ``select``.

    Raises:
        DataError: there is no question, or ``config.filter_seen`` hides every target.
    """
    questions = select(
        dataset,
        role,
        needs_history=needs_history,
        max_users=config.max_users,
        seed=config.seed,
        catalog=config.catalog,
    )
    if not config.filter_seen:
        return
    for begin in range(0, len(questions), config.batch_size):
        rows = slice(begin, min(begin + config.batch_size, len(questions)))
        hidden = seen(dataset, questions.held_out, rows)
        if len(targets_of(questions.held_out, rows, dataset.num_items, hidden).relevant):
            return
    raise nothing_relevant(role.name.lower(), questions.counts["targets"], config.metric)


def nothing_relevant(role: str, num_targets: int, metric: str) -> DataError:
    """The sentence for questions whose answers are all hidden."""
    return DataError(
        f"all {num_targets:,} {role} targets are already in their users' histories, which "
        f"evaluation.filter_seen hides, so that {metric} is of nothing: set "
        "evaluation.filter_seen = false"
    )


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of one batch of b queries.

    Attributes:
        rows: [M] ascending, the query of each target, 0..b-1.
        item_ids: [M]; an item that is a target twice stands here twice.
        relevant: [R] sorted distinct keys ``row · V + item`` of what a list should contain.
        num_items: V.
    """

    rows: Ints
    item_ids: Ints
    relevant: Ints
    num_items: int

    def hits(self, recommended: Ints) -> Bools:
        """Which of ``recommended`` [b, K] (-1: none) are relevant: [b, K] bool."""
        if len(self.relevant) == 0:
            return np.zeros(recommended.shape, dtype=np.bool_)
        keys = np.arange(len(recommended))[:, None] * self.num_items + recommended
        at = np.minimum(np.searchsorted(self.relevant, keys), len(self.relevant) - 1)
        found: Bools = (self.relevant[at] == keys) & (recommended >= 0)
        return found


def targets_of(
    questions: HeldOut, rows: slice, num_items: int, hidden: Exclusions | None
) -> Targets:
    """Collect the targets of some queries.

    Args:
        questions: all queries.
        rows: which.
        num_items: V.
        hidden: items that these queries have seen; a target among them can never be recommended, so
            it is not relevant. None: nothing is hidden.
    """
    bounds = questions.target_offsets[rows.start : rows.stop + 1]
    item_ids = questions.target_ids[bounds[0] : bounds[-1]]
    owners = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    relevant = np.unique(owners * num_items + item_ids)
    if hidden is not None:
        offsets = hidden.offsets.numpy()
        hidden_rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        taken = hidden_rows * num_items + hidden.item_ids.numpy()
        relevant = relevant[~_among(relevant, taken)]
    return Targets(owners, item_ids, relevant, num_items)


def _among(keys: Ints, others: Ints) -> Bools:
    """Which of ``keys`` occur in ``others``, both unordered."""
    if len(others) == 0:
        return np.zeros(len(keys), dtype=np.bool_)
    others = np.sort(others)
    at = np.minimum(np.searchsorted(others, keys), len(others) - 1)
    found: Bools = others[at] == keys
    return found
