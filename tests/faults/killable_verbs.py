"""Verbs that are killed at a chosen change of a file, and comparison of what they write."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from candid.atomic import TEMPORARY

PROGRAM = Path(__file__).with_name("killed_process.py")
TOKEN = re.compile(r"[0-9a-f]{32}|(?<=-)[0-9a-f]{16}(?=\.)")
"""Random parts of names: of temporary files, and of the files of an index."""
VOLATILE = frozenset(
    {
        *("seconds", "train_seconds", "cpu_seconds", "fit_seconds", "rows_per_second"),
        *("command", "machine", "attempts", "peak_memory_mib", "token", "measured", "checksum"),
    }
)
"""Keys of JSON files that differ between two equal runs."""


@dataclass(frozen=True)
class Ended:
    """The end of a verb.

    Attributes:
        code: exit code; negative: killed by a signal.
        out: stdout.
        err: stderr.
        events: the changes of files, in order; empty after a kill.
    """

    code: int
    out: str
    err: str
    events: list[str]


class KillableVerbs:
    """A process that runs verbs of the command line in forks of itself.

    It imports candid once, which takes most of the time of a short verb.

    Example:
        >>> with KillableVerbs() as verbs:  # doctest: +SKIP
        ...     verbs.run(tmp_path, "recipe", "--out", "r.toml").events
        ...     verbs.run(tmp_path, "recipe", "--out", "r.toml", kill_at=2).code
        -9
    """

    def __enter__(self) -> KillableVerbs:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(
        self,
        root: Path,
        *arguments: object,
        kill_at: int | None = None,
        torn: bool = False,
        copies: Path | None = None,
        size_limit: int | None = None,
    ) -> Ended:
        """Run a verb with ``root`` as its working folder.

        Args:
            root: only changes below it are events.
            arguments: of the command line.
            kill_at: number of the event before which the process is killed; None: it ends by
                itself.
            torn: kill at a flush to disk with half of the file.
            copies: new folder for a copy of ``root`` before each event, by its number; and of one
                with half of the file for each flush, as ``NUMBER-torn``.
            size_limit: largest size of a file in bytes; a write beyond it fails, as on a full disk.
        """
        request = {
            "root": str(root),
            "arguments": [str(argument) for argument in arguments],
            "kill_at": kill_at,
            "torn": torn,
            "copies": None if copies is None else str(copies),
            "size_limit": size_limit,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def content(folder: Path) -> dict[str, str]:
    """Return a digest of each file below a folder, equal for two equal runs.

    Random parts of names, durations and the records of lock files are left out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = TOKEN.sub("TOKEN", str(path.relative_to(folder)))
        found[name] = "" if path.is_dir() else hashlib.sha256(_stable(path)).hexdigest()
    return found


