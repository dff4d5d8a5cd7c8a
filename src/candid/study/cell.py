"""One cell: train its recipe, measure the model, and make the record."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np
import torch

from candid.atomic import write_json
from candid.batches import Loader
from candid.checksums import checksum, read_error
from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.evaluation import catalog_mask
from candid.json_text import parse_json, read_json
from candid.runs import Run, load_run, peak_memory_mib, train_run
from candid.study.config import MeasureConfig
from candid.study.folder import Commits
from candid.study.measure import (
    measure_calibration,
    measure_estimator,
    measure_on_test,
    validation_metrics,
)
from candid.study.records import CellKey, CurvePoint, Record
from candid.study.user_values import write_users
from candid.training import Progress, has_checkpoint
from candid.version import __version__

RUN: Final = "run"
FOLDER: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
"""Names of the folders of cells: id of the cell, and start of the digest of its settings."""
STARTS: Final = "starts.json"
MAX_STARTS: Final = 3
"""Starts of a cell without a new checkpoint: its process was killed each time, such as for memory,
and would be killed again."""

VERSIONS: Final[Mapping[str, str]] = {
    "candid": __version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
}


class KilledError(ConfigError):
    """The process of a cell was killed again and again."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell with what it needs to run.

    Attributes:
        key: of the cell.
        config: its recipe.
        dataset: its prepared dataset.
        digest: checksum of all that it depends on.
        folder: for its run, until the cell has ended.
    """

    key: CellKey
    config: RunConfig
    dataset: PreparedDataset
    digest: str
    folder: Path

    def base_record(self, commits: Commits) -> Record:
        """Return the record of a cell that has not ended, marked as failed."""
        return Record(
            self.key,
            "failed",
            digest=self.digest,
            settings=self.config.model_dump(mode="json"),
            commit=commits.study,
            code_commit=commits.code,
            versions=dict(VERSIONS),
            num_items=self.dataset.num_items,
        )

    def run(
        self, out: Path, settings: MeasureConfig, commits: Commits, progress: Progress | None
    ) -> Record:
        """Train, or continue from the last checkpoint, and measure.

        Args:
            out: folder of the study, for the values of users.
            settings: measurements of main cells; a pilot is measured on validation alone.
            commits: for the record.
            progress: called with steps and validations.

        Raises:
            KilledError: the process was killed each time before it stored a new checkpoint.
            CandidError: the recipe cannot be trained or measured.
            Interrupted: stopped by a signal, after a checkpoint.
        """
        _reset_peak_memory()
        with self._counted_start():
            return self._finish(out, settings, commits, progress)

    def _finish(
        self, out: Path, settings: MeasureConfig, commits: Commits, progress: Progress | None
    ) -> Record:
        run_folder = self.folder / RUN
        resume = has_checkpoint(run_folder)
        if not resume:
            shutil.rmtree(run_folder, ignore_errors=True)
        try:
            result = train_run(
                self.config, self.dataset, run_folder, resume=resume, progress=progress
            )
        except ArtifactError:
            if not resume:
                raise
            # A checkpoint that the killed process damaged.
            shutil.rmtree(run_folder, ignore_errors=True)
            result = train_run(self.config, self.dataset, run_folder, progress=progress)
        began = time.process_time()
        run = load_run(run_folder, self.dataset)
        values: dict[str, Any] = {
            "status": "finished",
            "softmax_items": softmax_items(run),
            "ranked_items": int(
                catalog_mask(run.dataset, run.item_counts, run.config.evaluation.catalog).sum()
            ),
            "candidates_per_row": self._candidates_per_row(run),
            "steps": result.state.step,
            "validation": validation_metrics(run),
            "curve": read_curve(run_folder),
            "cpu_seconds": round(result.state.cpu_seconds, 2),
        }
        if self.key.phase == "main":
            test = measure_on_test(run, settings)
            estimator = measure_estimator(run, settings)
            users = write_users(out, self.key, test.users)
            values |= {
                "test": test.metrics,
                "num_users": len(test.users.user_ids),
                "popularity": test.popularity,
                "calibration": measure_calibration(run, settings),
                "users": users,
                "users_checksum": checksum(out / users),
            }
            if estimator is not None:
                values |= {
                    "chi2": estimator.chi2,
                    "chi2_users": estimator.users,
                    "drift": estimator.drift,
                    "drift_users": estimator.drift_users,
                    "gradient_bias": estimator.gradient_bias,
                }
        values["measure_cpu_seconds"] = round(time.process_time() - began, 2)
        values["peak_mib"] = round(peak_memory_mib(), 1)
        return replace(self.base_record(commits), **values)

    def forget(self) -> None:
        """Remove the files of the cell, and those of earlier settings."""
        for folder in cell_folders(self.folder.parent):
            if folder.name.split("-")[0] == self.key.id:
                shutil.rmtree(folder, ignore_errors=True)

    def _candidates_per_row(self, run: Run) -> int:
        if self.config.sampler is None:
            return softmax_items(run)
        loader = Loader(self.dataset, self.config.batches, seed=self.config.seed)
        return self.config.sampler.candidates_per_row(len(loader.batch(0, 0)))

    @contextmanager
    def _counted_start(self) -> Iterator[None]:
        """Count the starts since the last checkpoint; one that a signal stops does not count.

        Raises:
            KilledError: there were too many.
        """
        path = self.folder / STARTS
        stamps = [one.stat().st_mtime_ns for one in (self.folder / RUN).rglob("last*.safetensors")]
        stamp, count = max(stamps, default=0), 0
        with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            before = read_json(path)
            count = int(before["count"]) if before["checkpoint"] == stamp else 0
        if count >= MAX_STARTS:
            path.unlink(missing_ok=True)
            raise KilledError(
                f"its process was killed {count} times before a new checkpoint, such as for "
                "memory; lower its sizes or set training.checkpoint_every_steps, and run it again "
                "with --retry-failed"
            )
        write_json(path, {"checkpoint": stamp, "count": count + 1})
        try:
            yield
        except KeyboardInterrupt:
            with suppress(ArtifactError):  # the stop is what the user should read
                write_json(path, {"checkpoint": stamp, "count": count})
            raise


def cell_folders(parent: Path) -> list[Path]:
    """Return the folders of cells that have not ended; other names are not of a study."""
    names = os.listdir(parent) if parent.is_dir() else ()
    return [parent / name for name in names if FOLDER.fullmatch(name)]


def softmax_items(run: Run) -> int:
    """Return the number of items of the softmax in training: all, or those with a target."""
    if run.config.training.softmax_over == "all":
        return run.dataset.num_items
    return int((run.item_counts > 0).sum())


def read_curve(run_folder: Path) -> tuple[CurvePoint, ...]:
    """Read the validations of a run from its metrics log.

    Raises:
        ArtifactError: the log cannot be read, or a line is damaged (the message names it).
    """
    path = run_folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise read_error(path, error) from error
    points: list[CurvePoint] = []
    weights: list[float] = []
    for number, text in enumerate(lines, start=1):
        try:
            line = parse_json(text)
            if "sample_weight" in line:
                weights.append(float(line["sample_weight"]))
            if "validation/ndcg@10" in line:
                points.append(
                    CurvePoint(
                        step=line["step"],
                        cpu_seconds=line["cpu_seconds"],
                        ndcg=line["validation/ndcg@10"],
                        nll=line.get("validation/nll"),
                        sample_weight=fmean(weights) if weights else None,
                    )
                )
                weights = []
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise ArtifactError(
                f"{path}: line {number} is damaged; run the cell again with --retry-failed"
            ) from None
    return tuple(points)


def _reset_peak_memory() -> None:
    """Let the peak memory of this process begin again; only Linux has it."""
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
