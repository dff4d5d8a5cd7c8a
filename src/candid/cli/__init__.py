"""The command line: parse, call, print.

Every verb is a thin module of this package. Nothing here imports torch before a verb needs
it, so that ``candid --help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

import typer
from typer.main import get_command

import candid
from candid.cli.audit import audit
from candid.cli.demo import demo
from candid.cli.evaluate import evaluate
from candid.cli.export import export
from candid.cli.index import index
from candid.cli.prepare import prepare
from candid.cli.recommend import recommend
from candid.cli.serve import serve
from candid.cli.train import TrainCommand, train
from candid.errors import CandidError

INTERRUPTED = 130

app = typer.Typer(
    name="candid",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Compare the corrections in a world whose truth is known.")(demo)
app.command(short_help="Read, filter, split and store interactions.")(prepare)
app.command(cls=TrainCommand, short_help="Train a model and measure it.")(train)
app.command(short_help="Measure a trained model over the full catalog.")(evaluate)
app.command(short_help="Measure estimators of the loss against the full softmax.")(audit)
app.command(short_help="Recommend items to users, or for a typed history.")(recommend)
app.command(short_help="Build an index over a run's items and measure it.")(index)
app.command(short_help="Write towers and item vectors for other programs.")(export)
app.command(short_help="Answer applications and people over HTTP.")(serve)


@app.callback(invoke_without_command=True)
def _candid(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Train, measure and use retrieval models with an honest sampled softmax.

    Exit codes: 0 success, 1 any other failure, 2 bad usage or configuration, 3 bad data, 4 a
    bad or foreign artifact, 130 interrupted. CANDID_DEBUG=1 shows the traceback of a failure.
    """
    if version:
        typer.echo(f"candid {candid.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors go to stderr as one sentence."""
    try:
        command = get_command(app)
        code = command.main(list(arguments), prog_name="candid", standalone_mode=False)
        # Typer turns Ctrl-C into a code of its own accord; a verb itself returns nothing.
        return _fail("interrupted", INTERRUPTED) if code == INTERRUPTED else 0
    except (CandidError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        return _fail(message.replace(": Value error, ", ": "), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except OSError as error:
        return _fail(_os_sentence(error), 1)
    except Exception as error:
        # The outermost boundary: whatever nobody foresaw is still told in one sentence.
        summary = " ".join(str(error).split()) or "no further word"
        return _fail(
            f"unexpected {type(error).__name__}: {summary} (set CANDID_DEBUG=1 for the traceback)",
            1,
        )


def main() -> None:
    """Entry point of the ``candid`` command."""
    signal.signal(signal.SIGTERM, _terminate)
    threading.excepthook = _thread_failed
    sys.exit(run(sys.argv[1:]))


def _terminate(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that nothing half-written stays behind."""
    raise KeyboardInterrupt


def _thread_failed(arguments: threading.ExceptHookArgs) -> None:
    """Be silent about a refused write: the main thread meets it too, and says what and where."""
    if not issubclass(arguments.exc_type, OSError) or os.environ.get("CANDID_DEBUG"):
        threading.__excepthook__(arguments)


def _fail(message: str, code: int) -> int:
    if os.environ.get("CANDID_DEBUG"):
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    return code


def _os_sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space and try again",
        errno.EDQUOT: "free some space and try again",
        errno.EACCES: "change its permissions or name another place",
        errno.EPERM: "change its permissions or name another place",
        errno.EROFS: "name a place that can be written",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path",
        errno.EEXIST: "name another place",
    }
    what = (error.strerror or str(error)).lower()
    hint = hints.get(error.errno or 0)
    return f"{where}{what}" + (f"; {hint}" if hint else "")
