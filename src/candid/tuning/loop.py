"""Loop over the trials of a search, each a training run of its own, within a budget."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.atomic import remove_stale, replacing, write_error
from candid.checksums import sealed_text
from candid.config import DataFacts, RunConfig
from candid.data import PreparedDataset, Role, as_dataset
from candid.errors import (
    ArtifactError,
    CandidError,
    ConfigError,
    DataError,
    Interrupted,
    is_out_of_memory,
)
from candid.locks import LOCK, check_not_held
from candid.runs import DATA, check_is_free, train_run
from candid.training import DivergedError, has_checkpoint
from candid.training.stop_signal import stop_signal
from candid.tuning.base_recipe import BaseRecipe
from candid.tuning.report import best_recipe
from candid.tuning.sampling import check_optuna, next_values
from candid.tuning.space import Space
from candid.tuning.space_defaults import default_space
from candid.tuning.trial_progress import SearchProgress, StopTrial, TrialProgress
from candid.tuning.trials import RECIPE, TRIALS, History, Trial, TrialStatus, locked, read_history

FOLDERS: Final = "trials"

KEPT: Final = 5
"""Trials whose folders stay, besides that of the base recipe."""

MAX_FAILURES: Final = 10
"""Failed trials in a row after which a search ends: they cost no budget."""

MAX_ATTEMPTS: Final = 2
"""Starts of a trial whose process was killed; the system may kill it again, such as for memory."""


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        history: all trials.
        best: the best one.
        config: its recipe, with the seed of the base recipe.
        recipe: file with this recipe and its evidence.
        is_exhausted: whether the space has no further values.
    """

    history: History
    best: Trial
    config: RunConfig
    recipe: Path
    is_exhausted: bool


