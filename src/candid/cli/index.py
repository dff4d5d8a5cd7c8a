"""The verb ``candid index``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Verify
from candid.cli.processes import PROCESSES, run_in_processes
from candid.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from candid.index import IndexBenchmark


def index(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared dataset [default: the one of the run]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the index [default: RUN/index]")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting of the index, such as index.type=faiss or index.kind=hnsw; may be "
            "repeated [default: exact search below 50,000 items, else FAISS PQ with exact "
            "ranking]",
        ),
    ] = None,
    target_recall: Annotated[
        float, typer.Option(help="Recall that the settings of the search are tuned to")
    ] = 0.95,
    min_recall: Annotated[float, typer.Option(help="Recall below which no index is written")] = 0.0,
    k: Annotated[
        int | None, typer.Option("--k", "-k", help="Results per query [default: 100]")
    ] = None,
    queries: Annotated[
        int,
        typer.Option(
            min=1, help="Maximum number of users: one half for tuning, the other for measuring"
        ),
    ] = 2000,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Measure every index and write a table and a page, but no index"
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample of users")] = 0,
    processes: Annotated[
        int,
        typer.Option(
            PROCESSES,
            min=1,
            help="Processes of this machine that build the index together, each a part of it. For "
            "several machines use torchrun",
        ),
    ] = 1,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build an index over the items of a run and measure it against exact search."""
    for name, value in (("--target-recall", target_recall), ("--min-recall", min_recall)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} {value:g} must be between 0 and 1")
    if compare and overrides:
        raise ConfigError("--compare builds every index; leave out --set or --compare")
    if compare and min_recall:
        raise ConfigError("--compare writes no index; leave out --min-recall or --compare")

    is_one_of_several = os.environ.get("WORLD_SIZE", "1") != "1"
    if compare and (processes > 1 or is_one_of_several):
        raise ConfigError("--compare measures in one process: leave out --processes or --compare")
    arguments = _Arguments(
        run, data, out, overrides or [], target_recall, min_recall, k, queries, seed
    )
    work = _compare if compare else _build
    run_in_processes(context, processes, partial(work, arguments), json=json, quiet=quiet)


@dataclass(frozen=True, slots=True)
class _Arguments:
    """Arguments and options of the command, by their names."""

    run: Path
    data: Path | None
    out: Path | None
    overrides: list[str]
    target_recall: float
    min_recall: float
    k: int | None
    queries: int
    seed: int


def _build(given: _Arguments, console: Console) -> None:
    from candid.checksums import verification
    from candid.cli.progress import stage_progress
    from candid.distributed import is_main, use_own_device
    from candid.runs import load_run
    from candid.runs.index_build import build_index
    from candid.runs.indexing import index_config

    use_own_device()
    with verification(is_main()):  # one process compares the checksums
        loaded = load_run(given.run, given.data, map_weights=True)
    config = index_config(loaded, given.overrides)
    with stage_progress(console) as progress:
        benchmark = build_index(
            loaded,
            config,
            given.out,
            k=given.k,
            num_queries=given.queries,
            seed=given.seed,
            target_recall=given.target_recall,
            min_recall=given.min_recall,
            progress=progress,
        )
    if benchmark is None:
        return
    folder = given.out or given.run / "index"
    text: list[Any] = [_table([benchmark])]
    warning = None
    if not benchmark.reaches_target:
        warning = (
            f"recall@{benchmark.k} is {benchmark.measurement.recall:.3f}, below the target of "
            f"{given.target_recall:g}: --compare shows which index reaches it; or lower "
            "--target-recall"
        )
        text.append(f"warning: {warning}")
    console.result(
        {"run": str(given.run), "folder": str(folder), "warning": warning, **benchmark.to_json()},
        *text,
        f"written to {folder}",
    )


def _compare(given: _Arguments, console: Console) -> None:
    from candid.cli.progress import stage_progress
    from candid.runs import load_run
    from candid.runs.indexing import compare_indexes, encode_benchmark_data

    loaded = load_run(given.run, given.data)
    with stage_progress(console) as progress:
        benchmark_data = encode_benchmark_data(
            loaded, k=given.k, num_queries=given.queries, seed=given.seed, progress=progress
        )
        benchmarks, notes = compare_indexes(
            benchmark_data, target_recall=given.target_recall, progress=progress
        )
    _write_comparison(console, given.run, given.out or given.run, benchmarks, notes)


def _write_comparison(
    console: Console,
    run: Path,
    folder: Path,
    benchmarks: Sequence[IndexBenchmark],
    notes: Sequence[str],
) -> None:
    from candid.atomic import write_json
    from candid.report.index_page import rank_benchmarks, summarize, write_index_page

    entries = [benchmark.to_json() for benchmark in rank_benchmarks(benchmarks)]
    document = {"run": str(run), "indexes": entries, "notes": notes}
    write_json(folder / "indexes.json", document)
    write_index_page(folder / "indexes.html", benchmarks, notes)
    console.result(
        {"file": str(folder / "indexes.json"), "page": str(folder / "indexes.html")} | document,
        _table(benchmarks),
        summarize(benchmarks),
        *(f"left out: {note}" for note in notes),
        f"written to {folder / 'indexes.json'} and {folder / 'indexes.html'}",
    )


def _table(benchmarks: Sequence[IndexBenchmark]) -> Any:
    from rich.table import Table

    from candid.report.index_page import COLUMNS, table_rows

    table = Table()
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number in (0, len(COLUMNS) - 1) else "right")
    for row in table_rows(benchmarks):
        table.add_row(*row)
    return table
