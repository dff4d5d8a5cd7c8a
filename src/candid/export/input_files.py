"""How raw values become inputs: ``inputs.json``, and tables of what known ids come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from candid.atomic import write_json
from candid.component import type_name
from candid.export.inputs import PADDING
from candid.export.parquet import write_parquet
from candid.export.parts import Side
from candid.features import FEATURES, Bags, Codes, Numbers, Values

if TYPE_CHECKING:
    from candid.export.material import Material

ROWS = 65_536


def write_inputs(material: Material, folder: Path) -> None:
    """Write what feeds the graphs, once for all formats.

    ``inputs.json`` has every feature's type, settings and what was learnt, word for word as the
    run has them; ``items.parquet`` and, where a graph asks for users by id, ``users.parquet`` have
    a row for each dense id in order, with its source id and the encoded values of its features.
    """
    if folder.exists():
        return
    parts = material.parts
    model, dataset = parts.model, parts.dataset
    folder.mkdir()
    write_json(
        folder / "inputs.json",
        {
            **material.facts,
            "padding": PADDING,
            "max_length": parts.max_length,
            "needs_history": model.needs_history,
            "needs_user": model.needs_user,
            "event_types": {name: code + 1 for code, name in enumerate(dataset.event_type_names)},
            "features": {side: _features(known) for side, known in parts.sides.items()},
        },
    )
    tables = {"item": dataset.items}
    if any(one.name == "user_id" for graph in material.graphs for one in graph.inputs):
        tables["user"] = dataset.users
    for side, table in tables.items():
        known = parts.sides.get(side)
        values = {} if known is None else known.table.values
        ids = table.select(pl.int_range(pl.len()).alias(f"{side}_id"), "source_id")
        frames = _frames(ids, {f"{side}.{name}": value for name, value in values.items()})
        write_parquet(folder / f"{side}s.parquet", next(frames).schema, frames, material.metadata)


def _features(side: Side) -> dict[str, Any]:
    """What every feature is, by name, in the order of the recipe."""
    states = side.table.state()
    return {
        name: {
            "type": type_name(FEATURES, "feature", config),
            "column": side.table.columns[name],
            "settings": config.model_dump(mode="json", exclude={"column"}),
            "state": states[name],
        }
        for name, config in side.configs.items()
    }


def _frames(ids: pl.DataFrame, values: Mapping[str, Values]) -> Iterator[pl.DataFrame]:
    """First an empty frame, which has the schema; then all rows."""
    for begin in (None, *range(0, ids.height, ROWS)):
        part = ids.head(0) if begin is None else ids.slice(begin, ROWS)
        rows = torch.arange(part.height) + (begin or 0)
        yield part.with_columns(_series(name, value.take(rows)) for name, value in values.items())


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
            found = rows.join(bags, on="row", how="left", maintain_order="left")
            return found[name].fill_null([])
