"""The verb ``candid similar``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from candid.cli.bulk import bulk_lines
from candid.cli.console import Console
from candid.cli.options import BulkOut, Json, Quiet, RunData, Shards, Verify
from candid.errors import ConfigError


def similar(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a saved baseline that has vectors")
    ],
    item: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM", help="Item of the dataset (id or title); repeatable"),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Items: a .txt file with one id a line, or a table with a column item; needs "
            "--out",
        ),
    ] = None,
    all_items: Annotated[
        bool, typer.Option("--all-items", help="All items of the dataset; needs --out")
    ] = False,
    k: Annotated[
        int | None,
        typer.Option("--k", "-k", help="Results per item [default: 10, or all other items]"),
    ] = None,
    out: BulkOut = None,
    shards: Shards = None,
    data: RunData = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the items whose vectors have the largest cosine with those of given items."""
    if sum([bool(item), items is not None, all_items]) != 1:
        raise ConfigError("name the items: either --item ITEM, --items FILE or --all-items")
    if (items is not None or all_items) and out is None:
        raise ConfigError("--items and --all-items write a file: add --out similar.parquet")
    if shards is not None and out is None:
        raise ConfigError("--shards goes with --out: add --out similar.parquet")
    from candid.cli.progress import stage_progress
    from candid.data.lookup import item_ids_of
    from candid.runs import load, write_similar
    from candid.runs.id_files import read_ids

    model = load(run, data)
    console = Console(json, quiet)
    source_ids = model.dataset.items["source_id"]
    if out is None:
        found = model.similar_items.search(item_ids_of(model.dataset, item or []), k)
        console.result({"run": str(run), "answers": found.to_json()}, found.table())
        return
    chosen = None
    if item:
        chosen = source_ids[item_ids_of(model.dataset, item)]
    elif items is not None:
        chosen = read_ids(items, "item", source_ids.dtype)
    with stage_progress(console) as progress:
        result = write_similar(model, out, items=chosen, k=k, shards=shards, progress=progress)
    console.result({"run": str(run), **result.to_json()}, *bulk_lines(result, "item"))
