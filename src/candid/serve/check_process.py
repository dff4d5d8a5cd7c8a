"""The child process that opens and checks a model before the server loads it.

    python -P -m candid.serve.check_process

One JSON line on stdin describes the model; one on stdout is the answer. The process ends when stdin
is closed, so that it does not outlive the server.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, Final

NICENESS: Final = 10
"""Requests of the server come first."""


def check(request: dict[str, Any]) -> dict[str, Any]:
    """Open and check a model.

    Args:
        request: of ``candid.serve.model_check``: files, name of the model, and settings.

    Returns:
        ``identity`` of what was loaded, or ``error`` with the reason, and ``at``: the place of an
        unexpected error.
    """
    from candid.errors import CandidError
    from candid.serve.logs import error_fields

    try:
        return {"identity": _identity(request)}
    except CandidError as error:
        return {"error": str(error), "at": []}
    except BaseException as error:  # Panics of Rust libraries derive from BaseException.
        return {"error": unexpected(error), "at": error_fields(error)["at"]}


def unexpected(error: BaseException) -> str:
    """Return the reason for an error that candid does not raise on purpose, without its message.

    The message could quote the data.
    """
    if isinstance(error, MemoryError):
        return "the memory is not enough for the model"
    if isinstance(error, OSError) and error.strerror:
        return f"the files of the model cannot be read ({error.strerror})"
    return f"the files of the model cannot be read ({type(error).__qualname__})"


def _identity(request: dict[str, Any]) -> str:
    import torch

    from candid.serve.config import ServeConfig
    from candid.serve.model_files import ModelFiles
    from candid.serve.model_version import ModelVersion
    from candid.serve.version_check import check_version, identity_of

    torch.set_num_threads(1)
    files = ModelFiles.from_json(request["files"])
    bundle = files()
    config = ServeConfig.model_validate(request["config"])
    version = ModelVersion(bundle, name=request["name"], number=1, config=config)
    check_version(version, thorough=True)
    return identity_of(bundle, files)


def _yield_to_others() -> None:
    """Lower the priority of this process, and let it be the first to end if memory runs out."""
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _exit_with_parent(stream: BinaryIO) -> None:
    stream.read()  # Returns when the server closes the pipe or ends.
    os._exit(1)


def main() -> None:
    """Answer one request."""
    _yield_to_others()
    # Libraries may print; stdout carries the answer alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    request = json.loads(sys.stdin.buffer.readline())
    watcher = threading.Thread(target=_exit_with_parent, args=(sys.stdin.buffer,), daemon=True)
    watcher.start()
    answers.write(json.dumps(check(request)) + "\n")
    answers.flush()
    os._exit(0)  # Without the destructors of libraries, which take time and may fail.


if __name__ == "__main__":
    main()
