"""The ``[data]`` section of a recipe: files, columns, filters and split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import pydantic
from pydantic import Field

from candid.component import ComponentConfig
from candid.data.paths import Locations, shown
from candid.data.split_config import SplitConfig
from candid.data.urls import DATABASES, scheme_of


def _plain_path(value: object) -> object:
    """Return a path as text, without a final slash: it must equal that of an earlier config."""
    return str(Path(value)) if isinstance(value, str | os.PathLike) else value


SORTED: Final = "sorted"
"""Value of ``order`` for files whose rows are sorted."""

Location = Annotated[str, pydantic.BeforeValidator(_plain_path)]
"""A path as text; a ``pathlib.Path`` is accepted too."""


def _check_query(key: str, place: str, location: str | tuple[str, ...], query: str | None) -> None:
    """A database needs a query, and a query a database; a variable may hold the URI."""
    if isinstance(location, str) and location.startswith("$"):
        return
    is_database = isinstance(location, str) and scheme_of(location) in DATABASES
    if is_database and query is None:
        raise ValueError(f"`{place}` is a database; set `{key}` to a SELECT statement")
    if query is not None and not query.strip(" \t\r\n;"):
        raise ValueError(f"`{key}` is empty; set it to a SELECT statement")
    if query is not None and not is_database:
        raise ValueError(
            f"`{key}` needs a database in `{place}`: duckdb:///FILE or "
            "postgresql://USER@HOST/DATABASE"
        )


def _check_attributes(kind: str, attributes: tuple[str, ...], reserved: set[str]) -> None:
    if reserved.intersection(attributes) or len(set(attributes)) < len(attributes):
        raise ValueError(
            f"{kind}s.attributes must be distinct and must not contain "
            f"{' or '.join(sorted(reserved))}"
        )


class EventTypeConfig(ComponentConfig):
    """The use of one event type, such as view or purchase."""

    use: Literal["target", "history", "negative", "drop"] = Field(
        "target",
        description="target: training and evaluation target, and part of later histories; "
        "history: part of later histories only; negative: shown to the user, becomes a negative "
        "of the user's next target unless the user interacts with the item before it; drop: left "
        "out, for example impressions without a known outcome",
    )
    weight: float = Field(
        1.0, ge=0, description="weight as a training target; multiplies that of `weight`"
    )


class ItemTableConfig(ComponentConfig):
    """A table with one row per item: titles to show, attributes for features and slices."""

    kind: ClassVar[str] = "item"

    path: Locations = Field(description="file or files, as `interactions`")
    query: str | None = Field(None, description="query, where `path` is a database")
    item: str = Field("item_id", description="column with the item id, as in the interactions")
    title: str | None = Field("title", description="column with the title; none: no titles")
    attributes: tuple[str, ...] = Field((), description="further columns to keep")

    @pydantic.model_validator(mode="after")
    def _check_attribute_names(self) -> ItemTableConfig:
        _check_query("items.query", "items.path", self.path, self.query)
        reserved = {"source_id"} if self.title is None else {"source_id", "title"}
        _check_attributes(self.kind, self.attributes, reserved)
        return self

    @property
    def id_column(self) -> str:
        """Column with the id."""
        return self.item

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns to read."""
        return (self.item, *(() if self.title is None else (self.title,)), *self.attributes)


