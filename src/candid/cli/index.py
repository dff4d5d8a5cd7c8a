"""``candid index``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet
from candid.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from candid.index import Assessment


def index(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset; none: the one the run was trained on.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the index; none: 'index' in that of the run.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="The index, such as index.type=faiss and index.kind=hnsw; none: exact search "
            "under 50,000 items, short codes with exact ranking from there on. May be repeated.",
        ),
    ] = None,
    target_recall: Annotated[
        float, typer.Option(help="Recall that settings of the search are chosen for.")
    ] = 0.95,
    min_recall: Annotated[float, typer.Option(help="Write nothing below this recall.")] = 0.0,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Results a query; none: 100.")] = None,
    queries: Annotated[
        int, typer.Option(min=1, help="Users asked at most: half choose, half measure.")
    ] = 2000,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Build and measure every index and write a table and a page, no index.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of users.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build an index over a run's items and measure it against exact search."""
    for name, value in (("--target-recall", target_recall), ("--min-recall", min_recall)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value:g} must be between 0 and 1")
    if compare and overrides:
        raise ConfigError("--compare builds every index: leave out --set, or it")
    if compare and min_recall:
        raise ConfigError(
            "--compare writes no index that --min-recall could keep back: leave it out"
        )

    from candid.cli.progress import stage_progress
    from candid.runs import load_run
    from candid.runs.indexing import build_index, compare_indexes, index_config, survey

    console = Console(json, quiet)
    loaded = load_run(run, data)
    config = index_config(loaded, overrides or [])
    with stage_progress(console) as progress:
        ground = survey(loaded, k=k, num_queries=queries, seed=seed, progress=progress)
        if compare:
            found, notes = compare_indexes(ground, target_recall=target_recall, progress=progress)
        else:
            built = build_index(
                loaded,
                ground,
                config,
                out,
                target_recall=target_recall,
                min_recall=min_recall,
                progress=progress,
            )
    if compare:
        _report(console, run, out or run, found, notes)
        return
    folder = out or run / "index"
    text: list[Any] = [_table([built])]
    warning = None
    if not built.reaches:
        warning = (
            f"recall@{built.k} is {built.measured.recall:.3f}, below the target of "
            f"{target_recall:g}: see with --compare which index reaches it, or ask for less with "
            "--target-recall"
        )
        text.append(f"warning: {warning}")
    console.result(
        {"run": str(run), "folder": str(folder), "warning": warning, **built.to_json()},
        *text,
        f"written to {folder}",
    )


def _report(
    console: Console,
    run: Path,
    folder: Path,
    found: Sequence[Assessment],
    notes: Sequence[str],
) -> None:
    from candid.atomic import write_json
    from candid.report.index_page import ranked, summary_of, write_index_page

    document = {"run": str(run), "indexes": [e.to_json() for e in ranked(found)], "notes": notes}
    write_json(folder / "indexes.json", document)
    write_index_page(folder / "indexes.html", found, notes)
    console.result(
        {"file": str(folder / "indexes.json"), "page": str(folder / "indexes.html")} | document,
        _table(found),
        summary_of(found),
        *(f"left out: {note}" for note in notes),
        f"written to {folder / 'indexes.json'} and {folder / 'indexes.html'}",
    )


def _table(found: Sequence[Assessment]) -> Any:
    from rich.table import Table

    from candid.report.index_page import COLUMNS, rows_of

    table = Table()
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number in (0, len(COLUMNS) - 1) else "right")
    for row in rows_of(found):
        table.add_row(*row)
    return table
