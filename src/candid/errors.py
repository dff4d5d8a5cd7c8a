"""The one tree of errors a user can meet, each with the exit code of the command line.

    CandidError                     1  anything we can explain
    ├── ConfigError                 2  bad usage or configuration (also: a missing extra)
    │   └── UnknownNameError        2  a name that no registry or schema knows
    ├── DataError                   3  bad input data
    ├── ArtifactError               4  a damaged or foreign prepared dataset, checkpoint or index
    └── Interrupted               130  stopped by the user; the message says how to resume

Every message is one sentence that names the file, column, row or config key at fault and
says what would be right. The command line prints the message alone, never a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CandidError(Exception):
    """Base of every error that candid raises on purpose."""

    exit_code = 1


class ConfigError(CandidError):
    """A setting, flag or combination of them that cannot work."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that is not known where it was used; the message lists the known ones.

    Args:
        kind: what was looked up, in the words of the docs ("loss", "config key").
        name: what the user wrote.
        known: the names that would have been right.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")


class DataError(CandidError):
    """Input data that cannot be used as it is."""

    exit_code = 3


class ArtifactError(CandidError):
    """A file that candid wrote (or should have written) that is damaged or does not belong."""

    exit_code = 4


class Interrupted(CandidError):
    """The user asked to stop; the work so far is safe and the message says where."""

    exit_code = 130
