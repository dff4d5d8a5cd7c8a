"""Measurement of a model on a split, stored in its folder; after a training beside baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candid.atomic import write_json
from candid.data import Role
from candid.distributed import current_group, open_group
from candid.errors import ConfigError, DataError, Interrupted
from candid.evaluation import EvaluationConfig, EvaluationReport
from candid.inference import StageProgress
from candid.runs.baselines import beside_cheap_baselines
from candid.runs.load import with_sharded_tables
from candid.runs.run import Run
from candid.runs.saved_model import SavedModel

if TYPE_CHECKING:
    from rich.console import RenderableType

    from candid.baselines import ModelBesideBaselines


@dataclass(frozen=True)
class TrainedMeasurement:
    """The measurement of a run on the test split.

    Attributes:
        report: of the run; None: it could not be measured.
        file: of the report.
        beside: the run beside the cheap baselines; None: they were not measured.
        why_not: the reason why the report, or what is beside it, is missing.
    """

    report: EvaluationReport | None = None
    file: Path | None = None
    beside: ModelBesideBaselines | None = None
    why_not: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: ``test``, ``baselines``, and ``not_measured`` with a reason."""
        document: dict[str, Any] = {
            "test": None if self.report is None else self.report.to_json(),
            "baselines": None if self.beside is None else self.beside.to_json(),
        }
        return document if self.why_not is None else {**document, "not_measured": self.why_not}

    def lines(self, folder: Path) -> list[RenderableType]:
        """Return tables and sentences to print.

        Args:
            folder: of the run.
        """
        if self.report is None:
            return [
                f"not measured on the test split: {self.why_not}; to change a key of [evaluation]: "
                f"candid evaluate {folder} --set KEY=VALUE"
            ]
        lines: list[RenderableType] = [self.report.table(), f"measured in {self.file}"]
        if self.why_not is not None:
            lines.append(f"not measured beside baselines: {self.why_not}")
        if self.beside is not None:
            lines += [
                self.beside.table(),
                f"{self.beside.sentence}; tuned ones: candid evaluate {folder} --baselines",
            ]
        return lines


def measure_on_test(
    run: Run, *, baselines: bool = True, progress: StageProgress | None = None
) -> TrainedMeasurement:
    """Measure a run after its training on the test split, and the cheap baselines beside it.

    A run that cannot be measured is trained all the same: the result has the reason.

    With sharded tables all processes of the training call this. They share the items, each with its
    rows of the tables, so that none of them holds the vectors of all items; rank 0 alone writes,
    and alone measures baselines. Otherwise rank 0 alone calls it.

    Args:
        run: a trained run, whose dataset has a test split; with sharded tables opened with
            ``map_weights``.
        baselines: whether to measure baselines.
        progress: called with (stage, done, total).

    Raises:
        Interrupted: stopped by Ctrl-C.
        PeerError: another process failed; with sharded tables only.
        PeerInterrupted: another process was interrupted; with sharded tables only.
    """
    measured = TrainedMeasurement()
    if run.config.training.shards_tables:
        with open_group(run.config.training.timeout_seconds) as group:
            parts = run if group.is_single else with_sharded_tables(run, group)
            measured, is_main = _with_report(parts, progress), group.is_main
    else:
        measured, is_main = _with_report(run, progress), True
    if baselines and is_main and measured.report is not None:
        return _with_baselines(run, measured, progress)
    return measured


def _with_report(run: Run, progress: StageProgress | None) -> TrainedMeasurement:
    try:
        with _interruptible(run):
            report, file = evaluate_and_save(run, run.folder, "test", progress=progress)
    except (ConfigError, DataError) as error:
        # The training is complete: only this measurement needs another setting.
        return TrainedMeasurement(why_not=str(error))
    return TrainedMeasurement(report, file)


def _with_baselines(
    run: Run, measured: TrainedMeasurement, progress: StageProgress | None
) -> TrainedMeasurement:
    assert measured.report is not None
    assert measured.file is not None
    try:
        with _interruptible(run):
            beside = beside_cheap_baselines(run, measured.report, progress=progress)
            save_beside(measured.file, beside)
    except (ConfigError, DataError) as error:
        return replace(measured, why_not=str(error))
    return replace(measured, beside=beside)


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped while measuring; {run.folder} is trained, measure it with: candid evaluate "
            f"{run.folder}"
        ) from None


def has_test_split(run: Run) -> bool:
    """Return whether the dataset of a run has test targets."""
    return run.dataset.has_role(Role.TEST)


def evaluate_and_save(
    model: SavedModel,
    folder: Path,
    split: str,
    config: EvaluationConfig | None = None,
    progress: StageProgress | None = None,
    out: Path | None = None,
) -> tuple[EvaluationReport, Path]:
    """Measure a model, save the report and return report and file.

    Of several processes that measure together, rank 0 alone writes.

    Args:
        model: a run or a saved baseline.
        folder: of the model.
        split: "test" or "validation".
        config: settings; None: those of the model.
        progress: called with (stage, done, total).
        out: file of the report; None: in the folder of the model. A report with other settings,
            on a part of the catalog or on another dataset has its own name there, so that it does
            not replace the report of the model.
    """
    report = model.evaluate(split, config, progress=progress)
    # The report on a part of the catalog does not replace the report on the whole.
    part = report.settings["catalog"]
    suffix = "" if part == "all" else f"-{part}"
    suffix += _settings_suffix(model, config)
    # Neither does the report on another dataset replace that on the dataset of the model.
    fingerprint = model.dataset.fingerprint
    if fingerprint != model.manifest["dataset"]["fingerprint"]:
        suffix += f"-on-{fingerprint[:8]}"
    path = folder / f"evaluation-{split}{suffix}.json" if out is None else out
    if current_group().is_main:
        report.save(path)
    return report, path


def _settings_suffix(model: SavedModel, config: EvaluationConfig | None) -> str:
    """Return a suffix with a hash of the settings; empty for those of the model.

    The part of the catalog has a suffix of its own.
    """
    if config is None:
        return ""
    own, given = (
        c.model_dump(mode="json", exclude={"catalog"}) for c in (model.evaluation, config)
    )
    if given == own:
        return ""
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    return f"-set-{digest[:8]}"


def save_beside(evaluation: Path, beside: ModelBesideBaselines) -> Path:
    """Save a model beside baselines next to the file of ``evaluate_and_save``; return its file."""
    name = evaluation.name.removeprefix("evaluation-")
    path = evaluation.with_name(f"baselines-{name}")
    write_json(path, beside.to_json())
    return path
