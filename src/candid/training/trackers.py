"""Trackers: destinations of training metrics.

jsonl         metrics.jsonl, one JSON object per line; the record of a run
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
from typing import Any, Final, Protocol

from candid.atomic import replacing, write_error
from candid.component import lookup
from candid.errors import ConfigError
from candid.json_text import parse_json

Metrics = Mapping[str, float | int | str]


class Tracker(Protocol):
    """A destination of metrics."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Record ``metrics`` of ``step`` (optimizer steps so far)."""
        ...

    def flush(self) -> None:
        """Store what was logged; a checkpoint of the same step follows."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an error of the system, such as a full disk, into one that names the file."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


class JsonlTracker:
    """Lines of JSON in ``metrics.jsonl``.

    Resuming at a step drops the lines after it, so that no step is in the log twice, and damaged
    lines.

    Args:
        folder: folder of the run.
        name: name of the run; not used here.
        from_step: last step whose lines are kept; None starts a new log.
    """

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        self.path = folder / "metrics.jsonl"
        earlier = b""
        if from_step is not None and self.path.exists():
            lines = self.path.read_bytes().splitlines(keepends=True)
            earlier = b"".join(line for line in lines if _step_of(line) <= from_step)
        # Written atomically: an interruption must not lose the log of hours of training.
        with replacing(self.path) as temporary:
            temporary.write_bytes(earlier)
        self._file = self.path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Metrics) -> None:
        """Append one line."""
        with _writing(self.path):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """Flush to disk: a resume from the checkpoint does not repeat these steps."""
        with _writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush to disk and close."""
        with _writing(self.path):
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()


def _step_of(line: bytes) -> float:
    """Return the step of a line; infinity for one that is damaged or cut by a crash."""
    try:
        step = float(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")
    return step if line.endswith(b"\n") else float("inf")


class TensorBoardTracker:
    """Scalars in ``tensorboard/``; arguments as for ``JsonlTracker``."""

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

    def flush(self) -> None:
        """Write what is in memory."""
        with _writing(self._folder):
            self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        with _writing(self._folder):
            self._writer.close()


class MLflowTracker:
    """Metrics of an MLflow run; arguments as for ``JsonlTracker``."""

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        try:
            import mlflow
        except ImportError:
            raise _missing("mlflow") from None
        self._mlflow: Any = mlflow
        self._mlflow.start_run(run_name=name)

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the numbers; MLflow does not allow ``@`` in names."""
        numbers = {k.replace("@", "_at_"): v for k, v in metrics.items() if not isinstance(v, str)}
        self._mlflow.log_metrics(numbers, step=step)

    def flush(self) -> None:
        """Do nothing: the server has the metrics."""

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class WandbTracker:
    """Metrics of a Weights & Biases run; arguments as for ``JsonlTracker``."""

    def __init__(self, folder: Path, name: str, from_step: int | None = None) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._run: Any = wandb.init(project="candid", name=name, dir=str(folder), resume="allow")

    def log(self, step: int, metrics: Metrics) -> None:
        """Send the metrics."""
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Do nothing: the server has the metrics."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _missing(extra: str) -> ConfigError:
    return ConfigError(
        f"training.trackers names {extra!r}, which is not installed: "
        f"pip install 'candid-retrieval[{extra}]'"
    )


TRACKERS: Final[dict[str, Callable[[Path, str, int | None], Tracker]]] = {
    "jsonl": JsonlTracker,
    "mlflow": MLflowTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def open_trackers(
    names: tuple[str, ...], folder: Path, name: str, from_step: int | None
) -> list[Tracker]:
    """Open trackers.

    Args:
        names: names from ``TRACKERS``.
        folder: folder of the run.
        name: name of the run.
        from_step: last step whose metrics are kept; None for a new run.

    Raises:
        UnknownNameError: no such tracker.
        ConfigError: its package is not installed.
    """
    classes = [lookup(TRACKERS, "tracker", each) for each in names]
    with ExitStack() as opened:
        trackers = []
        for tracker_class in classes:
            trackers.append(tracker_class(folder, name, from_step))
            opened.callback(trackers[-1].close)
        opened.pop_all()
    return trackers
