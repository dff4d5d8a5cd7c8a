"""Programs of the fault campaign for artifacts that no command reads alone.

A program runs in the process of the case. It prints ``ok`` for a right answer and what is wrong
otherwise; an error of candid is a refusal, as on the command line.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

UPDATES = "items.jsonl"
"""File of item updates in its folder."""
OPEN_UPDATES, OPEN_KERNEL = "(open the item updates)", "(load the kernel)"
COMPILE_KERNEL = "(compile the kernel)"
KERNELS = "kernels"
"""Cache folder of the fixture."""
CHANGES: tuple[tuple[str, int | str, tuple[str | None, dict[str, Any]] | None], ...] = (
    ("films", 901, ("New", {"kind": "new", "price": 3.5})),
    ("films", 902, (None, {})),
    ("books", "b-1", ("Title é", {"tags": ["a", "b"], "year": 2001})),
    ("films", 903, ("Line\nbreak", {"kind": None})),
    ("films", 901, None),
    ("books", "b-2", ("T" * 200, {"nested": {"a": [1, 2.5, None]}})),
    ("films", 901, ("New again", {"kind": "rare"})),
    ("films", 904, ("Last", {})),
)
"""Model, item, and title and attributes; None: the item is deleted."""


def write_updates(path: Path) -> None:
    """Write a file of item updates, as a server does."""
    from candid.serve.update_log import ItemUpdate, ItemUpdates

    path.parent.mkdir(parents=True)
    updates = ItemUpdates(path)
    for model, item, change in CHANGES:
        updates.append(model, item, None if change is None else ItemUpdate(*change))
    updates.close()


def write_kernel(fixture: Path) -> None:
    """Compile a kernel of candid into the cache of the fixture."""
    os.environ["XDG_CACHE_HOME"] = str(fixture / KERNELS)
    list(_compile_kernel(fixture, fixture))


def write_changes(fixture: Path) -> None:
    """Write an index with stored changes: items that are updated, deleted and added again."""
    import torch

    from candid.index import open_snapshot, save_changes

    shutil.copytree(fixture / "index_usearch", fixture / "index_changes")
    snapshot = open_snapshot(fixture / "index_changes")
    vectors = snapshot.index.item_vectors
    snapshot.put([103, 107, 111], torch.flip(vectors[:3], [0]))
    snapshot.delete([105, 107, 119])
    snapshot.put([119], vectors[5:6])
    save_changes(snapshot)


def _open_updates(folder: Path, fixture: Path) -> Iterator[str]:
    """Open the updates twice, as servers do: every record that is intact counts, and no other."""
    from candid.errors import CandidError
    from candid.serve.update_log import ItemUpdates

    path = folder / "updates" / UPDATES
    whole = (fixture / "updates" / UPDATES).read_bytes().splitlines(keepends=True)
    content = path.read_bytes() if path.is_file() else b""
    intact = sorted(
        (at, number)
        for number, line in enumerate(whole)
        for at in _positions(content, line[:-2])  # the end of the last record may be cut
    )
    expected: dict[str, dict[Any, Any]] = {"films": {}, "books": {}}
    for _, number in intact:
        model, item, change = CHANGES[number]
        expected[model].pop(item, None)
        expected[model][item] = change
    for attempt in ("first", "second"):
        try:
            updates = ItemUpdates(path)
        except CandidError:
            if intact:
                yield f"a file with {len(intact)} intact updates is refused"
            raise
        found = {
            model: [(item, change and (change.title, change.attributes))
                    for item, change in updates.latest(model).items()]
            for model in expected
        }  # fmt: skip
        updates.close()
        for model, items in expected.items():
            if found[model] != list(items.items()):
                yield f"the {attempt} opening has {found[model]} of {model}, not {items}"


def _positions(content: bytes, part: bytes) -> Iterator[int]:
    at = content.find(part)
    while at >= 0:
        yield at
        at = content.find(part, at + 1)


def _compile_kernel(folder: Path, fixture: Path) -> Iterator[str]:
    """Compile a kernel of candid, or load it from the cache of the case."""
    import candid.index
    from candid.native import load_kernel

    source = Path(candid.index.__file__).with_name("log_sum_exp.c")
    logger = logging.getLogger("kernel")
    if load_kernel(source, lambda library: library, lambda _: None, logger, "none") is None:
        yield "the kernel cannot be compiled"


def _open_kernel(folder: Path, fixture: Path) -> Iterator[str]:
    """Read a kernel from the cache: what differs from the compiled library is never returned."""
    from candid.native_cache import cached_library

    (file,) = (fixture / KERNELS).rglob("*.kernel")
    library = file.read_bytes()[32:]
    root, logger = folder / KERNELS, logging.getLogger("kernel")
    for attempt in ("first", "second"):
        if cached_library(root, file.stem, lambda: library, logger) != library:
            yield f"the {attempt} reading has another library"


PROGRAMS: dict[str, Callable[[Path, Path], Iterator[str]]] = {
    OPEN_UPDATES: _open_updates,
    OPEN_KERNEL: _open_kernel,
    COMPILE_KERNEL: _compile_kernel,
}


def program_code(name: str, folder: Path, fixture: Path) -> int:
    """Run a program in this process and return its exit code.

    Args:
        name: key of ``PROGRAMS``.
        folder: of the case.
        fixture: with the undamaged artifacts.
    """
    from candid.errors import CandidError

    wrong: list[str] = []
    code = 0
    try:
        for line in PROGRAMS[name](folder, fixture):
            wrong.append(line)
    except CandidError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    print(wrong[0] if wrong else "ok")
    return 0 if wrong else code
