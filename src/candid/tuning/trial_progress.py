"""Callbacks of the trainer during one trial of a search: reports, pruning and the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from candid.training import TrainState
from candid.tuning.sampling import is_worse
from candid.tuning.trials import History, Trial, TrialStatus


class SearchProgress(Protocol):
    """A display of a search."""

    def on_start(self, targets: str) -> None:
        """The first trial trains; ``targets`` states which interactions an epoch trains on."""
        ...

    def on_trial(self, trial: Trial, history: History) -> None:
        """A trial starts."""
        ...

    def on_step(self, trial: Trial, state: TrainState, history: History) -> None:
        """A line of the metrics log of a trial was written."""
        ...

    def on_validation(self, trial: Trial, state: TrainState, history: History) -> None:
        """A validation of a trial ended."""
        ...

    def on_end(self, trial: Trial, history: History) -> None:
        """A trial ended."""
        ...


class StopTrial(Exception):
    """Ends a trial from its progress callbacks; the search catches it."""

    def __init__(self, status: TrialStatus) -> None:
        super().__init__(status)
        self.status = status


class TrialProgress:
    """The callbacks of the trainer during one trial.

    Args:
        trial: that trains.
        history: with all trials, which gets the CPU time and the validations of this one.
        out: folder of the search, where the history is saved.
        is_over_budget: whether the budget of the search is spent.
        warmup: epochs before which a trial is not pruned.
        progress: display of the search, or None.
    """

    def __init__(
        self,
        trial: Trial,
        history: History,
        out: Path,
        *,
        is_over_budget: Callable[[], bool],
        warmup: int,
        progress: SearchProgress | None,
    ) -> None:
        self._trial = trial
        self._history = history
        self._out = out
        self._is_over_budget = is_over_budget
        self._warmup = warmup
        self._progress = progress
        self._started = time.process_time()
        self._before = trial.cpu_seconds

    def on_start(self, targets: str) -> None:
        """Pass the description of an epoch on, once."""
        if self._progress is not None and self._trial.number == 0:
            self._progress.on_start(targets)

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Stop at the end of the budget."""
        self.count()
        if self._progress is not None:
            self._progress.on_step(self._trial, state, self._history)
        self._stop_over_budget(state)

    def on_validation(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Record the metric; stop a bad trial, or at the end of the budget."""
        trial = self._trial
        assert state.metric is not None
        self.count()
        is_new = state.epoch not in trial.validations
        trial.add_validation(state.epoch, metrics[state.metric], metrics.get("standard_error"))
        self._history.save(self._out)
        if self._progress is not None:
            self._progress.on_validation(trial, state, self._history)
        if state.step >= state.total_steps:
            return  # nothing is left to save
        earlier = self._history.trials[: trial.number]
        # Trials are compared at equal numbers of epochs.
        if trial.number > 0 and is_new and is_worse(trial, earlier, self._warmup):
            raise StopTrial(TrialStatus.PRUNED)
        self._stop_over_budget(state)

    def count(self) -> None:
        """Add the CPU time since the start of the trial."""
        self._trial.cpu_seconds = self._before + time.process_time() - self._started

    def _stop_over_budget(self, state: TrainState) -> None:
        if self._is_over_budget() and state.step < state.total_steps:
            raise StopTrial(TrialStatus.STOPPED)
