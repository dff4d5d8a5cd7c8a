"""The verb ``candid train``."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.cli.console import Console, counted
from candid.cli.options import Json, Quiet, Set, Verify
from candid.cli.prepare import run_prepare
from candid.cli.processes import PROCESSES, ProcessesCommand, run_in_processes
from candid.cli.recipe import run_name
from candid.cli.recipe_keys import ALL, key_lines, section_lines
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.config import RunConfig


class TrainCommand(ProcessesCommand):
    """The command ``train``, with a bare ``--keys`` and the sections of a recipe in its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Complete a bare ``--keys``, then parse."""
        if "--keys" in args:
            following = args.index("--keys") + 1
            if following == len(args) or args[following].startswith("-"):
                args = [*args[:following], ALL, *args[following:]]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the sections of a recipe."""
        super().format_help(ctx, formatter)
        formatter.write("\nSections of a recipe (TOML); list their keys with --keys SECTION:\n")
        for line in section_lines(_width()):
            formatter.write(f"{line}\n")


def _print_keys(section: str | None) -> None:
    if section is None:
        return
    for line in key_lines(section, _width()):
        typer.echo(line)
    raise typer.Exit


def _width() -> int:
    return max(40, shutil.get_terminal_size().columns - 2)


def train(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(help="Recipe (TOML) [default: the default recipe, with --data]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared dataset [default: prepare the recipe's [data] in data/NAME]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run [default: runs/NAME]")] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Earlier run whose weights the training starts from, mapped by source id; without "
            "a recipe, its recipe is used",
        ),
    ] = None,
    epochs_new: Annotated[
        int | None,
        typer.Option(
            help="With --init: passes over the targets that the earlier run did not have, instead "
            "of epochs over all"
        ),
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(help="With --epochs-new: share of the other targets in a pass [default: 0.2]"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run")] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Then train anew on all interactions, for as many epochs as validation chose",
        ),
    ] = False,
    overrides: Set = None,
    keys: Annotated[
        str | None,
        typer.Option(
            "--keys",
            metavar="[SECTION]",
            help="Print the keys of a recipe, or of one of its sections, and exit",
            callback=_print_keys,
            is_eager=True,
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Also measure cheap baselines, in about 5 % of the CPU time or 10 s",
        ),
    ] = True,
    processes: Annotated[
        int,
        typer.Option(
            PROCESSES,
            min=1,
            help="Processes of this machine that train together, each with a share of every batch; "
            "the model is that of one process. For several machines use torchrun",
        ),
    ] = 1,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model and measure it on the test split, if there is one."""
    run = partial(
        _train, recipe, data, out, init, epochs_new, replay, resume, refit, overrides, baselines
    )
    run_in_processes(context, processes, run, json=json, quiet=quiet)


def _train(
    recipe: Path | None,
    data: Path | None,
    out: Path | None,
    init: Path | None,
    epochs_new: int | None,
    replay: float | None,
    resume: bool,
    refit: bool,
    overrides: list[str] | None,
    baselines: bool,
    console: Console,
) -> None:
    flags = {"training.epochs_new": epochs_new, "training.replay": replay}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = _config(recipe, data, init, [*given, *(overrides or [])], console)
    out = Path("runs") / config.name if out is None else out

    from candid.cli.progress import stage_progress, train_progress
    from candid.distributed import on_main
    from candid.runs import check_is_free, load_run, train_run
    from candid.runs.measurement import has_test_split, measure_on_test
    from candid.runs.refit import check_split_can_refit
    from candid.runs.run_start import is_restart

    folder, prepared = out, data

    def prepare() -> None:
        if not resume and not is_restart(folder):
            check_is_free(folder)  # before preparing, which may take an hour
        if prepared is None and config.data is not None:
            if refit:
                # Before other runs lose their dataset.
                check_split_can_refit(config.data.split.kind)
            run_prepare(config.data, Path("data") / config.name, console)

    on_main(prepare, config.training.timeout_seconds)
    data = Path("data") / config.name if data is None else data

    by_steps = config.training.validate_every_steps is not None
    with train_progress(console, by_steps=by_steps) as progress:
        result = train_run(
            config, data, out, init=init, resume=resume, refit=refit, progress=progress
        )
    shards = config.training.shards_tables
    if not result.is_main and not shards:
        return
    # Tables that are larger than memory stay in the file of the checkpoint.
    run = load_run(result.measured, data, map_weights=shards)
    measured = None
    if has_test_split(run):
        console.note(f"measuring {result.measured} on the test split")
        with stage_progress(console) as shown:
            measured = measure_on_test(run, baselines=baselines, progress=shown)
    if not result.is_main:
        return
    document = {
        "run": str(out),
        "targets": result.manifest["targets"],
        "result": result.manifest["result"],
        "refit": result.manifest.get("refit"),
        "test": None,
        "baselines": None,
    }
    lines: list[Any] = []
    if refit:
        lines += [_summary(run.manifest), "before the refit:"]
    else:
        lines.append(_summary(result.manifest))
    if measured is not None:
        document |= measured.to_json()
        lines += measured.lines(result.measured)
    elif not refit:
        lines.append("not measured: the dataset has no test split")
    if refit:
        lines.append(f"refit on all interactions: {_summary(result.manifest)}")
    console.result(document, *lines, f"trained in {out}")


def _config(
    recipe: Path | None,
    data: Path | None,
    init: Path | None,
    overrides: list[str],
    console: Console,
) -> RunConfig:
    from candid.config import load_recipe, parse_override

    if recipe is not None:
        config = load_recipe(recipe, overrides)
        if data is None and config.data is None:
            raise ConfigError(
                f"{recipe} has no section [data]; add one, or name a prepared dataset with --data"
            )
        return config
    if data is None:
        raise ConfigError("no training data; name a recipe, or a prepared dataset with --data")
    if init is not None:
        from candid.runs.measured_training import recipe_of_run

        console.note(f"settings of {init}")
        return recipe_of_run(init, {"name": run_name(data)} | dict(map(parse_override, overrides)))
    return _default_config(data, overrides, console)


def _default_config(data: Path, overrides: list[str], console: Console) -> RunConfig:
    from candid.config import DataFacts, parse_override, recipe_for
    from candid.data import open_dataset

    facts = DataFacts.of(open_dataset(data))
    changes = {"name": run_name(data)} | dict(map(parse_override, overrides))
    config, chosen = recipe_for(facts, changes)
    console.note(f"settings chosen for {data} (candid recipe --data {data} writes them to a file):")
    for default in chosen:
        console.note(f"  {default.sentence}")
    return config


def _summary(manifest: dict[str, Any]) -> str:
    result, training = manifest["result"], manifest["config"]["training"]
    best, epoch = result["best"], result["best_epoch"]
    length = f"{counted(result['epochs'], 'epoch')}, {counted(result['steps'], 'step')}"
    line = f"{length} in {result['seconds']:,.0f} s"
    if best is None:
        return line
    when = f"after epoch {epoch}" if epoch else "within the first epoch"
    if training["validate_every_steps"] is not None:
        when = f"at step {result['best_step']:,}"
    kept = "; the model is that of the last step" if training["keep"] == "none" else ""
    return f"{line}; best validation {result['metric']} {best:.4f} {when}{kept}"
