"""The config of any proposal, and the annotation of a config field that holds one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from candid.component import ComponentConfig, tagged
from candid.proposals.candidates import Proposal


class ProposalConfig(ComponentConfig, ABC):
    """Settings of a proposal; its data come from the catalog."""

    @abstractmethod
    def build(self, counts: Tensor) -> Proposal:
        """Build the proposal for a catalog.

        Args:
            counts: [V], how often each item is a training target.
        """

    @property
    def draws_sets(self) -> bool:
        """Whether candidates, or those of a part, are sets of distinct items (``distinct``)."""
        values = [getattr(self, name) for name in type(self).model_fields]
        parts = [
            part
            for value in values
            for part in (value if isinstance(value, tuple | list) else [value])
        ]
        return bool(getattr(self, "distinct", False)) or any(
            part.draws_sets for part in parts if isinstance(part, ProposalConfig)
        )


def _registry() -> Mapping[str, Any]:
    import candid.proposals  # The registry lists the modules that import this one.

    return candid.proposals.PROPOSALS


ProposalComponent = Annotated[ProposalConfig, tagged(_registry, "proposal")]
"""A config field that holds the config of any registered proposal."""
