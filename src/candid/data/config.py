"""The ``[data]`` section of a recipe: which files, which columns, what to keep, how to split."""

from __future__ import annotations

import contextlib
import datetime
from typing import Annotated, ClassVar, Literal

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
    """TOML has native dates, the command line only text; the manifest holds text or numbers."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


Cut = Annotated[float | str, pydantic.BeforeValidator(_plain_cut)]


class SplitConfig(ComponentConfig):
    """Who decides whether an interaction is trained on, validated on or tested on."""

    kind: Literal["leave-one-out", "temporal", "column"] = Field(
        "leave-one-out",
        description="leave-one-out: each user's last interaction is test, the second last "
        "validation (users with fewer than 3 only train); temporal: two global cuts in time; "
        "column: a column of the file names the role of each row.",
    )
    validation: Cut = Field(
        0.8,
        description="Temporal: where validation begins: a quantile of the interactions "
        "(0.8), an ISO date ('2015-06-01', UTC) or a time in the units of the time column.",
    )
    test: Cut = Field(0.9, description="Temporal: where test begins; written as for `validation`.")
    column: str | None = Field(None, description="Column split: the column that names the role.")
    roles: dict[str, RoleName] = Field(
        default_factory=lambda: dict(DEFAULT_ROLES),
        description="Column split: value in the column -> train, history (known at test time, "
        "never a target), validation or test.",
    )
    drop_unassigned: bool = Field(
        False,
        description="Column split: drop (and count) rows whose role is null, instead of stopping.",
    )
    unseen: Literal["keep", "drop", "error"] = Field(
        "keep",
        description="Validation and test targets whose item or user is never trained: keep, "
        "drop or stop. They are counted and reported in every case.",
    )
    validation_users: int | None = Field(
        None,
        ge=1,
        description="Validate on this many users drawn at random; the validation rows of the "
        "others become history. Default: all users.",
    )
    seed: int = Field(0, ge=0, description="Seed of the draw of `validation_users`.")

    @pydantic.model_validator(mode="after")
    def _column_named(self) -> SplitConfig:
        if (self.kind == "column") != (self.column is not None):
            raise ValueError(
                'split.column is needed with split.kind = "column" and has no meaning otherwise'
            )
        return self


def _check_attributes(kind: str, attributes: tuple[str, ...], taken: set[str]) -> None:
    if taken.intersection(attributes) or len(set(attributes)) < len(attributes):
        raise ValueError(
            f"{kind}s.attributes must be distinct and none of {', '.join(sorted(taken))}"
        )


class EventTypeConfig(ComponentConfig):
    """What one kind of interaction (a view, a purchase) is used for."""

    use: Literal["target", "history", "negative", "drop"] = Field(
        "target",
        description="target: trained on, held out and part of later histories; history: part of "
        "later histories only; negative: shown, and a negative of the user's next target unless "
        "it was taken up by then; drop: left out, as what was shown without a word on what was "
        "chosen.",
    )
    weight: float = Field(
        1.0, ge=0, description="Weight as a training target; times that of `weight`, if any."
    )


class ItemTableConfig(ComponentConfig):
    """A table with one row an item: titles to show, attributes for features and slices."""

    kind: ClassVar[str] = "item"

    path: str = Field(description="File (parquet, csv, tsv, movies.dat, .item), as `interactions`.")
    item: str = Field("item_id", description="Column with the item's id, as in the interactions.")
    title: str | None = Field("title", description="Column with the title; none to go without.")
    attributes: tuple[str, ...] = Field((), description="Further columns to keep.")

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> ItemTableConfig:
        taken = {"source_id"} if self.title is None else {"source_id", "title"}
        _check_attributes(self.kind, self.attributes, taken)
        return self

    @property
    def id_column(self) -> str:
        """The column that is looked up."""
        return self.item


class UserTableConfig(ComponentConfig):
    """A table with one row a user: attributes for features."""

    kind: ClassVar[str] = "user"
    title: ClassVar[str | None] = None

    path: str = Field(description="File (parquet, csv, tsv, users.dat, .user), as `interactions`.")
    user: str = Field("user_id", description="Column with the user's id, as in the interactions.")
    attributes: tuple[str, ...] = Field((), description="Columns to keep, at least one.")

    @pydantic.model_validator(mode="after")
    def _some_distinct_names(self) -> UserTableConfig:
        if not self.attributes:
            raise ValueError(
                "users.attributes names no column: without one a table of users has no use"
            )
        _check_attributes(self.kind, self.attributes, {"source_id"})
        return self

    @property
    def id_column(self) -> str:
        """The column that is looked up."""
        return self.user


class DataConfig(ComponentConfig):
    """Which interactions to prepare, and how.

    Steps follow in this order: rows without a value and rows under ``min_rating`` go, then
    repeated pairs, then the k-core, then users under ``min_history``, then the split.
    """

    interactions: str = Field(
        description="File or folder of interactions; ${VARIABLES} are expanded, a relative path "
        "is relative to the current directory."
    )
    format: Literal["auto", "parquet", "csv", "tsv", "movielens", "recbole"] = Field(
        "auto", description="Format of the files; auto goes by the file name."
    )
    separator: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="Column separator of csv files; default: the one the header line uses.",
    )
    user: str = Field("user_id", description="Column with the user's id (integer or text).")
    item: str = Field("item_id", description="Column with the item's id (integer or text).")
    time: str | None = Field(
        None,
        description="Column with the time: a date, ISO text, or a number since 1970 in seconds, "
        "milliseconds, microseconds or nanoseconds (told apart by the size of the largest).",
    )
    order: str | None = Field(
        None, description="Column that orders a user's interactions, in place of `time`."
    )
    weight: str | None = Field(None, description="Column with a non-negative weight.")
    event_type: str | None = Field(
        None, description="Column with the kind of interaction (view, like, purchase)."
    )
    event_types: dict[str, EventTypeConfig] | None = Field(
        None,
        description="Value in the `event_type` column -> what it is used for, as in "
        '{ purchase = { weight = 3.0 }, view = { use = "history" } }; absent: all are targets.',
    )
    negatives: str | None = Field(
        None,
        description="Column with the items that were shown and not chosen: a list of ids, or in "
        "text files ids with spaces between. Those that no interaction has are left out.",
    )
    rating: str | None = Field(None, description="Column with a rating, for `min_rating`.")
    min_rating: float | None = Field(None, description="Keep ratings of at least this.")
    items: ItemTableConfig | None = Field(None, description="Optional table of items.")
    users: UserTableConfig | None = Field(None, description="Optional table of users.")
    drop_nulls: bool = Field(
        False,
        description="Drop (and count) rows without user, item, time, order, weight or rating, "
        "instead of stopping.",
    )
    deduplicate: Literal["none", "first", "last"] = Field(
        "none", description="Of a repeated user-item pair, keep all, the first or the last."
    )
    k_core: int = Field(
        0, ge=0, description="Keep users and items with at least this many interactions (iterated)."
    )
    user_core: int | None = Field(
        None, ge=0, description="As k_core, for users only; overrides it."
    )
    item_core: int | None = Field(
        None, ge=0, description="As k_core, for items only; overrides it."
    )
    min_history: int = Field(
        0,
        ge=0,
        description="Drop users with fewer interactions, once, after the k-core (items keep).",
    )
    split: SplitConfig = Field(
        default_factory=SplitConfig, description="How to split into train, validation and test."
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.time is not None and self.order is not None:
            raise ValueError("give `time` or `order`, not both")
        if self.split.kind == "leave-one-out" and self.time is None and self.order is None:
            raise ValueError(
                "a leave-one-out split needs `time` or `order`; where interactions have neither, "
                'add a column that says "train", "validation" or "test" to each, and name it: '
                'split.kind = "column", split.column = "..."'
            )
        if self.split.kind == "temporal" and self.time is None:
            raise ValueError("a temporal split needs `time`: name the column that says when")
        if self.event_type is None and self.event_types is not None:
            raise ValueError(
                "`event_types` says what values of a column mean: name it with `event_type`"
            )
        if self.event_types is not None and all(
            a.use != "target" for a in self.event_types.values()
        ):
            raise ValueError("`event_types` must leave at least one event_type as a target")
        if (self.rating is None) != (self.min_rating is None):
            raise ValueError("give `rating` and `min_rating` together")
        return self

    @property
    def cores(self) -> tuple[int, int]:
        """Least interactions of a user and of an item."""
        return (
            self.k_core if self.user_core is None else self.user_core,
            self.k_core if self.item_core is None else self.item_core,
        )
