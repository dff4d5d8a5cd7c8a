"""The verb ``candid prepare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Verify
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.data import DataConfig, Prepared


LARGE_TIED_SHARE = 0.1
"""Share of interactions without an order of their own from which a line is printed."""


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the prepared dataset")],
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe with a section [data]; options override it")
    ] = None,
    interactions: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="File, folder, glob pattern or URL: parquet, csv, tsv, jsonl, arrow, Delta, "
            "Iceberg, MovieLens .dat, RecBole .inter; repeatable",
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help="Query, where --interactions is duckdb:///FILE or postgresql://…"
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="User id [default: user_id]")
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Item id [default: item_id]")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="Time")] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Order of interactions, or of those with the same --time; sorted: that of the "
            "rows, which are sorted by user and time",
        ),
    ] = None,
    explode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Column of lists, one interaction per element; repeatable"
        ),
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="Weight")] = None,
    rating: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rating, for --min-rating")
    ] = None,
    min_rating: Annotated[
        float | None, typer.Option(help="Keep interactions with at least this rating")
    ] = None,
    event_type: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Event type, such as view or purchase")
    ] = None,
    items: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table with one row per item")
    ] = None,
    items_item: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Item id in the table of items [default: item_id]"),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Title in the table of items [default: title]"),
    ] = None,
    items_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Attribute to keep from the table of items; repeatable"
        ),
    ] = None,
    users: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table with one row per user")
    ] = None,
    users_user: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="User id in the table of users [default: user_id]"),
    ] = None,
    users_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="Attribute to keep from the table of users, at least one; repeatable",
        ),
    ] = None,
    k_core: Annotated[
        int | None, typer.Option(help="Minimum interactions of every user and item")
    ] = None,
    min_history: Annotated[int | None, typer.Option(help="Minimum interactions of a user")] = None,
    deduplicate: Annotated[
        str | None,
        typer.Option(
            metavar="none|first|last",
            help="Interaction to keep of a repeated user-item pair [default: none]",
        ),
    ] = None,
    ids_from: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Earlier prepared dataset whose users and items keep their ids; may be --out",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Split into train, validation and test: leave-one-out, leave-k-out, ratio, "
            "temporal, rolling, cross-validation, column, none [default: leave-one-out]",
        ),
    ] = None,
    split_k: Annotated[
        int | None,
        typer.Option(
            help="Last interactions of a user that are test, and before them validation, in a "
            "leave-k-out split"
        ),
    ] = None,
    validation_ratio: Annotated[
        float | None,
        typer.Option(
            help="Share of each user's interactions for validation, in a ratio split [default: 0.1]"
        ),
    ] = None,
    test_ratio: Annotated[
        float | None,
        typer.Option(help="Share for test, in a ratio split [default: 0.1]"),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="CUT",
            help="Start of validation in a temporal split: quantile, date or time [default: 0.8]",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(metavar="CUT", help="Start of test in a temporal split [default: 0.9]"),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH", help="Length of the windows of a rolling split, such as 7d or 12h"
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(help="Number of folds of a rolling or cross-validation split [default: 5]"),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(help="The fold to prepare, from 0 [default: 0]"),
    ] = None,
    split_unit: Annotated[
        str | None,
        typer.Option(
            metavar="user|interaction",
            help="What a cross-validation split deals to its folds, or a temporal or rolling split "
            "to its windows; user for sessions [default: user; temporal and rolling: interaction]",
        ),
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Role of each row, for a column split")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="auto|memory|duckdb",
            help="Engine; all give the same dataset: memory, about 64 bytes for each row; duckdb, "
            "within --memory-limit with temporary files beside --out; auto, memory where it fits "
            "into the limit",
        ),
    ] = "auto",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory that may be used, such as 4GiB, at least 1GiB [default: half of the "
            "memory that is available]",
        ),
    ] = None,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read, filter and split interactions, and store them as a prepared dataset.

    Set any other key of [data] with --set data.KEY=VALUE; candid train --keys data lists them.
    """
    flags = {
        "interactions": _one_or_all(interactions),
        "query": query,
        "user": user,
        "item": item,
        "time": time,
        "order": order,
        "explode": explode or None,
        "weight": weight,
        "rating": rating,
        "min_rating": min_rating,
        "event_type": event_type,
        "items.path": items,
        "items.item": items_item,
        "items.title": title,
        "items.attributes": items_attribute or None,
        "users.path": users,
        "users.user": users_user,
        "users.attributes": users_attribute or None,
        "k_core": k_core,
        "min_history": min_history,
        "deduplicate": deduplicate,
        "ids_from": ids_from,
        "split.kind": split,
        "split.k": split_k,
        "split.validation_ratio": validation_ratio,
        "split.test_ratio": test_ratio,
        "split.validation": validation,
        "split.test": test,
        "split.window": window,
        "split.folds": folds,
        "split.fold": fold,
        "split.unit": split_unit,
        "split.column": split_column,
    }
    values = {f"data.{key}": value for key, value in flags.items() if value is not None}
    if recipe is None and not interactions:
        raise ConfigError(
            "no interactions to prepare; name a recipe, or a file with --interactions FILE "
            "--user COLUMN --item COLUMN"
        )
    from candid.config.data_section import load_data_config

    console = Console(json, quiet)
    config = load_data_config(recipe, values, overrides or [])
    result = run_prepare(config, out, console, engine, memory_limit)
    report = result.report
    console.result(
        {"path": str(out), "up_to_date": result.up_to_date, **report},
        *prepared_lines(report),
        f"{out} is up to date" if result.up_to_date else f"written to {out}",
    )


