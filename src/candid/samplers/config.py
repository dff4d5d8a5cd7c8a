"""Settings of a sampler, and the type of a config field that holds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Final

from candid.component import ComponentConfig, tagged
from candid.samplers.registry import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor

    from candid.samplers.sampler import Sampler

DISTINCT: Final = False
"""Default of ``distinct`` in every sampler that has it."""

EXCLUDE_SAME_USER: Final = True
"""Default of ``exclude_same_user`` in every sampler that has it."""


class SamplerConfig(ComponentConfig, ABC):
    """Settings of a sampler, and its properties that are fixed before it is built.

    A sampler that contains other samplers overrides ``parts``; each property below is then true
    if it is true for a part.
    """

    @abstractmethod
    def build(self, counts: Tensor) -> Sampler:
        """Build the sampler for a catalog.

        Args:
            counts: [V], how often each item is a target in an epoch of the loader.
        """

    @abstractmethod
    def candidates_per_row(self, batch_rows: int) -> int:
        """Return the number of candidates that a row is compared with, including exact ones.

        Args:
            batch_rows: rows of a batch, for samplers that take candidates from it.
        """

    @property
    def parts(self) -> tuple[SamplerConfig, ...]:
        """Configs of the samplers inside this one."""
        return ()

    @property
    def is_set(self) -> bool:
        """Whether candidates, or those of a part, are a set of distinct items."""
        return any(part.is_set for part in self.parts)

    @property
    def has_exact(self) -> bool:
        """Whether some candidates are exact: always present, with expected count 1."""
        return any(part.has_exact for part in self.parts)

    @property
    def samples_per_row(self) -> bool:
        """Whether each row of a batch has its own sample."""
        return any(part.samples_per_row for part in self.parts)

    @property
    def reads_batch(self) -> bool:
        """Whether candidates come from the batch or from earlier batches."""
        return any(part.reads_batch for part in self.parts)

    @property
    def memory_rows(self) -> int:
        """Number of rows of earlier batches that candidates come from."""
        return max((part.memory_rows for part in self.parts), default=0)

    @property
    def warm_up_steps(self) -> int:
        """Number of initial steps that use no rows of earlier batches."""
        return max((part.warm_up_steps for part in self.parts), default=0)


SamplerComponent = Annotated[SamplerConfig, tagged(SAMPLERS, "sampler")]
"""A config field that holds the config of any registered sampler."""
