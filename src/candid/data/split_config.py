"""The ``[data.split]`` section of a recipe: which interactions are for validation and for test."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import Field

from candid.component import ComponentConfig

RoleName = Literal["train", "history", "validation", "test"]

DEFAULT_ROLES: dict[str, RoleName] = {
    "train": "train",
    "history": "history",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def _plain_cut(value: object) -> object:
    """Return a cut as text or a number: TOML also has dates, the command line only text."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, bool):
        raise ValueError(f"must be a quantile, a date or a time, got {str(value).lower()}")
    if isinstance(value, str):
        # A whole number stays one: float64 has no place for every time in nanoseconds.
        for number in (int, float):
            with contextlib.suppress(ValueError):
                return number(value)
    return value


Cut = Annotated[int | float | str, pydantic.BeforeValidator(_plain_cut)]

WINDOWED: Final = ("temporal", "rolling")
"""The kinds of split that divide time into windows."""
_KINDS_OF_KEY: Final = {
    "k": ("leave-k-out",),
    "validation_ratio": ("ratio",),
    "test_ratio": ("ratio",),
    "validation": ("temporal",),
    "test": ("temporal",),
    "window": ("rolling",),
    "folds": ("rolling", "cross-validation"),
    "fold": ("rolling", "cross-validation"),
    "unit": ("cross-validation", "temporal", "rolling"),
    "column": ("column",),
    "roles": ("column",),
    "drop_unassigned": ("column",),
}
"""Key -> the kinds of split that read it; all kinds read the others."""


def settings_of_kind(split: Mapping[str, object], kind: str) -> dict[str, object]:
    """Return the settings of a split that another kind reads as well.

    Args:
        split: keys of ``SplitConfig``.
        kind: the new ``kind``.

    Example:
        >>> settings_of_kind({"kind": "temporal", "test": 0.9, "seed": 1}, "ratio")
        {'kind': 'ratio', 'seed': 1}
    """
    kept = {key: value for key, value in split.items() if kind in _KINDS_OF_KEY.get(key, (kind,))}
    if kind == "none":
        kept.pop("validation_users", None)
    return kept | {"kind": kind}


_SECONDS: Final = {"d": 86_400, "h": 3_600}


