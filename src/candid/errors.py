"""The error classes of candid, each with the exit code of the command line.

    CandidError                     1  base class
    ├── ConfigError                 2  bad usage or configuration, or a missing extra
    │   └── UnknownNameError        2  a name that is not in a registry or schema
    ├── DataError                   3  bad input data
    └── ArtifactError               4  a damaged or foreign artifact, or a full disk
    KeyboardInterrupt
    └── Interrupted               130  stopped by the user; the message explains how to resume

Every message is one sentence: the file, column, row or config key at fault, and what to do. The
command line prints the message without a traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from typing import Final


class CandidError(Exception):
    """Base of every error that candid raises on purpose."""

    exit_code = 1


class ConfigError(CandidError):
    """A setting or option, or a combination of them, that cannot work."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """An unknown name; the message lists the known ones.

    Args:
        kind: noun for the named thing in the message ("loss", "config key").
        name: unknown name.
        known: valid names.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


class DataError(CandidError):
    """Input data that cannot be used."""

    exit_code = 3


class ArtifactError(CandidError):
    """A file or folder that is damaged, of another program or model, or cannot be written."""

    exit_code = 4


class Interrupted(KeyboardInterrupt):
    """SIGINT (Ctrl-C) or SIGTERM stopped the work; the message explains how to continue.

    Not a ``CandidError``, nor an ``Exception``: a loop over trainings that records the failures of
    single ones does not continue after it.
    """

    exit_code = 130


NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system for a full disk: an ``ArtifactError`` wherever one occurs."""


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of the command line for an error."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return ArtifactError.exit_code
    return int(getattr(error, "exit_code", CandidError.exit_code))


def is_panic(error: BaseException) -> bool:
    """Return whether a library in Rust, such as Polars, stopped at an error of its own.

    Such an error is not an ``Exception``. Each library has a class of its own with this name.
    """
    return type(error).__name__ == "PanicException"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of the CPU or of an accelerator."""
    # torch raises a plain RuntimeError for memory of the CPU.
    is_of_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
    return is_of_cpu or type(error).__name__ == "OutOfMemoryError"
