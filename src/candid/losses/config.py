"""The base config of every loss, and the annotation of a config field that holds one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from candid.component import ComponentConfig, tagged
from candid.losses.registry import LOSSES

if TYPE_CHECKING:
    from candid.losses.estimator import Estimator
    from candid.losses.output import Loss

PRECISION: Final = (
    "of the matrix products: 'bfloat16' is faster, with scores rounded to 8 significant bits"
)
"""Description of the field ``precision`` of any loss."""


class LossConfig(ComponentConfig, ABC):
    """Settings of a loss, and the properties that other packages depend on."""

    needs_candidates: ClassVar[bool] = False
    """Whether the loss compares with sampled candidates, so that a recipe needs a sampler."""

    @property
    def needs_full_support(self) -> bool:
        """Whether an item that can never be sampled makes the estimate wrong."""
        return False

    @property
    def why_no_probability(self) -> str | None:
        """The reason why scores are not log-probabilities, as one clause; None where they are.

        None promises that exp(score - log Z) estimates P(item | user): only a loss that
        overrides this property can promise it.
        """
        loss = type(self).__qualname__.split(".")[-2:][0]
        return f"the model was trained with the loss {loss}, which does not estimate a softmax"

    @property
    def estimates_probability(self) -> bool:
        """Whether exp(score - log Z) estimates P(item | user)."""
        return self.why_no_probability is None

    @property
    def estimator(self) -> Estimator | None:
        """The estimate of the softmax that the loss makes; None for other losses."""
        return None

    @property
    def works_with_sets(self) -> bool:
        """Whether candidates may be a set of distinct items (a sampler with distinct = true)."""
        return True

    def check_candidates(self, *, has_exact: bool, is_set: bool) -> None:
        """Refuse a sampler whose candidates the loss is not defined for; accepts all by default.

        Args:
            has_exact: whether the sampler adds exact candidates.
            is_set: whether its candidates, or a part of them, are a set of distinct items.

        Raises:
            ConfigError: the loss is not defined for such candidates.
        """

    @abstractmethod
    def build(self, num_items: int) -> Loss:
        """Build the loss for a catalog of V = ``num_items`` items."""


LossComponent = Annotated[LossConfig, tagged(LOSSES, "loss")]
"""A config field that holds the config of any registered loss."""