class SplitConfig(ComponentConfig):
    """The split of interactions into train, validation and test."""

    kind: Literal[
        "leave-one-out",
        "leave-k-out",
        "ratio",
        "temporal",
        "rolling",
        "cross-validation",
        "column",
        "none",
    ] = Field(
        "leave-one-out",
        description="leave-one-out: each user's last interaction is test, the second last "
        "validation, and users with fewer than 3 are train only; leave-k-out: the last k are "
        "test, the k before validation, and users with fewer than 2k + 1 are train only; ratio: "
        "the last share of each user's interactions is test, the share before validation; "
        "temporal: two global cuts in time; rolling: fold number `fold` of `folds` successive "
        "time windows, each tested after training on what was before; cross-validation: users or "
        "interactions in `folds` random parts; column: a column of the file names the role of "
        "each row; none: all interactions train",
    )
    k: int | None = Field(
        None, ge=2, description="leave-k-out split: test interactions of each user, at least 2"
    )
    validation_ratio: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="ratio split: share of each user's interactions for validation, rounded down, "
        "but at least 1 where that leaves one for training",
    )
    test_ratio: float = Field(
        0.1, gt=0, lt=1, description="ratio split: share for test, rounded as `validation_ratio`"
    )
    validation: Cut = Field(
        0.8,
        description="temporal split: start of validation, as a quantile of the interactions "
        "(0.8), an ISO date ('2015-06-01', UTC) or a time in the unit of the time column",
    )
    test: Cut = Field(0.9, description="temporal split: start of test, in the form of `validation`")
    window: str | None = Field(
        None,
        description="rolling split: length of a window in days or hours, as in '7d' or '12h'; the "
        "test window of the last fold ends with the day or hour of the last interaction (UTC)",
    )
    folds: int = Field(5, ge=1, description="rolling and cross-validation split: number of folds")
    fold: int = Field(
        0,
        ge=0,
        description="rolling and cross-validation split: the fold to prepare, from 0; rolling: 0 "
        "is the earliest; cross-validation: part `fold` is test, the next one validation",
    )
    unit: Literal["user", "interaction"] = Field(
        "user",
        description="cross-validation, temporal and rolling split: 'user', of a user of the test "
        "part the last interaction is the target and the others are history, never trained on; "
        "'interaction', parts of the interactions of all users. A user, such as a session, belongs "
        "to the window of the last interaction. Temporal and rolling splits have the default "
        "'interaction'",
    )
    column: str | None = Field(None, description="column split: column with the role of each row")
    roles: dict[str, RoleName] = Field(
        default_factory=lambda: dict(DEFAULT_ROLES),
        description="column split: value in the column -> train, history (part of histories, "
        "never a target), validation or test",
    )
    drop_unassigned: bool = Field(
        False,
        description="column split: drop and count rows without a role instead of stopping",
    )
    unseen: Literal["keep", "drop", "error"] = Field(
        "keep",
        description="validation and test targets with an item or user that has no training "
        "interaction: keep or drop them, or stop; they are counted in every case",
    )
    validation_users: int | None = Field(
        None,
        ge=1,
        description="validate on a random sample of this many users; the validation rows of the "
        "others become history; none: all users",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="seed of the sample of `validation_users` and of the parts of cross-validation",
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _default_unit(cls, values: Any) -> Any:
        """Complete ``unit``, whose default depends on the kind."""
        if isinstance(values, Mapping) and values.get("kind") in WINDOWED:
            return {"unit": "interaction", **values}
        return values

    @pydantic.model_validator(mode="after")
    def _check_column(self) -> SplitConfig:
        if (self.kind == "column") != (self.column is not None):
            raise ValueError(
                'split.kind = "column" needs split.column, and other kinds do not use it'
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_keys_are_read(self) -> SplitConfig:
        for key, kinds in _KINDS_OF_KEY.items():
            default = type(self).model_fields[key].get_default(call_default_factory=True)
            if self.kind not in kinds and getattr(self, key) != default:
                readers = " or ".join(f'"{kind}"' for kind in kinds)
                raise ValueError(
                    f'split.{key} has no effect with split.kind = "{self.kind}"; remove it, or '
                    f"set split.kind = {readers}"
                )
        if self.kind == "none" and self.validation_users is not None:
            raise ValueError(
                'split.validation_users has no effect with split.kind = "none"; remove it'
            )
        return self

    @pydantic.model_validator(mode="after")
    def _check_kind_is_complete(self) -> SplitConfig:
        if self.kind == "leave-k-out" and self.k is None:
            raise ValueError(
                'split.kind = "leave-k-out" needs split.k, such as 5; for one interaction set '
                'split.kind = "leave-one-out"'
            )
        if self.kind == "ratio" and self.validation_ratio + self.test_ratio >= 1:
            raise ValueError(
                f"split.validation_ratio and split.test_ratio add up to "
                f"{self.validation_ratio + self.test_ratio:g}, which leaves nothing to train on; "
                "their sum must be below 1"
            )
        if self.kind == "rolling" and self.window is None:
            raise ValueError(
                'split.kind = "rolling" needs split.window, the length of a window, such as "7d"'
            )
        if self.window is not None and not re.fullmatch(r"[1-9][0-9]{0,5}[dh]", self.window):
            raise ValueError(
                f"split.window must be a number of days or hours such as '7d' or '12h', got "
                f"{self.window!r}"
            )
        if self.kind == "cross-validation" and self.folds < 3:
            raise ValueError(
                "cross-validation needs split.folds of at least 3: one part is for test, one for "
                f"validation, the others train; got {self.folds}"
            )
        if self.fold >= self.folds:
            raise ValueError(
                f"split.fold must be between 0 and {self.folds - 1} with split.folds = "
                f"{self.folds}, got {self.fold}"
            )
        return self

    @property
    def needs_time(self) -> bool:
        """Whether the split needs the times of the interactions."""
        return self.kind in WINDOWED

    @property
    def needs_order(self) -> bool:
        """Whether the split needs the order of each user's interactions."""
        return self.holds_out_users or self.kind in ("leave-one-out", "leave-k-out", "ratio")

    @property
    def holds_out_users(self) -> bool:
        """Whether users with validation and test targets have no training rows, by design."""
        return self.kind in _KINDS_OF_KEY["unit"] and self.unit == "user"

    @property
    def window_and_unit(self) -> tuple[int, int]:
        """Length of a window of a rolling split, and of the day or hour it is given in.

        Both in microseconds.
        """
        assert self.window is not None
        unit = _SECONDS[self.window[-1]] * 1_000_000
        return int(self.window[:-1]) * unit, unit
