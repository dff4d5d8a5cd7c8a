"""The processes of a server: how one starts in a new interpreter, and how it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def start_module(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a module; it imports the same candid as this process.

    Args:
        module: name of the module.
        arguments: of its command line.
        environment: variables beside those of this process.
        options: further ones of ``subprocess.Popen``.

    Raises:
        OSError: the process cannot be started.
    """
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        # -P: not from the current folder, but from those of this process.
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        process_group=0,  # Ctrl-C is for the server, which then stops the process.
        **options,
    )


def exit_reason(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
