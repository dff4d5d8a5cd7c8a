"""Files that turn raw values into the inputs of graphs: ``inputs.json``, and tables by id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from candid.atomic import write_json
from candid.component import type_name
from candid.export.context import ExportContext
from candid.export.export_input import FeatureSet
from candid.export.parquet import write_parquet
from candid.features import FEATURES, Bags, Codes, Numbers, Values
from candid.towers import PADDING

ROWS = 65_536
"""Rows encoded at a time."""


def write_inputs(context: ExportContext, folder: Path) -> None:
    """Write the files that all graphs share, unless another format has written them.

    ``inputs.json`` has the type, the settings and the fitted state of every feature, exactly as
    in the run. ``items.parquet`` has a row for each item id in order, with its source id and
    the encoded values of its features; ``users.parquet`` has the same for users, if a graph
    reads user ids.
    """
    if folder.exists():
        return
    export_input = context.export_input
    model, dataset = export_input.model, export_input.dataset
    folder.mkdir()
    write_json(
        folder / "inputs.json",
        {
            **context.metadata,
            "padding": PADDING,
            "max_length": export_input.max_length,
            "needs_history": model.needs_history,
            "needs_user": model.needs_user,
            "event_types": {name: code + 1 for code, name in enumerate(dataset.event_type_names)},
            "features": {
                side: _describe_features(features)
                for side, features in export_input.features.items()
            },
        },
    )
    tables = {"item": dataset.items}
    if any(
        padded_input.name == "user_id" for graph in context.graphs for padded_input in graph.inputs
    ):
        tables["user"] = dataset.users
    for side, table in tables.items():
        features = export_input.features.get(side)
        values = {} if features is None else features.table.values
        ids = table.select(pl.int_range(pl.len()).alias(f"{side}_id"), "source_id")
        frames = _frames(ids, {f"{side}.{name}": value for name, value in values.items()})
        schema = next(frames).schema
        write_parquet(folder / f"{side}s.parquet", schema, frames, context.text_metadata)


def _describe_features(features: FeatureSet) -> dict[str, Any]:
    """Return type, column, settings and state by feature name, in the order of the recipe."""
    states = features.table.state()
    return {
        name: {
            "type": type_name(FEATURES, "feature", config),
            "column": features.table.columns[name],
            "settings": config.model_dump(mode="json", exclude={"column"}),
            "state": states[name],
        }
        for name, config in features.configs.items()
    }


def _frames(ids: pl.DataFrame, values: Mapping[str, Values]) -> Iterator[pl.DataFrame]:
    """Yield an empty frame, which has the schema, then all rows."""
    for begin in (None, *range(0, ids.height, ROWS)):
        chunk = ids.head(0) if begin is None else ids.slice(begin, ROWS)
        rows = torch.arange(chunk.height) + (begin or 0)
        yield chunk.with_columns(_series(name, value.take(rows)) for name, value in values.items())


def _series(name: str, values: Values) -> pl.Series:
    match values:
        case Codes(ids=ids):
            return pl.Series(name, ids.numpy(), dtype=pl.Array(pl.Int64, ids.shape[1]))
        case Numbers(values=numbers):
            return pl.Series(name, numbers.numpy(), dtype=pl.Array(pl.Float32, numbers.shape[1]))
        case Bags(ids=ids, offsets=offsets):
            owners = np.repeat(np.arange(len(values)), offsets.diff().numpy())
            bags = pl.DataFrame({"row": owners, name: ids.numpy()})
            bags = bags.group_by("row", maintain_order=True).agg(name)
            rows = pl.DataFrame({"row": np.arange(len(values))})
            joined = rows.join(bags, on="row", how="left", maintain_order="left")
            return joined[name].fill_null([])
