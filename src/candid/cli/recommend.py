"""The verb ``candid recommend``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from candid.cli.bulk import bulk_lines
from candid.cli.console import Console
from candid.cli.item_filter import Allow, AllowFile, Deny, DenyFile, chosen_items
from candid.cli.options import BulkOut, FallbackName, Json, Quiet, RunData, Shards, Split, Verify
from candid.errors import ConfigError


def recommend(
    run: Annotated[Path, typer.Argument(help="Folder of a run or of a saved baseline")],
    user: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="User of the dataset; repeatable")
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Users to recommend to: a .txt file with one id a line, or a table with a column "
            "user; needs --out",
        ),
    ] = None,
    all_users: Annotated[
        bool, typer.Option("--all-users", help="Recommend to all users of the dataset; needs --out")
    ] = False,
    history: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM",
            help="Item (id or title) of the history of a new user, earliest first; repeatable",
        ),
    ] = None,
    history_time: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TIME",
            help="Time of each --history item, in the same order (2026-01-31T18:30, UTC; '' where "
            "unknown), for models that read times; repeatable [default: all unknown]",
        ),
    ] = None,
    user_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Attribute of a new user, such as age=25, with or without --history; repeatable",
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k", "-k", help="Recommendations per user [default: 10, or all items of fewer]"
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time of the recommendation (2026-01-31T18:30, UTC), for models that read it "
            "[default: now]",
        ),
    ] = None,
    event_type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Event type to predict, for models that read it [default: any]",
        ),
    ] = None,
    include_seen: Annotated[
        bool | None,
        typer.Option(
            "--include-seen/--exclude-seen",
            help="Also recommend items of the history [default: as evaluation.filter_seen of the "
            "run]",
        ),
    ] = None,
    allow: Allow = None,
    allow_file: AllowFile = None,
    deny: Deny = None,
    deny_file: DenyFile = None,
    new_items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Table of new items, in the format of the item table, to recommend by their "
            "features in addition to the catalog",
        ),
    ] = None,
    fallback: Annotated[
        FallbackName | None,
        typer.Option(
            help="List of users without a history and of users that the dataset does not have: the "
            "most popular items, or those of the latest interactions [default: none]",
        ),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option(
            help="Recommend from the history before the targets of this split, for candid evaluate "
            "--recommendations; with --out [default: the whole history]",
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Index of the run to search, with --out [default: exact search]",
        ),
    ] = None,
    probability: Annotated[
        bool | None,
        typer.Option(
            "--probability/--no-probability",
            help="Write the probability of each item, for half of the cost of the search, with "
            "--out [default: if the loss of the run estimates one]",
        ),
    ] = None,
    out: BulkOut = None,
    shards: Shards = None,
    data: RunData = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Recommend items to users of the dataset, or to a new user by history and attributes."""
    groups = [bool(user), users is not None, all_users, bool(history or user_attribute)]
    if sum(groups) != 1:
        raise ConfigError(
            "name the users to recommend to: either --user ID, --users FILE, --all-users, or "
            "--history ITEM and --user-attribute NAME=VALUE"
        )
    if (users is not None or all_users) and out is None:
        raise ConfigError("--users and --all-users write a file: add --out recs.parquet")
    if out is not None and (history or user_attribute or new_items is not None):
        raise ConfigError(
            "--out is for users of the dataset: leave out --history, --user-attribute and "
            "--new-items"
        )
    for flag, value in (
        ("--shards", shards),
        ("--split", split),
        ("--index", index),
        ("--probability", probability),
    ):
        if value is not None and out is None:
            raise ConfigError(f"{flag} goes with --out: add --out recs.parquet")
    if new_items is not None and (allow or deny or allow_file or deny_file):
        raise ConfigError(
            "--allow and --deny name items of the dataset: leave out --new-items, or these options"
        )
    given = [_time("--history-time", text) if text else None for text in history_time or []]
    at_time = None if at is None else _time("--at", at)
    attributes = _attributes(user_attribute or [])
    from candid.cli.progress import stage_progress
    from candid.data.lookup import item_ids_of, user_ids_of
    from candid.runs import (
        SavedModel,
        holds_baseline,
        load,
        load_run,
        read_new_items,
        write_recommendations,
    )
    from candid.runs.fallback import recommend_or_fall_back
    from candid.runs.history_times import history_times, to_microseconds
    from candid.runs.id_files import parse_ids, read_ids
    from candid.runs.source_ids import allowed_items

    loaded: SavedModel
    if new_items is None:
        loaded, added = load(run, data), None
    else:
        if holds_baseline(run):
            raise ConfigError(
                f"{run} is a saved baseline: leave out --new-items, which needs a trained run"
            )
        loaded = trained = load_run(run, data)
        added = read_new_items(trained, new_items)
    console = Console(json, quiet)
    time = None if at_time is None else to_microseconds(at_time)
    filter_seen = None if include_seen is None else not include_seen
    source_type = loaded.dataset.users["source_id"].dtype
    allowed = chosen_items(loaded.dataset, allow, allow_file)
    denied = chosen_items(loaded.dataset, deny, deny_file)
    if out is not None:
        chosen = None
        if user:
            chosen = parse_ids(user, "user", source_type)
        elif users is not None:
            chosen = read_ids(users, "user", source_type)
        with stage_progress(console) as progress:
            result = write_recommendations(
                loaded,
                out,
                users=chosen,
                k=k,
                filter_seen=filter_seen,
                allow=allowed,
                deny=denied,
                time=time,
                event_type=event_type,
                split=None if split is None else split.value,
                fallback=None if fallback is None else fallback.value,
                index=index,
                shards=shards,
                probability=probability,
                progress=progress,
            )
        console.result({"run": str(run), **result.to_json()}, *bulk_lines(result, "user"))
        return
    if given and user:
        raise ConfigError("--history-time goes with --history: leave it out with --user")
    if given and len(given) != len(history or []):
        raise ConfigError(
            f"there are {len(history or [])} --history and {len(given)} --history-time: give one "
            "time for each item, '' where it is unknown"
        )
    histories = [item_ids_of(loaded.dataset, history or [])]
    arguments: dict[str, Any] = {
        "histories": None if user else histories,
        "history_times": history_times([history or []], [given]) if given else None,
        "attributes": [attributes] if attributes else None,
        "k": k,
        "filter_seen": filter_seen,
        "is_allowed": allowed_items(loaded.dataset, allowed, denied),
        "time": time,
        "event_type": event_type,
        "new_items": added,
    }
    with stage_progress(console) as progress:
        if fallback is None:
            advice = "or add a fallback (--fallback popular)"
            recommendations = loaded.recommend_ids(
                user_ids=user_ids_of(loaded.dataset, user, advice) if user else None,
                **arguments,
                progress=progress,
            )
        else:
            recommendations = recommend_or_fall_back(
                loaded,
                loaded.fallbacks.get(fallback.value),
                users=parse_ids(user, "user", source_type) if user else None,
                **arguments,
                progress=progress,
            )
    document = {"run": str(run), "answers": recommendations.to_json()}
    console.result(document, recommendations.table())


def _attributes(texts: list[str]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--user-attribute {text!r} is not NAME=VALUE, such as age=25")
        if name in attributes:
            raise ConfigError(
                f"--user-attribute {name!r} is given twice, as {attributes[name]!r} and {value!r}: "
                "keep one; write several values of one attribute as NAME=a|b"
            )
        attributes[name] = value
    return attributes


def _time(flag: str, text: str) -> datetime.datetime:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is not a time such as 2026-01-31T18:30") from None
