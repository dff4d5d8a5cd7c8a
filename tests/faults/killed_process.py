"""A program that runs verbs in forked processes and kills one at the k-th change of a file.

``KillableVerbs`` starts it. Requests and answers are lines of JSON on stdin and stdout.

An event is a change below a folder that Python sees before it happens: a file is opened for
writing, flushed to disk, renamed, removed, truncated; a folder is made or removed. Writes of
libraries between two events are not events of their own; ``torn`` covers them: the file that is
flushed at the event loses half of what was written since its last flush, as in a power cut.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import shutil
import signal
import sys
import traceback
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


def run_verb(request: dict[str, Any]) -> tuple[int, list[str]]:
    """Run one verb in this process and return its exit code and its events."""
    from candid.cli import run

    os.chdir(request["root"])
    events = Events(*(request[name] for name in ("root", "kill_at", "torn", "copies")))
    events.watch()
    if request["size_limit"] is not None:
        # Python ignores the signal: a write beyond the limit fails, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["size_limit"],) * 2)
    sys.argv = ["candid", *request["arguments"]]
    return run(request["arguments"]), events.names


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one verb in a forked process and return its exit code; negative: a signal."""
    sys.stdout.flush()
    # Pipes: files would be subject to the limit of their size.
    pipes = {name: os.pipe() for name in ("out", "err", "events")}
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(pipes[name][1], number)
            code, events = run_verb(request)
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(pipes["events"][1], json.dumps(events).encode())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    texts = {name: b"" for name in pipes}
    with selectors.DefaultSelector() as selector:
        for name, (reader, writer) in pipes.items():
            os.close(writer)
            selector.register(reader, selectors.EVENT_READ, name)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 1 << 16)
                texts[key.data] += data
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    events = json.loads(texts["events"] or b"[]")
    return {
        "code": code,
        **{name: texts[name].decode(errors="replace") for name in ("out", "err")},
        "events": events,
    }


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
