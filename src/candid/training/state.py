"""Where a run stands, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from candid.errors import ConfigError


@dataclass
class TrainState:
    """Where a run stands; everything here is plain JSON and part of a checkpoint.

    Attributes:
        step: optimizer steps taken.
        total_steps: steps that the settings allow at most.
        epoch: passes completed.
        seconds: spent training, validation and earlier parts of a resumed run included.
        train_seconds: the same without validation and checkpoints.
        cpu_seconds: of the process, over all its threads, in the same spans as ``seconds``.
        rows: rows (query, positive) seen.
        metric: name of the validation metric that is watched, larger being better; or None.
        best: best value of it so far, or None.
        best_epoch: epoch it was reached after.
        stale: validations since.
        history: every validation: epoch, seconds, and the metrics by name.
    """

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows: int = 0
    metric: str | None = None
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def judge(self, metrics: Mapping[str, float]) -> bool:
        """Take in a validation: whether its watched metric is the best so far.

        Raises:
            ConfigError: the watched metric is not among ``metrics``.
        """
        if self.metric is None or self.metric not in metrics:
            raise ConfigError(
                f"validation gave no {self.metric!r} for early stopping to watch, but "
                f"{', '.join(metrics) or 'nothing'}: name one of these"
            )
        value = metrics[self.metric]
        if self.best is None or value > self.best:
            self.best, self.best_epoch, self.stale = value, self.epoch, 0
            return True
        self.stale += 1
        return False


class Progress(Protocol):
    """What the terminal wants to know; every method is called from the training thread."""

    def stepped(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """A line of the metrics log was written."""
        ...

    def validated(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """A validation ended."""
        ...
