"""The verb ``candid data``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet
from candid.cli.prepare import prepared_lines, run_prepare
from candid.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from candid.data import PublicSet


def data(
    name: Annotated[
        str | None, typer.Argument(help="Name of a set [default: list all sets]")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Your copy of the set: folder, zip archive or file of interactions [default: "
            "describe the set]",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the prepared dataset [default: data/NAME]")
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Accept a file with fewer rows than the publisher states"),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a key of [data], such as data.k_core=5; repeatable",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List public data sets, or prepare a copy of one that you downloaded.

    Nothing is downloaded. The terms of use are those of the publisher.
    """
    from candid.component import lookup
    from candid.data import PUBLIC_SETS

    console = Console(json, quiet)
    if name is None:
        for option, value in (("--from", source), ("--out", out), ("--set", overrides)):
            if value:
                raise ConfigError(f"{option} needs the name of a set; candid data lists the names")
        sets = {key: _facts(one) for key, one in PUBLIC_SETS.items()}
        console.result(
            {"sets": sets},
            _table(),
            "candid data NAME describes a set; candid data NAME --from PATH prepares your copy",
        )
        return
    public_set: PublicSet = lookup(PUBLIC_SETS, "public data set", name)
    if source is None:
        if out is not None or overrides or partial:
            raise ConfigError(
                "--out, --set and --partial need your copy of the set: name it with --from"
            )
        console.result({"name": name, **_facts(public_set)}, *_description(name, public_set))
        return
    _prepare(name, source, out or Path("data") / name, partial, overrides or [], console)


def _prepare(
    name: str, source: Path, out: Path, partial: bool, overrides: list[str], console: Console
) -> None:
    from candid.config import parse_override
    from candid.config.data_section import load_data_config
    from candid.data import find_public_copy
    from candid.data.split_config import settings_of_kind

    copy = find_public_copy(name, source)
    settings = dict(copy.settings)
    for key, value in map(parse_override, overrides):
        if key == "data.split.kind":
            settings["split"] = settings_of_kind(settings["split"], str(value))
    values = {f"data.{key}": value for key, value in settings.items()}
    config = load_data_config(None, values, overrides)
    for file in copy.missing:
        console.note(f"{file} is not beside the interactions: its titles and attributes are absent")
    rows = None if partial else copy.rows
    result = run_prepare(config, out, console, complete_rows=rows)
    report, licence = result.report, copy.public_set.licence
    lines = list(prepared_lines(report))
    if copy.rows is not None and report["rows_read"] != copy.rows:
        lines.append(
            f"{report['rows_read']:,} rows were read, and the publisher states {copy.rows:,}"
        )
    console.result(
        {
            "path": str(out),
            "up_to_date": result.up_to_date,
            "licence": licence,
            "stated_rows": copy.rows,
            **report,
        },
        *lines,
        f"terms of use: {licence} ({copy.public_set.url})",
        f"{out} is up to date" if result.up_to_date else f"written to {out}",
    )


def _facts(public_set: PublicSet) -> dict[str, Any]:
    return {
        "title": public_set.title,
        "rows": public_set.rows,
        "users": public_set.users,
        "items": public_set.items,
        "licence": public_set.licence,
        "url": public_set.url,
        "download": public_set.download,
        "split": dict(public_set.split),
    }


def _table() -> Table:
    from rich.table import Table

    from candid.data import PUBLIC_SETS

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for size in ("rows", "users", "items"):
        table.add_column(size, justify="right", no_wrap=True)
    table.add_column("set")
    table.add_column("terms of use")
    table.add_column("page", overflow="fold")
    for name, one in PUBLIC_SETS.items():
        sizes = (one.rows, one.users, one.items)
        table.add_row(name, *map(_size, sizes), one.title, one.licence, one.url)
    return table


def _description(name: str, public_set: PublicSet) -> Iterator[str]:
    sizes = (("rows", public_set.rows), ("users", public_set.users), ("items", public_set.items))
    yield f"{public_set.title}: " + ", ".join(f"{_size(size)} {noun}" for noun, size in sizes)
    yield f"terms of use: {public_set.licence}"
    yield f"page: {public_set.url}"
    yield f"download: {public_set.download}"
    yield f"split: {public_set.split['kind']}"
    yield f"next: candid data {name} --from PATH"


def _size(size: int | None) -> str:
    return "-" if size is None else f"{size:,}"
