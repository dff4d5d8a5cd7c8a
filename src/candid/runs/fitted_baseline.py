"""A fitted baseline with its dataset: recommendations, evaluation, vectors, and saving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from candid.batches import Ints
from candid.config import validated
from candid.config.fallbacks import Fallback
from candid.data import PreparedDataset, Role
from candid.errors import ConfigError
from candid.evaluation import EvaluationConfig, EvaluationReport, check_has_relevant, evaluate
from candid.index import Index
from candid.inference import (
    NewItems,
    Recommendations,
    StageProgress,
    TwoTowerModel,
    inference_mode,
    query_set,
    recommend,
    score_batch_size,
)
from candid.runs.baseline_folder import write_baseline
from candid.runs.fallback import ADVICE, FallbackModels, recommend_or_fall_back
from candid.runs.history_times import Time
from candid.runs.similar import SimilarItems
from candid.runs.source_ids import (
    Attributes,
    Histories,
    SourceIds,
    allowed_items,
    query_ids,
)
from candid.runs.splits import role_of

if TYPE_CHECKING:
    from candid.baselines import Baseline

WHOLE_HISTORY: Final = 2**31 - 1
"""Longest history that a baseline reads: every one."""

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class FittedBaseline:
    """A baseline with the dataset that it was fitted to; methods take and return source ids.

    Attributes:
        name: in ``candid.baselines.BASELINES``.
        model: the fitted baseline.
        dataset: the prepared dataset.
        evaluation: settings of evaluations, those of the tuning.
        manifest: content of ``baseline.json``, without the fingerprint before ``save``.
        folder: where it is saved; None: nowhere.

    Example:
        >>> baseline = candid.fit_baseline("data/films", "item_knn")
        >>> baseline.recommend(users=[12, 40], k=5)
        >>> baseline.save("baselines/item_knn")
    """

    name: str
    model: Baseline
    dataset: PreparedDataset
    evaluation: EvaluationConfig
    manifest: dict[str, Any]
    folder: Path | None = None

    estimates_probability = False
    """Whether the softmax of the scores is a probability."""
    recommends_by_attributes = False
    """Whether the list of a user without a history follows attributes of the user."""
    reads_query_time = False
    """Whether the list of a user depends on the time of the query."""

    def __repr__(self) -> str:
        return (
            f"FittedBaseline({self.name!r}, users={self.dataset.num_users}, "
            f"items={self.dataset.num_items})"
        )

    @cached_property
    def fallbacks(self) -> FallbackModels:
        """Popularity lists for users without a history."""
        return FallbackModels(self.dataset)

    @cached_property
    def similar_items(self) -> SimilarItems:
        """The search for similar items, by the vectors of all items.

        Raises:
            ConfigError: the baseline has no vectors.
        """
        return SimilarItems(self.dataset, self._vector_model().encode_catalog())

    @property
    def has_vectors(self) -> bool:
        """Whether scores are products of query and item vectors."""
        return self.model.has_vectors

    @property
    def settings(self) -> dict[str, Any]:
        """Name and settings, as keys of one table."""
        return {"baseline": {"type": self.name, **self.manifest["settings"]}}

    @property
    def item_counts(self) -> npt.NDArray[np.float64]:
        """[V] float64, the number of training targets of each item."""
        return self.model.target_counts

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
        """Recommend items to users of the dataset, or for given histories.

        Args:
            users: one source id or several (a list, a series, an array); the whole history of each
                user in the dataset is used.
            histories: for anonymous users, instead of ``users``: source ids of the items of
                each history, earliest first.
            times: as for ``Run.recommend``; no baseline reads them: refused.
            features: as for ``Run.recommend``; no baseline reads them: refused.
            k: recommendations per query; None: 10, or all items of a smaller catalog.
            filter_seen: leave out the items of the whole history (with event types: of target
                event types only); None: as the baseline is measured, ``evaluation.filter_seen``.
            allow: the only items that may be recommended; None: all.
            deny: items that are never recommended; None: none.
            time: as for ``Run.recommend``; no baseline reads it: refused.
            event_type: as for ``Run.recommend``; no baseline reads it: refused.
            fallback: list of users without a history and of users that the dataset does not have,
                "popular" or "recent"; None: the latter are refused.

        Returns:
            one row per recommendation, best first: ``query`` (source id of the user, or row
            number of ``histories``), ``rank`` (from 1), ``item``, ``score`` and ``title`` (for
            datasets with titles); with a ``fallback`` also ``recommended_by``, "model" or the
            name of the fallback. Items without a score follow by popularity with scores below 0.

        Raises:
            DataError: an id is unknown or of another type.
            ConfigError: k is larger than the catalog, no item is allowed, or an argument is given
                that no baseline reads.
        """
        self._check_is_read(times, features, time, event_type)
        if fallback is not None:
            return recommend_or_fall_back(
                self,
                self.fallbacks.get(fallback),
                users=users,
                histories=query_ids(self.dataset, None, histories, None)[1],
                k=k,
                filter_seen=filter_seen,
                is_allowed=allowed_items(self.dataset, allow, deny),
            ).to_frame()
        user_ids, item_ids, _ = query_ids(self.dataset, users, histories, None, ADVICE)
        return self.recommend_ids(
            user_ids=user_ids,
            histories=item_ids,
            k=k,
            filter_seen=filter_seen,
            is_allowed=allowed_items(self.dataset, allow, deny),
        ).to_frame()

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
        role: Role | None = None,
        index: Index | None = None,
        progress: StageProgress | None = None,
    ) -> Recommendations:
        """Recommend in dense ids; see ``recommend``.

        The arguments are those of ``Run.recommend_ids``. A baseline reads neither
        times of histories, nor attributes, nor the time or event type of a query, and has no
        vectors for new items.

        Raises:
            ConfigError: as for ``recommend``, or an argument is given that a baseline does not
                read.
        """
        self._check_is_read(history_times, attributes, time, event_type, new_items, index)
        return recommend(
            self.model,
            self.dataset,
            user_ids=user_ids,
            histories=histories,
            k=k,
            max_length=WHOLE_HISTORY,
            filter_seen=self.evaluation.filter_seen if filter_seen is None else filter_seen,
            is_allowed=is_allowed,
            role=role,
            progress=progress,
        )

    def evaluate(
        self,
        split: str = "test",
        config: EvaluationConfig | None = None,
        *,
        item_counts: npt.NDArray[np.float64] | None = None,
        progress: StageProgress | None = None,
        **overrides: Any,
    ) -> EvaluationReport:
        """Evaluate the baseline on a split, over the full catalog, as ``Run.evaluate`` does.

        Args:
            split: "test" or "validation".
            config: settings; None: those of the tuning.
            item_counts: as for ``candid.evaluate``; None: those of the baseline.
            progress: called with (stage, done, total).
            **overrides: keys of ``EvaluationConfig`` that replace those of ``config``.

        Raises:
            ConfigError: an unknown split or setting, or a cut-off k larger than the catalog.
            DataError: the split has no target that can be measured.
        """
        role = role_of(split)
        config = self.evaluation if config is None else config
        if overrides:
            table = {**config.model_dump(mode="json"), **overrides}
            config = validated(EvaluationConfig, table, "evaluate")
        counts = self.item_counts if item_counts is None else item_counts
        check_has_relevant(self.dataset, config, role, needs_history=False, item_counts=counts)
        batch_size = score_batch_size(self.dataset.num_items, config.batch_size)
        return evaluate(
            self.model,
            self.dataset,
            config.model_copy(update={"batch_size": batch_size}),
            role=role,
            max_length=max(1, int(np.diff(self.dataset.user_offsets).max())),
            item_counts=counts,
            progress=progress,
        )

    def item_vectors(self) -> tuple[pl.Series, Floats]:
        """Return source ids [V] and item vectors [V, D] float32.

        Raises:
            ConfigError: the baseline has no vectors.
        """
        vectors: Floats = self._vector_model().encode_catalog().numpy().copy()
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
        """Return the vectors of users of the dataset, or of histories: [n, D] float32.

        The arguments are those of ``recommend``.

        Raises:
            DataError: an id is unknown or of another type.
            ConfigError: the baseline has no vectors, or an argument is given that no baseline
                reads.
        """
        model = self._vector_model()
        self._check_is_read(times, features, time, event_type)
        user_ids, item_ids, _ = query_ids(self.dataset, users, histories, None)
        queries = query_set(
            self.dataset, user_ids=user_ids, histories=item_ids, max_length=WHOLE_HISTORY
        )
        with inference_mode(model):
            batches = queries.encode(model, torch.device("cpu"))
            vectors = [query.numpy() for _, query in batches]
        width = model.encode_catalog().shape[1]
        return np.concatenate([np.zeros((0, width), dtype=np.float32), *vectors])

    def save(self, folder: Path | str) -> FittedBaseline:
        """Write the baseline into a new or empty folder, completely or not at all.

        The folder holds ``baseline.json``, the arrays of the fit, and the source id of each item
        in their order; and the dataset, if that is in memory. ``candid.load(folder)`` reads it.

        Returns:
            the same baseline, with its folder.

        Raises:
            ConfigError: the folder has content.
            ArtifactError: the operating system refuses.
        """
        folder = Path(folder)
        manifest = write_baseline(folder, self.model, self.dataset, self.manifest)
        return replace(self, manifest=manifest, folder=folder)

    def _check_is_read(
        self,
        times: object,
        features: object,
        time: object,
        event_type: object,
        new_items: object = None,
        index: object = None,
    ) -> None:
        given = {
            "the times of a history: leave out times (--history-time)": times,
            "attributes of users: leave out features (--user-attribute)": features,
            "the time of a query: leave out time (--at)": time,
            "the event type of a query: leave out event_type (--event-type)": event_type,
            "new items: leave out new_items (--new-items)": new_items,
            "an index: leave out index (--index)": index,
        }
        for what, value in given.items():
            if value is not None:
                raise ConfigError(f"the baseline {self.name} does not read {what}")

    def _vector_model(self) -> TwoTowerModel:
        model = self.model.vector_model
        if model is None:
            raise ConfigError(
                f"the baseline {self.name} has no vectors: use recommend, or a baseline that has "
                "vectors, such as als"
            )
        return model