def run_prepare(
    config: DataConfig,
    out: Path,
    console: Console,
    engine: str = "auto",
    memory_limit: str | None = None,
    complete_rows: int | None = None,
) -> Prepared:
    """Prepare the interactions of ``config`` in ``out`` and print a line for each step."""
    from candid.data import prepare_folder

    return prepare_folder(
        config,
        out,
        progress=console.note,
        engine=engine,
        memory_limit=memory_limit,
        complete_rows=complete_rows,
    )


def prepared_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Describe a prepared dataset, a line for each fact."""
    counts = report["counts"]
    yield "{interactions:,} interactions of {users:,} users with {items:,} items".format(**counts)
    yield from _time_lines(report, counts["interactions"])
    yield "split: {train:,} train, {validation:,} validation, {test:,} test".format(**counts)
    if report.get("ids_from"):
        for kind in ("users", "items"):
            yield f"ids of {kind}: " + ", ".join(
                f"{report['ids_from'][kind][key]:,} {key}" for key in ("kept", "new", "retired")
            )
    split = report["split"]
    if "test_from" in split:
        until = " until {test_until}" if "test_until" in split else ""
        line = f"validation from {{validation_from}}, test from {{test_from}}{until}"
        yield line.format(**split).replace(".000000", "")
    for reason, rows in report["dropped"].items():
        if rows:
            yield f"dropped {rows:,} rows: {reason}"
    if report.get("negatives"):
        stored, *left_out = report["negatives"].items()
        yield f"{stored[1]:,} negatives" + "".join(
            f", {number:,} left out: {reason}" for reason, number in left_out
        )
    for kind in ("items", "users"):
        if report.get(f"{kind}_without_row"):
            yield f"{kind} without a row in their table: {report[f'{kind}_without_row']:,}"
        if report.get(f"{kind}_without_interactions"):
            yield (
                f"rows of the table of {kind} without an interaction or an id, left out: "
                f"{report[f'{kind}_without_interactions']:,}"
            )
    for role, unseen in report["split"].get("unseen", {}).items():
        items, users = unseen["targets_of_unseen_items"], unseen["targets_of_unseen_users"]
        if items or users:
            advice = (
                "; change the split or the item ids, or, for an item tower that reads attributes, "
                'set evaluation.catalog = "cold"'
            )
            yield (
                f"{role}: of {unseen['targets']:,} targets, {items:,} have an untrained item and "
                f"{users:,} an untrained user{advice if items == unseen['targets'] else ''}"
            )


def _one_or_all(paths: list[str] | None) -> str | list[str] | None:
    return paths[0] if paths and len(paths) == 1 else paths or None


def _time_lines(report: Mapping[str, Any], interactions: int) -> Iterator[str]:
    time = report.get("time")
    if time is not None:
        first, last = (time[key].split(".")[0] + "Z" for key in ("first", "last"))
        unit = f" (numbers read as {time['unit']})" if time.get("unit") else ""
        yield f"time: {first} to {last}{unit}"
    share = report.get("tied", 0) / interactions
    if share >= LARGE_TIED_SHARE:
        from candid.data.config import SORTED

        config = report["config"]
        has_column = config.get("order") not in (None, SORTED)
        keys = [*(["time"] if config.get("time") else []), *(["order"] if has_column else [])]
        advice = "" if config.get("order") else "; --order COLUMN would order them"
        yield (
            f"{share:.0%} of the interactions have the same {' and '.join(keys)} as another one of "
            f"their user, and keep the order of the file{advice}"
        )
