"""The config of any sampler, and the annotation of a config field that holds one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from candid.component import ComponentConfig, tagged
from candid.samplers.sampler import Sampler


class SamplerConfig(ComponentConfig, ABC):
    """Settings of a sampler; its data come from the catalog."""

    @abstractmethod
    def build(self, counts: Tensor) -> Sampler:
        """Build the sampler for a catalog.

        Args:
            counts: [V], how often each item is a training target.
        """

    @property
    def is_set(self) -> bool:
        """Whether candidates, or those of a part, are sets of distinct items (``distinct``)."""
        values = [getattr(self, name) for name in type(self).model_fields]
        parts = [
            part
            for value in values
            for part in (value if isinstance(value, tuple | list) else [value])
        ]
        return bool(getattr(self, "distinct", False)) or any(
            part.is_set for part in parts if isinstance(part, SamplerConfig)
        )


def _registry() -> Mapping[str, Any]:
    import candid.samplers  # The registry lists the modules that import this one.

    return candid.samplers.SAMPLERS


SamplerComponent = Annotated[SamplerConfig, tagged(_registry, "sampler")]
"""A config field that holds the config of any registered sampler."""
