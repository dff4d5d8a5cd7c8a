"""``candid prepare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.data import DataConfig, Prepared


def prepare(
    out: Annotated[Path, typer.Option(help="Folder of the prepared dataset.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe with a section [data]; flags override it.")
    ] = None,
    interactions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File or folder: parquet, csv, tsv (also .gz), MovieLens .dat, RecBole .inter.",
        ),
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The user's id; none: user_id.")
    ] = None,
    item: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The item's id; none: item_id.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="When it happened.")] = None,
    order: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Orders interactions, in place of --time.")
    ] = None,
    weight: Annotated[str | None, typer.Option(metavar="COLUMN", help="Importance.")] = None,
    rating: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Rating, for --min-rating.")
    ] = None,
    min_rating: Annotated[float | None, typer.Option(help="Keep ratings of at least this.")] = None,
    items: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table with one row an item.")
    ] = None,
    items_item: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The item's id in the table of items.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The title in the table of items.")
    ] = None,
    items_attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Further column of it to keep; repeatable."),
    ] = None,
    users: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table with one row a user.")
    ] = None,
    users_user: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The user's id in the table of users.")
    ] = None,
    users_attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column of it to keep, at least one; repeatable."),
    ] = None,
    k_core: Annotated[
        int | None, typer.Option(help="Least interactions of every user and item left.")
    ] = None,
    min_history: Annotated[int | None, typer.Option(help="Least interactions of a user.")] = None,
    deduplicate: Annotated[
        str | None, typer.Option(metavar="none|first|last", help="Of a repeated pair, keep which.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="leave-one-out|temporal|column")] = None,
    validation: Annotated[
        str | None,
        typer.Option(metavar="CUT", help="Temporal: a quantile such as 0.8, a date or a time."),
    ] = None,
    test: Annotated[str | None, typer.Option(metavar="CUT", help="As --validation.")] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column split: names the role of a row.")
    ] = None,
    overrides: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Read interactions, filter and split them, and store a dataset that training maps.

    Every further key of [data] is set with --set data.KEY=VALUE; see candid train --help.
    """
    flags = {
        "interactions": interactions,
        "user": user,
        "item": item,
        "time": time,
        "order": order,
        "weight": weight,
        "rating": rating,
        "min_rating": min_rating,
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
        "split.kind": split,
        "split.validation": _cut(validation),
        "split.test": _cut(test),
        "split.column": split_column,
    }
    given = {f"data.{key}": value for key, value in flags.items() if value is not None}
    if recipe is None and interactions is None:
        raise ConfigError(
            "nothing to prepare: name a recipe, or the file with --interactions FILE "
            "--user COLUMN --item COLUMN"
        )
    from candid.config import load_data_config

    console = Console(json, quiet)
    config = load_data_config(recipe, given, overrides or [])
    result = run_prepare(config, out, console)
    report = result.report
    console.result(
        {"path": str(out), "up_to_date": result.up_to_date, **report},
        *_lines(report),
        f"{out} is up to date" if result.up_to_date else f"written to {out}",
    )


def run_prepare(config: DataConfig, out: Path, console: Console) -> Prepared:
    """Prepare what ``config`` says in ``out``, with a line for each step."""
    from candid.data import prepare as prepare_data

    return prepare_data(config, out, progress=console.note)


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    counts = report["counts"]
    yield "{interactions:,} interactions of {users:,} users with {items:,} items".format(**counts)
    yield "{train:,} to train on, {validation:,} to validate, {test:,} to test".format(**counts)
    for reason, rows in report["dropped"].items():
        if rows:
            yield f"dropped {rows:,} rows: {reason}"
    if report.get("negatives"):
        kept, *left_out = report["negatives"].items()
        yield f"{kept[1]:,} negatives that were shown" + "".join(
            f", {number:,} left out: {reason}" for reason, number in left_out
        )
    for kind in ("items", "users"):
        if report.get(f"{kind}_without_row"):
            yield f"{kind} without a row in their table: {report[f'{kind}_without_row']:,}"
    for role, unseen in report["split"].get("unseen", {}).items():
        items, users = unseen["targets_of_unseen_items"], unseen["targets_of_unseen_users"]
        if items or users:
            yield (
                f"{role}: {items:,} of {unseen['targets']:,} targets are items never trained, "
                f"{users:,} are of users never trained"
            )


def _cut(text: str | None) -> float | str | None:
    """A quantile or a time is a number, a date is text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