@dataclass(frozen=True)
class WholeRun:
    """A verb that ran to its end, with what a kill before each event would have left.

    Attributes:
        arguments: of the command line, with paths relative to the working folder.
        start: folder with the input.
        events: the changes of files, in order.
        expected: ``content`` of the working folder at the end.
        copies: folder of the copies.
        root: working folder; its content is removed.
    """

    arguments: Sequence[object]
    start: Path
    events: list[str]
    expected: dict[str, str]
    copies: Path
    root: Path

    @classmethod
    def of(
        cls, verbs: KillableVerbs, start: Path, arguments: Sequence[object], folder: Path
    ) -> WholeRun:
        """Run a verb in a copy of its input.

        Args:
            verbs: the process that runs it.
            start: folder with the input; it stays unchanged.
            arguments: of the command line.
            folder: new folder for the working folder and the copies.
        """
        root, copies = folder / "root", folder / "copies"
        shutil.copytree(start, root)
        ended = verbs.run(root, *arguments, copies=copies)
        assert ended.code == 0, ended.err
        return cls(arguments, start, ended.events, content(root), copies, root)

    def faults_after_kills(self, verbs: KillableVerbs, kills: Iterable[int]) -> list[str]:
        """Kill the verb before events; return a line for each fault of what follows.

        Args:
            verbs: the process that runs it.
            kills: numbers of events.
        """
        faults = []
        for number in kills:
            _replace(self.root, self.start)
            killed = verbs.run(self.root, *self.arguments, kill_at=number)
            if killed.code != -9:
                faults.append(f"{self._place(number)}: exit {killed.code}: {killed.err}")
                continue
            copied = content(self.copies / str(number))
            faults += [
                f"{self._place(number)}: {d}" for d in differences(copied, content(self.root))
            ]
            faults += self._faults_of_rerun(verbs, self._place(number))
        return faults

    def faults_of_all_kills(self, verbs: KillableVerbs, most: int | None = None) -> list[str]:
        """Continue from what a kill before each event leaves; return a line for each fault.

        A command that is refused is repeated with ``--resume``, where the message proposes that;
        or the killed one must have left the complete output.

        Args:
            verbs: the process that runs them.
            most: number of different states to continue from, spread evenly; None: all of them.
        """
        states: dict[str, Path] = {}
        for number in range(len(self.events)):
            for copy in (self.copies / str(number), self.copies / f"{number}-torn"):
                if copy.exists():
                    states.setdefault(str(content(copy)), copy)
        copies = list(states.values())
        count = len(copies) if most is None else min(most, len(copies))
        faults = []
        for copy in (copies[index * len(copies) // count] for index in range(count)):
            _replace(self.root, copy)
            number, is_torn = copy.name.removesuffix("-torn"), copy.name.endswith("-torn")
            place = self._place(int(number)) + (" with a torn file" if is_torn else "")
            faults += self._faults_of_rerun(verbs, place)
        return faults

    def faults_of_full_disk(self, verbs: KillableVerbs, sizes: Iterable[int]) -> list[str]:
        """Run the verb where files cannot be large; return a line for each fault.

        It must fail with exit code 4 and one sentence, leave no temporary file, and work where
        there is space again.

        Args:
            verbs: the process that runs them.
            sizes: largest sizes of a file, in bytes.
        """
        faults = []
        for size in sizes:
            _replace(self.root, self.start)
            full = verbs.run(self.root, *self.arguments, size_limit=size)
            if full.code == 0:
                continue
            last = (full.err.splitlines() or [""])[-1]
            if (
                full.code != 4
                or "Traceback" in full.err
                or not last.startswith("error: cannot write")
            ):
                faults.append(f"files of at most {size} bytes: exit {full.code}: {full.err[-500:]}")
            faults += [
                f"files of at most {size} bytes: {name} should not be there"
                for name in content(self.root)
                if Path(name).name.startswith(".") and not name.endswith(".blocks")
            ]
            faults += self._faults_of_rerun(verbs, f"after files of at most {size} bytes")
        return faults

    def _place(self, number: int) -> str:
        return f"killed before event {number} ({self.events[number]})"

    def _faults_of_rerun(self, verbs: KillableVerbs, place: str) -> list[str]:
        left = content(self.root)
        again = verbs.run(self.root, *self.arguments)
        if again.code != 0 and "--resume" in again.err:
            again = verbs.run(self.root, *self.arguments, "--resume")
        if again.code == 0:
            return [f"{place}: {line}" for line in differences(self.expected, content(self.root))]
        if all(left.get(name) == digest for name, digest in self.expected.items()):
            return []
        return [f"{place}: the next command failed: {again.err.strip()}"]


def _replace(folder: Path, source: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return a line for each file that is missing, that differs, or that should not be there."""
    return [
        *(f"{name} is missing" for name in expected.keys() - found.keys()),
        *(f"{name} should not be there" for name in found.keys() - expected.keys()),
        *(
            f"{name} differs"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ),
    ]


def _stable(path: Path) -> bytes:
    """Return the content of a file without what differs between two equal runs."""
    temporary = TEMPORARY.fullmatch(path.name)
    suffix = Path(temporary[1] if temporary else path.name).suffix
    if path.name.endswith(".lock"):
        return b""
    try:
        if suffix == ".json":
            return json.dumps(_without(json.loads(path.read_text())), sort_keys=True).encode()
        if suffix == ".jsonl":
            lines = path.read_text().splitlines()
            return json.dumps([_without(json.loads(line)) for line in lines]).encode()
        if suffix == ".safetensors":
            return _of_tensors(path)
        if suffix == ".toml":  # comments have times
            return re.sub(r"(?m)^#.*|  # .*", "", path.read_text()).encode()
    except (ValueError, AttributeError, SafetensorError):
        pass  # A file that was cut.
    return path.read_bytes()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_without(inner) for inner in value]
    return TOKEN.sub("TOKEN", value) if isinstance(value, str) else value


def _of_tensors(path: Path) -> bytes:
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        meta = {key: _without(json.loads(value)) for key, value in (file.metadata() or {}).items()}
        digest.update(json.dumps(meta, sort_keys=True).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
            digest.update(tensor.tobytes())
    return digest.digest()
