"""Checkpoints of sharded tables: a file of rows from each process, and a manifest written last.

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

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from candid.atomic import remove_folder, replacing, write_error
from candid.checksums import (
    file_entry,
    find_fault,
    has_valid_seal,
    is_verifying,
    read_error,
    verification,
    write_sealed_json,
)
from candid.distributed import Group
from candid.errors import ArtifactError
from candid.towers import RowTable, sharded_tables
from candid.training.checkpoint import (
    RESTORE,
    RUN,
    Checkpoint,
    DamagedCheckpointError,
    read_checkpoint,
    write_checkpoint,
)

SHARD_FORMAT: Final = 1
"""Version of the layout above; another one is refused."""
MANIFEST: Final = "manifest.json"
SHARED: Final = "shared.safetensors"
KEPT: Final = 2
"""Checkpoints that are kept: if the last one is damaged, training continues from the other."""

_STEP = re.compile(r"step-(\d+)")
_RANGE = re.compile(r"(.+)\[(\d+):(\d+)\]")


def write_shards(
    folder: Path | str,
    step: int,
    checkpoint: Checkpoint,
    model: nn.Module,
    group: Group,
    *,
    kept: int = KEPT,
) -> Path:
    """Write a checkpoint of all processes, and remove all others but those just before it.

    A collective: every process calls it with the same step. The shared part is that of process 0.

    Args:
        folder: folder of the checkpoints of the run.
        step: N of the name ``step-N``.
        checkpoint: tensors as in ``checkpoint``, of which those of sharded tables and of their
            optimizer have the rows of this process.
        model: its sharded tables have rows.
        group: the processes.
        kept: checkpoints that stay, this one included.

    Returns:
        the folder of the checkpoint.

    Raises:
        ArtifactError: a process cannot write its file; raised on every process.
    """
    path = Path(folder) / f"step-{step}"
    tables = sharded_tables(model)
    # Of the weights and of the state of their optimizer.
    owners = {n: tables[t] for n in checkpoint.tensors if (t := _table_of(n, tables)) is not None}
    is_first = group.is_main
    with _on_all_processes(group, f"create {path}"):
        if is_first:
            _start_folder(path)
    entry: dict[str, Any] = {}
    with _on_all_processes(group, f"write its part of {path}"):
        rows = {
            f"{name}[{table.rows.start}:{table.rows.stop}]": checkpoint.tensors[name]
            for name, table in owners.items()
        }
        entry = _write_rows(path / _rank_file(group.rank), rows)
        if is_first:
            shared = {n: t for n, t in checkpoint.tensors.items() if n not in owners}
            write_checkpoint(path / SHARED, Checkpoint(shared, dict(checkpoint.meta)))
    entries = _gathered(entry, group)
    with _on_all_processes(group, f"complete {path}"):
        if is_first:
            manifest = {
                "format": SHARD_FORMAT,
                "step": step,
                RUN: checkpoint.meta.get(RUN),
                "tables": {
                    name: [table.num_embeddings, *checkpoint.tensors[name].shape[1:]]
                    for name, table in owners.items()
                },
                "files": {SHARED: file_entry(path / SHARED)}
                | {_rank_file(rank): entry for rank, entry in enumerate(entries)},
            }
            write_sealed_json(path / MANIFEST, manifest)
            _remove_others(path, kept)
    return path


def shard_checkpoints(folder: Path | str) -> list[Path]:
    """Return the complete checkpoints of a run, the last step first."""
    steps = {}
    for path in Path(folder).glob("step-*"):
        match = _STEP.fullmatch(path.name)
        if match is not None and (path / MANIFEST).exists():
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def read_shards(
    path: Path | str, model: nn.Module, group: Group, *, run: str | None = None
) -> Checkpoint:
    """Read a checkpoint: the shared part, and the rows of this process.

    A collective; the number of processes may differ from that which wrote it.

    Args:
        path: folder of the checkpoint.
        model: its sharded tables state the rows of this process.
        group: the processes.
        run: id of the run that wrote it, from ``run.json``; None: any run.

    Raises:
        DamagedCheckpointError: a file is missing, damaged or of another run; raised on every
            process.
        ArtifactError: it is of another format or another model; raised on every process.
    """
    path = Path(path)
    checkpoint = Checkpoint({}, {})
    tables = sharded_tables(model)
    with _on_all_processes(group, f"read its part of {path}"), ShardFiles(path, run=run) as files:
        checkpoint = files.shared()
        for name, shape in files.tables.items():
            owner = _table_of(name, tables)
            if owner is None:
                raise ArtifactError(
                    f"{path} has rows of {name!r}, which this model does not shard: resume with "
                    "the settings of the run"
                )
            table = tables[owner]
            if shape[0] != table.num_embeddings:
                raise ArtifactError(
                    f"{path} has {shape[0]:,} rows of {name!r}, this model and dataset need "
                    f"{table.num_embeddings:,}: it belongs to another model or dataset"
                )
            checkpoint.tensors[name] = torch.cat(list(files.blocks(name, table.rows)))
    return checkpoint


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
        self._manifest = _read_manifest(self._path, run)
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
        if ";" in fault:  # The system does not read it, and states what to do.
            raise ArtifactError(f"{path} {fault}")
        raise DamagedCheckpointError(f"{path} {fault}: {RESTORE}")


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


def _rank_file(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _table_of(name: str, tables: Mapping[str, RowTable]) -> str | None:
    """Return the parameter of a sharded table that a tensor of a checkpoint has rows of, or None.

    Args:
        name: of the tensor, such as "optimizer/items.weight/square_sum".
        tables: by name of the parameter.
    """
    part, _, rest = name.partition("/")
    parameter = rest.rpartition("/")[0] if part == "optimizer" else rest
    return parameter if part in ("model", "optimizer") and parameter in tables else None


def _start_folder(path: Path) -> None:
    """Create an empty folder for a checkpoint, in place of an earlier one of the same step."""
    if path.exists():
        remove_folder(path)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise write_error(path, error) from error


def _remove_others(path: Path, kept: int) -> None:
    """Keep a checkpoint and the complete ones before it.

    Later ones are of an earlier start in this folder, or damaged, and a training that continues
    would read them first. Folders without a manifest are of a process that was killed.

    Args:
        path: of the checkpoint.
        kept: number of checkpoints that stay, this one included.
    """
    complete = shard_checkpoints(path.parent)
    position = complete.index(path)
    stay = complete[position : position + kept]
    for other in path.parent.glob("step-*"):
        if _STEP.fullmatch(other.name) and other not in stay:
            remove_folder(other)


def _write_rows(path: Path, rows: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write the rows of a process and return the entry of the file in the manifest."""
    with replacing(path) as temporary:
        try:
            save_file({n: t.detach().cpu().contiguous() for n, t in rows.items()}, temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from error
    return file_entry(path)


def _read_manifest(path: Path, run: str | None) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text())
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


