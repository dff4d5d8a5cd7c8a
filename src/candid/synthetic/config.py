"""The settings of a synthetic world."""

from __future__ import annotations

import datetime
from typing import Literal, Self

import pydantic
from pydantic import Field

from candid.component import ComponentConfig
from candid.errors import ConfigError

MAX_SOFTMAX_ITEMS = 100_000
"""The largest catalog whose partition function is worth computing for every query."""


class SyntheticConfig(ComponentConfig):
    """What kind of world to make; ``candid demo`` takes the defaults, with shorter histories.

    Raises:
        ConfigError: two settings that cannot go together.
    """

    mode: Literal["softmax", "topics"] = Field(
        "softmax",
        description="the true P(item | user, history): one softmax over the catalog, exactly "
        "what two towers can represent (up to 100,000 items), or a mixture of topics (any size)",
    )
    num_items: int = Field(5_000, ge=2, description="items in the catalog")
    num_users: int = Field(20_000, ge=1, description="users")
    interactions_mean: float = Field(30.0, gt=0, description="mean interactions a user")
    interactions_min: int = Field(5, ge=1, description="fewest interactions of a user")
    interactions_max: int = Field(200, ge=1, description="most interactions of a user")
    zipf_exponent: float = Field(
        1.0, ge=0, le=4, description="popularity of the item of rank r is about r^-exponent"
    )
    num_topics: int = Field(20, ge=1, description="topics; their names are the items' genres")
    second_topic: float = Field(
        0.25,
        ge=0,
        le=0.5,
        description="how much of an item belongs to its second genre rather than its first",
    )
    dim: int = Field(16, ge=2, le=1024, description="width of the true vectors")
    drift: float = Field(
        1.0, ge=0, description="pull of the recent items on the next one; a user's taste has 1"
    )
    memory: int = Field(
        3, ge=1, le=50, description="how many of the most recent items the next one depends on"
    )
    temperature: float = Field(
        0.2, gt=0, description="lower: choices follow taste and history, higher: popularity"
    )
    start_date: datetime.date = Field(
        datetime.date(2024, 1, 1), description="first day of the timestamps"
    )
    num_days: int = Field(180, ge=1, le=36_500, description="days that the timestamps span")
    released_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the items that are released one by one over the timeline instead of "
        "at its start, so that a temporal split has items never trained (mode softmax only)",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="same seed and settings, same world")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode == "softmax" and self.num_items > MAX_SOFTMAX_ITEMS:
            raise ConfigError(
                f"world.num_items {self.num_items} is too large for world.mode 'softmax' (at most "
                f"{MAX_SOFTMAX_ITEMS}): set world.mode to 'topics'"
            )
        if self.released_share and self.mode != "softmax":
            raise ConfigError(
                "world.released_share needs world.mode 'softmax': a mixture of topics has no "
                "exact probabilities of a catalog that grows"
            )
        if self.num_topics > self.num_items:
            raise ConfigError(
                f"world.num_topics {self.num_topics} exceeds world.num_items {self.num_items}: "
                "a topic needs at least one item"
            )
        if not self.interactions_min <= self.interactions_mean <= self.interactions_max:
            raise ConfigError(
                f"world.interactions_mean {self.interactions_mean} must lie between "
                f"world.interactions_min {self.interactions_min} and "
                f"world.interactions_max {self.interactions_max}"
            )
        return self
