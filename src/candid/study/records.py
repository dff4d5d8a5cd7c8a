"""Records of a study: one line for each finished or failed cell.

records.jsonl   one JSON object per line, in the order in which the cells ended

A cell that runs again, because its settings changed or because it had failed, adds a line. The last
line of a key counts, but a failure does not replace a success with the same settings. A line that
was cut by a crash is dropped; the next line repairs the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from candid.atomic import write_error
from candid.checksums import SEAL, has_valid_seal, is_verifying, read_error, sealed
from candid.errors import ArtifactError
from candid.json_text import parse_json

RECORDS: Final = "records.jsonl"
FORMAT: Final = 3
"""Version of a line; it increases when the meaning of a field changes. Lines of versions 1 and 2
are refused: their chi2, drift and gradient bias are those of other users, and the items of their
softmax are not known."""

Phase = Literal["pilot", "main"]
Status = Literal["finished", "failed"]


@dataclass(frozen=True, slots=True, order=True)
class CellKey:
    """The place of a cell in the grid.

    Attributes:
        phase: "pilot", which chooses the learning rates, or "main".
        dataset: name in the study file.
        split: name in the study file.
        tower: name in the study file.
        sampler: name of the sampler; "none" for an arm that reads the whole catalog.
        num_candidates: n, candidates of a row; 0 where they are not chosen: those of the whole
            batch, or none.
        arm: name of the arm.
        lr: peak learning rate.
        seed: of weights, batches and candidates.
    """

    phase: Phase
    dataset: str
    split: str
    tower: str
    sampler: str
    num_candidates: int
    arm: str
    lr: float
    seed: int

    @property
    def id(self) -> str:
        """Name of the cell in files: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Name of the cell in messages."""
        samples = "" if self.sampler == "none" else f" {self.sampler}"
        samples += f" n={self.num_candidates}" if self.num_candidates else ""
        return (
            f"{self.phase} {self.dataset} {self.split} {self.tower}{samples} {self.arm} "
            f"lr={self.lr:g} seed={self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured value.

    Attributes:
        value: the value.
        standard_error: of the value, over users; for a drift over users and samples. None where
            fewer than two users define it.
    """

    value: float
    standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One validation during training.

    Attributes:
        step: optimizer steps so far.
        cpu_seconds: of the training so far, over all threads.
        ndcg: validation NDCG@10.
        nll: validation NLL in nats; None where it is not computed.
        sample_weight: mean of 1 - P over the logged steps since the validation before; None
            without such a step.
    """

    step: int
    cpu_seconds: float
    ndcg: float
    nll: float | None = None
    sample_weight: float | None = None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles over users; None where infinite: the sampler can never draw an item."""

    p10: float | None
    p50: float | None
    p90: float | None


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """The pairs of a user and an item whose stated P(item | user) is in one range.

    Attributes:
        low: lower end of the range.
        high: upper end.
        pairs: number of pairs.
        stated: mean of P(item | user) over the pairs.
        observed: share of the pairs whose item is the target of the user.
    """

    low: float
    high: float
    pairs: int
    stated: float
    observed: float


@dataclass(frozen=True, slots=True)
class PopularityGroup:
    """The test targets whose training counts are in one range.

    Attributes:
        label: range of the training counts.
        targets: number of targets.
        ndcg: test NDCG@10 of these targets; None where it is undefined.
        nll: test NLL of these targets in nats; None where it is not computed.
    """

    label: str
    targets: int
    ndcg: Measured | None
    nll: Measured | None

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> PopularityGroup:
        """Read plain JSON values."""
        return cls(**{**table, "ndcg": _measured(table["ndcg"]), "nll": _measured(table["nll"])})


