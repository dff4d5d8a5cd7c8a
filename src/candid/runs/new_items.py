"""New items, added after training, read from a table like the item table of the dataset."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from candid.data.readers import collect
from candid.data.source_ids import match_ids
from candid.data.tables import join_table, open_table
from candid.errors import ConfigError, DataError
from candid.inference import NewItems, inference_mode
from candid.runs.run import Run


def read_new_items(run: Run, path: Path | str) -> NewItems:
    """Read new items and encode them by their features, to recommend them beside the catalog.

    Args:
        run: its recipe names the columns of the id, the title and the attributes.
        path: a file of any format that ``data.items`` may name.

    Raises:
        ConfigError: the model reads no item features, or the recipe has no item table.
        DataError: the file has no rows, a column is missing or of another type, or an id is
            empty, of another type or listed twice.
    """
    if run.features.item is None or not run.model.reads_item_features:
        raise ConfigError(
            "this model reads no item features, so it cannot encode new items: train it with "
            "model.item_tower = 'item_features'"
        )
    if run.config.data is None or run.config.data.items is None:
        raise ConfigError(
            "the recipe of this run has no section [data.items], which names the columns of an "
            "item table: train with one"
        )
    config = run.config.data.items.model_copy(update={"path": str(path)})
    sources = open_table(config)
    columns = [source.frame.select(config.id_column) for source in sources]
    given = collect(pl.concat(columns, how="vertical_relaxed"), sources).to_series()
    ids = match_ids(given, run.dataset.items["source_id"].dtype)
    if not len(ids):
        raise DataError(f"{path} has no rows: write one row per new item")
    if ids.null_count():
        bad = given.filter(ids.is_null())
        raise DataError(
            f"column {config.id_column!r} of {path} holds {bad[0]!r}, but item ids are "
            f"{ids.dtype}: give each new item an id of that type"
        )
    types = run.dataset.items.schema
    table = join_table(ids.unique().sort(), sources, config, types).frame
    features = run.features.item.encode(table)
    device = run.model.device
    with inference_mode(run.model):
        vectors = run.model.encode_item_values(
            {name: values.to(device) for name, values in features.items()}
        )
    return NewItems(table, vectors)