def _gathered(entry: Mapping[str, Any], group: Group) -> list[dict[str, Any]]:
    """Return the manifest entries of all processes; as numbers, since objects travel as pickles."""
    own = [entry["bytes"], *bytes.fromhex(entry["sha256"])]
    every = group.gather_counts(own)
    return [{"bytes": size, "sha256": bytes(digest).hex()} for size, *digest in every]


def check_same_folder(paths: Sequence[Path], folder: Path | str, group: Group) -> None:
    """Refuse processes that find other checkpoints than the first: they must share one folder.

    Args:
        paths: result of ``shard_checkpoints``.
        folder: of the checkpoints, for the message.
        group: the processes.

    Raises:
        ArtifactError: they differ; raised on every process.
    """
    steps = [1 + int(path.name.removeprefix("step-")) for path in paths[:KEPT]]
    every = group.gather_counts([*steps, *[0] * (KEPT - len(steps))])
    if any(other != every[0] for other in every):
        raise ArtifactError(
            f"the processes find different checkpoints in {folder}: use a folder that all machines "
            "share"
        )


_FINE, _DAMAGED, _FAILED = range(3)


@contextmanager
def _on_all_processes(group: Group, action: str) -> Iterator[None]:
    """Wait for all processes at the end of the block; an error of one is raised on all of them.

    All processes raise the same class, so that all of them take the same way on.

    Args:
        group: the processes.
        action: of the block, for the message of the others.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    flag = _FINE
    if own is not None:
        flag = _DAMAGED if isinstance(own, DamagedCheckpointError) else _FAILED
    flags = [number for (number,) in group.gather_counts([flag])]
    worst = max(flags)
    if worst == _FINE:
        return
    if own is not None and flag == worst:
        raise own
    sentence = f"process {flags.index(worst)} could not {action}: its own message states why"
    raise DamagedCheckpointError(sentence) if worst == _DAMAGED else ArtifactError(sentence)
