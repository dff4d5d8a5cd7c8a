"""Verbs that several processes run together: launched by ``--processes``, or by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from typer.core import TyperCommand

from candid.cli.console import AlreadyReported, Console

PROCESSES: Final = "--processes"
ARGUMENTS: Final = "candid.arguments"
"""Key of the context with the arguments as they were given."""
VERBS: Final = ("train", "index")
"""Verbs that torchrun may start."""


class ProcessesCommand(TyperCommand):
    """A command that keeps its arguments for the processes that it launches."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments, then parse."""
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


def run_in_processes(
    context: Any, num_processes: int, run: Callable[[Console], None], *, json: bool, quiet: bool
) -> None:
    """Run a verb in this process, in those that it launches, or as one of those of a launcher.

    Args:
        context: of the command.
        num_processes: processes to launch; 1: none.
        run: the verb.
        json: as the verb has it.
        quiet: as the verb has it; only rank 0 shows progress.

    Raises:
        ConfigError: the processes of a launcher cannot launch others.
        AlreadyReported: another process has failed.
    """
    if num_processes > 1:
        from candid.distributed.launch import launch

        arguments = without_processes(context.meta[ARGUMENTS])
        code = launch(num_processes, [str(context.info_name), *arguments])
        if code:
            raise AlreadyReported(code)
        return
    if os.environ.get("WORLD_SIZE", "1") == "1":
        run(Console(json, quiet))
        return
    # A launcher has started several processes. Else a lost connection prints a page.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from candid.distributed import PeerError, PeerInterrupted, connected, is_main
    from candid.distributed.launch import end_with_launcher

    end_with_launcher()
    try:
        with connected():
            run(Console(json, quiet or not is_main()))
    except (PeerError, PeerInterrupted) as error:
        # The process that failed first prints the sentence.
        raise AlreadyReported(error.exit_code) from None


def without_processes(arguments: list[str]) -> list[str]:
    """Return the arguments of the processes: those given, without ``--processes N``."""
    kept, given = [], iter(arguments)
    for argument in given:
        if argument == PROCESSES:
            next(given, None)
        elif not argument.startswith(f"{PROCESSES}="):
            kept.append(argument)
    return kept
