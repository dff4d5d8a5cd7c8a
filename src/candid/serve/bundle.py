"""A trained run opened for serving: model, dataset, index and attribute encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from candid.data import PreparedDataset
from candid.errors import ArtifactError
from candid.features import Context, Values
from candid.index import LiveIndex, Snapshot
from candid.runs.anonymous_users import SEPARATOR, parse_attributes
from candid.runs.index import open_index
from candid.runs.run import Run, load_run
from candid.towers import RetrievalModel

UserEncoder = Callable[[Sequence[Mapping[str, Any]]], dict[str, Values]]
"""Attributes of users, by column, to features; raises DataError."""
ItemEncoder = Callable[[Sequence[Mapping[str, Any]]], tuple[pl.DataFrame, dict[str, Values]]]
"""``title`` and attributes of items, by column, to a table and features; raises DataError."""


@dataclass(frozen=True)
class ServingBundle:
    """The parts of a run that the server needs.

    Attributes:
        model: in inference mode.
        dataset: the training data.
        snapshot: the index over the item vectors; its first V items are those of the dataset.
        max_length: number of latest history items that the model reads.
        filter_seen: whether the run was measured without the items of the history, which answers
            then leave out as well.
        context: encodes the context of a query; None: the model does not read it.
        context_columns: columns of the context that the model reads.
        encode_users: encodes attributes of users who are not in the data; None: the model reads
            no features of users.
        user_attributes: names and types of these attributes.
        encode_items: encodes new items; None: the model has an embedding per item only.
        item_features: attributes that the item tower reads.
        why_no_probability: the reason why exp(score - log Z) does not estimate a probability;
            None: it does.
    """

    model: RetrievalModel
    dataset: PreparedDataset
    snapshot: Snapshot
    max_length: int
    filter_seen: bool = True
    context: Context | None = None
    context_columns: frozenset[str] = frozenset()
    encode_users: UserEncoder | None = None
    user_attributes: Mapping[str, pl.DataType] = field(default_factory=dict)
    encode_items: ItemEncoder | None = None
    item_features: Sequence[str] = ()
    why_no_probability: str | None = None

    @property
    def index(self) -> LiveIndex:
        """The index over the item vectors, with item updates."""
        return self.snapshot.index

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.index.item_vectors.shape[1]


def open_bundle(
    run: Path | str, index: Path | str | None = None, data: Path | str | None = None
) -> ServingBundle:
    """Open a run with its index.

    Args:
        run: folder of the run.
        index: folder of the index; None: the one in the folder of the run, or an exact index
            in memory if it has none.
        data: folder of the prepared dataset; None: the one that the run names.

    Raises:
        ArtifactError: ``run`` is not a run, is damaged, or the index belongs to another model.
        ConfigError: the library of the index is not installed.

    Example:
        >>> bundle = open_bundle("runs/films")  # doctest: +SKIP
        >>> bundle.index.num_live  # doctest: +SKIP
    """
    loaded = load_run(Path(run), None if data is None else Path(data))
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
    return ServingBundle(
        model=model,
        dataset=loaded.dataset,
        snapshot=snapshot,
        max_length=loaded.config.batches.max_length,
        filter_seen=loaded.config.evaluation.filter_seen,
        context=loaded.context,
        context_columns=loaded.context_columns,
        encode_users=features.encode_users if reads_users else None,
        user_attributes={name: features.user_columns[name] for name in user_columns}
        if reads_users
        else {},
        encode_items=_NewItemEncoder(loaded) if reads_items else None,
        item_features=() if features.item is None else tuple(features.item.columns.values()),
        why_no_probability=loaded.config.loss.why_no_probability,
    )


class _NewItemEncoder:
    """Encoder of the attributes of new items, the same as for the training data of a run."""

    def __init__(self, run: Run) -> None:
        assert run.features.item is not None
        self._features = run.features.item
        schema = run.dataset.items.schema
        self._schema = {name: dtype for name, dtype in schema.items() if name != "source_id"}

    def __call__(
        self, attributes: Sequence[Mapping[str, Any]]
    ) -> tuple[pl.DataFrame, dict[str, Values]]:
        """Return a table of the items and their features; raises DataError."""
        rows = [
            {name: self._join(name, value) for name, value in row.items()} for row in attributes
        ]
        if "title" not in self._schema:
            for row in rows:
                row.pop("title", None)
        table = parse_attributes(rows, self._schema, "items")
        return table, self._features.encode(table)

    def _join(self, name: str, value: Any) -> Any:
        """Join a list of texts if the column of the data contains lists as text."""
        is_list = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if is_list and isinstance(self._schema.get(name), pl.String):
            return SEPARATOR.join(value)
        return value
