"""The verb ``candid compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Split, Verify

if TYPE_CHECKING:
    from collections.abc import Sequence


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN…",
            help="Folders of two or more runs or saved baselines; the first is the reference",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset; runs of others are mapped by source id "
            "[default: that of the runs]"
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Split to measure on")] = Split.TEST,
    metric: Annotated[
        str | None,
        typer.Option(help="Main metric, such as recall@20 [default: that of the first run]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="HTML page to write, with figures and slices")
    ] = None,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs and saved baselines on the same targets, user by user.

    All runs are measured with the evaluation settings of the first; --set changes evaluation.*
    keys only. With more than two runs, p-values are adjusted after Holm.
    """
    from candid.atomic import check_writable
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.runs.comparison import (
        compare_runs,
        differing_settings,
        load_runs,
        notes_of,
    )

    console = Console(json, quiet)
    if out is not None:
        check_writable(out)
    loaded = load_runs(runs, data)
    first = next(iter(loaded.values()))
    chosen = [] if metric is None else [f"evaluation.metric={metric}"]
    config = override_evaluation(first.evaluation, [*(overrides or []), *chosen])
    with stage_progress(console) as progress:
        comparison = compare_runs(loaded, split.value, config, progress=progress)
    settings, notes = differing_settings(loaded), notes_of(loaded, comparison)

    from candid.report.compare_page import (
        COLUMNS,
        explain,
        slice_columns,
        slice_rows,
        summarize,
        table_rows,
        write_compare_page,
    )

    if out is not None:
        write_compare_page(out, comparison, settings, notes)
    keys = ["key", *comparison.names]
    by_key = [[key, *values.values()] for key, values in settings.items()]
    columns = slice_columns(comparison)
    console.result(
        {
            "split": split.value,
            "page": None if out is None else str(out),
            "settings": settings,
            "notes": notes,
            **comparison.to_json(),
        },
        _table(None, COLUMNS, table_rows(comparison), num_text=2),
        *([_table("settings that differ", keys, by_key, num_text=len(keys))] if by_key else []),
        *(
            _table(
                f"{name.replace('_', ' ')}, {comparison.metrics[0]}", columns, slice_rows(groups)
            )
            for name, groups in comparison.slices.items()
        ),
        summarize(comparison),
        explain(comparison),
        *(f"note: {note}" for note in notes),
        *([] if out is None else [f"written to {out}"]),
    )


def _table(
    title: str | None, columns: Sequence[str], rows: Sequence[Sequence[str]], num_text: int = 1
) -> Any:
    """Return a table whose first columns are text."""
    from rich.table import Table

    table = Table(title=title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < num_text else "right")
    for row in rows:
        table.add_row(*row)
    return table
