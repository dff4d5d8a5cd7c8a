"""Checks of models in a child process, whose crash does not end the server."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from typing import Any, Final

from candid.errors import ArtifactError
from candid.json_text import parse_json
from candid.serve.child_process import start_module
from candid.serve.config import ServeConfig
from candid.serve.logs import log_event
from candid.serve.model_files import ModelFiles

MODULE: Final = "candid.serve.check_process"
MAX_STDERR: Final = 1 << 20
"""Bytes of stderr that are searched for the place of a crash."""
MAX_FRAMES: Final = 8
FRAME: Final = re.compile(r'^  File "([^"]+)", line (\d+) in (\S+)$', re.MULTILINE)
"""A line of the traceback of ``faulthandler``."""


class ModelChecks:
    """Checks of the models of a server, one at a time, each in a new process.

    The process opens the model, compares the checksums of its files, answers queries of several
    kinds and checks that all weights, vectors and answers are finite. It has a lower priority than
    the server, and its memory is freed when it ends. Needs no torch in this process.

    Args:
        files: of each model, by name.
        config: settings of the server; ``reload_timeout_ms`` limits a check.

    Example:
        >>> checks = ModelChecks({"films": ModelFiles(Path("runs/films"))}, config=ServeConfig())
        >>> identity = checks.check("films")  # doctest: +SKIP
    """

    def __init__(self, files: Mapping[str, ModelFiles], *, config: ServeConfig) -> None:
        self._files = dict(files)
        self._config = config
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"ModelChecks({list(self._files)})"

    def files(self, name: str) -> ModelFiles:
        """Return the files of a model."""
        return self._files[name]

    def check(self, name: str) -> str:
        """Check a model as it is now.

        Returns:
            The identity of the files that were checked (``version_check.identity_of``).

        Raises:
            ArtifactError: the model cannot be opened or served, the process crashed, or it took
                longer than ``reload_timeout_ms``.
        """
        request = {
            "files": self._files[name].to_json(),
            "name": name,
            "config": self._config.model_dump(mode="json"),
        }
        with tempfile.TemporaryFile() as stderr:
            process = self._start(stderr)
            output = self._communicate(process, json.dumps(request).encode() + b"\n")
            answer = _answer_in(output)
            if answer is None:
                stderr.seek(0)
                text = stderr.read(MAX_STDERR).decode("utf-8", "replace")
                reason = _exit_reason(process.returncode)
                log_event(
                    "model check crashed", logging.WARNING, model=name, at=_crash_frames(text)
                )
                raise ArtifactError(f"the check of the model in a process of its own {reason}")
        if "error" in answer:
            if answer["at"]:
                log_event("model check failed", logging.WARNING, model=name, at=answer["at"])
            raise ArtifactError(answer["error"])
        return str(answer["identity"])

    def close(self) -> None:
        """End the check that is running, and refuse later ones."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                self._process.kill()

    def _start(self, stderr: Any) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_closed:
                raise ArtifactError("the server is shutting down")
            try:
                self._process = start_module(
                    MODULE,
                    environment={"OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                )
            except OSError as error:
                raise ArtifactError(
                    f"the process that checks the model cannot start: {error.strerror}"
                ) from None
            return self._process

    def _communicate(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Send the request and return the output; stdin stays open, as its end ends the process."""
        assert process.stdin is not None
        assert process.stdout is not None
        milliseconds = self._config.reload_timeout_ms
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(milliseconds / 1000, stop)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(request)
                process.stdin.flush()
            output = process.stdout.read()
            process.wait()
        finally:
            timer.cancel()
            process.kill()  # After an interruption; without effect on a process that has ended.
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    stream.close()
            with self._lock:
                self._process = None
        if expired.is_set():
            raise ArtifactError(
                f"the check of the model took longer than {milliseconds / 1000:g} s; raise "
                "reload_timeout_ms"
            )
        if self._is_closed:
            raise ArtifactError("the server is shutting down")
        return output


def _answer_in(output: bytes) -> dict[str, Any] | None:
    try:
        answer = parse_json(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _exit_reason(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            return "was killed (SIGKILL), probably because memory ran out"
        return f"crashed ({name}): a file is damaged, or a library has a fault"
    return f"was ended by signal {-code}"


def _crash_frames(stderr: str) -> list[str]:
    """Return the innermost frames of a crash, as the log writes those of errors."""
    frames = FRAME.findall(stderr)[:MAX_FRAMES]
    return [f"{file}:{line} {function}" for file, line, function in reversed(frames)]
