"""The ``[features]`` section of a recipe: features of items, users and context, by name."""

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
    """The columns that towers read, each with its type: ``[features.item.genres] type = "bag"``."""

    item: dict[str, FeatureComponent] = Field(
        {}, description="features of items by name, from the table data.items"
    )
    user: dict[str, FeatureComponent] = Field(
        {}, description="features of users by name, from the table data.users"
    )
    context: dict[str, FeatureComponent] = Field(
        {},
        description="features of the context of a query by name, from the columns 'time', 'since' "
        "(seconds since the last interaction of the user), 'event_type' (of the target) and "
        "'last_event_type' (of the last interaction)",
    )

    @property
    def is_empty(self) -> bool:
        """Whether there are no features."""
        return not self.item and not self.user and not self.context

    @field_validator("item", "user", "context", mode="before")
    @classmethod
    def _check_names(cls, features: Any) -> Any:
        """Check names: they become parts of dotted keys and of parameter names."""
        for name in features if isinstance(features, Mapping) else ():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
                raise ValueError(
                    f"feature name {name!r} must consist of letters, digits and underscores; "
                    "rename it and set 'column' to the name of the column"
                )
        return features
