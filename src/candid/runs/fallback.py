"""Fallbacks: popularity lists for users about whom a model has no information."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.batches import Ints
from candid.component import lookup
from candid.data import PreparedDataset, Role, held_out_users
from candid.errors import ConfigError
from candid.inference import Recommendations, query_set, recommend, score_rows
from candid.runs.source_ids import Attributes, SourceIds, dense_ids_or_unknown

FALLBACKS: Final[Mapping[str, str]] = {"popular": "popularity", "recent": "recent_popularity"}
"""The baseline of each fallback, with its default settings."""
MODEL: Final = "model"
"""Value of ``recommended_by`` for a list of the model."""

ADVICE: Final = 'or add a fallback (fallback="popular")'
"""End of the message about a user who would have a list of a fallback."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Recommender(Protocol):
    """What a fallback needs of a run or of a fitted baseline."""

    @property
    def dataset(self) -> PreparedDataset:
        """The dataset that the model was trained on."""
        ...

    @property
    def recommends_by_attributes(self) -> bool:
        """Whether the list of a user without a history follows attributes of the user."""
        ...

    @property
    def recommend_ids(self) -> Callable[..., Recommendations]:
        """Recommend in dense ids."""
        ...


class FallbackModel:
    """A popularity baseline that is asked for users without a history.

    Args:
        dataset: whose training targets are counted.
        name: in ``FALLBACKS``.

    Attributes:
        scores: [V] float32, below 0, the larger the better; equal counts are equal.

    Raises:
        ConfigError: there is no such fallback.
        DataError: the dataset has no training target.
    """

    def __init__(self, dataset: PreparedDataset, name: str) -> None:
        # Here, because only this function needs scipy.
        from candid.baselines import BASELINES, training_rows

        baseline = BASELINES[lookup(FALLBACKS, "fallback", name)]
        self.name = name
        self._dataset = dataset
        self._model = baseline.fit(training_rows(dataset), baseline.Config())
        query = query_set(dataset, histories=[[]], max_length=1).pack(slice(0, 1))
        self.scores: Floats = score_rows(self._model, query, dataset.num_items)[0].numpy()

    def top(self, k: int | None, is_allowed: Bools | None) -> tuple[Ints, Floats]:
        """Return the best items of a user without a history: ids and scores, [K].

        Args:
            k: number of items; None: 10, or all items of a smaller catalog.
            is_allowed: [V] bool, items that may be recommended; None: all.

        Raises:
            ConfigError: k is larger than the catalog, or no item is allowed.
        """
        found = recommend(
            self._model, self._dataset, histories=[[]], k=k, max_length=1, is_allowed=is_allowed
        )
        return found.item_ids[0], found.scores[0]


class FallbackModels:
    """The fallbacks of a dataset, each fitted once.

    Args:
        dataset: whose training targets are counted.
    """

    def __init__(self, dataset: PreparedDataset) -> None:
        self._dataset = dataset
        self._models: dict[str, FallbackModel] = {}

    def get(self, name: str) -> FallbackModel:
        """Return a fallback.

        Args:
            name: in ``FALLBACKS``.

        Raises:
            ConfigError: there is no such fallback.
            DataError: the dataset has no training target.
        """
        if name not in self._models:
            self._models[name] = FallbackModel(self._dataset, name)
        return self._models[name]


def has_information(
    model: Recommender,
    *,
    user_ids: Ints | None,
    histories: Sequence[Sequence[int] | Ints] | None,
    attributes: Sequence[Attributes] | None,
    role: Role | None = None,
) -> Bools:
    """Return the queries about whose user a model has information: [B] bool.

    These are users of the dataset with a history and anonymous users with a history; where the
    model recommends by attributes, also all users of the dataset, and anonymous users with some.

    Args:
        model: a run or a fitted baseline.
        user_ids: [B] dense ids of users, -1 for users that the dataset does not have.
        histories: of B anonymous users, instead of ``user_ids``.
        attributes: of the B anonymous users.
        role: as for ``candid.inference.recommend``.
    """
    dataset = model.dataset
    if user_ids is not None:
        stops = dataset.user_offsets[1:]
        if role is not None:
            targets = held_out_users(dataset, role)
            stops = stops.copy()
            stops[targets.user_ids] = targets.history_stop
        has_history = stops > dataset.user_offsets[:-1]
        return (user_ids >= 0) & (has_history[user_ids] | model.recommends_by_attributes)
    assert histories is not None
    known = np.array([len(history) > 0 for history in histories], dtype=np.bool_)
    if attributes is not None and model.recommends_by_attributes:
        known |= np.array([len(one) > 0 for one in attributes], dtype=np.bool_)
    return known


