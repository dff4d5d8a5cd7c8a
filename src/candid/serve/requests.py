"""Requests to a model: recommendations, similar items, item updates."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

MAX_FLOAT32: Final = 3.4e38

Text = Annotated[StrictStr, Field(max_length=1000)]
Id = StrictInt | Annotated[StrictStr, Field(min_length=1, max_length=500)]
"""A source id: integer or text. An integer id may be written as text."""
Scalar = StrictBool | StrictInt | StrictFloat | Text
Scalars = Annotated[list[Scalar], Field(fail_fast=True)]
Ids = Annotated[list[Id], Field(fail_fast=True)]
Value = Scalar | Scalars | None
"""An attribute: a value, a list of values, or null where it is unknown."""


def _reject_number(value: Any) -> Any:
    # pydantic would guess whether a number means seconds or milliseconds.
    if isinstance(value, bool | int | float):
        raise ValueError("a time must be text such as 2026-01-31T18:30:00Z")
    return value


def _check_year(value: datetime.datetime) -> datetime.datetime:
    if not 1900 <= value.year <= 2200:
        raise ValueError("a time must be between the years 1900 and 2200")
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


Time = Annotated[datetime.datetime, BeforeValidator(_reject_number), AfterValidator(_check_year)]


class Body(pydantic.BaseModel):
    """Base of every request body: rejects unknown keys and numbers that are not finite."""

    model_config = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class Event(Body):
    """One interaction of a history."""

    item: Id
    time: Time | None = Field(None, description="time of the interaction; UTC without a zone")
    event_type: Text | None = Field(None, description="type of the interaction, as in the data")


class Bounds(Body):
    """A range of numbers or times, both ends included; at least one end is given."""

    min: StrictInt | StrictFloat | Text | None = None
    max: StrictInt | StrictFloat | Text | None = None

    @pydantic.model_validator(mode="after")
    def _check_ends(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


Filter = Annotated[list[Scalar], Field(min_length=1, fail_fast=True)] | Bounds
"""Values, one of which the attribute must equal or contain; or a range that must contain it."""


class _ItemSelection(Body):
    model: Text | None = Field(None, description="name of the model; null: the first")
    k: StrictInt = Field(10, ge=1, description="number of items")
    allow: Ids | None = Field(None, description="only these items")
    deny: Ids = Field(default_factory=list, description="not these items")
    filters: dict[str, Filter] = Field(
        default_factory=dict, description="by attribute of items; all must hold"
    )
    include_attributes: StrictBool = Field(
        True, description="return the attributes of the items as well"
    )


class RecommendRequest(_ItemSelection):
    """Recommendations for a user of the data, or for a history, attributes, or both of these."""

    user: Id | None = Field(None, description="user of the data the model was trained on")
    history: Annotated[list[Id | Event], Field(fail_fast=True)] | None = Field(
        None, description="items, earliest first"
    )
    attributes: dict[str, Value] | None = Field(
        None, description="attributes of a user who is not in the data, by column"
    )
    filter_seen: StrictBool | None = Field(
        None, description="leave out items of the history; null: as the model was measured"
    )
    time: Time | None = Field(None, description="time of the recommendation; null: now")
    event_type: Text | None = Field(
        None, description="type of the interaction to recommend for; null: any"
    )
    probability: StrictBool | None = Field(
        None,
        description="return P(item | query) under the softmax over all items; null: where the "
        "model supports it and the search scores all items or there are few",
    )
    fallback: Literal["popular", "recent", "none"] | None = Field(
        None,
        description="list of a user without a history, or whom the data does not have: popular "
        "items, or those of the latest interactions; null: the default of the server",
    )
    ignore_unknown: StrictBool = Field(
        False, description="skip items of the history that the model does not have"
    )

    @pydantic.model_validator(mode="after")
    def _check_query(self) -> RecommendRequest:
        if self.user is None and self.history is None and self.attributes is None:
            raise ValueError("give user, history or attributes")
        if self.user is not None and (self.history is not None or self.attributes is not None):
            raise ValueError("give either user, or history with or without attributes")
        return self


class SimilarRequest(_ItemSelection):
    """Items near an item."""

    item: Id


class ItemRequest(Body):
    """A new item, or new attributes of an existing one."""

    title: Text | None = None
    attributes: dict[str, Value] = Field(
        default_factory=dict, description="by column of the table of items; absent: unknown"
    )


def is_finite(value: Any) -> bool:
    """Whether a JSON value holds only numbers that float32, or an integer of 64 bits, can hold."""
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= MAX_FLOAT32
    if isinstance(value, list):
        return all(is_finite(part) for part in value)
    return not isinstance(value, int) or abs(value) < 2**63
