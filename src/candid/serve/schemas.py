"""What a client sends and gets: the request and response bodies."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Any

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

Text = Annotated[StrictStr, Field(max_length=1000)]
Id = StrictInt | Annotated[StrictStr, Field(min_length=1, max_length=500)]
"""A source id: an integer or text. An integer may be written as text."""
Scalar = StrictBool | StrictInt | StrictFloat | Text
Scalars = Annotated[list[Scalar], Field(fail_fast=True)]
Ids = Annotated[list[Id], Field(fail_fast=True)]
Value = Scalar | Scalars | None
"""An attribute: a value, a list of values, or null where it is not known."""


def _moment(value: Any) -> Any:
    # pydantic would read any number as seconds or milliseconds, whichever seems likelier.
    if isinstance(value, bool | int | float):
        raise ValueError("write a moment as text, such as 2026-01-31T18:30:00Z")
    return value


def _in_range(value: datetime.datetime) -> datetime.datetime:
    if not 1900 <= value.year <= 2200:
        raise ValueError("a moment must be between the years 1900 and 2200")
    return value if value.tzinfo is not None else value.replace(tzinfo=datetime.UTC)


Moment = Annotated[datetime.datetime, BeforeValidator(_moment), AfterValidator(_in_range)]


class Body(pydantic.BaseModel):
    """Base of every body: unknown keys and numbers that are not finite are refused."""

    model_config = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, frozen=True, protected_namespaces=()
    )


class Event(Body):
    """One interaction of a history."""

    item: Id
    time: Moment | None = Field(None, description="when; UTC where no zone is written")
    kind: Text | None = Field(None, description="kind of interaction, as the data names it")


class Bounds(Body):
    """A range of numbers or moments, ends included; at least one end."""

    min: StrictInt | StrictFloat | Text | None = None
    max: StrictInt | StrictFloat | Text | None = None

    @pydantic.model_validator(mode="after")
    def _has_an_end(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


Filter = Annotated[list[Scalar], Field(min_length=1, fail_fast=True)] | Bounds
"""Values of which the attribute must be, or hold, one; or a range that it must lie in."""


class _Choice(Body):
    model: Text | None = Field(None, description="which model; none: the first")
    k: StrictInt = Field(10, ge=1, description="how many items")
    allow: Ids | None = Field(None, description="only these items")
    deny: Ids = Field(default_factory=list, description="not these items")
    filters: dict[str, Filter] = Field(
        default_factory=dict, description="by attribute of items; all must hold"
    )
    attributes: StrictBool = Field(True, description="answer with the attributes of items")


class RecommendRequest(_Choice):
    """For whom, and which items: a user, or a history, features, or both of these."""

    user: Id | None = Field(None, description="a user of the data the model was trained on")
    history: Annotated[list[Id | Event], Field(fail_fast=True)] | None = Field(
        None, description="items, earliest first"
    )
    features: dict[str, Value] | None = Field(
        None, description="attributes of somebody who is no user of the data"
    )
    filter_seen: StrictBool = Field(True, description="leave out what is in the history")
    time: Moment | None = Field(None, description="moment of the question; none: now")
    event_type: Text | None = Field(None, description="kind of interaction asked for; none: any")
    probability: StrictBool | None = Field(
        None,
        description="answer with P(item | query) under the softmax over the catalog; none: where "
        "the model supports it and the catalog is small",
    )
    ignore_unknown: StrictBool = Field(
        False, description="pass over items of the history that the model does not know"
    )

    @pydantic.model_validator(mode="after")
    def _says_for_whom(self) -> RecommendRequest:
        if self.user is None and self.history is None and self.features is None:
            raise ValueError("say for whom: user, history or features")
        if self.user is not None and (self.history is not None or self.features is not None):
            raise ValueError("give either a user or a history with or without features")
        return self


class BatchRequest(Body):
    """Several questions at once."""

    queries: list[RecommendRequest] = Field(min_length=1, fail_fast=True)


class SimilarRequest(_Choice):
    """Items near an item."""

    item: Id


class ItemRequest(Body):
    """A new item, or new features of a known one."""

    title: Text | None = None
    attributes: dict[str, Value] = Field(
        default_factory=dict, description="by column of the table of items; absent: not known"
    )


class ReloadRequest(Body):
    """Which model to load again from its folder."""

    model: Text | None = Field(None, description="none: all of them")


class Item(pydantic.BaseModel):
    """An item of the catalog."""

    item: int | str = Field(description="source id")
    title: str | None = None
    popularity: int = Field(description="interactions that the model was trained on")
    attributes: dict[str, Any] | None = None


class ScoredItem(Item):
    """An item of an answer."""

    rank: int = Field(description="from 1")
    score: float = Field(description="logit; for /v1/similar the cosine")
    probability: float | None = Field(
        None, description="of being the next choice among all items; null where not computed"
    )


class Answer(pydantic.BaseModel):
    """Items, best first; fewer than k where fewer are allowed or found."""

    model: str
    generation: int = Field(description="grows by one with every reload of the model")
    items: list[ScoredItem]
    ignored: int = Field(0, description="items of the history that the model does not know")


class BatchAnswer(pydantic.BaseModel):
    """One answer a query, in their order."""

    answers: list[Answer]


class ItemList(pydantic.BaseModel):
    """Items that a search found, most popular first."""

    model: str
    items: list[Item]


class User(pydantic.BaseModel):
    """A user of the data."""

    user: int | str = Field(description="source id")
    interactions: int = Field(description="length of the history")


class UserList(pydantic.BaseModel):
    """Users that a search found."""

    model: str
    users: list[User]


class UserHistory(User):
    """A user of the data with the latest interactions."""

    model: str
    history: list[Item] = Field(description="earliest first")


class PlacedItem(Item):
    """An item on the map."""

    x: float
    y: float


class ItemMap(pydantic.BaseModel):
    """Items at the two principal components of the directions of popular items' vectors."""

    model: str
    explained: float = Field(description="share of those directions' variance that is seen")
    items: list[PlacedItem]


