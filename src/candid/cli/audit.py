"""The verb ``candid audit``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.atomic import check_writable
from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Verify
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.audit import AuditCase, AuditInput, AuditProgress

SIZES = (16, 64, 256)
"""Default numbers of candidates."""

SECONDS_BETWEEN_LINES = 2.0
"""Least time between two lines of progress without a terminal."""


def audit(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run to audit: its model as trained and at initialisation"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset; without a run: audit the initial model of the built-in recipe "
            "[default: the one of the run]"
        ),
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="Audit synthetic data and its true model [default: without RUN and --data]",
        ),
    ] = False,
    users: Annotated[
        int, typer.Option(min=1, help="Users to audit, with one training row each")
    ] = 128,
    n: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…",
            help="Numbers of candidates [default: those of 16,64,256 that do not exceed the "
            "number of items]",
        ),
    ] = None,
    budget_ms: Annotated[
        float | None,
        typer.Option(help="Maximum milliseconds per step on this CPU [default: no limit]"),
    ] = None,
    budget_mb: Annotated[
        float | None, typer.Option(help="Maximum memory per step, 10⁶ bytes [default: no limit]")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the step whose cost is measured")] = 256,
    noise: Annotated[
        float,
        typer.Option(
            help="Excess NLL in nats that a finite training leaves with the full softmax; the "
            "ranking is by drift + noise · RMSE²"
        ),
    ] = 0.1,
    drift_users: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Users whose drift is measured [default: 32, fewer above 8,192 items, at least 8]",
        ),
    ] = None,
    drift_repeats: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="Samples of candidates for the drift of a user [default: 16 to 2,048, fewer "
            "where there are many candidates]",
        ),
    ] = None,
    accuracy: Annotated[
        float,
        typer.Option(help="Repeat the sampling until every relative bias has this standard error"),
    ] = 0.02,
    repeats: Annotated[
        int | None,
        typer.Option(
            min=1, help="Fixed number of repeats per row [default: as many as --accuracy needs]"
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Time limit for one sampler on one model; overrides --accuracy [default: no limit]"
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the rows and the samples")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for audit.json and audit.html [default: the run, else candid-audit]"
        ),
    ] = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure drift, variance and cost of samplers and corrections against the full softmax."""
    if synthetic and (run is not None or data is not None):
        raise ConfigError("--synthetic cannot be combined with a run or --data; leave one out")
    if not (accuracy > 0 and math.isfinite(accuracy)):
        raise ConfigError(f"--accuracy {accuracy:g} must be positive and finite")
    if seconds is not None and not (seconds > 0 and math.isfinite(seconds)):
        raise ConfigError(
            f"--seconds {seconds:g} must be positive and finite; leave it out for none"
        )
    if not (noise >= 0 and math.isfinite(noise)):
        raise ConfigError(f"--noise {noise:g} must be a number of nats from 0")
    sizes = None if n is None else _parse_sizes(n)
    folder = out or run or Path("candid-audit")
    files = folder / "audit.json", folder / "audit.html"
    check_writable(*files)  # before the measurement, which may take an hour

    from candid.audit import CostBudget, DriftSampling, SamplingBudget, affordable_cases
    from candid.audit import audit as run_audit
    from candid.report.audit_page import write_audit_page

    console = Console(json, quiet)
    budget = CostBudget(ms=budget_ms, mb=budget_mb)
    inputs, recipe_cases = _inputs(run, data, users, seed)
    standard, not_measured = affordable_cases(
        _standard_cases(sizes, inputs[-1]), inputs[-1].num_items
    )
    notes = [note for note in (not_measured, _note_on_untrained(inputs[-1])) if note is not None]
    with _progress(console) as progress:
        report = run_audit(
            inputs,
            [*recipe_cases, *standard],
            sampling=SamplingBudget(accuracy=accuracy, repeats=repeats, seconds=seconds),
            budget=budget,
            drift=DriftSampling(users=drift_users, repeats=drift_repeats),
            noise=noise,
            cost_rows=rows,
            seed=seed,
            notes=notes,
            progress=progress,
        )
    report.save(files[0])
    write_audit_page(files[1], report)
    _, sentence = report.recommendation()
    console.result(
        {"file": str(files[0]), "page": str(files[1])} | report.to_json(),
        report.table(),
        sentence,
        *report.notes,
        f"written to {files[0]} and {files[1]}",
    )


def _parse_sizes(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(
            f"--n {text!r} must be numbers separated by commas, such as 16,64,256"
        ) from None


def _standard_cases(sizes: list[int] | None, data: AuditInput) -> list[AuditCase]:
    from candid.audit import standard_cases

    if sizes is None:
        fitting = [size for size in SIZES if size <= data.num_items]
        sizes = fitting or [data.num_items]
    # Training refuses a sampler that can never sample some items, so items without a count are
    # given one here: the audit should not recommend such a sampler.
    min_count = 1.0 if bool((data.counts == 0).any()) else 0.0
    rows_per_batch = None if data.batches is None else round(data.batches.mean_other_rows)
    return standard_cases(sizes, data.num_items, min_count=min_count, rows_per_batch=rows_per_batch)


def _note_on_untrained(data: AuditInput) -> str | None:
    num_untrained = int((data.counts == 0).sum())
    if not num_untrained:
        return None
    return (
        f"{num_untrained} of {data.num_items:,} items have no training row: popularity samplers "
        "are measured with min_count = 1, which includes these items; candidates from batches "
        "never include them, and training accepts such a sampler only with training.softmax_over "
        "= 'trained'"
    )


def _inputs(
    run: Path | None, data: Path | None, users: int, seed: int
) -> tuple[list[AuditInput], list[AuditCase]]:
    """Return the models to audit, the one that decides the ranking last, and the recipe's case."""
    if run is not None:
        from candid.audit.run_inputs import recipe_case, run_inputs
        from candid.runs import load_run

        loaded = load_run(run, data)
        case = recipe_case(loaded.config, loaded.dataset)
        return run_inputs(loaded, users, seed=seed), [] if case is None else [case]
    if data is not None:
        from candid.audit.run_inputs import untrained_input
        from candid.config import default_recipe
        from candid.data import open_dataset

        dataset = open_dataset(data)
        return [untrained_input(default_recipe([], dataset), dataset, users, seed=seed)], []
    from candid.audit.synthetic_inputs import synthetic_inputs

    return synthetic_inputs(users, seed=seed), []


@contextmanager
def _progress(console: Console) -> Iterator[AuditProgress]:
    """Show a bar on a terminal; write a line at most every two seconds otherwise."""
    if not console.is_live:
        last = time.monotonic()

        def write(done: int, total: int, name: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                console.note(f"{done}/{total} measurements done, {total - done} remaining: {name}")

        yield write
        return
    from rich.console import Console as RichConsole

    from candid.cli.progress import training_bar

    with training_bar(RichConsole(stderr=True)) as bar:
        task = bar.add_task("audit", total=None, steps="starting", status="")
        yield lambda done, total, name: bar.update(
            task, total=total, completed=done, steps=f"{total - done} remaining", status=name
        )
