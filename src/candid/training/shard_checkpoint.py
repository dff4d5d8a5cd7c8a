"""Checkpoints of sharded tables, which all processes write and read together.

``shard_files`` describes the folder. All processes write to one folder, which several machines must
share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from candid.atomic import remove_folder, replacing, write_error
from candid.checksums import file_entry, write_sealed_json
from candid.distributed import Group
from candid.errors import ArtifactError
from candid.towers import RowTable, sharded_tables
from candid.training.checkpoint import RUN, Checkpoint, DamagedCheckpointError, write_checkpoint
from candid.training.shard_files import MANIFEST, SHARD_FORMAT, SHARED, ShardFiles

KEPT: Final = 2
"""Checkpoints that are kept: if the last one is damaged, training continues from the other."""

_STEP = re.compile(r"step-(\d+)")


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

    All processes raise the same class, so that all of them continue alike.

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
