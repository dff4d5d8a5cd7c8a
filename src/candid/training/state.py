"""The state of a training run, and the protocol of progress displays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from candid.errors import ConfigError


@dataclass
class TrainState:
    """The state of a run; everything here is plain JSON and part of a checkpoint.

    Attributes:
        step: optimizer steps taken.
        total_steps: largest number of steps that the settings allow.
        epoch: passes completed.
        seconds: duration of training, with validation and earlier parts of a resumed run.
        train_seconds: the same without validation and checkpoints.
        cpu_seconds: CPU time of the process over all threads, in the same spans as ``seconds``.
        rows: rows (query, positive) processed.
        start_step: ``step`` at the start of a run that continues an earlier one; otherwise 0.
        start_epoch: ``epoch`` at that start.
        metric: name of the validation metric for early stopping, larger is better; or None.
        best: best value of the metric so far, or None.
        best_epoch: number of epochs when it was reached.
        best_step: number of steps when it was reached.
        stale: number of validations since then.
        history: for every validation the step, epoch, seconds, and the metrics by name, with
            ``standard_error`` where a sample of users was validated.
    """

    step: int = 0
    total_steps: int = 0
    epoch: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    cpu_seconds: float = 0.0
    rows: int = 0
    start_step: int = 0
    start_epoch: int = 0
    metric: str | None = None
    best: float | None = None
    best_epoch: int = 0
    best_step: int = 0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def update_best(self, metrics: Mapping[str, float]) -> bool:
        """Record a validation and return whether its metric is the best so far.

        Raises:
            ConfigError: the metric for early stopping is not among ``metrics``.
        """
        if self.metric is None or self.metric not in metrics:
            raise ConfigError(
                f"early stopping needs the metric {self.metric!r}, but validation returned "
                f"{', '.join(metrics) or 'none'}: choose one of these"
            )
        value = metrics[self.metric]
        if self.best is None or value > self.best:
            self.best, self.best_epoch, self.best_step = value, self.epoch, self.step
            self.stale = 0
            return True
        self.stale += 1
        return False


@dataclass(frozen=True)
class TrainingLength:
    """Length of a training that an earlier one determines.

    Attributes:
        steps: optimizer steps to take.
        schedule_steps: steps over which the learning rate decays, ``steps`` or more.
    """

    steps: int
    schedule_steps: int


class Progress(Protocol):
    """A display of training progress; every method is called from the training thread."""

    def on_start(self, targets: str) -> None:
        """The first step follows; ``targets`` states which interactions an epoch trains on.

        Called once more if the last checkpoint is damaged, with a sentence about it.
        """
        ...

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """A line of the metrics log was written."""
        ...

    def on_validation(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """A validation ended."""
        ...
