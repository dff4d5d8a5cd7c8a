"""The command line: a thin module for each verb, and the entry point that runs them.

Importing this package imports no torch: verbs import what they need inside their function, so
that ``candid --help`` is fast.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from candid.cli.audit import audit
from candid.cli.baselines import baselines
from candid.cli.compare import compare
from candid.cli.console import AlreadyReported
from candid.cli.data import data
from candid.cli.demo import demo
from candid.cli.evaluate import evaluate
from candid.cli.export import export
from candid.cli.index import index
from candid.cli.prepare import prepare
from candid.cli.processes import VERBS, ProcessesCommand
from candid.cli.recipe import recipe
from candid.cli.recommend import recommend
from candid.cli.serve import serve
from candid.cli.similar import similar
from candid.cli.study import study
from candid.cli.train import TrainCommand, train
from candid.cli.tune import tune
from candid.cli.verify import verify
from candid.errors import CandidError, ConfigError, Interrupted, exit_code_of, is_panic
from candid.version import __version__

INTERRUPTED = 130
LONGEST_MESSAGE = 2000
"""Characters of an error message; a longer one quotes a value of the user's files."""


class _Verbs(TyperGroup):
    """The verbs; Typer would replace an interruption by its own, without the message."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Interrupted as error:
            raise AlreadyReported(_fail(str(error), error.exit_code)) from error


app = typer.Typer(
    name="candid",
    cls=_Verbs,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(short_help="Compare the corrections on synthetic data with a known distribution")(demo)
app.command(short_help="List public data sets, or prepare your copy of one")(data)
app.command(short_help="Read, filter, split and store interactions")(prepare)
app.command(short_help="Write the default recipe, with settings that fit a dataset")(recipe)
app.command(cls=TrainCommand, short_help="Train a model and measure it")(train)
app.command(short_help="Search for a better recipe within a budget")(tune)
app.command(short_help="Compare corrections and samplers on a grid of trainings")(study)
app.command(short_help="Measure a trained model over the full catalog")(evaluate)
app.command(short_help="Rank simple baselines over the full catalog")(baselines)
app.command(short_help="Compare trained models with the first one, user by user")(compare)
app.command(short_help="Measure where sampled losses converge, their variance and cost")(audit)
app.command(short_help="Recommend items to users, or for a given history")(recommend)
app.command(short_help="Find similar items of items")(similar)
app.command(cls=ProcessesCommand, short_help="Build and measure an index over the items of a run")(
    index
)
app.command(short_help="Write towers and item vectors for other programs")(export)
app.command(short_help="Serve recommendations over HTTP")(serve)
app.command(short_help="Compare artifacts with their checksums")(verify)


@app.callback(invoke_without_command=True)
def _candid(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit")] = False,
) -> None:
    """Train, measure and serve two-tower retrieval models with a corrected sampled softmax.

    Exit codes: 0 success, 1 any other failure, 2 bad usage or configuration, 3 bad data, 4 a
    damaged or mismatched artifact or a full disk, 130 interrupted. CANDID_DEBUG=1 prints the
    traceback of a failure.
    """
    verb = context.invoked_subcommand
    is_one_of_several = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if is_one_of_several and verb not in (None, *VERBS):
        if os.environ["RANK"] != "0":
            raise AlreadyReported(ConfigError.exit_code)  # by rank 0
        raise ConfigError(
            f"candid {verb} runs in one process: start it without torchrun, or unset WORLD_SIZE"
        )
    if version:
        typer.echo(f"candid {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors go to stderr as one sentence."""
    try:
        command = get_command(app)
        code = command.main(list(arguments), prog_name="candid", standalone_mode=False)
        # Typer returns this code after Ctrl-C, and the code of an option such as
        # --install-completion; a verb itself returns None.
        if code == INTERRUPTED:
            return _fail("interrupted", INTERRUPTED)
        return code if isinstance(code, int) else 0
    except AlreadyReported as error:
        return error.exit_code
    except (CandidError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        return _fail(message.replace(": Value error, ", ": "), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except OSError as error:
        return _fail(_os_message(error), exit_code_of(error))
    except BaseException as error:
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        if _is_out_of_memory(error):
            return _fail(_memory_message(error), 1)
        # The outermost boundary: an unexpected error is one sentence too.
        message = " ".join(str(error).split())
        summary = f": {message}" if message else " (no message)"
        return _fail(
            f"unexpected {type(error).__name__}{summary}; set CANDID_DEBUG=1 for the traceback", 1
        )


def main() -> None:
    """Entry point of the ``candid`` command."""
    signal.signal(signal.SIGTERM, _on_terminate)
    threading.excepthook = _on_thread_error
    # Python looks for cycles when it ends: a second of CPU time among the objects of torch.
    atexit.register(gc.freeze)
    sys.exit(run(sys.argv[1:]))


def _on_terminate(number: int, frame: FrameType | None) -> None:
    """Stop as after Ctrl-C, so that no half-written file stays."""
    raise KeyboardInterrupt


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Print nothing about a refused write: the main thread fails too and reports it."""
    if not issubclass(arguments.exc_type, OSError) or os.environ.get("CANDID_DEBUG"):
        threading.__excepthook__(arguments)


def _fail(message: str, code: int) -> int:
    if os.environ.get("CANDID_DEBUG"):
        traceback.print_exc()
    typer.echo(f"error: {_one_line(message)}", err=True)
    return code


def _one_line(message: str) -> str:
    """Escape line breaks and control characters, and leave out the middle of a long message.

    A message quotes names and values of the user's files, which may contain anything.
    """
    printable = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
    if len(printable) <= LONGEST_MESSAGE:
        return printable
    half = LONGEST_MESSAGE // 2
    left_out = len(printable) - 2 * half
    return f"{printable[:half]} … ({left_out:,} characters left out) … {printable[-half:]}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation was refused; torch raises a plain RuntimeError for the CPU."""
    texts = ("can't allocate memory", "Storage size calculation overflowed")
    is_of_torch = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return (
        is_of_torch or type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    )


def _memory_message(error: BaseException) -> str:
    asked = re.search(r"allocate ([\d.]+) ?([KMGTPE]iB|bytes)", str(error))
    size = f" for one array of {_size(asked)}" if asked else ""
    return (
        f"not enough memory{size}; lower batches.batch_size, batches.max_length or the sizes of "
        "the sampler, or use a machine with more memory"
    )


def _size(asked: re.Match[str]) -> str:
    number, unit = asked.groups()
    return f"{float(number) / 1e9:,.1f} GB" if unit == "bytes" else f"{number} {unit}"


def _os_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "free some space and retry",
        errno.EDQUOT: "free some space and retry",
        errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
        errno.EACCES: "fix the permissions or choose another path",
        errno.EPERM: "fix the permissions or choose another path",
        errno.EROFS: "choose a path that is writable",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path",
        errno.EEXIST: "choose another path",
    }
    reason = (error.strerror or str(error)).lower()
    hint = hints.get(error.errno or 0)
    return f"{where}{reason}" + (f"; {hint}" if hint else "")