class ItemChange(pydantic.BaseModel):
    """What became of an item."""

    model: str
    item: int | str
    outcome: str = Field(description="added, updated or deleted")


class Capability(pydantic.BaseModel):
    """Whether something works, and why not."""

    supported: bool
    reason: str | None = None


class ModelInfo(pydantic.BaseModel):
    """What a model is and what may be asked of it."""

    name: str
    generation: int
    loaded: str = Field(description="when, UTC")
    fingerprint: str
    items: int
    users: int
    dim: int
    index: str
    max_length: int = Field(description="items of a history that the model reads")
    reads_history: bool
    needs_history: bool
    needs_user: bool
    user_attributes: dict[str, str] = Field(description="what `features` may hold, with types")
    item_attributes: dict[str, str] = Field(description="what `filters` may name, with types")
    item_features: list[str] = Field(description="attributes that the vectors of items depend on")
    context: list[str] = Field(description="what the model reads of the moment of a question")
    event_types: list[str] = Field(description="kinds of interaction")
    has_titles: bool
    probability: Capability
    item_changes: Capability


class ModelList(pydantic.BaseModel):
    """The models of this server, the first being the default, and its limits."""

    models: list[ModelInfo]
    limits: dict[str, Any]


class Reloaded(pydantic.BaseModel):
    """What a reload did."""

    models: dict[str, int] = Field(description="generation of each model now")
    seconds: float


class Health(pydantic.BaseModel):
    """Whether the process lives, or is ready."""

    status: str


class FailureDetail(pydantic.BaseModel):
    """What is wrong."""

    code: str
    message: str
    field: str | None = None


class Failure(pydantic.BaseModel):
    """The one form of every error."""

    error: FailureDetail


def is_finite(value: Any) -> bool:
    """Whether a JSON value holds no number that float32 cannot."""
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= 3.4e38
    if isinstance(value, list):
        return all(is_finite(part) for part in value)
    return not isinstance(value, int) or abs(value) < 2**63
