"""``candid train``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from candid.cli.console import Console
from candid.cli.evaluate import Split, measured
from candid.cli.key_help import recipe_keys
from candid.cli.options import Json, Quiet, Set
from candid.cli.prepare import run_prepare
from candid.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from candid.config import RunConfig


class TrainCommand(TyperCommand):
    """Lists every key of a recipe below the usual help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the options, then the keys."""
        super().format_help(ctx, formatter)
        formatter.write("\n")
        for line in recipe_keys(max(40, shutil.get_terminal_size().columns - 2)):
            formatter.write(f"{line}\n")


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="Recipe (TOML); none: the default recipe, needs --data.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Prepared dataset; none: prepare what the recipe's [data] says in data/NAME."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; none: runs/NAME.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    overrides: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model, and measure it on the test split if there is one."""
    console = Console(json, quiet)
    config = _config(recipe, data, overrides or [])
    out = Path("runs") / config.name if out is None else out

    from candid.cli.progress import stage_progress, train_progress
    from candid.data import Role
    from candid.runs import check_is_free, load_run, train_run

    if not resume:
        check_is_free(out)  # before an hour of preparing
    if data is None and config.data is not None:
        data = Path("data") / config.name
        run_prepare(config.data, data, console)
    assert data is not None

    with train_progress(console) as progress:
        result = train_run(config, data, out, resume=resume, progress=progress)
    document = {"run": str(out), "result": result.manifest["result"], "test": None}
    lines: list[Any] = [_summary(result.manifest["result"])]
    run = load_run(out, data)
    if (run.dataset.roles == Role.TEST).any():
        console.note("measuring on the test split")
        try:
            with stage_progress(console) as shown:
                report, path = measured(run, Split.TEST, progress=shown)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped while measuring; {out} is trained: measure it with candid evaluate {out}"
            ) from None
        document["test"] = report.to_json()
        lines += [report.table(), f"measured in {path}"]
    console.result(document, *lines, f"trained in {out}")


def _config(recipe: Path | None, data: Path | None, overrides: list[str]) -> RunConfig:
    from candid.config import load_recipe

    if recipe is not None:
        config = load_recipe(recipe, overrides)
        if data is None and config.data is None:
            raise ConfigError(
                f"{recipe} has no section [data]: add one, or name a prepared dataset with --data"
            )
        return config
    if data is None:
        raise ConfigError("nothing to train on: name a recipe, or a prepared dataset with --data")
    return _default_config(data, overrides)


def _default_config(data: Path, overrides: list[str]) -> RunConfig:
    from candid.config import default_recipe
    from candid.data import open_dataset

    name = re.sub(r"[^A-Za-z0-9._-]+", "-", data.resolve().name).lstrip("._-") or "default"
    return default_recipe([f'name="{name}"', *overrides], open_dataset(data))


def _summary(result: dict[str, Any]) -> str:
    best, epoch = result["best"], result["best_epoch"]
    line = f"{result['epochs']} epochs, {result['steps']:,} steps in {result['seconds']:,.0f} s"
    if best is None:
        return line
    when = f"after epoch {epoch}" if epoch else "within the first epoch"
    return f"{line}; best validation {result['metric']} {best:.4f} {when}"