@dataclass(frozen=True, slots=True)
class Record:
    """The outcome of one cell; everything here is plain JSON.

    Attributes:
        key: of the cell.
        status: "finished" or "failed".
        error: why it failed, one sentence; "" for a finished cell.
        digest: checksum of all settings of the cell and of its dataset.
        settings: the resolved recipe, as plain values.
        commit: git commit of the study file's repository, with "-dirty" after changes; or None.
        code_commit: that of the repository that holds the code of candid; None where it is
            installed.
        versions: of candid, torch, numpy and Python, by name.
        num_items: V, size of the catalog.
        softmax_items: items of the softmax in training: V, or those that are ever a target with
            ``training.softmax_over = "trained"``.
        ranked_items: items that test and validation rank, those of ``evaluation.catalog``.
        num_users: users of the test measurement.
        candidates_per_row: candidates that a row is compared with: ``softmax_items`` for the whole
            catalog.
        steps: optimizer steps of the training.
        test: metrics on the test split by name, "ndcg@10" and "nll" among them. Empty in a pilot,
            which does not read the test split.
        validation: metrics on the validation split, of the same model.
        curve: validations during training, in order.
        cpu_seconds: of the training with its validations, over all threads.
        measure_cpu_seconds: of the measurements after the training.
        peak_mib: largest resident memory of the process while the cell ran.
        chi2: Σ P²/Q - 1 of the trained model and its sampler by user; None without a sampler or
            beside exact candidates.
        chi2_users: users of ``chi2`` and ``gradient_bias``.
        drift: predicted drift, in nats, of the cell's estimator at the trained model with the
            cell's sampler and n; None where the loss estimates no softmax.
        drift_users: users of ``drift``, the first of those of ``chi2``.
        gradient_bias: bias of the gradient given the positive, relative to its length, of the same
            estimator at the trained model; None where ``drift`` is None.
        calibration: bins of P(item | user) on the test split.
        popularity: test metrics by popularity of the target, least popular first.
        users: file of the values of each user, relative to the folder of the study; or None.
        users_checksum: SHA-256 of that file; None without one.
    """

    key: CellKey
    status: Status
    error: str = ""
    digest: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None
    code_commit: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    num_items: int = 0
    softmax_items: int = 0
    ranked_items: int = 0
    num_users: int = 0
    candidates_per_row: int = 0
    steps: int = 0
    test: Mapping[str, Measured] = field(default_factory=dict)
    validation: Mapping[str, Measured] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    cpu_seconds: float = 0.0
    measure_cpu_seconds: float = 0.0
    peak_mib: float = 0.0
    chi2: Quantiles | None = None
    chi2_users: int = 0
    drift: Measured | None = None
    drift_users: int = 0
    gradient_bias: Measured | None = None
    calibration: tuple[CalibrationBin, ...] = ()
    popularity: tuple[PopularityGroup, ...] = ()
    users: str | None = None
    users_checksum: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the cell has its measurements."""
        return self.status == "finished"

    @property
    def compared_items(self) -> int:
        """Items that both the softmax and the ranking have: the smaller number of the two."""
        return min(self.softmax_items, self.ranked_items)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, with their checksum."""
        return sealed({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Record:
        """Read the values of ``to_json``.

        Raises:
            KeyError: a value is missing.
            TypeError: a value is unknown or of another kind.
            ValueError: a line of another format, or one that differs from its checksum.
        """
        values = {name: value for name, value in table.items() if name != SEAL}
        if (version := values.pop("format")) != FORMAT:
            raise ValueError(f"format {version}, this version reads {FORMAT}")
        if is_verifying() and not has_valid_seal(table):
            raise ValueError("it differs from its checksum")
        return cls(
            **values
            | {
                "key": CellKey(**values["key"]),
                "test": _measurements(values["test"]),
                "validation": _measurements(values["validation"]),
                "curve": tuple(CurvePoint(**one) for one in values["curve"]),
                "chi2": None if values["chi2"] is None else Quantiles(**values["chi2"]),
                "drift": _measured(values["drift"]),
                "gradient_bias": _measured(values["gradient_bias"]),
                "calibration": tuple(CalibrationBin(**one) for one in values["calibration"]),
                "popularity": tuple(PopularityGroup.from_json(one) for one in values["popularity"]),
            }
        )


def append_record(folder: Path | str, record: Record) -> None:
    """Append a line to ``records.jsonl``; a last line that a crash has cut is removed first.

    Several processes may append to one file.

    Raises:
        ArtifactError: the operating system refuses.
    """
    path = Path(folder) / RECORDS
    line = json.dumps(record.to_json(), allow_nan=False) + "\n"
    try:
        with path.open("a+b") as file:
            # Released at the close. A file system without locks has one process per study.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(_complete_size(file))
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def read_records(folder: Path | str) -> list[Record]:
    """Return the last record of each key, in the order of the file; none without a file.

    A failure does not replace a success with the same settings.

    Raises:
        ArtifactError: a line is damaged (the message names it), or of another format.
    """
    path = Path(folder) / RECORDS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise read_error(path, error) from error
    records: dict[CellKey, Record] = {}
    complete = content[: content.rfind(b"\n") + 1]
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            record = Record.from_json(parse_json(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: line {number} cannot be read ({error}); remove the line to run its cell "
                "again"
            ) from None
        before = records.get(record.key)
        if before is not None and before.is_finished and not record.is_finished:
            # It may have failed in one process after it had succeeded in another.
            record = before if before.digest == record.digest else record
        records.pop(record.key, None)
        records[record.key] = record
    return list(records.values())


def finite(value: float | None) -> float | None:
    """Return a number, or None for infinity and NaN, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(value)


def _complete_size(file: Any) -> int:
    """Return the number of bytes up to the end of the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - 65536)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            return int(begin + newline + 1)
        end = begin
    return 0


def _measured(table: Mapping[str, Any] | None) -> Measured | None:
    return None if table is None else Measured(**table)


def _measurements(table: Mapping[str, Any]) -> dict[str, Measured]:
    return {name: Measured(**value) for name, value in table.items()}
