"""The last checkpoint of a run, or the one before it where the last one is damaged."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from candid.distributed import Group
from candid.training.checkpoint import (
    RESTORE,
    Checkpoint,
    DamagedCheckpointError,
    check_has_training_state,
    read_checkpoint,
)
from candid.training.shard_checkpoint import check_same_folder, read_shards, shard_checkpoints
from candid.training.state import Progress

LAST: Final = "last.safetensors"
"""Checkpoint of the last step."""

PREVIOUS: Final = "previous.safetensors"
"""The checkpoint before the last one; training continues from it if the last one is damaged."""

SHARDS: Final = "checkpoints"
"""Folder of the checkpoints of a run with sharded tables, and of validated models."""


@dataclass(frozen=True)
class LastCheckpoint:
    """The checkpoint that a training continues from.

    Attributes:
        path: of the checkpoint.
        checkpoint: its content, with the state of a training.
        damage: how the last checkpoint is damaged, if this is the one before it; None: this is
            the last one.
    """

    path: Path
    checkpoint: Checkpoint
    damage: str | None

    def report(self, progress: Progress | None) -> None:
        """Report a damaged last checkpoint to a display; without one, as a ``RuntimeWarning``."""
        if self.damage is None:
            return
        step = self.checkpoint.meta["state"]["step"]
        line = f"{self.damage}; training continues from {self.path}, step {step:,}"
        if progress is None:
            warnings.warn(line, RuntimeWarning, stacklevel=2)
        else:
            progress.on_start(line)


def has_checkpoint(folder: Path | str) -> bool:
    """Return whether the folder of a run has a checkpoint to continue from."""
    folder = Path(folder)
    is_one_file = (folder / LAST).exists() or (folder / PREVIOUS).exists()
    return is_one_file or bool(shard_checkpoints(folder / SHARDS))


def read_last_checkpoint(folder: Path | str, *, run: str | None = None) -> LastCheckpoint:
    """Read the last checkpoint of a run; if it is damaged or missing, the one before it.

    Args:
        folder: of the run.
        run: id of the run, from ``run.json``; None: any run.

    Raises:
        DamagedCheckpointError: both are damaged, missing or of another run.
        ArtifactError: the last one is not a checkpoint, or one of another format.
    """
    last, previous = Path(folder) / LAST, Path(folder) / PREVIOUS
    try:
        return LastCheckpoint(last, _read(last, run), None)
    except DamagedCheckpointError as error:
        if not previous.exists():
            raise
        damage = str(error).removesuffix(f": {RESTORE}")
    try:
        return LastCheckpoint(previous, _read(previous, run), damage)
    except DamagedCheckpointError:
        raise DamagedCheckpointError(
            f"{last} and {previous} are damaged: restore one of them from a copy, or train again"
        ) from None


def read_last_shards(
    folder: Path | str, model: nn.Module, group: Group, *, run: str | None = None
) -> LastCheckpoint:
    """Read the last checkpoint of sharded tables; if it is damaged, the one before it.

    A collective of all processes: they agree on the checkpoint.

    Args:
        folder: of the checkpoints.
        model: its sharded tables state the rows of this process.
        group: the processes.
        run: id of the run, from ``run.json``; None: any run.

    Raises:
        DamagedCheckpointError: none exists, or the last two are damaged; raised on every process.
        ArtifactError: the last one is of another format or model, or the processes have different
            folders; raised on every process.
    """
    paths = shard_checkpoints(folder)
    check_same_folder(paths, folder, group)
    if not paths:
        raise DamagedCheckpointError(f"{folder} has no complete checkpoint: train again")
    try:
        return LastCheckpoint(paths[0], read_shards(paths[0], model, group, run=run), None)
    except DamagedCheckpointError as error:
        if len(paths) == 1:
            raise
        damage = str(error).removesuffix(f": {RESTORE}")
    try:
        return LastCheckpoint(paths[1], read_shards(paths[1], model, group, run=run), damage)
    except DamagedCheckpointError:
        raise DamagedCheckpointError(
            f"{paths[0]} and {paths[1]} are damaged: restore one of them from a copy, or train "
            "again"
        ) from None


def _read(path: Path, run: str | None) -> Checkpoint:
    checkpoint = read_checkpoint(path, run=run)
    check_has_training_state(checkpoint, path)
    return checkpoint
