"""A program that runs verbs in forked processes and kills one at the k-th change of a file.

``KillableVerbs`` starts it. Requests and answers are lines of JSON on stdin and stdout.

An event is a change below a folder that Python sees before it happens: a file is opened for
writing, flushed to disk, renamed, removed, truncated; a folder is made or removed. Writes of
libraries between two events are not events of their own; ``torn`` covers them: the file that is
flushed at the event loses half of what was written since its last flush, as in a power cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

CHANGES = {
    "os.rename": "rename",
    "os.remove": "remove",
    "os.rmdir": "rmdir",
    "os.mkdir": "mkdir",
    "os.truncate": "truncate",
    "os.link": "link",
    "os.symlink": "symlink",
}
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Events:
    """The events of this process below a folder.

    Args:
        root: the folder.
        kill_at: number of the event at which the process kills itself, from 0; None: never.
        torn: at a flush, cut the file to half of its length first.
        copies: folder for a copy of ``root`` before each event, which is what a kill would leave;
            None: no copies.
    """

    def __init__(self, root: str, kill_at: int | None, torn: bool, copies: str | None) -> None:
        self.names: list[str] = []
        self._root = os.path.realpath(root) + os.sep
        self._kill_at = kill_at
        self._torn = torn
        self._copies = copies
        self._is_busy = False
        self._process = os.getpid()
        self._flushed: dict[int, int] = {}

    def watch(self) -> None:
        """Begin; this cannot be undone in a process."""
        sys.addaudithook(self._audit)
        plain = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._add("fsync", os.readlink(f"/proc/self/fd/{number}"), number)
            plain(descriptor)
            status = os.fstat(number)
            self._flushed[status.st_ino] = status.st_size

        os.fsync = fsync

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_busy or os.getpid() != self._process:
            return
        if event == "open":
            path, _, flags = arguments
            # An open without mode is os.open.
            if isinstance(path, str | bytes | os.PathLike) and flags & WRITE:
                self._add("open", os.fsdecode(path))
        elif event in CHANGES and not isinstance(arguments[0], int):
            folder = _folder(event, arguments)
            self._add(CHANGES[event], os.path.join(folder, os.fsdecode(arguments[0])))

    def _add(self, kind: str, path: str, descriptor: int | None = None) -> None:
        self._is_busy = True
        try:
            full = os.path.join(
                os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path)
            )
            if not full.startswith(self._root):
                return
            if len(self.names) == self._kill_at:
                if self._torn and descriptor is not None:
                    self._tear(full, full)
                os.kill(os.getpid(), signal.SIGKILL)
            if self._copies is not None:
                copy = os.path.join(self._copies, str(len(self.names)))
                shutil.copytree(self._root, copy)
                if descriptor is not None and os.path.isfile(full):
                    shutil.copytree(self._root, f"{copy}-torn")
                    self._tear(full, os.path.join(f"{copy}-torn", full.removeprefix(self._root)))
            self.names.append(f"{kind} {full.removeprefix(self._root)}")
        finally:
            self._is_busy = False

    def _tear(self, path: str, copy: str) -> None:
        """Remove the second half of what was written since the last flush."""
        if os.path.isfile(path):
            status = os.stat(path)
            flushed = self._flushed.get(status.st_ino, 0)
            os.truncate(copy, (flushed + status.st_size) // 2)


def _folder(event: str, arguments: tuple[Any, ...]) -> str:
    """Return the folder that a relative path belongs to."""
    position = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2, "os.rename": 2}.get(event)
    descriptor = -1 if position is None else arguments[position]
    return "" if descriptor == -1 else os.readlink(f"/proc/self/fd/{descriptor}")


def run_verb(request: dict[str, Any]) -> int:
    """Run one verb in this process and return its exit code."""
    from candid.cli import run

    os.chdir(request["root"])
    events = Events(*(request[name] for name in ("root", "kill_at", "torn", "copies")))
    events.watch()
    sys.argv = ["candid", *request["arguments"]]
    code = run(request["arguments"])
    with contextlib.suppress(OSError):
        Path(request["events"]).write_text(json.dumps(events.names))
    return code


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one verb in a forked process and return its exit code; negative: a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for number, name in ((1, request["stdout"]), (2, request["stderr"])):
                target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(target, number)
            code = run_verb(request)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


def main() -> None:
    """Import everything once, then answer requests."""
    import candid.cli
    import candid.runs.indexing
    import candid.tuning  # noqa: F401

    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
