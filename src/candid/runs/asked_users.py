"""The users that a bulk recommendation answers, and those that it leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from candid.data import Role, held_out_users
from candid.data.lookup import unknown_user, with_advice
from candid.errors import ConfigError, DataError
from candid.runs.saved_model import SavedModel
from candid.runs.source_ids import SourceIds, dense_ids_or_unknown, typed_ids


@dataclass(frozen=True)
class AskedUsers:
    """The users of a bulk recommendation.

    Attributes:
        source_ids: of the users to recommend to, in the order of their lists.
        without_history: number of users left out because the model needs a history.
        without_target: number of users left out because they have no target of the split.
    """

    source_ids: pl.Series
    without_history: int = 0
    without_target: int = 0


def asked_users(
    model: SavedModel,
    users: SourceIds | None,
    role: Role | None,
    *,
    has_fallback: bool,
) -> AskedUsers:
    """Return the users that a bulk recommendation answers.

    Args:
        model: a run or a fitted baseline.
        users: source ids; None: all users of the dataset.
        role: of the targets whose users are asked about; None: all users.
        has_fallback: whether users without a history, or unknown ones, have a list of a fallback.

    Raises:
        DataError: a user is of another type, or unknown without a fallback or with a role.
        ConfigError: a named user has no history, which the model needs.
    """
    dataset, known = model.dataset, model.dataset.users["source_id"]
    needs_history = model.model.needs_history and not has_fallback
    stops, is_asked = dataset.user_offsets[1:], np.ones(dataset.num_users, dtype=np.bool_)
    if role is not None:
        targets = held_out_users(dataset, role)
        stops = stops.copy()
        stops[targets.user_ids] = targets.history_stop
        is_asked[:] = False
        is_asked[targets.user_ids] = True
    has_history = stops > dataset.user_offsets[:-1]
    if users is None:
        is_answered = is_asked & (has_history | (not needs_history))
        without_history, without_target = is_asked & ~is_answered, ~is_asked
        return AskedUsers(
            known.filter(pl.Series(is_answered)),
            int(without_history.sum()),
            int(without_target.sum()),
        )
    chosen = distinct_ids(users, known, "user")
    if has_fallback and role is None:
        return AskedUsers(chosen)
    user_ids, chosen = dense_ids_or_unknown(known, chosen, "user")
    if (user_ids < 0).any():
        sentence = unknown_user(dataset, str(chosen[int((user_ids < 0).argmax())]))
        advice = "or add a fallback (--fallback popular)"
        if role is not None:
            advice = "with split (--split), only users of the dataset have a list"
        raise DataError(with_advice(sentence, advice))
    without = user_ids[is_asked[user_ids] & ~has_history[user_ids]]
    if needs_history and len(without):
        raise ConfigError(
            f"user {known[int(without[0])]!r} has no history and the model needs one: leave the "
            "user out, or add a fallback (--fallback popular)"
        )
    is_asked = is_asked[user_ids]
    return AskedUsers(known[user_ids[is_asked]], without_target=int((~is_asked).sum()))


def distinct_ids(ids: SourceIds, source_ids: pl.Series, kind: str) -> pl.Series:
    """Return each id once, in the order of first occurrence and in the type of the dataset."""
    return typed_ids(ids, source_ids.dtype, kind).unique(maintain_order=True)
