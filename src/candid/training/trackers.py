"""Where metrics go: one small protocol, and what is built in.

jsonl         metrics.jsonl, one JSON object a line; always the record of a run
tensorboard   a tensorboard/ folder (extra tensorboard)
mlflow        the active MLflow server (extra mlflow)
wandb         Weights & Biases (extra wandb)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from candid.atomic import replacing, write_error
from candid.component import lookup
from candid.errors import ConfigError

Metrics = Mapping[str, float | int | str]


class Tracker(Protocol):
    """Something that remembers metrics."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Remember ``metrics`` of ``step`` (optimizer steps so far)."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what could not be written where the system refuses (a full disk)."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


class JsonlTracker:
    """Lines of JSON in ``metrics.jsonl``.

    Resuming at a step drops the lines after it, so that the log never tells a step twice.

    Args:
        folder: the run.
        name: shown by trackers that list runs; unused here.
        from_step: keep earlier lines up to this step; None starts a new log.
    """

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        kept = ""
        if from_step is not None and self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = "".join(line for line in lines if _step_of(line) <= from_step)
        # The log of hours of training must survive whatever happens while it is cut.
        with replacing(self.path) as temporary:
            temporary.write_text(kept, encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line."""
        with _writing(self.path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Flush to disk and close."""
        with _writing(self.path):
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line cut short by a crash
        return float("inf")


class TensorBoardTracker:
    """Scalars in ``tensorboard/``; arguments as ``JsonlTracker``."""

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None

        purge = None if from_step is None else from_step + 1
        self._folder = folder / "tensorboard"
        with _writing(self._folder):
            self._writer: Any = SummaryWriter(str(self._folder), purge_step=purge)

    def log(self, step: int, metrics: Metrics) -> None:
        """Add each number as a scalar."""
        with _writing(self._folder):
            for key, value in metrics.items():
                if not isinstance(value, str):
                    self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush and close."""
        with _writing(self._folder):
            self._writer.close()


class MLflowTracker:
    """Metrics of an MLflow run; arguments as ``JsonlTracker``."""

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        try:
            import mlflow
        except ImportError:
            raise _missing("mlflow") from None
        self._mlflow: Any = mlflow
        self._mlflow.start_run(run_name=name)

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the numbers; MLflow refuses ``@`` in names."""
        numbers = {k.replace("@", "_at_"): v for k, v in metrics.items() if not isinstance(v, str)}
        self._mlflow.log_metrics(numbers, step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandbTracker:
    """Metrics of a Weights & Biases run; arguments as ``JsonlTracker``."""

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run: Any = wandb.init(project="candid", name=name, dir=str(folder), resume="allow")

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _missing(extra: str) -> ConfigError:
    return ConfigError(
        f"training.trackers names {extra!r}, which is not installed: "
        f"pip install 'candid-retrieval[{extra}]'"
    )


TRACKERS: dict[str, Callable[[Path, str, int | None], Tracker]] = {
    "jsonl": JsonlTracker,
    "mlflow": MLflowTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def open_trackers(
    names: tuple[str, ...], folder: Path, name: str, from_step: int | None
) -> list[Tracker]:
    """Open every named tracker.

    Raises:
        UnknownNameError: no such tracker.
        ConfigError: its package is not installed.
    """
    kinds = [lookup(TRACKERS, "tracker", each) for each in names]
    with ExitStack() as opened:
        trackers = []
        for kind in kinds:
            trackers.append(kind(folder, name, from_step))
            opened.callback(trackers[-1].close)
        opened.pop_all()
    return trackers
