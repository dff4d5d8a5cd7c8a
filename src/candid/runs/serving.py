"""A trained run opened for serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from candid.errors import ArtifactError
from candid.features import Values
from candid.losses import BCE, GBCE, SampledSoftmax
from candid.runs.index import open_index
from candid.runs.people import SEPARATOR, frame_of
from candid.runs.run import Run, load_run
from candid.serve import ServedParts


def open_served(run: Path, index: Path | None = None, data: Path | None = None) -> ServedParts:
    """Open a run with its index.

    Args:
        run: folder of ``train_run``.
        index: folder of the index; None: that in the run's folder, or where there is none an
            exact one in memory.
        data: the prepared dataset; None: the one that the run names.

    Raises:
        ArtifactError: not a run, a damaged one, or an index of another model.
        ConfigError: the library of the index is not installed.
    """
    loaded = load_run(run, data)
    snapshot = open_index(loaded, index)
    items = loaded.dataset.items
    if not snapshot.source_ids.built.equals(items["source_id"]):
        raise ArtifactError(
            f"the index of {run} holds other items than its dataset: build it again with candid "
            "index"
        )
    features, model = loaded.features, loaded.model
    reads_people = features.user is not None and model.reads_user_features
    reads_items = features.item is not None and model.reads_item_features
    user_columns = () if features.user is None else features.user.columns.values()
    return ServedParts(
        model=model,
        dataset=loaded.dataset,
        snapshot=snapshot,
        max_length=loaded.config.batches.max_length,
        context=features.context_of(loaded.dataset) if model.reads_context else None,
        context_columns=loaded.context_columns,
        people=features.people if reads_people else None,
        user_attributes={name: features.user_columns[name] for name in user_columns}
        if reads_people
        else {},
        new_rows=_NewRows(loaded) if reads_items else None,
        item_features=() if features.item is None else tuple(features.item.columns.values()),
        no_probability=_why_no_probability(loaded),
    )


class _NewRows:
    """Reads what is said of items into a table and features."""

    def __init__(self, run: Run) -> None:
        assert run.features.item is not None
        self._features = run.features.item
        schema = run.dataset.items.schema
        self._schema = {name: dtype for name, dtype in schema.items() if name != "source_id"}

    def __call__(
        self, attributes: Sequence[Mapping[str, Any]]
    ) -> tuple[pl.DataFrame, dict[str, Values]]:
        """See ``serve.parts.NewRows``."""
        known = [
            {name: self._joined(name, value) for name, value in row.items()} for row in attributes
        ]
        if "title" not in self._schema:
            for row in known:
                row.pop("title", None)
        table = frame_of(known, self._schema, "items")
        return table, self._features.encode(table)

    def _joined(self, name: str, value: Any) -> Any:
        """A list of texts as the data writes it where the column is text."""
        is_list = isinstance(value, list) and all(isinstance(part, str) for part in value)
        if is_list and isinstance(self._schema.get(name), pl.String):
            return SEPARATOR.join(value)
        return value


def _why_no_probability(run: Run) -> str | None:
    """Why a score is no log-probability up to a constant; None where it estimates one."""
    loss = run.config.loss
    if isinstance(loss, BCE.Config | GBCE.Config):
        return "the model was trained by a pointwise loss, whose scores are no softmax"
    if isinstance(loss, SampledSoftmax.Config) and loss.correction == "none":
        return (
            "the model was trained by a sampled softmax without correction, whose scores are off "
            "by the log of how often candidates were drawn"
        )
    return None
