"""The run of a study: cells that are missing are trained and measured, within a budget.

study.json      the study file, as plain values
timings.json    the times from which the cost is estimated
records.jsonl   the outcome of every cell
users/          values of each user
data/           prepared datasets
cells/          runs of cells that have not ended
locks/          a lock for each cell that runs; several processes may share the folder
"""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from candid.atomic import write_error
from candid.errors import CandidError, ConfigError, Interrupted, is_out_of_memory, is_panic
from candid.locks import Lock, acquire
from candid.study.cell import Cell, cell_folders
from candid.study.config import Study
from candid.study.cost import CostModel
from candid.study.datasets import POLL_SECONDS, Datasets
from candid.study.folder import LOCKS, Commits, open_folder
from candid.study.grid import Grid, Setting, by_key
from candid.study.progress import StudyProgress, StudyResult, StudyStatus
from candid.study.records import RECORDS, CellKey, Record, append_record, read_records
from candid.training import TrainState
from candid.training.stop_signal import stop_signal


def run_study(
    study: Study,
    out: Path | str,
    *,
    minutes: float | None = None,
    retry_failed: bool = False,
    allow_over_budget: bool = False,
    progress: StudyProgress | None = None,
) -> StudyResult:
    """Run the cells of a study that are missing.

    Grid after grid, the pilot comes first; it chooses the learning rate of each arm on validation.
    A cell continues from its last checkpoint after an interruption. A cell that fails is recorded
    with the reason and does not run again. Several processes may work in one folder.

    Args:
        study: the study file.
        out: folder of the study: new, empty, or that of the same study.
        minutes: CPU minutes of this call after which no further cell starts; None: no limit.
        retry_failed: run cells again, once, that have failed before.
        allow_over_budget: run although the estimate exceeds the budget of the study.
        progress: display.

    Returns:
        the records, and how far the study is.

    Raises:
        ConfigError: the folder holds something else, or the estimated cost exceeds the budget; the
            message has the estimate.
        DataError: a dataset cannot be prepared.
        ArtifactError: a dataset or the records are damaged, or the system refuses to write.
        Interrupted: stopped by a signal; the same call continues.

    Example:
        >>> study = candid.study.read_study("studies/small.toml")
        >>> result = candid.study.run_study(study, "small-study")
    """
    if minutes is not None and minutes <= 0:
        raise ConfigError("the CPU minutes of a call must be above 0; increase --minutes")
    out = Path(out)
    open_folder(study, out)
    with stop_signal() as stop:
        loop = _Loop(study, out, retry_failed, progress, stop)
        try:
            loop.check_budget(allow_over_budget)
            return loop.run(minutes)
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted("stopped; run the same command to continue") from None


