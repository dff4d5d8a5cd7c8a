"""The verb ``candid serve``."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from candid.cli.options import FallbackName, Verify
from candid.errors import ConfigError

if TYPE_CHECKING:
    from candid.serve.config import ServeConfig
    from candid.serve.model_files import ModelFiles

READ_KEY: Final = "CANDID_API_KEY"
ADMIN_KEY: Final = "CANDID_ADMIN_KEY"
MAX_NAME: Final = 200
"""Characters of the name of a model."""
EXTRA_MODULES: Final = ("fastapi", "httptools", "prometheus_client", "uvicorn")


def serve(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of runs or saved baselines; the first answers requests that name no "
            "model",
        ),
    ],
    index: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Index of each run, in the same order [default: DIR/index of the run, or an exact "
            "index in memory]",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Prepared dataset of each run, in the same order [default: the one it was trained "
            "on]"
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Name of each model in requests and item updates, in the same order [default: "
            "last part of RUN as written, also of a link]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one")
    ] = 8000,
    probe_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Answer /healthz, /readyz and /metrics on this port as well, in a process that no "
            "request delays; 0: any free one [default: on --port only]",
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            metavar="N",
            help="Processes that answer requests on the same port; item updates and reloads reach "
            "all of them, limits (--set) hold for each of them",
        ),
    ] = 1,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Keys of clients that may query, one per line, or one key in {READ_KEY} "
            "[default: no key needed]",
        ),
    ] = None,
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keys of clients that may update items and reload, one per line, or one key in "
            f"{ADMIN_KEY} [default: updates and reloads are refused]",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Refuse requests whose Host header is another name; *.NAME: all names below it; "
            "repeatable [default: every name is accepted]",
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="Read the client of a request from X-Forwarded-For if it comes from this address "
            "or network; repeatable [default: the other end of the connection is the client]",
        ),
    ] = None,
    item_updates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Store item updates in this file, so that they outlive the server",
        ),
    ] = None,
    fallback: Annotated[
        FallbackName | None,
        typer.Option(
            help="List of users without a history and of users that the data does not have, unless "
            "a request names another [default: none]",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Override a limit, such as max_k=500; repeatable"
        ),
    ] = None,
    verify: Verify = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not log each request")] = False,
) -> None:
    """Serve recommendations and similar items over HTTP, with a web page at /.

    GET /v1/model lists the limits. SIGHUP reloads the models; SIGTERM finishes open requests and
    stops. The log on stderr, JSON lines, contains the address and no personal data.
    """
    # A reload signal during start-up would end the process.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if probe_port and probe_port == port:
        raise ConfigError(
            f"--probe-port {probe_port} is the port of --port; choose another one, or leave "
            "--probe-port out: --port answers probes too"
        )
    config = _config(overrides or [])
    if fallback is not None:
        config = config.model_copy(update={"fallback": fallback.value})
    if quiet:
        config = config.model_copy(update={"log_requests": False})
    read_keys = _keys(api_key_file, READ_KEY)
    admin_keys = _keys(admin_key_file, ADMIN_KEY)
    files = _files(runs, index or [], data or [], name or [], verify)
    try:
        from candid.serve.http.access import AccessRules, AllowedHosts, ApiKeys, TrustedProxies
        from candid.serve.logs import flush_log

        run: Callable[..., None]
        if workers == 1:
            from candid.serve.http.process import run_server as run
        else:
            from candid.serve.http.workers import run_workers

            # The workers import these in processes of their own.
            if missing := [name for name in EXTRA_MODULES if find_spec(name) is None]:
                raise ModuleNotFoundError(name=missing[0])
            run = partial(run_workers, num_workers=workers)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA_MODULES:
            raise
        raise ConfigError(
            f"candid serve needs {error.name}, which is not installed; run pip install "
            "'candid-retrieval[serve]'"
        ) from None

    try:
        run(
            files,
            config=config,
            access=AccessRules(
                ApiKeys(read_keys, admin_keys),
                AllowedHosts(tuple(allowed_host or ())),
                TrustedProxies(tuple(trusted_proxy or ())),
            ),
            host=host,
            port=port,
            item_updates=item_updates,
            probe_port=probe_port,
        )
    finally:
        flush_log()  # An error follows the lines that led to it.


def _config(overrides: Sequence[str]) -> ServeConfig:
    from candid.config import validated, with_overrides
    from candid.serve.config import ServeConfig

    return validated(ServeConfig, with_overrides({}, overrides), "--set")


def _files(
    runs: Sequence[Path],
    indexes: Sequence[Path],
    datasets: Sequence[Path],
    names: Sequence[str],
    verify: bool,
) -> Mapping[str, ModelFiles]:
    from candid.serve.model_files import ModelFiles

    for option, values in (("--index", indexes), ("--data", datasets), ("--name", names)):
        if values and len(values) != len(runs):
            raise ConfigError(
                f"{option} is given {len(values)} times for {len(runs)} runs; give it once per "
                "run, in the same order, or leave it out"
            )
    return {
        name: ModelFiles(
            run,
            indexes[position] if indexes else None,
            datasets[position] if datasets else None,
            verify=verify,
        )
        for position, (name, run) in enumerate(zip(_served_names(runs, names), runs, strict=True))
    }


def _served_names(runs: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Return the name of each model: as given, or the last part of its path.

    Links are not resolved, so that a model keeps its name and its item updates when a link is
    moved to a new run.
    """
    served = list(names) or [Path(os.path.abspath(run)).name for run in runs]
    for run, name in zip(runs, served, strict=True):
        if not name or len(name) > MAX_NAME or name != name.strip() or not name.isprintable():
            raise ConfigError(
                f"{name!r} cannot be the name of the model in {str(run)!r}; give a --name of 1 to "
                f"{MAX_NAME} printable characters"
            )
        if served.count(name) > 1:
            raise ConfigError(
                f"several models would be called {name!r}; give each run another --name"
            )
    return served


def _keys(file: Path | None, variable: str) -> tuple[str, ...]:
    if file is None:
        value = os.environ.get(variable)
        if value is None:
            return ()
        if not value.strip():
            raise ConfigError(f"{variable} is empty; set a key, or unset it to serve without a key")
        return (value.strip(),)
    try:
        text = file.read_text(encoding="utf-8-sig")  # Some editors begin a file with a mark.
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read keys from {file}: {error}; choose a readable UTF-8 file"
        ) from None
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not keys:
        raise ConfigError(
            f"{file} contains no key; write one per line, or leave the option out to serve without "
            "a key"
        )
    return keys
