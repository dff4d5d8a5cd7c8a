"""The verb ``candid recipe``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from candid.cli.console import Console
from candid.cli.options import Json, Quiet, Set, Verify


def recipe(
    data: Annotated[
        Path | None,
        typer.Option(help="Prepared dataset that the settings follow [default: any large one]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: print the recipe]")
    ] = None,
    overrides: Set = None,
    verify: Verify = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the default recipe as a commented TOML file, with the settings that fit a dataset."""
    from candid.atomic import replacing
    from candid.config import DataFacts, default_recipe, parse_override, recipe_for, recipe_text
    from candid.data import open_dataset
    from candid.errors import ConfigError

    console = Console(json, quiet)
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; remove it, or choose another name")
    file = "recipe.toml" if out is None else str(out)
    reasons: dict[str, str] = {}
    if data is None:
        config = default_recipe(overrides or [])
        introduction = ["The default recipe.", "", f"    candid train {file} --data DATASET"]
    else:
        facts = DataFacts.of(open_dataset(data))
        changes = {"name": run_name(data)} | dict(map(parse_override, overrides or []))
        config, chosen = recipe_for(facts, changes)
        reasons = {one.key: one.reason for one in chosen}
        introduction = [
            f"The default recipe for {data}.",
            "",
            f"    candid train {file} --data {data}",
        ]
    introduction += ["", "All other keys: candid train --keys"]
    text = recipe_text(config, reasons, introduction)
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    document = {
        "recipe": config.model_dump(mode="json"),
        "reasons": reasons,
        "file": None if out is None else str(out),
    }
    console.result(document, text.rstrip("\n") if out is None else f"written to {out}")


def run_name(data: Path) -> str:
    """Return the name of a run of the default recipe: that of the dataset's folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", data.resolve().name).lstrip("._-") or "default"
