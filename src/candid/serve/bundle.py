"""A trained run or a saved baseline opened for serving: model, dataset, index and encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from candid.checksums import verification
from candid.component import type_name
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.features import Context, Values
from candid.index import INDEXES, ExactIndex, LiveIndex, Snapshot, snapshot_in_memory
from candid.inference import (
    RecommendQuery,
    ScoringModel,
    TwoTowerModel,
    encode_queries,
    pack_queries,
    score_rows,
)
from candid.runs.anonymous_users import SEPARATOR, parse_attributes
from candid.runs.fallback import FallbackModels
from candid.runs.fitted_baseline import WHOLE_HISTORY
from candid.runs.index import open_index
from candid.runs.load import load_run
from candid.runs.run import Run
from candid.runs.saved_model import holds_baseline, load_baseline
from candid.serve.score_search import WHY_NO_VECTORS, LiveItems, ScoreSearch
from candid.serve.search import ItemSearch

UserEncoder = Callable[[Sequence[Mapping[str, Any]]], dict[str, Values]]
"""Attributes of users, by column, to features; raises DataError."""
QueryEncoder = Callable[[Sequence[RecommendQuery]], Tensor]
"""B queries to what the search reads: vectors [B, D] float32, or scores of all items [B, V]."""
WHY_NO_PROBABILITY: Final = "the scores of a baseline do not estimate probabilities"


@dataclass(frozen=True)
class ServingBundle:
    """The parts of a run, or of a baseline, that the server needs.

    Attributes:
        model: in inference mode.
        encode: encodes queries for the search.
        dataset: the training data.
        fingerprint: of the model.
        snapshot: the index over the item vectors; its first V items are those of the dataset.
            None: the model has no vectors and scores all items.
        max_length: number of latest history items that the model reads.
        filter_seen: whether the model was measured without the items of the history, which answers
            then leave out as well.
        reads_times: whether the times of the items of a history change the answer.
        context: encodes the context of a query; None: the model does not read it.
        context_columns: columns of the context that the model reads.
        encode_users: encodes attributes of users who are not in the data; None: the model reads
            no features of users.
        user_attributes: names and types of these attributes.
        item_encoder: encodes new items; None: it cannot, see ``why_no_updates``.
        item_features: attributes that the item tower reads.
        why_no_probability: the reason why exp(score - log Z) does not estimate a probability;
            None: it does.
    """

    model: TwoTowerModel | ScoringModel
    encode: QueryEncoder
    dataset: PreparedDataset
    fingerprint: str
    snapshot: Snapshot | None
    max_length: int
    filter_seen: bool = True
    reads_times: bool = False
    context: Context | None = None
    context_columns: frozenset[str] = frozenset()
    encode_users: UserEncoder | None = None
    user_attributes: Mapping[str, pl.DataType] = field(default_factory=dict)
    item_encoder: NewItemEncoder | None = None
    item_features: Sequence[str] = ()
    why_no_probability: str | None = None

    @property
    def index(self) -> LiveIndex | LiveItems:
        """The index over the item vectors, with item updates; without vectors the live items."""
        return self._live_items if self.snapshot is None else self.snapshot.index

    @cached_property
    def fallbacks(self) -> FallbackModels:
        """Popularity lists for users about whom the model has no information."""
        return FallbackModels(self.dataset)

    @cached_property
    def _live_items(self) -> LiveItems:
        items = LiveItems(self.dataset.num_items)
        if self.dataset.retired_items is not None:
            items.delete(torch.from_numpy(np.flatnonzero(self.dataset.retired_items)))
        return items

    @property
    def index_name(self) -> str:
        """The type of the index; "none" without vectors."""
        if self.snapshot is None:
            return "none"
        return type_name(INDEXES, "index", self.snapshot.config)

    @property
    def dim(self) -> int:
        """Width D of the vectors; 0 without vectors."""
        return 0 if self.snapshot is None else self.snapshot.index.item_vectors.shape[1]

    @property
    def added_ids(self) -> pl.Series:
        """Source ids of items that an index on disk has beyond those of the dataset."""
        if self.snapshot is None:
            return self.dataset.items["source_id"].clear()
        return self.snapshot.source_ids.added

    @property
    def why_no_vectors(self) -> str | None:
        """The reason why the model has no item vectors; None: it has."""
        return WHY_NO_VECTORS if self.snapshot is None else None

    @property
    def why_no_updates(self) -> str | None:
        """The reason why items cannot be added or updated; None: they can."""
        if self.item_encoder is not None:
            return None
        return self.why_no_vectors or "this model has one embedding per item"

    def search_with(self, tie_ranks: npt.NDArray[np.int64]) -> ItemSearch | ScoreSearch:
        """Return the search over the items that can be recommended.

        Args:
            tie_ranks: [V] int64, the order of items with equal scores.
        """
        if self.snapshot is None:
            return ScoreSearch(self._live_items, tie_ranks)
        return ItemSearch(self.snapshot.index, tie_ranks)


def open_bundle(
    run: Path | str,
    index: Path | str | None = None,
    data: Path | str | None = None,
    *,
    verify: bool = True,
) -> ServingBundle:
    """Open a run with its index, or a saved baseline.

    Args:
        run: folder of the run or of the baseline.
        index: folder of the index; None: the one in the folder of the run, or an exact index
            in memory if it has none.
        data: folder of the prepared dataset; None: the one that the run names.
        verify: whether to compare all files with their checksums.

    Raises:
        ArtifactError: ``run`` is not a run, is damaged, or the index belongs to another model.
        ConfigError: the library of the index is not installed, or an index for a baseline.

    Example:
        >>> bundle = open_bundle("runs/films")  # doctest: +SKIP
        >>> bundle.index.num_live  # doctest: +SKIP
    """
    with verification(verify):
        return _open_bundle(Path(run), index, None if data is None else Path(data))


def _open_bundle(run: Path, index: Path | str | None, data: Path | None) -> ServingBundle:
    if holds_baseline(run):
        if index is not None:
            raise ConfigError(f"{run} is a baseline, which has no index on disk: leave out --index")
        return _open_baseline(run, data)
    # The server has its own number of threads; a reload must not change it.
    loaded = load_run(run, data, apply_threads=False)
    snapshot = open_index(loaded, None if index is None else Path(index))
    items = loaded.dataset.items
    if not snapshot.source_ids.built.equals(items["source_id"]):
        raise ArtifactError(
            f"the index of {run} and its dataset have different items; build it again with candid "
            "index"
        )
    features, model = loaded.features, loaded.model
    reads_users = features.user is not None and model.reads_user_features
    reads_items = features.item is not None and model.reads_item_features
    user_columns = () if features.user is None else features.user.columns.values()
    encode_users = features.encode_users if reads_users else None
    context = loaded.context

    def encode(queries: Sequence[RecommendQuery]) -> Tensor:
        return encode_queries(
            model, queries, context=context, encode_attributes=encode_users, device=model.device
        )

    return ServingBundle(
        model=model,
        encode=encode,
        dataset=loaded.dataset,
        fingerprint=snapshot.fingerprint,
        snapshot=snapshot,
        max_length=loaded.config.batches.max_length,
        filter_seen=loaded.config.evaluation.filter_seen,
        reads_times=model.reads_times or "since" in loaded.context_columns,
        context=context,
        context_columns=loaded.context_columns,
        encode_users=encode_users,
        user_attributes={name: features.user_columns[name] for name in user_columns}
        if reads_users
        else {},
        item_encoder=NewItemEncoder(loaded) if reads_items else None,
        item_features=() if features.item is None else tuple(features.item.columns.values()),
        why_no_probability=loaded.config.loss.why_no_probability,
    )


def _open_baseline(folder: Path, data: Path | None) -> ServingBundle:
    """Open a baseline: by its vectors, searched exactly, or by its scores of all items."""
    loaded = load_baseline(folder, data)
    dataset, fingerprint = loaded.dataset, str(loaded.manifest["fingerprint"])
    scoring, vector_model = loaded.model, loaded.model.vector_model
    snapshot = None

    def encode(queries: Sequence[RecommendQuery]) -> Tensor:
        with torch.inference_mode():
            if vector_model is not None:
                return vector_model.encode_queries(pack_queries(queries)).float()
            return score_rows(scoring, pack_queries(queries), dataset.num_items)

    if vector_model is not None:
        vectors = vector_model.encode_catalog().float().clone()
        config = ExactIndex.Config()
        snapshot = snapshot_in_memory(
            config.build(vectors),
            vectors,
            dataset.items["source_id"],
            config=config,
            fingerprint=fingerprint,
        )
        if dataset.retired_items is not None:
            snapshot.index.delete(torch.from_numpy(np.flatnonzero(dataset.retired_items)))
    return ServingBundle(
        model=scoring,
        encode=encode,
        dataset=dataset,
        fingerprint=fingerprint,
        snapshot=snapshot,
        max_length=WHOLE_HISTORY,
        filter_seen=loaded.evaluation.filter_seen,
        why_no_probability=WHY_NO_PROBABILITY,
    )


class NewItemEncoder:
    """Encoder of new items from their attributes, the same as for the training data of a run.

    Args:
        run: whose item tower reads features.
    """

    def __init__(self, run: Run) -> None:
        assert run.features.item is not None
        self._model = run.model
        self._features = run.features.item
        schema = run.dataset.items.schema
        self._schema = {name: dtype for name, dtype in schema.items() if name != "source_id"}

    def __call__(
        self, attributes: Sequence[Mapping[str, Any]]
    ) -> tuple[pl.DataFrame, dict[str, Values]]:
        """Return a table of the items and their features.

        Args:
            attributes: ``title`` and attributes of each item, by column.

        Raises:
            DataError: an attribute is unknown or of another type.
        """
        rows = [
            {name: self._join(name, value) for name, value in row.items()} for row in attributes
        ]
        if "title" not in self._schema:
            for row in rows:
                row.pop("title", None)
        table = parse_attributes(rows, self._schema, "items")
        return table, self._features.encode(table)

    def vectors(self, features: Mapping[str, Values], item_ids: Tensor | None) -> Tensor:
        """Encode items: [n, D] float32 on the CPU.

        Args:
            features: of n items.
            item_ids: [n] int64, ids of items of the training data; None: new ones.
        """
        with torch.inference_mode():
            return self._model.encode_item_values(features, item_ids).float().cpu()

    def _join(self, name: str, value: Any) -> Any:
        """Join a list of texts if the column of the data contains lists as text."""
        is_list = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if is_list and isinstance(self._schema.get(name), pl.String):
            return SEPARATOR.join(value)
        return value
