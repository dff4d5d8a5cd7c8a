"""Bodies of requests and responses, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import Field

from candid.serve.requests import Body, ItemRequest, RecommendRequest, SimilarRequest, Text

__all__ = [
    "Answer",
    "BatchAnswer",
    "BatchRequest",
    "Capability",
    "Failure",
    "FailureDetail",
    "Health",
    "Item",
    "ItemList",
    "ItemMap",
    "ItemRequest",
    "ItemUpdated",
    "ModelInfo",
    "ModelList",
    "PlacedItem",
    "RecommendRequest",
    "ReloadRequest",
    "Reloaded",
    "ScoredItem",
    "SimilarRequest",
    "User",
    "UserHistory",
    "UserList",
]


class BatchRequest(Body):
    """Several queries in one request."""

    queries: list[RecommendRequest] = Field(min_length=1, fail_fast=True)


class ReloadRequest(Body):
    """The model to load again from its folder."""

    model: Text | None = Field(None, description="name of the model; null: all models")


class Item(pydantic.BaseModel):
    """An item of the catalog."""

    item: int | str = Field(description="source id")
    title: str | None = None
    popularity: int = Field(description="number of interactions in the training data")
    attributes: dict[str, Any] | None = None


class ScoredItem(Item):
    """An item of an answer."""

    rank: int = Field(description="from 1")
    score: float = Field(description="logit; for /v1/similar the cosine")
    probability: float | None = Field(
        None, description="of being the next choice among all items; null where not computed"
    )


class Answer(pydantic.BaseModel):
    """Items, best first; fewer than k if fewer are allowed or exist."""

    model: str
    version: int = Field(description="version of the model; each reload adds one")
    items: list[ScoredItem]
    ignored: int = Field(0, description="items of the history that the model does not have")
    recommended_by: str = Field(
        "model",
        description="model, or the fallback (popular, recent) that answers for a user about whom "
        "the model has no information; its scores cannot be compared with those of the model",
    )


class BatchAnswer(pydantic.BaseModel):
    """One answer for each query, in the order of the queries."""

    answers: list[Answer]


class ItemList(pydantic.BaseModel):
    """Matching items, most popular first."""

    model: str
    items: list[Item]


class User(pydantic.BaseModel):
    """A user of the data."""

    user: int | str = Field(description="source id")
    interactions: int = Field(description="length of the history")


class UserList(pydantic.BaseModel):
    """Matching users."""

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
    explained: float = Field(description="share of the variance of these directions, 0 to 1")
    items: list[PlacedItem]


class ItemUpdated(pydantic.BaseModel):
    """Outcome of an item update."""

    model: str
    item: int | str
    outcome: str = Field(description="added, updated or deleted")


class Capability(pydantic.BaseModel):
    """Whether something is supported, and the reason if not."""

    supported: bool
    reason: str | None = None


class ModelInfo(pydantic.BaseModel):
    """Properties of a model, and the requests it supports."""

    name: str
    version: int
    loaded: str = Field(description="time of loading, UTC")
    fingerprint: str
    items: int
    users: int
    dim: int = Field(description="width of the vectors; 0 without vectors")
    index: str = Field(description="type of the index over the item vectors; none without vectors")
    max_length: int = Field(description="number of latest history items that the model reads")
    filter_seen: bool = Field(description="default of `filter_seen`: as the model was measured")
    reads_history: bool
    reads_times: bool = Field(description="whether the times of the history change the answer")
    needs_history: bool
    needs_user: bool
    user_attributes: dict[str, str] = Field(
        description="names that `attributes` may contain, with types"
    )
    item_attributes: dict[str, str] = Field(
        description="names that `filters` may contain, with types"
    )
    item_features: list[str] = Field(description="attributes that the item tower reads")
    context: list[str] = Field(description="context columns that the query tower reads")
    event_types: list[str] = Field(description="types of interactions in the data")
    has_titles: bool
    probability: Capability
    vectors: Capability = Field(
        description="item vectors, which similar items, the map and item updates need"
    )
    item_updates: Capability


class ModelList(pydantic.BaseModel):
    """The models of this server, the default first, and its limits."""

    models: list[ModelInfo]
    limits: dict[str, Any]


class Reloaded(pydantic.BaseModel):
    """Outcome of a reload."""

    models: dict[str, int] = Field(description="version of each model now")
    seconds: float


class Health(pydantic.BaseModel):
    """State of the server."""

    status: str


class FailureDetail(pydantic.BaseModel):
    """One error."""

    code: str
    message: str
    field: str | None = None


class Failure(pydantic.BaseModel):
    """Body of every error."""

    error: FailureDetail