class UserTableConfig(ComponentConfig):
    """A table with one row per user: attributes for features."""

    kind: ClassVar[str] = "user"
    title: ClassVar[str | None] = None

    path: Locations = Field(description="file or files, as `interactions`")
    query: str | None = Field(None, description="query, where `path` is a database")
    user: str = Field("user_id", description="column with the user id, as in the interactions")
    attributes: tuple[str, ...] = Field((), description="columns to keep, at least one")

    @pydantic.model_validator(mode="after")
    def _check_attribute_names(self) -> UserTableConfig:
        _check_query("users.query", "users.path", self.path, self.query)
        if not self.attributes:
            raise ValueError(
                "users.attributes is empty; name at least one column, or remove the table of users"
            )
        _check_attributes(self.kind, self.attributes, {"source_id"})
        return self

    @property
    def id_column(self) -> str:
        """Column with the id."""
        return self.user

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns to read."""
        return (self.user, *self.attributes)


class DataConfig(ComponentConfig):
    """The interactions to prepare: files, columns, filters and split.

    Filters apply in this order: rows without a value, rows below ``min_rating``, repeated
    user-item pairs, the k-core, users below ``min_history``. The split comes last.

    Raises:
        ConfigError: a setting is unknown or wrong, or settings do not fit together.

    Example:
        >>> config = DataConfig(interactions="log.csv", time="timestamp", k_core=5)
        >>> config.split.kind
        'leave-one-out'
    """

    interactions: Locations = Field(
        description="file, folder or glob pattern of interactions, or a list of them; ${VARIABLES} "
        "are expanded, relative paths start at the current folder"
    )
    query: str | None = Field(
        None,
        description="SELECT statement, where `interactions` is the URI of a database: "
        "duckdb:///FILE or postgresql://USER@HOST/DATABASE",
    )
    format: Literal[
        "auto",
        "parquet",
        "csv",
        "tsv",
        "jsonl",
        "arrow",
        "movielens",
        "recbole",
        "delta",
        "iceberg",
    ] = Field("auto", description="format of the files; auto: by the name of the file or folder")
    separator: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="column separator of csv files; none: the one in the header line",
    )
    column_names: tuple[str, ...] = Field(
        (),
        description="names of the columns, in their order, of csv and tsv files without a header "
        "line; none: the first line has them",
    )
    user: str = Field(
        "user_id",
        description="column with the user id: integers, text, or integers written as 1.0",
    )
    item: str = Field("item_id", description="column with the item id, as `user`")
    time: str | None = Field(
        None,
        description="column with the time: a date, ISO text, a number since 1970 in seconds, "
        "milliseconds, microseconds or nanoseconds (their size decides, one unit for all rows), or "
        "a date as a number such as 20260131",
    )
    order: str | None = Field(
        None,
        description="column that orders the interactions of a user: a number or a date; with "
        "`time` it orders those of the same time; further ties keep the order of the file; "
        "`sorted`: no column, the rows of each user stand together in the files, earliest first, "
        "and users ascend",
    )
    explode: tuple[str, ...] = Field(
        (),
        description="columns that hold lists, for files with one row per user or session: each "
        "element becomes an interaction; in text files elements are separated by spaces, or "
        "written as [1, 2]",
    )
    weight: str | None = Field(None, description="column with a weight, 0 or more")
    event_type: str | None = Field(
        None, description="column with the event type (view, like, purchase)"
    )
    event_types: dict[str, EventTypeConfig] | None = Field(
        None,
        description="value in the `event_type` column -> its use, as in "
        '{ purchase = { weight = 3.0 }, view = { use = "history" } }; none: all are targets',
    )
    negatives: str | None = Field(
        None,
        description="column with the items that were shown and not chosen: a list of ids, or in "
        "text files ids separated by spaces, or written as [1, 2]; items without any interaction "
        "are left out",
    )
    rating: str | None = Field(None, description="column with a rating, for `min_rating`")
    min_rating: float | None = Field(None, description="minimum rating to keep")
    items: ItemTableConfig | None = Field(None, description="table of items")
    users: UserTableConfig | None = Field(None, description="table of users")
    drop_nulls: bool = Field(
        False,
        description="drop and count rows without user, item, time, order, weight or rating "
        "instead of stopping",
    )
    deduplicate: Literal["none", "first", "last"] = Field(
        "none",
        description="interactions of a repeated user-item pair to keep: all, the first or the last",
    )
    k_core: int = Field(
        0, ge=0, description="minimum interactions of every user and item, applied repeatedly"
    )
    user_core: int | None = Field(
        None, ge=0, description="as `k_core`, for users only; overrides it"
    )
    item_core: int | None = Field(
        None, ge=0, description="as `k_core`, for items only; overrides it"
    )
    min_history: int = Field(
        0,
        ge=0,
        description="minimum interactions of a user, applied once after the k-core",
    )
    ids_from: Location | None = Field(
        None,
        description="folder of an earlier prepared dataset, such as yesterday's: its users and "
        "items keep their ids and new ones follow; those without an interaction now keep "
        "their place and are not recommended",
    )
    split: SplitConfig = Field(
        default_factory=SplitConfig, description="split into train, validation and test"
    )

    @pydantic.model_validator(mode="after")
    def _check_consistency(self) -> DataConfig:
        if not self.interactions:
            raise ValueError("`interactions` is empty; name at least one file or folder")
        _check_query("query", "interactions", self.interactions, self.query)
        if len(set(self.column_names)) < len(self.column_names):
            raise ValueError("`column_names` has a name twice; name each column once")
        if self.user == self.item:
            raise ValueError(
                f"user and item are both column {self.user!r}; name two different columns"
            )
        if len(set(self.explode)) < len(self.explode):
            raise ValueError("`explode` names a column twice; remove one")
        unused = set(self.explode) - set(self.columns.values())
        if unused:
            raise ValueError(
                f"`explode` names {min(unused)!r}, which no other key names; name it as `item` or "
                "`time`, or remove it"
            )
        if self.event_type is None and self.event_types is not None:
            raise ValueError(
                "`event_types` needs `event_type`; name the column with the event types"
            )
        if self.event_types is not None and all(
            event_type.use != "target" for event_type in self.event_types.values()
        ):
            raise ValueError('`event_types` has no target; set use = "target" for at least one')
        if (self.rating is None) != (self.min_rating is None):
            raise ValueError("`rating` and `min_rating` need each other; set both or neither")
        return self

    @property
    def origin(self) -> str:
        """What messages call the interactions: their path, or the first one of several."""
        return shown(self.interactions)

    @property
    def columns(self) -> dict[str, str]:
        """The columns to read: candid's name -> name in the files."""
        names = {
            "user": self.user,
            "item": self.item,
            "time": self.time,
            "order": None if self.is_sorted else self.order,
            "weight": self.weight,
            "rating": self.rating,
            "role": self.split.column,
            "event_type": self.event_type,
            "negatives": self.negatives,
        }
        return {name: column for name, column in names.items() if column is not None}

    @property
    def is_sorted(self) -> bool:
        """Whether the rows of the files are sorted by user and time."""
        return self.order == SORTED

    @property
    def cores(self) -> tuple[int, int]:
        """Minimum interactions of a user and of an item."""
        return (
            self.k_core if self.user_core is None else self.user_core,
            self.k_core if self.item_core is None else self.item_core,
        )
