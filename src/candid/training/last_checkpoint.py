"""The last checkpoint of a run, or the one before it where the last one is damaged."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from candid.training.checkpoint import (
    RESTORE,
    Checkpoint,
    DamagedCheckpointError,
    check_has_training_state,
    read_checkpoint,
)
from candid.training.state import Progress

LAST: Final = "last.safetensors"
"""Checkpoint of the last step."""

PREVIOUS: Final = "previous.safetensors"
"""The checkpoint before the last one; training continues from it if the last one is damaged."""


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
    return (folder / LAST).exists() or (folder / PREVIOUS).exists()


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


def _read(path: Path, run: str | None) -> Checkpoint:
    checkpoint = read_checkpoint(path, run=run)
    check_has_training_state(checkpoint, path)
    return checkpoint
