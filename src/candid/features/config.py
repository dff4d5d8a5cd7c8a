"""The features of a recipe: any number for items, users and context, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from candid.component import ComponentConfig, tagged
from candid.features.protocol import FeatureConfig
from candid.features.registry import FEATURES

FeatureComponent = Annotated[FeatureConfig, tagged(FEATURES, "feature")]
"""A config field that holds the config of any registered feature."""


class FeaturesConfig(ComponentConfig):
    """Which columns the towers read, and as what: ``[features.item.genres] type = "bag"``."""

    item: dict[str, FeatureComponent] = Field(
        {}, description="features of items by name, from the item table of data.items"
    )
    user: dict[str, FeatureComponent] = Field(
        {}, description="features of users by name, from the user table of data.users"
    )

    context: dict[str, FeatureComponent] = Field(
        {},
        description="features of the moment of a question by name: column 'time' says when it is "
        "asked, 'since' the seconds since the user's last interaction, 'event_type' and 'last_event_type' "
        "the kinds of what is asked for and of that interaction",
    )

    @property
    def is_empty(self) -> bool:
        """Whether there is no feature at all."""
        return not self.item and not self.user and not self.context

    @field_validator("item", "user", "context", mode="before")
    @classmethod
    def _plain_names(cls, features: Any) -> Any:
        """Names become parts of dotted keys and of the names of weights."""
        for name in features if isinstance(features, Mapping) else ():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(
                    f"a feature's name is letters, digits and underscores, not {name!r}; its "
                    "column may have another name (key 'column')"
                )
        return features
