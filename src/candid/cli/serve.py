"""``candid serve``."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.serve.config import ServeConfig
    from candid.serve.models import Opener

READ_KEY = "CANDID_API_KEY"
ADMIN_KEY = "CANDID_ADMIN_KEY"


def serve(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs; the first is asked where a request names no model.",
        ),
    ],
    index: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Index of each run, in their order; none: DIR/index of the run, or where there is "
            "none an exact one.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Prepared dataset of each run; none: those they were trained on."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Keys of those who may ask, one a line; or one in {READ_KEY}; none: everybody.",
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Keys of those who may change items and reload; or one in {ADMIN_KEY}; none: "
            "nobody.",
        ),
    ] = None,
    changes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Keep changes of items here, so that they outlive the server."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a limit, such as max_k=500; may be repeated.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Write no line for each request.")
    ] = False,
) -> None:
    """Answer over HTTP: recommendations, items near an item, and a page at /.

    GET /v1/model lists the limits. SIGHUP loads the models again, SIGTERM stops once what was asked
    is answered. The log, JSON lines on stderr, says the address and never what people asked.
    """
    # A reload that is asked for before there is anything to load again would be the end.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = _settings(overrides or [])
    if quiet:
        settings = settings.model_copy(update={"log_requests": False})
    read = _keys(api_key_file, READ_KEY)
    admin = _keys(admin_key_file, ADMIN_KEY)
    openers = _openers(runs, index or [], data or [])
    try:
        from candid.serve.gate import Keys
        from candid.serve.process import serve as serve_models
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "uvicorn", "prometheus_client"):
            raise
        raise ConfigError(
            f"candid serve needs {error.name}, which is not installed: pip install 'candid[serve]'"
        ) from None

    serve_models(
        openers,
        config=settings,
        keys=Keys(read, admin),
        host=host,
        port=port,
        changes=changes,
    )


def _settings(overrides: Sequence[str]) -> ServeConfig:
    from candid.config import validated, with_overrides
    from candid.serve.config import ServeConfig

    return validated(ServeConfig, with_overrides({}, overrides), "--set")


def _openers(
    runs: Sequence[Path], indexes: Sequence[Path], datasets: Sequence[Path]
) -> Mapping[str, Opener]:
    from functools import partial

    from candid.runs.serving import open_served

    for option, given in (("--index", indexes), ("--data", datasets)):
        if given and len(given) != len(runs):
            raise ConfigError(
                f"{option} is given {len(given)} times for {len(runs)} runs: once for each, in "
                "their order, or not at all"
            )
    openers: dict[str, Opener] = {}
    for place, run in enumerate(runs):
        name = run.resolve().name
        number = 2
        while name in openers:
            name, number = f"{run.resolve().name}-{number}", number + 1
        openers[name] = partial(
            open_served,
            run,
            indexes[place] if indexes else None,
            datasets[place] if datasets else None,
        )
    return openers


def _keys(file: Path | None, variable: str) -> tuple[str, ...]:
    if file is None:
        key = os.environ.get(variable, "").strip()
        return (key,) if key else ()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys in {file} cannot be read: {error}") from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise ConfigError(f"{file} holds no key: write one a line")
    return keys
