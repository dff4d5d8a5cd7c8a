"""The files of a checkpoint of sharded tables: its manifest, and rows read by their range.

    step-120/
      shared.safetensors     everything but the rows of sharded tables, as ``checkpoint`` describes
      rank-0.safetensors     rows of process 0, each tensor named by its range of rows, such as
      rank-1.safetensors     model/item_tower.embedding.weight[0:500]
      manifest.json          size and checksum of each file, shape of each table

A folder without a manifest is not complete and is not read. Any number of processes opens a
checkpoint: each reads its own range of rows from the files that have them. All write to one folder,
which several machines must share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from candid.checksums import find_fault, has_valid_seal, is_verifying, read_error, verification
from candid.errors import ArtifactError
from candid.json_text import read_json
from candid.training.checkpoint import (
    RESTORE,
    RUN,
    Checkpoint,
    DamagedCheckpointError,
    read_checkpoint,
)

SHARD_FORMAT: Final = 1
"""Version of the layout above; another one is refused."""
MANIFEST: Final = "manifest.json"
SHARED: Final = "shared.safetensors"

_RANGE = re.compile(r"(.+)\[(\d+):(\d+)\]")


class ShardFiles:
    """The files of a checkpoint of sharded tables, whose rows can be read by range.

    Args:
        path: folder of the checkpoint.
        run: id of the run that wrote it, from ``run.json``; None: any run.

    Attributes:
        tables: shape of each sharded tensor over all processes.

    Raises:
        DamagedCheckpointError: the manifest is missing, damaged or of another run.
        ArtifactError: it is of another format.
    """

    def __init__(self, path: Path | str, *, run: str | None = None) -> None:
        self._path = Path(path)
        self._run = run
        self._manifest = read_shard_manifest(self._path, run)
        self.tables: dict[str, list[int]] = self._manifest["tables"]
        self._open: dict[str, Any] = {}
        self._checked: set[str] = set()
        self._pieces: dict[str, list[_Piece]] | None = None

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.clear()

    def shared(self) -> Checkpoint:
        """Read everything but the rows of sharded tables.

        Raises:
            DamagedCheckpointError: the file is missing or damaged.
        """
        self._check(SHARED)
        return read_checkpoint(self._path / SHARED, run=self._run)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a sharded tensor."""
        piece = self._pieces_of(name)[0]
        dtype: torch.dtype = self._file(piece.file).get_slice(piece.key)[:0].dtype
        return dtype

    def blocks(self, name: str, rows: range, max_rows: int | None = None) -> Iterator[Tensor]:
        """Read a range of rows of a sharded tensor in order, block by block: [n, ...] each.

        Args:
            name: one of ``tables``.
            rows: of the whole table.
            max_rows: most rows of a block; None: what one file has.

        Raises:
            DamagedCheckpointError: a file is missing or damaged, or rows are in no file.
        """
        position = rows.start
        if not len(rows):
            piece = self._pieces_of(name)[0]
            yield self._file(piece.file).get_slice(piece.key)[:0]
        for piece in self._pieces_of(name):
            while piece.start <= position < min(piece.stop, rows.stop):
                stop = min(piece.stop, rows.stop, position + (max_rows or len(rows)))
                self._check(piece.file)
                part = self._file(piece.file).get_slice(piece.key)
                yield part[position - piece.start : stop - piece.start]
                position = stop
        if position < rows.stop:
            raise DamagedCheckpointError(
                f"{self._path} lacks row {position} of {name!r}: {RESTORE}"
            )

    def _pieces_of(self, name: str) -> list[_Piece]:
        if self._pieces is None:
            pieces: dict[str, list[_Piece]] = {table: [] for table in self.tables}
            for file in self._manifest["files"]:
                for key in () if file == SHARED else self._file(file).keys():
                    match = _RANGE.fullmatch(key)
                    if match is not None and match[1] in pieces:
                        pieces[match[1]].append(_Piece(int(match[2]), int(match[3]), file, key))
            self._pieces = {table: sorted(every) for table, every in pieces.items()}
        if not self._pieces[name]:
            raise DamagedCheckpointError(f"{self._path} has no rows of {name!r}: {RESTORE}")
        return self._pieces[name]

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self._path / name
            with verification(False):  # the size only; the content where rows are read
                self._compare(name)
            try:
                self._open[name] = safe_open(path, framework="pt")
            except (OSError, MemoryError) as error:
                raise read_error(path, error) from error
            except SafetensorError as error:
                raise DamagedCheckpointError(f"{path} is damaged ({error}): {RESTORE}") from None
        return self._open[name]

    def _check(self, file: str) -> None:
        """Compare a file with the manifest, once."""
        if file not in self._checked:
            self._compare(file)
            self._checked.add(file)

    def _compare(self, file: str) -> None:
        path, entry = self._path / file, self._manifest["files"][file]
        fault = find_fault(path, entry, compare=is_verifying())
        if fault is None:
            return
        if fault.is_damage:
            raise DamagedCheckpointError(f"{path} {fault.text}: {RESTORE}")
        raise ArtifactError(fault.sentence(path, RESTORE))


@dataclass(frozen=True, order=True)
class _Piece:
    """Rows of a tensor in one file.

    Attributes:
        start: first row of the whole table.
        stop: the row after the last one.
        file: name of the file.
        key: name of the tensor in the file.
    """

    start: int
    stop: int
    file: str
    key: str


def read_shard_manifest(path: Path, run: str | None = None) -> dict[str, Any]:
    """Read the manifest of a checkpoint of sharded tables.

    Args:
        path: folder of the checkpoint.
        run: as for ``ShardFiles``.

    Raises:
        DamagedCheckpointError: it is missing, damaged or of another run.
        ArtifactError: it is of another format.
    """
    file = path / MANIFEST
    try:
        manifest = read_json(file)
    except FileNotFoundError:
        raise DamagedCheckpointError(
            f"{path} has no {MANIFEST}, so it is not a complete checkpoint: {RESTORE}"
        ) from None
    except OSError as error:
        raise read_error(file, error) from error
    except ValueError:
        raise DamagedCheckpointError(f"{file} is damaged: {RESTORE}") from None
    if not isinstance(manifest, dict) or not has_valid_seal(manifest):
        raise DamagedCheckpointError(f"{file} differs from its checksum: {RESTORE}")
    if manifest["format"] != SHARD_FORMAT:
        raise ArtifactError(f"{file} has the format of another version of candid: train again")
    if run is not None and manifest[RUN] != run:
        raise DamagedCheckpointError(
            f"{path} is not of the run that run.json beside it describes: {RESTORE}"
        )
    return manifest
