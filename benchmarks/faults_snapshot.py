"""Comparable content of folders: the values in their files, without those that always differ.

``leaves`` splits the files of a folder into values: each leaf of a JSON document, each line of a
TOML file, each tensor of a safetensors file, else the checksum of the file. Times and memory are
left out, with the checksum of their document: two runs may agree on them by chance. Two uncut runs
of the same command show which other values differ anyway (tokens); ``stable`` leaves those out.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from faults_process import CACHE
from faults_process import TEMPORARY as TEMPORARY_FOLDER

TOKEN = re.compile(r"-[0-9a-f]{16}(?=\.)|(?<=[._-])[0-9a-f]{32}(?=\.|$)")
"""Random parts of file names: of the snapshots of an index, and of temporary files."""
TEMPORARY = re.compile(
    r"\.tmp$|\.part-|\.old$|~$|(^|/)candid-[a-z]+-[0-9a-f]{32}(\.lock)?$|(^|/)torchelastic_[^/]*$"
)
PROBE = re.compile(rf"{TEMPORARY_FOLDER}/[a-z0-9_]{{8}}")
"""A file of some bytes by which Python tests whether it can write temporary files."""
HIDDEN = frozenset({".lock"})
TIME = re.compile(r"seconds|minutes|hours|peak_mib|(?<![a-z])m[sb](?![a-z])")
"""Names of values that are times or memory, and words of lines that have some."""
SEAL = re.compile(r"[#/] ?checksum(?=$|: )")
"""The checksum of a document, which covers its times too."""


def file_names(folder: Path) -> set[str]:
    """Return the names of all files below a folder, without random parts, locks and the cache."""
    return {
        TOKEN.sub("-TOKEN", str(path.relative_to(folder)))
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in HIDDEN
        and not path.name.endswith(".lock")
        and path.relative_to(folder).parts[0] != CACHE
        and not PROBE.fullmatch(str(path.relative_to(folder)))
    }


def temporary_files(folder: Path) -> list[str]:
    """Return the names of temporary files and folders below a folder."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return sorted(name for name in names if TEMPORARY.search(name))


def leaves(path: Path) -> dict[str, str]:
    """Return the values of a file, or of all files of a folder; empty if it does not exist."""
    if path.is_file():
        return dict(_file_leaves(path, path.name))
    result: dict[str, str] = {}
    for file in sorted(path.rglob("*")):
        name = TOKEN.sub("-TOKEN", str(file.relative_to(path)))
        if file.is_file() and file.name not in HIDDEN and not TEMPORARY.search(name):
            result.update(_file_leaves(file, name))
    return result


def stable(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Return the values that two runs of the same command agree on."""
    return {name: value for name, value in first.items() if second.get(name) == value}


def difference(
    expected: Mapping[str, str], found: Mapping[str, str], pattern: str = ""
) -> str | None:
    """Describe the first expected value that is missing or differs; None: all agree."""
    for name, value in expected.items():
        if re.search(pattern, name) and found.get(name) != value:
            got = found.get(name, "nothing")
            return f"{name} is {got[:80]}, not {value[:80]}"
    return None


def _file_leaves(file: Path, name: str) -> Iterator[tuple[str, str]]:
    content = file.read_bytes()
    try:
        if file.suffix == ".json":
            yield from _without_times(dict(_json_leaves(json.loads(content), name)))
            return
        if file.suffix == ".jsonl":
            for number, line in enumerate(content.splitlines()):
                values = _json_leaves(json.loads(line), f"{name}:{number}")
                yield from _without_times(dict(values))
            return
        if file.suffix == ".toml":
            lines = content.decode().splitlines()
            # Only comments are results: the times of other lines are settings.
            comments = dict(_without_times({line: "" for line in lines if line[:1] == "#"}))
            for number, line in enumerate(lines):
                if line[:1] != "#" or line in comments:
                    yield f"{name}:{number}", line
            return
        if file.suffix == ".safetensors":
            yield from _tensor_leaves(content, name)
            return
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        pass  # not of its format: compared as bytes
    yield name, hashlib.sha256(content).hexdigest()


def _without_times(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the values of a document without times, and without a checksum that covers some."""
    has_times = any(TIME.search(name) for name in values)
    for name, value in values.items():
        if not (TIME.search(name) or (has_times and SEAL.search(name))):
            yield name, value


def _json_leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _json_leaves(entry, f"{name}/{key}")
    elif isinstance(value, list):
        yield f"{name}/length", str(len(value))
        for number, entry in enumerate(value):
            yield from _json_leaves(entry, f"{name}/{number}")
    else:
        yield name, TOKEN.sub("-TOKEN", json.dumps(value))


def _tensor_leaves(content: bytes, name: str) -> Iterator[tuple[str, str]]:
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        data = content[8 + size + begin : 8 + size + end]
        text = f"{entry['dtype']}{entry['shape']}{hashlib.sha256(data).hexdigest()}"
        yield f"{name}#{key}", text