def recommend_or_fall_back(
    model: Recommender,
    fallback: FallbackModel,
    *,
    users: SourceIds | None = None,
    histories: Sequence[Sequence[int] | Ints] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    attributes: Sequence[Attributes] | None = None,
    k: int | None = None,
    is_allowed: Bools | None = None,
    role: Role | None = None,
    with_probabilities: bool = False,
    **settings: Any,
) -> Recommendations:
    """Recommend with a model where it has information about the user, else with a fallback.

    Args:
        model: a run or a fitted baseline.
        fallback: for the other queries.
        users: [B] source ids, also of users that the dataset does not have.
        histories: dense ids of the items of B anonymous users, instead of ``users``.
        history_times: as for ``recommend_ids`` of the model.
        attributes: of the B anonymous users.
        k: recommendations per query; None: 10, or all items of a smaller catalog.
        is_allowed: [V] bool, items that may be recommended; None: all.
        role: as for ``recommend_ids``.
        with_probabilities: as for ``recommend_ids``; the list of a fallback has NaN.
        settings: further arguments of ``recommend_ids``, for the model.

    Returns:
        all queries in their order, with ``recommended_by``. Users that the dataset does not have
        follow those of its user table.

    Raises:
        DataError: a source id is of another type than those of the dataset.
        ConfigError: as for ``recommend_ids``.
    """
    if (users is None) == (histories is None):
        raise ConfigError("give either users or histories to recommend to")
    if with_probabilities:
        settings["with_probabilities"] = True
    dataset, table = model.dataset, model.dataset.users
    user_ids = sources = None
    if users is not None:
        user_ids, sources = dense_ids_or_unknown(table["source_id"], users, "user")
    answered = has_information(
        model, user_ids=user_ids, histories=histories, attributes=attributes, role=role
    )
    rows = np.flatnonzero(answered)

    def selected(values: Sequence[Any] | None) -> Sequence[Any] | None:
        return None if values is None else [values[row] for row in rows.tolist()]

    lists = None
    if len(rows):
        lists = model.recommend_ids(
            user_ids=None if user_ids is None else user_ids[rows],
            histories=selected(histories),
            history_times=selected(history_times),
            attributes=selected(attributes),
            k=k,
            is_allowed=is_allowed,
            role=role,
            **settings,
        )
    top_ids, top_scores = fallback.top(
        k if lists is None else min(lists.item_ids.shape[1], dataset.num_items), is_allowed
    )
    width = len(top_ids) if lists is None else lists.item_ids.shape[1]
    item_ids = np.full((len(answered), width), -1, dtype=np.int64)
    scores = np.full((len(answered), width), -np.inf, dtype=np.float32)
    item_ids[:, : len(top_ids)], scores[:, : len(top_scores)] = top_ids, top_scores
    probabilities = np.full(item_ids.shape, np.nan) if with_probabilities else None
    if lists is not None:
        item_ids[rows], scores[rows] = lists.item_ids, lists.scores
        if probabilities is not None and lists.probabilities is not None:
            probabilities[rows] = lists.probabilities
    if user_ids is not None and sources is not None and (user_ids < 0).any():
        unknown = np.flatnonzero(user_ids < 0)
        user_ids = user_ids.copy()
        user_ids[unknown] = dataset.num_users + np.arange(len(unknown))
        others = sources.gather(unknown).to_frame("source_id")
        table = pl.concat([table.select("source_id"), others])
    return Recommendations(
        item_ids,
        scores,
        user_ids,
        table,
        dataset.items if lists is None else lists.items,
        probabilities=probabilities,
        recommended_by=pl.Series(np.where(answered, MODEL, fallback.name)),
    )
