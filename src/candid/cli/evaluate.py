"""The verb ``candid evaluate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.atomic import check_writable
from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Split, Verify
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.runs import SavedModel


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            show_default=False,
            help="Folder of a run or of a saved baseline; without --recommendations",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset; another one than that of the run is mapped by source id "
            "[default: the dataset of the run]"
        ),
    ] = None,
    recommendations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Lists of any system to measure instead of a run: a parquet, csv or jsonl file, "
            "or a folder of such files, with columns query, item, and rank or score; needs --data",
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Split to measure on")] = Split.TEST,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also tune and measure baselines on the same targets"),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of the report in JSON [default: evaluation-SPLIT.json in the folder of the "
            "run; with --recommendations no file]",
        ),
    ] = None,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a trained model, a saved baseline or given lists over the full catalog.

    --set changes evaluation.* keys only.
    """
    if (run is None) == (recommendations is None):
        raise ConfigError(
            "name what to measure: either the folder of a run, or --recommendations FILE with "
            "--data DATASET"
        )
    if recommendations is not None:
        if baselines:
            raise ConfigError("--baselines is for trained runs: leave it out")
        if data is None:
            raise ConfigError(
                "--recommendations needs the prepared dataset with the targets: add --data DATASET"
            )
        _evaluate_lists(recommendations, data, split, out, overrides or [], Console(json, quiet))
        return
    assert run is not None
    if out is not None:
        check_writable(out)
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.data import open_dataset
    from candid.runs import beside_baselines, holds_baseline, load, load_run
    from candid.runs.comparison import load_on
    from candid.runs.measurement import evaluate_and_save, save_beside

    console = Console(json, quiet)
    if baselines and holds_baseline(run):
        raise ConfigError(
            f"{run} is a saved baseline: leave out --baselines, which is for trained runs; "
            "candid baselines ranks baselines"
        )
    trained = load_run(run, data) if baselines else None
    if trained is not None:
        loaded: SavedModel = trained
    else:
        loaded = load(run) if data is None else load_on(run, open_dataset(data))
    config = override_evaluation(loaded.evaluation, overrides or [])
    with stage_progress(console) as progress:
        report, path = evaluate_and_save(loaded, run, split.value, config, progress, out=out)
        beside = None
        if trained is not None:
            beside = beside_baselines(
                trained, report, split=split.value, config=config, progress=progress
            )
    document = {"run": str(run), "split": split.value, "file": str(path), **report.to_json()}
    lines: list[Any] = [report.table(), *(report.slice_table(name) for name in report.slices)]
    if unranked := report.counts.get("unranked_targets"):
        lines.append(
            f"{unranked:,} of {report.counts['targets']:,} targets are items that {run} does not "
            "have; they count as misses"
        )
    if beside is not None:
        document["baselines"] = beside.to_json()
        file = save_beside(path, beside)
        lines += [beside.table(), beside.sentence, f"written to {file}"]
    console.result(document, *lines, f"written to {path}")


def _evaluate_lists(
    recommendations: Path,
    data: Path,
    split: Split,
    out: Path | None,
    overrides: Sequence[str],
    console: Console,
) -> None:
    from candid.cli.progress import stage_progress
    from candid.config import override_evaluation
    from candid.data import open_dataset
    from candid.evaluation import evaluate_lists
    from candid.runs.given_lists import lists_config, read_recommendations
    from candid.runs.splits import role_of

    if out is not None:
        check_writable(out)
    dataset = open_dataset(data)
    config = override_evaluation(lists_config(dataset), list(overrides))
    lists = read_recommendations(recommendations)
    with stage_progress(console) as progress:
        report = evaluate_lists(
            lists, dataset, config, role=role_of(split.value), progress=progress
        )
    document: dict[str, Any] = {
        "recommendations": str(recommendations),
        "split": split.value,
        "file": None if out is None else str(out),
        **report.to_json(),
    }
    lines: list[Any] = [report.table(), *(report.slice_table(name) for name in report.slices)]
    lines += _list_lines(report.counts, config.ks[-1])
    found = [report.metrics.get(f"{name}@{config.ks[-1]}") for name in ("recall", "hit_rate")]
    if any(estimate is not None and estimate.value == 0 for estimate in found):
        lines.append(
            f"no list has a target of the {split.value} split: lists from the whole history may "
            f"leave out seen items, targets too; candid recommend --split {split.value} makes "
            "lists from the history before the targets"
        )
    if out is not None:
        report.save(out)
        lines.append(f"written to {out}")
    console.result(document, *lines)


def _list_lines(counts: Mapping[str, int], largest_k: int) -> list[str]:
    """Return a line for each count that is not 0, of what the lists lack or the dataset lacks."""
    meanings = {
        "users_without_list": "users with targets and without a list: {:,}; they count with 0",
        "short_lists": f"lists of fewer than {largest_k} items: {{:,}}; ranks after the end of a "
        "list have no item",
        "unknown_users": "users that the dataset does not have: {:,}; their lists are left out",
        "unknown_items": "rows with an item that the dataset does not have: {:,}; they keep their "
        "rank and are not relevant",
    }
    return [text.format(counts[name]) for name, text in meanings.items() if counts[name]]
