"""Settings of the synthetic data."""

from __future__ import annotations

import datetime
from typing import Literal, Self

import pydantic
from pydantic import Field

from candid.component import ComponentConfig
from candid.errors import ConfigError

MAX_SOFTMAX_ITEMS = 100_000
"""Largest catalog for which the partition function of every query is affordable."""


class SyntheticConfig(ComponentConfig):
    """Settings of the synthetic data.

    Example:
        >>> SyntheticConfig(num_users=1_000, num_items=500).zipf_exponent
        1.0

    Raises:
        ConfigError: an unknown key, a value out of range, or settings that contradict each other.
    """

    mode: Literal["softmax", "topics"] = Field(
        "softmax",
        description="form of the true P(item | user, history): 'softmax', one softmax over the "
        "catalog that two towers can represent exactly (up to 100,000 items), or 'topics', a "
        "mixture of topics (any number of items)",
    )
    num_items: int = Field(5_000, ge=2, description="items in the catalog")
    num_users: int = Field(20_000, ge=1, description="users")
    interactions_mean: float = Field(30.0, gt=0, description="mean interactions per user")
    interactions_min: int = Field(5, ge=1, description="minimum interactions of a user")
    interactions_max: int = Field(200, ge=1, description="maximum interactions of a user")
    zipf_exponent: float = Field(
        1.0, ge=0, le=4, description="popularity of the item of rank r is about r^-exponent"
    )
    num_topics: int = Field(20, ge=1, description="topics; each topic is a genre of the items")
    second_topic: float = Field(
        0.25, ge=0, le=0.5, description="weight of an item's second topic; the first has the rest"
    )
    dim: int = Field(16, ge=2, le=1024, description="width of the true vectors")
    history_weight: float = Field(
        1.0,
        ge=0,
        description="effect of the recent items on the next choice, relative to the user's taste",
    )
    history_length: int = Field(
        3, ge=1, le=50, description="number of recent items that the next choice depends on"
    )
    temperature: float = Field(
        0.2,
        gt=0,
        description="at a low temperature choices follow taste and history, at a high one "
        "popularity",
    )
    start_date: datetime.date = Field(
        datetime.date(2024, 1, 1), description="first day of the timestamps"
    )
    num_days: int = Field(180, ge=1, le=36_500, description="days that the timestamps cover")
    released_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the items that are released one by one over the period instead of "
        "at its start, so that a temporal split has items without training data (mode 'softmax' "
        "only)",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="equal seed and settings give equal data")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode == "softmax" and self.num_items > MAX_SOFTMAX_ITEMS:
            raise ConfigError(
                f"num_items {self.num_items} is too large for mode 'softmax' (at most "
                f"{MAX_SOFTMAX_ITEMS}); set mode to 'topics'"
            )
        if self.released_share and self.mode != "softmax":
            raise ConfigError(
                f"released_share {self.released_share:g} needs mode 'softmax': in mode "
                f"'{self.mode}' the probabilities do not depend on time"
            )
        if self.num_topics > self.num_items:
            raise ConfigError(
                f"num_topics {self.num_topics} exceeds num_items {self.num_items}: every topic "
                "needs at least one item"
            )
        if not self.interactions_min <= self.interactions_mean <= self.interactions_max:
            raise ConfigError(
                f"interactions_mean {self.interactions_mean} must lie between interactions_min "
                f"{self.interactions_min} and interactions_max {self.interactions_max}"
            )
        return self
