"""The config of any loss, and the annotation of a config field that holds one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Final

from candid.component import ComponentConfig, tagged
from candid.losses.output import Loss

PRECISION: Final = (
    "of the matrix products: 'bfloat16' is faster, with scores rounded to 8 significant bits"
)
"""Description of the field ``precision`` of any loss."""


class LossConfig(ComponentConfig, ABC):
    """Settings of a loss."""

    @abstractmethod
    def build(self, num_items: int) -> Loss:
        """Build the loss for a catalog of V = ``num_items`` items."""


def _registry() -> Mapping[str, Any]:
    import candid.losses  # The registry lists the modules that import this one.

    return candid.losses.LOSSES


LossComponent = Annotated[LossConfig, tagged(_registry, "loss")]
"""A config field that holds the config of any registered loss."""
