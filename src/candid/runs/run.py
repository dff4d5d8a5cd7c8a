"""A trained run: its model, dataset and features, with methods to recommend and evaluate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor

from candid.batches import Ints, target_counts
from candid.config import RunConfig, validated
from candid.config.fallbacks import Fallback
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.evaluation import (
    EvaluationConfig,
    EvaluationReport,
    TrueLogProb,
    check_has_relevant,
    evaluate,
)
from candid.features import Context, Values
from candid.index import Index
from candid.inference import (
    NewItems,
    Recommendations,
    StageProgress,
    encode_catalog,
    inference_mode,
    query_set,
    recommend,
)
from candid.runs.fallback import ADVICE, FallbackModels, recommend_or_fall_back
from candid.runs.features import RunFeatures
from candid.runs.history_times import Time, history_times, query_time
from candid.runs.refit import check_is_measurable
from candid.runs.similar import SimilarItems
from candid.runs.source_ids import (
    Attributes,
    Histories,
    SourceIds,
    allowed_items,
    dense_ids,
    query_ids,
)
from candid.runs.splits import role_of
from candid.towers import RetrievalModel

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with its dataset, config and features.

    Methods take and return source ids: ids as the user's files have them. Item vectors are
    encoded once, on first use.

    Attributes:
        folder: the folder of the run.
        config: the resolved config.
        model: with the weights of the best validation (the last ones without a validation), in
            evaluation mode.
        dataset: the prepared dataset that the model was trained on; all interactions have the
            role of training after a refit.
        manifest: content of ``run.json``.
        features: features of users, items and context.

    Example:
        >>> run = candid.load_run("runs/films")
        >>> run.recommend(users=[12, 40], k=5)
        >>> run.recommend(histories=[[260, 1196]], deny=[1210])
        >>> run.similar([260])
    """

    folder: Path
    config: RunConfig
    model: RetrievalModel
    dataset: PreparedDataset
    manifest: dict[str, Any]
    features: RunFeatures

    def __repr__(self) -> str:
        return (
            f"Run({str(self.folder)!r}, name={self.config.name!r}, "
            f"users={self.dataset.num_users}, items={self.dataset.num_items})"
        )

    @property
    def evaluation(self) -> EvaluationConfig:
        """Settings of evaluations."""
        return self.config.evaluation

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return self.config.model_dump(mode="json")

    @property
    def has_vectors(self) -> bool:
        """Whether scores are products of query and item vectors: of every run."""
        return True

    @property
    def estimates_probability(self) -> bool:
        """Whether the softmax of the scores is a probability."""
        return self.config.loss.estimates_probability

    @cached_property
    def item_counts(self) -> npt.NDArray[np.float64]:
        """[V] float64, how often an epoch of the run's loader has each item as a target."""
        return target_counts(self.dataset, self.config.batches)

    @property
    def recommends_by_attributes(self) -> bool:
        """Whether the list of a user without a history follows attributes of the user."""
        reads_attributes = self.features.user is not None and self.model.reads_user_features
        return reads_attributes and not self.model.needs_history

    @property
    def reads_query_time(self) -> bool:
        """Whether the list of a user depends on the time of the query."""
        return bool(self.context_columns & {"time", "since"})

    @cached_property
    def fallbacks(self) -> FallbackModels:
        """Popularity lists for users about whom the model has no information."""
        return FallbackModels(self.dataset)

    @cached_property
    def similar_items(self) -> SimilarItems:
        """The search for similar items, by the vectors of all items."""
        return SimilarItems(self.dataset, self._encoded_items())

    @property
    def context(self) -> Context | None:
        """The encoder of the context of queries; None for a model that reads no context."""
        return self.features.context_for(self.dataset) if self.model.reads_context else None

    @property
    def context_columns(self) -> frozenset[str]:
        """Columns of the context table that the model reads, such as "time"; see ``Context``."""
        context = self.context
        columns = set() if context is None else set(context.table.columns.values())
        return frozenset(columns | ({"since"} if self.model.reads_query_gap else set()))

    def recommend(
        self,
        users: SourceIds | None = None,
        *,
        histories: Histories | None = None,
        times: Sequence[Sequence[Time | None]] | None = None,
        features: Sequence[Attributes] | None = None,
        k: int | None = None,
        filter_seen: bool | None = None,
        allow: SourceIds | None = None,
        deny: SourceIds | None = None,
        time: Time | None = None,
        event_type: str | None = None,
        fallback: Fallback | None = None,
    ) -> pl.DataFrame:
        """Recommend items to users of the dataset, or to anonymous users.

        Args:
            users: one source id or several (a list, a series, an array); the whole history of each
                user in the dataset is used.
            histories: for anonymous users, instead of ``users``: source ids of the items of
                each history, earliest first.
            times: of the interactions of ``histories``, one list each: a datetime (UTC without a
                time zone), or microseconds since 1970-01-01 UTC, or None where it is unknown. None:
                all are unknown. A tower that reads times then has the order only: an unknown time
                adds nothing to a token or to the attention unless training had unknown times.
            features: attributes of the anonymous users, by column of the user table, one
                mapping for each history; without ``histories`` the histories are empty.
            k: recommendations per query; None: 10, or all items of a smaller catalog.
            filter_seen: leave out the items of the whole history (with event types: of target
                event types only); None: as the run is measured, ``evaluation.filter_seen``.
            allow: the only items that may be recommended; None: all.
            deny: items that are never recommended; None: none.
            time: time of the queries: a datetime (UTC without a time zone), or microseconds since
                1970-01-01 UTC; None: now. At a time before the last interaction, the time since
                that interaction is unknown.
            event_type: event type to predict; None: any.
            fallback: list of users that the dataset does not have, and of users without a history
                where the model needs one or reads no attributes of them: "popular" (by training
                targets) or "recent" (by the latest ones). None: they are refused, or have a list of
                the model.

        Returns:
            one row per recommendation, best first: ``query`` (source id of the user, or row
            number of ``histories``), ``rank`` (from 1), ``item``, ``score``, ``title`` (for
            datasets with titles) and ``probability`` (if the loss of the run estimates one: the
            softmax probability over the whole catalog). With a ``fallback`` also
            ``recommended_by``: "model", or the name of the fallback, whose scores and null
            probabilities cannot be compared with those of the model. A query has fewer than k rows
            if fewer items are allowed and not seen.

        Raises:
            DataError: an id or an attribute is unknown or of another type, or ``times`` does not
                fit ``histories``.
            ConfigError: k is larger than the catalog; a history is empty and the model needs
                one; the model can encode only users it was trained on; no item is allowed; the
                model does not read ``times``, ``features``, ``time`` or ``event_type``.
        """
        # With a fallback users may be unknown, so that they are looked up there.
        known = users if fallback is None else None
        user_ids, item_ids, attributes = query_ids(self.dataset, known, histories, features, ADVICE)
        settings: dict[str, Any] = {
            "histories": item_ids,
            "history_times": None if times is None else history_times(item_ids or [], times),
            "attributes": attributes,
            "k": k,
            "filter_seen": filter_seen,
            "is_allowed": allowed_items(self.dataset, allow, deny),
            "time": time,
            "event_type": event_type,
            "with_probabilities": self.estimates_probability,
        }
        if fallback is None:
            return self.recommend_ids(user_ids=user_ids, **settings).to_frame()
        popular = self.fallbacks.get(fallback)
        return recommend_or_fall_back(self, popular, users=users, **settings).to_frame()

    def recommend_ids(
        self,
        *,
        user_ids: Sequence[int] | Ints | None = None,
        histories: Sequence[Sequence[int] | Ints] | None = None,
        history_times: Sequence[Sequence[int | None]] | None = None,
        attributes: Sequence[Attributes] | None = None,
        k: int | None = None,
        filter_seen: bool | None = None,
        is_allowed: Bools | None = None,
        time: Time | None = None,
        event_type: str | None = None,
        new_items: NewItems | None = None,
        with_probabilities: bool = False,
        role: Role | None = None,
        index: Index | None = None,
        progress: StageProgress | None = None,
    ) -> Recommendations:
        """Recommend in dense ids, with new items and progress; see ``recommend``.

        Args:
            user_ids: [B] dense ids of users.
            histories: dense ids of the items of B histories, instead of ``user_ids``.
            history_times: time of each interaction of the histories, microseconds since 1970-01-01
                UTC, None where unknown; None: all unknown.
            attributes: attributes of the B anonymous users.
            k: recommendations per query; None: 10, or all items of a smaller catalog.
            filter_seen: leave out the items of the whole history; None: as the run is measured.
            is_allowed: [V] bool, items that may be recommended; None: all.
            time: time of the queries, as for ``recommend``; None: now.
            event_type: event type to predict; None: any.
            new_items: items to recommend beside the catalog, with ids from V on.
            with_probabilities: also compute the softmax probability of each item.
            role: recommend from the history before the first target of this role, as in an
                evaluation; None: from the whole history.
            index: over the item vectors, such as that of ``open_index``; None: exact search.
            progress: called with (stage, done, total).

        Raises:
            ConfigError: as for ``recommend``.
            DataError: an attribute is unknown or of another type.
        """
        self._check_is_read(time, event_type, history_times)
        time = query_time(time)
        evaluation = self.config.evaluation
        return recommend(
            self.model,
            self.dataset,
            user_ids=user_ids,
            histories=histories,
            history_times=history_times,
            k=k,
            max_length=self.config.batches.max_length,
            filter_seen=evaluation.filter_seen if filter_seen is None else filter_seen,
            is_allowed=is_allowed,
            index=index,
            item_vectors=self._encoded_items(progress),
            context=self.context,
            time=time,
            event_type=event_type,
            user_features=self._user_features(attributes),
            new_items=new_items,
            with_probabilities=with_probabilities,
            role=role,
            progress=progress,
        )

    def similar(self, items: SourceIds, k: int | None = None) -> pl.DataFrame:
        """Find the items whose vectors have the largest cosine with those of given items.

        Retired items are not among the results.

        Args:
            items: source ids.
            k: results per item, without the item itself; None: 10, or all items of a smaller
                catalog.

        Returns:
            one row per result, best first: ``query`` (source id of the item), ``rank`` (from 1),
            ``item``, ``score`` (cosine) and ``title`` (for datasets with titles).

        Raises:
            DataError: an item is unknown.
            ConfigError: k is not between 1 and the number of other items.
        """
        return self.similar_items.search(self._item_ids(items), k).to_frame()

    def item_vectors(self) -> tuple[pl.Series, Floats]:
        """Encode the catalog.

        Returns:
            source ids [V] and vectors [V, D] float32; the dot product with a query vector is
            the score.
        """
        vectors: Floats = self._encoded_items().float().cpu().numpy().copy()
        return self.dataset.items["source_id"], vectors

    def query_vectors(
        self,
        users: SourceIds | None = None,
        *,
        histories: Histories | None = None,
        times: Sequence[Sequence[Time | None]] | None = None,
        features: Sequence[Attributes] | None = None,
        time: Time | None = None,
        event_type: str | None = None,
    ) -> Floats:
        """Encode users of the dataset, or anonymous users: [n, D] float32.

        Args:
            users: as for ``recommend``.
            histories: as for ``recommend``.
            times: as for ``recommend``.
            features: as for ``recommend``.
            time: as for ``recommend``.
            event_type: as for ``recommend``.

        Raises:
            DataError: an id or an attribute is unknown or of another type.
            ConfigError: a history is empty and the model needs one, or the model can encode only
                users it was trained on.
        """
        user_ids, item_ids, attributes = query_ids(self.dataset, users, histories, features)
        times_of = None if times is None else history_times(item_ids or [], times)
        self._check_is_read(time, event_type, times_of)
        time = query_time(time)
        queries = query_set(
            self.dataset,
            user_ids=user_ids,
            histories=item_ids,
            history_times=times_of,
            max_length=self.config.batches.max_length,
            context=self.context,
            time=time,
            event_type=event_type,
            user_features=self._user_features(attributes),
        )
        queries.check(self.model)
        with inference_mode(self.model):
            batches = queries.encode(self.model, self.model.device)
            vectors = [query.cpu().numpy() for _, query in batches]
        if not vectors:
            return np.zeros((0, self.model.query_tower.dim), dtype=np.float32)
        return np.concatenate(vectors)

    def evaluate(
        self,
        split: str = "test",
        config: EvaluationConfig | None = None,
        *,
        item_counts: npt.NDArray[np.float64] | None = None,
        true_log_prob: TrueLogProb | None = None,
        progress: StageProgress | None = None,
        **overrides: Any,
    ) -> EvaluationReport:
        """Evaluate the run on a split, over the full catalog.

        Warm and cold items, popularity metrics and slices follow the targets of an epoch of the
        run's loader (``candid.batches.target_counts``).

        Args:
            split: "test" or "validation".
            config: settings; None: those of the run.
            item_counts: as for ``candid.evaluate``; None: those of the run's loader.
            true_log_prob: as for ``candid.evaluate``.
            progress: called with (stage, done, total).
            **overrides: keys of ``EvaluationConfig`` that replace those of ``config``, such as
                ``ks=(10, 50)``.

        Raises:
            ConfigError: an unknown split or setting, a cut-off k larger than the catalog, or a
                run that was refitted on the targets.
            DataError: the split has no target that the model can be evaluated on, or only
                targets that training never has as a target and ``catalog`` is not "cold".
        """
        role = role_of(split)
        check_is_measurable(self.folder, self.manifest, self.dataset)
        config = self.config.evaluation if config is None else config
        if not isinstance(config, EvaluationConfig):
            raise ConfigError(
                f"config must be an EvaluationConfig, got {type(config).__name__}: give "
                "settings as keywords, such as ks=(10, 50)"
            )
        if overrides:
            table = {**config.model_dump(mode="json"), **overrides}
            config = validated(EvaluationConfig, table, "evaluate")
        counts = self.item_counts if item_counts is None else item_counts
        check_has_relevant(
            self.dataset,
            config,
            role,
            needs_history=self.model.needs_history,
            item_counts=counts,
        )
        return evaluate(
            self.model,
            self.dataset,
            config,
            role=role,
            max_length=self.config.batches.max_length,
            context=self.context,
            item_counts=counts,
            true_log_prob=true_log_prob,
            progress=progress,
        )

    def _encoded_items(self, progress: StageProgress | None = None) -> Tensor:
        """Return item vectors [V, D] on the device of the model, encoded on first use."""
        if "vectors" not in self._cache:
            with inference_mode(self.model):
                self._cache["vectors"] = encode_catalog(self.model, progress).detach()
        return self._cache["vectors"].to(self.model.device)

    @cached_property
    def _cache(self) -> dict[str, Tensor]:
        return {}

    def _user_features(
        self, attributes: Sequence[Attributes] | None
    ) -> Mapping[str, Values] | None:
        return None if attributes is None else self.features.encode_users(attributes)

    def _item_ids(self, items: SourceIds) -> Ints:
        return dense_ids(self.dataset.items["source_id"], items, "item")

    def _check_is_read(self, time: Time | None, event_type: str | None, times: object) -> None:
        if times is not None and not (self.model.reads_times or "since" in self.context_columns):
            raise ConfigError(
                "the model of this run does not read the times of a history: leave out times "
                "(--history-time)"
            )
        if time is not None and not self.context_columns & {"time", "since"}:
            raise ConfigError(
                "the model of this run does not read the time of a query: leave out time (--at)"
            )
        if event_type is not None and "event_type" not in self.context_columns:
            raise ConfigError(
                "the model of this run does not read the event type of a query: leave out "
                "event_type (--event-type)"
            )
