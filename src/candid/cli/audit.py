"""``candid audit``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.audit import AuditProgress, Plan, Subject

SIZES = (16, 64, 256, 1024)
"""Numbers of candidates where nobody names any."""


def audit(
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a run: its model as trained and at initialisation."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset; with a run: in place of its own, without: for the default "
            "recipe at initialisation."
        ),
    ] = None,
    world: Annotated[
        bool,
        typer.Option("--world", help="The synthetic world and its truth; the default without both"),
    ] = False,
    users: Annotated[int, typer.Option(min=1, help="Users audited, one training row each.")] = 128,
    n: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="Numbers of candidates; none: 16,64,256,1024 up to the catalog."
        ),
    ] = None,
    budget_ms: Annotated[
        float | None, typer.Option(help="Most milliseconds a step may take, on this CPU.")
    ] = None,
    budget_mb: Annotated[
        float | None, typer.Option(help="Most memory a step may take, 10⁶ bytes.")
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Rows of the step whose cost is measured.")
    ] = 256,
    averaged: Annotated[
        int,
        typer.Option(
            min=1, help="Steps that errors are averaged over for the ranking; 1: of one draw."
        ),
    ] = 100,
    accuracy: Annotated[
        float, typer.Option(help="Largest standard error of a relative bias; decides the draws.")
    ] = 0.005,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Draws of each row instead, whatever the error.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Longest time for the draws of one sampler on one model, whatever the error; "
            "none: no limit."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows and the draws.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of audit.json and audit.html; none: the run's, or candid-audit."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure bias, spread and cost of every sampler and correction against the full softmax."""
    if world and (run is not None or data is not None):
        raise ConfigError("--world is the synthetic world: leave out the run and --data, or it")
    if not accuracy > 0:
        raise ConfigError(f"--accuracy {accuracy:g} must be positive")
    if seconds is not None and not seconds > 0:
        raise ConfigError(f"--seconds {seconds:g} must be positive")
    sizes = None if n is None else _sizes(n)

    from candid.audit import Budget, Effort, affordable
    from candid.audit import audit as measure
    from candid.report.audit_page import write_audit_page

    console = Console(json, quiet)
    budget = Budget(budget_ms, budget_mb)
    subjects, yours = _subjects(run, data, users, seed)
    standard, left_out = affordable(_plans(sizes, subjects[-1]), subjects[-1].num_items)
    notes = [note for note in (left_out, _note_of_untrained(subjects[-1])) if note is not None]
    with _progress(console) as progress:
        report = measure(
            subjects,
            [*yours, *standard],
            effort=Effort(accuracy=accuracy, draws=repeats, seconds=seconds),
            budget=budget,
            averaged=averaged,
            cost_rows=rows,
            seed=seed,
            notes=notes,
            progress=progress,
        )
    folder = out or run or Path("candid-audit")
    folder.mkdir(parents=True, exist_ok=True)
    report.save(folder / "audit.json")
    write_audit_page(folder / "audit.html", report)
    _, sentence = report.recommendation()
    console.result(
        {"file": str(folder / "audit.json"), "page": str(folder / "audit.html")} | report.to_json(),
        report.table(),
        sentence,
        *notes,
        f"written to {folder / 'audit.json'} and {folder / 'audit.html'}",
    )


def _sizes(text: str) -> list[int]:
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--n {text!r} is not a list of numbers such as 16,64,256") from None


def _plans(sizes: list[int] | None, subject: Subject) -> list[Plan]:
    from candid.audit import standard_plans

    if sizes is None:
        fitting = [size for size in SIZES if size <= subject.num_items]
        sizes = fitting or [subject.num_items]
    # Items without a count must be within reach: an estimator that misses them is refused by
    # training, and should not be recommended.
    min_count = 1.0 if bool((subject.counts == 0).any()) else 0.0
    return standard_plans(sizes, subject.num_items, min_count=min_count)


def _note_of_untrained(subject: Subject) -> str | None:
    num_untrained = int((subject.counts == 0).sum())
    if not num_untrained:
        return None
    return (
        f"{num_untrained} of {subject.num_items:,} items are in no training row: popularity draws "
        "are measured with floor = 1, which reaches them; candidates from batches do not, and "
        "training takes such a sampler with training.softmax_over = 'trained' alone"
    )


def _subjects(
    run: Path | None, data: Path | None, users: int, seed: int
) -> tuple[list[Subject], list[Plan]]:
    """Models to audit, the one that decides last, and what the recipe trains with."""
    if run is not None:
        from candid.runs import load_run
        from candid.runs.audit import plan_of, run_subjects

        loaded = load_run(run, data)
        yours = plan_of(loaded.config, loaded.dataset)
        return run_subjects(loaded, users, seed), [] if yours is None else [yours]
    if data is not None:
        from candid.config import default_recipe
        from candid.data import open_dataset
        from candid.runs.audit import fresh_subject

        dataset = open_dataset(data)
        return [fresh_subject(default_recipe([], dataset), dataset, users, seed)], []
    from candid.audit.world_subjects import world_subjects

    return world_subjects(users, seed=seed), []


@contextmanager
def _progress(console: Console) -> Iterator[AuditProgress]:
    """A bar for a person, a line a measurement for a log."""
    if not console.is_live:
        yield lambda done, total, what: console.note(f"{done + 1}/{total} {what}")
        return
    from rich.console import Console as RichConsole

    from candid.cli.progress import training_bar

    with training_bar(RichConsole(stderr=True)) as bar:
        task = bar.add_task("audit", total=None, steps="starting", status="")
        yield lambda done, total, what: bar.update(
            task, total=total, completed=done, steps=f"{done + 1}/{total}", status=what
        )
