"""Trials of a search: what each one tried and reached, and the file that stores them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from candid.atomic import write_error
from candid.checksums import check_seal, has_valid_text_seal, read_error, write_sealed_json
from candid.errors import ArtifactError, ConfigError
from candid.json_text import read_json
from candid.locks import LOCK, one_writer

TRIALS: Final = "trials.json"
RECIPE: Final = "best.toml"
FORMAT: Final = 3
"""Version of ``trials.json``."""
CONTINUE: Final = "restore it from a copy, or continue the search with --resume"


class TrialStatus(StrEnum):
    """The end of a trial."""

    RUNNING = "running"
    """Being trained, or its process was killed."""
    COMPLETE = "complete"
    """Trained to the end of its recipe."""
    PRUNED = "pruned"
    """Stopped because it was worse than the median of earlier trials after the same epoch."""
    STOPPED = "stopped"
    """Stopped by the budget or by the user."""
    FAILED = "failed"
    """Its settings cannot be trained, or its loss diverged."""


@dataclass
class Trial:
    """One trial of a search; everything here is plain JSON.

    Attributes:
        number: from 0, which is the base recipe.
        values: by key of the space. Those of the base recipe that the space does not contain are
            absent.
        status: how it ended.
        attempts: 1, and 1 more for each time that its process was killed.
        validations: value of the metric by number of epochs; of several validations with one
            number, the first.
        best: largest value of the metric, or None before the first validation.
        best_epoch: number of epochs when it was reached.
        standard_error: of ``best`` as an estimate for all users, where a sample of them was
            measured, or None.
        cpu_seconds: CPU time of the process over all threads.
        reason: why it failed, or "".
    """

    number: int
    values: dict[str, Any]
    status: TrialStatus = TrialStatus.RUNNING
    attempts: int = 1
    validations: dict[int, float] = field(default_factory=dict)
    best: float | None = None
    best_epoch: int = 0
    standard_error: float | None = None
    cpu_seconds: float = 0.0
    reason: str = ""

    @property
    def is_ranked(self) -> bool:
        """Whether the trial can be the best one: it was not given up, and has a value."""
        return self.best is not None and self.status in (
            TrialStatus.COMPLETE,
            TrialStatus.STOPPED,
        )

    def reopen(self) -> None:
        """Mark a stopped trial as being trained again."""
        self.attempts += self.status is TrialStatus.RUNNING  # its process was killed
        self.status, self.reason = TrialStatus.RUNNING, ""

    def forget(self) -> None:
        """Forget the measurements of a trial that begins again; its CPU time stays."""
        self.validations = {}
        self.best, self.best_epoch, self.standard_error = None, 0, None

    def add_validation(self, epoch: int, value: float, standard_error: float | None) -> None:
        """Record a validation."""
        self.validations.setdefault(epoch, value)
        if self.best is None or value > self.best:
            self.best, self.best_epoch, self.standard_error = value, epoch, standard_error

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Trial:
        """Read a trial of ``trials.json``."""
        trial = cls(**table)
        trial.status = TrialStatus(trial.status)
        trial.validations = {int(epoch): value for epoch, value in trial.validations.items()}
        return trial


@dataclass
class History:
    """All trials of a search, and what they have in common.

    Attributes:
        metric: name of the validation metric, larger is better.
        search: what the trials depend on: base recipe, space, dataset and seed, as plain values.
        trials: by number.
    """

    metric: str
    search: Mapping[str, Any]
    trials: list[Trial] = field(default_factory=list)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of all trials, over all threads."""
        return sum(trial.cpu_seconds for trial in self.trials)

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by status."""
        counted = Counter(trial.status.value for trial in self.trials)
        return {status.value: counted[status.value] for status in TrialStatus if counted[status]}

    @property
    def base(self) -> Trial | None:
        """The trial of the base recipe."""
        return self.trials[0] if self.trials else None

    def ranking(self) -> list[Trial]:
        """Return the trials that can be the best one, best first; of equals the earlier first."""
        ranked = [trial for trial in self.trials if trial.is_ranked]
        return sorted(ranked, key=lambda trial: (-(trial.best or 0.0), trial.number))

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``trials.json``."""
        return {
            "format": FORMAT,
            "metric": self.metric,
            "search": dict(self.search),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "trials": [asdict(trial) for trial in self.trials],
        }

    def save(self, folder: Path | str) -> None:
        """Write ``trials.json`` atomically."""
        write_sealed_json(Path(folder) / TRIALS, self.to_json())


def read_history(folder: Path | str) -> History:
    """Read the trials of a search.

    Raises:
        ConfigError: the folder holds no search.
        ArtifactError: ``trials.json`` is damaged or of another format.
    """
    path = Path(folder) / TRIALS
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ArtifactError(
                f"{path} has format {content['format']}, this version reads {FORMAT}; "
                "search again in another folder"
            )
        check_seal(path, content, "restore it from a copy, or search again in another folder")
        trials = [Trial.from_json(table) for table in content["trials"]]
        return History(content["metric"], content["search"], trials)
    except FileNotFoundError:
        raise ConfigError(f"{folder} holds no search to resume; leave --resume out") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}); search again in another folder"
        ) from None


def check_recipe(folder: Path | str) -> None:
    """Refuse a ``best.toml`` that is not as the search wrote it.

    Raises:
        ArtifactError: it is missing though a trial has a value, cannot be read, or differs from the
            checksum in its last line.
    """
    path = Path(folder) / RECIPE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not read_history(folder).ranking():
            return
        raise ArtifactError(f"{path} is missing; {CONTINUE}") from None
    except OSError as error:
        raise read_error(path, error) from error
    if not has_valid_text_seal(content):
        raise ArtifactError(f"{path} differs from its checksum; {CONTINUE}")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a search folder; the system releases that of a killed process.

    Raises:
        ConfigError: another process searches in the folder; the message names it.
        ArtifactError: the operating system refuses.
    """
    with ExitStack() as held:
        try:
            writer = one_writer(folder / LOCK, folder, "name another folder with --out")
            held.enter_context(writer)
        except OSError as error:
            raise write_error(folder, error) from error
        yield
