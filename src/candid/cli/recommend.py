"""``candid recommend``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet
from candid.errors import ConfigError


def recommend(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A user of the data; may be repeated.")
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM",
            help="An item (id or title) of one history, earliest first; may be repeated.",
        ),
    ] = None,
    user_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What is known of somebody who is no user of the data, as age=25, with a "
            "--history or without; may be repeated.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Recommendations for each.")] = 10,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Moment of the question (2026-01-31T18:30, UTC), for models that read it; none: "
            "now.",
        ),
    ] = None,
    event_type: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Kind of interaction asked for, for models that read it; none: any.",
        ),
    ] = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also recommend what is in the history.")
    ] = False,
    new_items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A table, like that of the items, of new ones that may be recommended too, by "
            "their features.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset; none: the one the run was trained on.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend items to users of the data, or to whoever has the history you type."""
    if bool(user) == bool(history or user_attribute):
        raise ConfigError(
            "say for whom: either --user ID, or --history ITEM and --user-attribute NAME=VALUE, "
            "each repeatable"
        )

    time = None if at is None else _microseconds(at)
    attributes = _attributes(user_attribute or [])
    from candid.cli.progress import stage_progress
    from candid.data.lookup import item_ids_of, user_ids_of
    from candid.runs import load_run, read_new_items
    from candid.serve import recommend as recommend_to

    loaded = load_run(run, data)
    context = loaded.features.context_of(loaded.dataset)
    read = loaded.context_columns
    if time is not None and not read & {"time", "since"}:
        raise ConfigError("--at: the model of this run does not read the moment; leave it out")
    if event_type is not None and "event_type" not in read:
        raise ConfigError("--event_type: the model of this run does not read it; leave it out")
    if attributes and not loaded.model.reads_user_features:
        raise ConfigError(
            "--user-attribute: the model of this run reads no features of users; leave it out, or "
            "train one with [features.user.NAME] sections and a tower 'user_features'"
        )
    console, people = Console(json, quiet), None
    if attributes:
        people = loaded.features.people([attributes])
    histories = [item_ids_of(loaded.dataset, history or []).tolist()]
    with stage_progress(console) as progress:
        found = recommend_to(
            loaded.model,
            loaded.dataset,
            user_ids=user_ids_of(loaded.dataset, user) if user else None,
            histories=None if user else histories,
            k=k,
            max_length=loaded.config.batches.max_length,
            filter_seen=not include_seen,
            context=context,
            time=time,
            event_type=event_type,
            user_features=people,
            new_items=None if new_items is None else read_new_items(loaded, new_items),
            progress=progress,
        )
    console.result({"run": str(run), "answers": found.to_json()}, found.table())


def _attributes(texts: list[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--user-attribute {text!r} is not NAME=VALUE, such as age=25")
        if name in attributes:
            raise ConfigError(
                f"--user-attribute {name!r} is given twice, as {attributes[name]!r} and {value!r}: "
                "keep one; several values of one attribute stand as NAME=a|b"
            )
        attributes[name] = value
    return attributes


def _microseconds(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--at {text!r} is not a moment such as 2026-01-31T18:30") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1_000_000)