def search(
    data: PreparedDataset | Path | str,
    base: RunConfig | BaseRecipe | None = None,
    *,
    out: Path | str,
    space: Space | None = None,
    minutes: float = 60.0,
    trials: int | None = None,
    resume: bool = False,
    progress: SearchProgress | None = None,
) -> SearchResult:
    """Search for a better recipe by the validation metric.

    Trial 0 is the base recipe. Each further one trains in ``out/trials/NNNN`` with other values
    of the space and the same seed, and is pruned when it is worse than the median of the earlier
    ones. The test split is not read, and no trial changes the seed or the evaluation.

    Args:
        data: a prepared dataset with a validation split, or its folder.
        base: recipe to improve; its other keys keep their values. None, or ``BaseRecipe.default``:
            the default recipe for the data, whose rules choose the other settings of each trial,
            such as the warm-up for the number of steps.
        out: folder of the search: new or empty, or with ``resume`` that of an earlier one.
        space: keys to change. None: ``default_space(base)``.
        minutes: budget in CPU minutes of the process, over all threads and all parts of a
            resumed search; the last trial is stopped at its end.
        trials: largest number of trials, with the base recipe. None: as many as the budget
            allows.
        resume: continue an interrupted search, or one with a larger budget. A trial that was
            stopped continues from its last checkpoint.
        progress: display.

    Returns:
        the best recipe with all trials.

    Raises:
        ConfigError: Optuna is missing, the space does not fit the recipe, the base recipe cannot
            be trained, the folder is in use, or the budget ended before the first validation.
        DataError: the dataset has no validation split.
        ArtifactError: the files of the search to resume are damaged.
        Interrupted: stopped by a signal; ``resume`` continues.

    Example:
        >>> result = candid.tuning.search("data/films", out="tuned", minutes=20)
        >>> result.best.best, result.recipe
    """
    check_optuna()
    dataset = as_dataset(data)
    if not dataset.has_role(Role.VALIDATION):
        raise DataError(
            "the dataset has no validation split, by which a search compares recipes; prepare it "
            "with one, such as --split leave-one-out"
        )
    if minutes <= 0 or (trials is not None and trials < 1):
        raise ConfigError("the budget and the number of trials must be above 0; increase them")
    base = BaseRecipe.default(DataFacts.of(dataset)) if base is None else BaseRecipe.of(base)
    space = default_space(base) if space is None else space
    out = Path(out)
    check_not_held(out / LOCK, out, "name another folder with --out")
    if resume:
        read_history(out)
    elif (out / TRIALS).exists():
        raise ConfigError(
            f"{out} already holds a search: continue it with --resume, or name another folder with "
            "--out"
        )
    else:
        remove_stale(out / TRIALS)  # of a search that was killed before its first record
        check_is_free(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    with locked(out), stop_signal() as stop:
        if dataset.path is None:
            # Once, where each trial would store its own.
            dataset = dataset.save(out / DATA)
        history = _open_history(out, dataset, base, space, resume)
        loop = _Search(dataset, base, space, out, history, 60 * minutes, progress, stop)
        return loop.run(trials)


class _Search:
    """The loop over trials."""

    def __init__(
        self,
        dataset: PreparedDataset,
        base: BaseRecipe,
        space: Space,
        out: Path,
        history: History,
        budget: float,
        progress: SearchProgress | None,
        stop: threading.Event,
    ) -> None:
        self.dataset = dataset
        self.base = base
        self.space = space
        self.out = out
        self.history = history
        self.budget = budget
        self.progress = progress
        self.stop = stop

    def run(self, limit: int | None) -> SearchResult:
        """Run trials until the budget, the number of trials or the space is exhausted."""
        is_exhausted = False
        for trial in [one for one in self.history.trials if _continues(one)]:
            if not self.is_over_budget():
                self._continue_trial(trial)
        while not self.is_over_budget() and (limit is None or len(self.history.trials) < limit):
            self._check_failures()
            trials = self.history.trials
            # The base recipe first; further trials are compared with it.
            values: dict[str, Any] | None = self.space.values_of(self.base.config)
            if trials:
                values = next_values(self.space, trials, self.base.config.seed)
            if values is None:
                is_exhausted = True
                break
            trials.append(Trial(len(trials), values))
            self._run_trial(trials[-1])
        ranking = self.history.ranking()
        if not ranking:
            raise ConfigError(f"no trial of {self.out} has a validation: {self._reason()}")
        best = ranking[0]
        self._write_best(best)
        return SearchResult(
            self.history, best, self.config_of(best), self.out / RECIPE, is_exhausted
        )

    def is_over_budget(self) -> bool:
        """Whether the CPU time of all trials is spent."""
        return self.history.cpu_seconds >= self.budget

    def config_of(self, trial: Trial) -> RunConfig:
        """Return the recipe of a trial."""
        if trial.number == 0:
            return self.base.config
        return self.space.recipe(self.base, trial.values)

    def _continue_trial(self, trial: Trial) -> None:
        """Continue a trial from its last checkpoint, or from the beginning without a usable one."""
        trial.reopen()
        if not has_checkpoint(self._folder(trial)):
            trial.forget()
        try:
            self._run_trial(trial)
        except ArtifactError:  # a checkpoint that the killed process damaged
            trial.forget()
            self._run_trial(trial)

    def _folder(self, trial: Trial) -> Path:
        return self.out / FOLDERS / f"{trial.number:04}"

    def _run_trial(self, trial: Trial) -> None:
        folder = self._folder(trial)
        resume = bool(trial.validations)
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)  # of a killed process
        self.history.save(self.out)
        if self.progress is not None:
            self.progress.on_trial(trial, self.history)
        callbacks = TrialProgress(
            trial,
            self.history,
            self.out,
            is_over_budget=self.is_over_budget,
            warmup=max(2, self.base.config.training.epochs // 10),
            progress=self.progress,
        )
        try:
            train_run(
                self.config_of(trial), self.dataset, folder, resume=resume, progress=callbacks
            )
            trial.status = TrialStatus.COMPLETE
        except StopTrial as stop:
            trial.status = stop.status
        except KeyboardInterrupt:  # Interrupted is one
            trial.status = TrialStatus.STOPPED
            self._close(trial, callbacks)
            raise self._interrupted(trial) from None
        except DivergedError as error:
            trial.status, trial.reason = TrialStatus.FAILED, str(error)
        except (CandidError, MemoryError, RuntimeError) as error:
            if resume and isinstance(error, ArtifactError):
                raise
            if trial.number == 0 or not _is_of_settings(error):
                self._undo(trial)
                raise
            trial.status, trial.reason = TrialStatus.FAILED, _sentence(error)
        self._close(trial, callbacks)
        gc.collect()  # the model of a stopped trial is in a cycle with its traceback
        if self.stop.is_set():
            raise self._interrupted(trial)

    def _interrupted(self, trial: Trial) -> Interrupted:
        return Interrupted(
            f"stopped in trial {trial.number}; run the same command with --resume to continue"
        )

    def _close(self, trial: Trial, callbacks: TrialProgress) -> None:
        callbacks.count()
        ranking = self.history.ranking()
        kept = {0, *(one.number for one in ranking[:KEPT])}
        for one in self.history.trials:
            is_done = one.status is TrialStatus.COMPLETE
            if not _continues(one) and not (is_done and one.number in kept):
                shutil.rmtree(self._folder(one), ignore_errors=True)
        if ranking:
            # First, so that the recipe exists wherever trials.json has a value of one.
            self._write_best(ranking[0])
        self.history.save(self.out)
        if self.progress is not None:
            self.progress.on_end(trial, self.history)

    def _undo(self, trial: Trial) -> None:
        """Leave a folder that the same command can use again."""
        shutil.rmtree(self._folder(trial), ignore_errors=True)
        if len(self.history.trials) == 1:
            for name in (TRIALS, RECIPE):
                (self.out / name).unlink(missing_ok=True)
            if self.dataset.path == self.out / DATA:
                shutil.rmtree(self.out / DATA)
            with suppress(OSError):  # It has other files.
                (self.out / FOLDERS).rmdir()
        else:
            trial.status = TrialStatus.STOPPED
            self.history.save(self.out)

    def _write_best(self, best: Trial) -> None:
        reasons = self.base.reasons({} if best.number == 0 else self.space.settings(best.values))
        text = best_recipe(
            self.history, self.config_of(best), self.space, self.dataset, self.out, reasons
        )
        with replacing(self.out / RECIPE) as temporary:
            temporary.write_text(sealed_text(text), encoding="utf-8")

    def _check_failures(self) -> None:
        last = self.history.trials[-MAX_FAILURES:]
        if len(last) == MAX_FAILURES and all(one.status is TrialStatus.FAILED for one in last):
            raise ConfigError(
                f"the last {MAX_FAILURES} trials failed, the last one because: {last[-1].reason}; "
                "change the space"
            )

    def _reason(self) -> str:
        if self.is_over_budget():
            return (
                f"the budget of {self.budget / 60:g} CPU minutes ended before; continue with "
                "--resume and more --minutes"
            )
        reasons = [one.reason for one in self.history.trials if one.reason]
        return reasons[0] if reasons else "continue with --resume"


def _open_history(
    out: Path, dataset: PreparedDataset, base: BaseRecipe, space: Space, resume: bool
) -> History:
    """Start the record of a search, or read that of the search to resume.

    Raises:
        ConfigError: the search to resume has another recipe, space or dataset.
        ArtifactError: its files are damaged.
    """
    settings = {
        "base recipe": base.to_json(),
        "space": space.to_json(),
        "dataset": dataset.fingerprint,
    }
    if not resume:
        return History(base.config.evaluation.metric, settings)
    history = read_history(out)
    for name, value in settings.items():
        if json.dumps(history.search.get(name)) != json.dumps(value):
            raise ConfigError(
                f"{out} was started with another {name}; resume with the same one, or search in "
                "another folder"
            )
    for trial in history.trials:
        if trial.status is TrialStatus.RUNNING and trial.attempts >= MAX_ATTEMPTS:
            trial.status = TrialStatus.FAILED
            trial.reason = f"the process was killed {trial.attempts} times during it"
    history.save(out)
    return history


def _continues(trial: Trial) -> bool:
    """Whether a trial of an earlier part of the search is not at its end."""
    return trial.status in (TrialStatus.RUNNING, TrialStatus.STOPPED)


def _is_of_settings(error: Exception) -> bool:
    """Whether other settings may avoid an error: they do not fit together, or need less memory."""
    return isinstance(error, ConfigError) or is_out_of_memory(error)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, CandidError) else "not enough memory"