class _Loop:
    """The loop over the missing cells."""

    def __init__(
        self,
        study: Study,
        out: Path,
        retry_failed: bool,
        progress: StudyProgress | None,
        stop: threading.Event,
    ) -> None:
        self.study, self.out, self.progress, self.stop = study, out, progress, stop
        self.grid = Grid(study)
        self.datasets = Datasets(study, out, stop)
        self.costs = CostModel(self.grid, self.datasets, out, self._note)
        self.commits = Commits.of(Path(study.source).parent)
        self._fingerprints: dict[tuple[str, str], str] = {}
        self._digests: dict[CellKey, str] = {}
        self._read: tuple[tuple[int, int], dict[CellKey, Record]] | None = None
        # A cell runs again while its record is still the failed one that this call has seen.
        self._retry = {
            key: record
            for key, record in self.records().items()
            if retry_failed and not record.is_finished
        }
        self._pace = (0.0, 0.0)

    def records(self) -> dict[CellKey, Record]:
        """Return the records of the present settings, by key."""
        try:
            facts = (self.out / RECORDS).stat()
            version = (facts.st_mtime_ns, facts.st_size)
        except FileNotFoundError:
            version = (0, 0)
        if self._read is None or self._read[0] != version:
            self._read = (version, by_key(read_records(self.out)))
        known = self._read[1]
        return {k: r for k, r in known.items() if self._is_current(k, r)}

    def check_budget(self, allow_over_budget: bool) -> None:
        """Time a few steps of each setting, and refuse a study that exceeds its budget.

        Raises:
            ConfigError: the estimate exceeds the budget.
        """
        records = self.records()
        missing = self._missing(records)
        if not missing:
            return
        main = [s.cell("main", self._some_rate(s), 0) for s in self.grid.seeds]
        self.costs.time([*missing, *main])
        spent, rest = _cpu_seconds(records.values()) / 3600, self._remaining(records) / 3600
        extensions = len(self.grid.may_extend(records))
        more = f", about {extensions} to extend its ranges," if extensions else ""
        self._note(
            f"about {rest:.3g} CPU hours for the missing cells of {self.grid.num_pilots} in the "
            f"pilot{more} and {self.grid.num_main} main ones, {spent:.3g} spent, budget "
            f"{self.study.cpu_hours:g}"
        )
        if spent + rest > self.study.cpu_hours and not allow_over_budget:
            raise ConfigError(
                f"{self.study.source}: the study needs about {spent + rest:.3g} CPU hours "
                f"({spent:.3g} of them spent), more than budget.cpu_hours = "
                f"{self.study.cpu_hours:g}: leave out cells, raise the budget, or add "
                "--allow-over-budget"
            )

    def run(self, minutes: float | None) -> StudyResult:
        """Run missing cells until none is left, or the minutes of this call are spent."""
        began, is_waiting = time.process_time(), False
        self._remove_ended_folders()
        while True:
            self._check_stop("")
            records = self.records()
            missing = self._missing(records)
            is_over = minutes is not None and time.process_time() - began >= 60 * minutes
            if not missing or is_over:
                return self._result(records, is_complete=not missing)
            with ExitStack() as held:
                key = self._take(missing, held)
                if key is not None:
                    is_waiting = False
                    self._run_cell(key)
            if key is None:
                if not is_waiting:
                    self._note(f"other processes run the {len(missing)} cells that are left")
                is_waiting = True
                self.stop.wait(4 * POLL_SECONDS)

    def _remove_ended_folders(self) -> None:
        """Remove the folders of finished cells whose process was killed after the record."""
        finished = {key.id: key for key, one in self.records().items() if one.is_finished}
        for folder in cell_folders(self.out / "cells"):
            key = finished.get(folder.name.split("-")[0])
            lock = None if key is None else self._lock(key)
            if lock is not None:
                with lock:
                    shutil.rmtree(folder, ignore_errors=True)

    def _missing(self, records: Mapping[CellKey, Record]) -> list[CellKey]:
        """Return the cells that have not ended, or that are to run again, in their order."""
        return self.grid.missing_cells(self._ended(records))

    def _ended(self, records: Mapping[CellKey, Record]) -> dict[CellKey, Record]:
        """Return the records without those of cells that this call is to run again."""
        return {key: one for key, one in records.items() if self._retry.get(key) != one}

    def _remaining(self, records: Mapping[CellKey, Record]) -> float:
        """Return the estimated CPU seconds of the missing cells, at the pace of this call."""
        ended = self._ended(records)
        pilots = [key for key in self.grid.pilot_cells(records) if key not in ended]
        open_pilots = {Setting.of(key) for key in pilots}
        main: list[CellKey] = []
        for setting, seeds in self.grid.seeds.items():
            chosen = self.grid.chosen_rate(setting, records)
            if chosen is None and self.grid.pilots[setting] not in open_pilots:
                continue  # all cells of its pilot failed: it never runs
            rate = chosen or self._some_rate(setting)
            keys = [setting.cell("main", rate, seed) for seed in seeds]
            main += [key for key in keys if key not in ended]
        extensions = self.grid.may_extend(records)
        seconds = sum(map(self.costs.seconds, [*pilots, *extensions, *main]))
        estimated, real = self._pace
        return seconds * real / estimated if estimated > 0 and real > 0 else seconds

    def _some_rate(self, setting: Setting) -> float:
        """Return a learning rate for the cost, which does not depend on it."""
        return self.study.learning_rates(setting.dataset)[0]

    def _take(self, missing: Iterable[CellKey], held: ExitStack) -> CellKey | None:
        """Lock the first cell that no other process runs; None where they run all of them."""
        for key in missing:
            lock = self._lock(key)
            if lock is None:
                continue
            held.enter_context(lock)
            if key not in self._ended(self.records()):
                return key
            lock.release()  # it ended meanwhile
        return None

    def _lock(self, key: CellKey) -> Lock | None:
        path = self.out / LOCKS / f"{key.id}.lock"
        try:
            path.parent.mkdir(exist_ok=True)
            return acquire(path)
        except BlockingIOError:
            return None
        except OSError as error:
            raise write_error(path, error) from error

    def _run_cell(self, key: CellKey) -> None:
        self._retry.pop(key, None)
        before = self._status(self.records())
        if self.progress is not None:
            self.progress.on_cell(key, before)
        cell = Cell(
            key,
            self.grid.config(key),
            self.datasets.open(key.dataset, key.split),
            self._digest(key),
            self.out / "cells" / f"{key.id}-{self._digest(key)[:8]}",
        )
        began = time.process_time()
        display = None if self.progress is None else _CellProgress(key, before, self.progress)
        try:
            record = cell.run(self.out, self.study.measure, self.commits, display)
        except KeyboardInterrupt:  # Interrupted is one
            raise self._interrupted(key) from None
        except BaseException as error:  # one bad cell must not end a study of many hours
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            seconds = round(time.process_time() - began, 2)
            record = replace(
                cell.base_record(self.commits), error=_sentence(error), cpu_seconds=seconds
            )
        append_record(self.out, record)
        cell.forget()
        estimated, real = self._pace
        if record.is_finished:
            self._pace = (
                estimated + self.costs.seconds(key),
                real + record.cpu_seconds + record.measure_cpu_seconds,
            )
        gc.collect()
        if self.progress is not None:
            self.progress.on_record(record, self._status(self.records()))
        self._check_stop(f" after {key.label}")

    def _status(self, records: Mapping[CellKey, Record]) -> StudyStatus:
        ended = self._ended(records)
        pilots = self.grid.pilot_cells(records)
        main = self.grid.main_cells(records)
        return StudyStatus(
            (sum(key in ended for key in pilots), len(pilots)),
            (sum(key in ended for key in main), self.grid.num_main),
            _cpu_seconds(records.values()),
            self._remaining(records),
        )

    def _result(self, records: Mapping[CellKey, Record], *, is_complete: bool) -> StudyResult:
        keys = {*self.grid.pilot_cells(records), *self.grid.main_cells(records)}
        current = tuple(record for key, record in records.items() if key in keys)
        without = self.grid.num_main - len(self.grid.main_cells(records)) if is_complete else 0
        return StudyResult(current, self._status(records), is_complete, without)

    def _is_current(self, key: CellKey, record: Record) -> bool:
        """Whether a record is of the settings that the study has now."""
        if key.dataset not in self.study.datasets or key.tower not in self.study.config.towers:
            return False
        if key.split not in self.study.datasets[key.dataset].split_names:
            return False
        return record.digest == self._digest(key)

    def _digest(self, key: CellKey) -> str:
        if key not in self._digests:
            name = (key.dataset, key.split)
            if name not in self._fingerprints:
                self._fingerprints[name] = self.datasets.open(*name).fingerprint
            self._digests[key] = self.grid.digest(key, self._fingerprints[name])
        return self._digests[key]

    def _check_stop(self, where: str) -> None:
        if self.stop.is_set():
            raise Interrupted(f"stopped{where}; run the same command to continue")

    def _interrupted(self, key: CellKey) -> Interrupted:
        return Interrupted(f"stopped in {key.label}; run the same command to continue")

    def _note(self, line: str) -> None:
        if self.progress is not None:
            self.progress.on_note(line)


class _CellProgress:
    """The callbacks of the trainer during one cell."""

    def __init__(self, key: CellKey, status: StudyStatus, progress: StudyProgress) -> None:
        self._key, self._status, self._progress = key, status, progress

    def on_start(self, targets: str) -> None:
        """Nothing: all cells of a dataset have the same sentence."""

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Pass the step on."""
        self._progress.on_step(self._key, state, self._status)

    def on_validation(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Pass the step on."""
        self._progress.on_step(self._key, state, self._status)


def _cpu_seconds(records: Iterable[Record]) -> float:
    return sum(record.cpu_seconds + record.measure_cpu_seconds for record in records)


def _sentence(error: BaseException) -> str:
    if isinstance(error, CandidError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory"
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text or 'no message'}"
