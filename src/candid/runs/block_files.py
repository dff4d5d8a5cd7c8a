"""Blocks of rows on disk: a long table is written block by block, and continues after a kill."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl

from candid.atomic import (
    atomic_folder,
    check_writable,
    replacing,
    sync,
    write_error,
)
from candid.checksums import file_entry, find_fault, has_valid_seal, write_sealed_json
from candid.errors import ConfigError, Interrupted
from candid.json_text import read_json
from candid.locks import LOCK, one_writer

SUFFIXES: Final = (".parquet", ".csv", ".jsonl")
"""File types, by the suffix of the output."""
STATE: Final = "state.json"
FORMAT: Final = 3
"""Version of the state and of the blocks."""
ROW_GROUP: Final = 2**18
"""Rows of a row group of a Parquet file."""
PART: Final = re.compile(r"part-\d{5}\.(parquet|csv|jsonl)")
"""Names of the shards in a folder."""
FILE: Final = rf"{re.escape(STATE)}|block-\d{{6}}\.(arrow|csv|jsonl)"
WRITTEN: Final = re.compile(rf"{re.escape(LOCK)}|{FILE}|\.({FILE})\.[0-9a-f]{{32}}\.(tmp|lock)")
"""Names of the files in a folder of blocks."""
COPY: Final = 2**20
"""Bytes copied at once."""

Frames = Callable[[int, int], pl.DataFrame]
"""Returns the rows of the queries from a begin to a stop; the same schema every time."""


class BlockFiles:
    """The blocks of one output, in a folder beside it.

    The folder ``.NAME.blocks`` holds one file for each finished block and ``state.json`` with the
    settings. It is removed when the output is complete. Blocks of text are in the format of the
    output. Those of a Parquet file are in Arrow's format, which costs half of writing it twice.

    Args:
        out: file to write, or folder of shards.
        folder: of the blocks.
        settings: everything that the rows depend on, as plain JSON values.
        started: a number that a continued output keeps, such as the time of its start.

    Attributes:
        started: of the first start of this output.
        num_resumed: finished blocks of an earlier start with the same settings.
    """

    def __init__(self, out: Path, folder: Path, settings: Mapping[str, Any], started: int) -> None:
        self._out, self._folder, self._settings = out, folder, dict(settings)
        self.started = started
        self._header = ""
        self._blocks: list[dict[str, Any]] = []
        self._restore()
        self.num_resumed = len(self._blocks)

    @property
    def num_finished(self) -> int:
        """Number of finished blocks."""
        return len(self._blocks)

    def write(
        self,
        frames: Frames,
        bounds: Sequence[tuple[int, int]],
        on_block: Callable[[int], None],
        noun: str,
    ) -> int:
        """Write the blocks that are missing.

        Args:
            frames: the rows.
            bounds: begin and stop of the queries of each block, ascending.
            on_block: called with the number of finished queries.
            noun: of the queries, for messages.

        Returns:
            the number of rows of all blocks.

        Raises:
            Interrupted: stopped by Ctrl-C; the finished blocks stay.
            ArtifactError: the operating system refuses.
        """
        done = bounds[self.num_resumed - 1][1] if self.num_resumed else 0
        try:
            on_block(done)
            for number in range(self.num_resumed, len(bounds)):
                begin, stop = bounds[number]
                frame = frames(begin, stop)
                self._header = frame.clear().write_csv()
                path = self._block(number)
                with replacing(path) as temporary:
                    _write(frame, temporary, self._out.suffix)
                self._blocks.append({"rows": frame.height, **file_entry(path)})
                self._save()
                done = stop
                on_block(done)
        except KeyboardInterrupt:
            advice = f"continues with the blocks in {self._folder}" if done else "begins anew"
            raise Interrupted(
                f"stopped after {done:,} of {bounds[-1][1]:,} {noun}; the same command {advice}"
            ) from None
        return sum(block["rows"] for block in self._blocks)

    def assemble(self, shards: Sequence[Sequence[int]] | None) -> None:
        """Write the output from the blocks, completely or not at all, and remove the blocks.

        Args:
            shards: numbers of the blocks of each shard; None: one file of all blocks.
        """
        if shards is None:
            with replacing(self._out) as temporary:
                self._join(range(len(self._blocks)), temporary)
        else:
            with atomic_folder(self._out) as temporary:
                for number, blocks in enumerate(shards):
                    path = temporary / f"part-{number:05}{self._out.suffix}"
                    self._join(blocks, path)
                    sync(path)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, blocks: Sequence[int], path: Path) -> None:
        files = [self._block(number) for number in blocks]
        if self._out.suffix == ".parquet":
            # Polars may create a path after it has raised, and the file would stay.
            with path.open("wb") as stream:
                pl.scan_ipc(files, glob=False).sink_parquet(
                    stream, row_group_size=ROW_GROUP, maintain_order=True
                )
            return
        with path.open("wb") as stream:
            if self._out.suffix == ".csv":
                stream.write(self._header.encode())
            for file in files:
                with file.open("rb") as block:
                    shutil.copyfileobj(block, stream, COPY)

    def _block(self, number: int) -> Path:
        suffix = ".arrow" if self._out.suffix == ".parquet" else self._out.suffix
        return self._folder / f"block-{number:06}{suffix}"

    def _restore(self) -> None:
        """Read the state of an earlier start; without one of the same settings, begin anew."""
        try:
            state = read_json(self._folder / STATE)
            is_same = state["format"] == FORMAT and state["settings"] == self._settings
            is_same = is_same and has_valid_seal(state)
            blocks, started, header = state["blocks"], state["started"], state["header"]
        except (OSError, ValueError, KeyError, TypeError):
            is_same = False
        if not is_same:
            for path in self._folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            self._save()
            return
        self.started, self._header = started, header
        for number, block in enumerate(blocks):
            # A damaged block is written again, and those after it.
            if find_fault(self._block(number), block) is not None:
                break
            self._blocks.append(block)

    def _save(self) -> None:
        state = {
            "format": FORMAT,
            "settings": self._settings,
            "started": self.started,
            "header": self._header,
            "blocks": self._blocks,
        }
        write_sealed_json(self._folder / STATE, state)


@contextmanager
def open_blocks(
    out: Path, settings: Mapping[str, Any], *, started: int, in_shards: bool
) -> Iterator[BlockFiles]:
    """Open the blocks of an output, for one process at a time.

    Args:
        out: file to write, or with ``in_shards`` the folder; its suffix is the format.
        settings: as for ``BlockFiles``.
        started: as for ``BlockFiles``.
        in_shards: whether ``out`` is a folder of shards.

    Raises:
        ConfigError: an unknown suffix, another process writes this output, or ``out`` or the folder
            of its blocks holds other files.
        ArtifactError: the operating system refuses.
    """
    _check_target(out, in_shards)
    folder = out.parent / f".{out.name}.blocks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        other = next(
            (p.name for p in sorted(folder.iterdir()) if not WRITTEN.fullmatch(p.name)), ""
        )
        if other:
            raise ConfigError(
                f"{folder} holds other files, such as {other}: move them away, or choose another "
                "path"
            )
        with one_writer(folder / LOCK, out):
            blocks = BlockFiles(out, folder, settings, started)
            try:
                yield blocks
            finally:
                if not blocks.num_finished:
                    shutil.rmtree(folder, ignore_errors=True)  # a refused request leaves no trace
    except OSError as error:
        raise write_error(out, error) from error


def _check_target(out: Path, in_shards: bool) -> None:
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"{out} has an unknown suffix: choose a path that ends in {', '.join(SUFFIXES)}"
        )
    if not in_shards:
        if out.is_dir():
            raise ConfigError(f"{out} is a folder: choose another path, or write shards (--shards)")
        check_writable(out)
        return
    if out.is_dir():
        other = next((p.name for p in sorted(out.iterdir()) if not PART.fullmatch(p.name)), None)
        if other is not None:
            raise ConfigError(f"{out} holds other files, such as {other}: choose another path")
    elif out.exists():
        raise ConfigError(f"{out} is a file: remove it, or choose another path for the shards")


def _write(frame: pl.DataFrame, path: Path, suffix: str) -> None:
    """Write one block, without a header: blocks of text are appended to each other."""
    if suffix == ".parquet":
        frame.write_ipc(path, compression="lz4")
    elif suffix == ".csv":
        frame.write_csv(path, include_header=False)
    else:
        frame.write_ndjson(path)
