"""The most popular items as exact candidates, and samples of the others."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from candid.errors import ConfigError
from candid.features.hashed import splitmix64
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.exact_and_sampled import ExactAndSampled
from candid.samplers.frequency import Counts, checked_counts
from candid.samplers.popularity import Popularity
from candid.samplers.sampler import Sampler


class ExactPopular(ExactAndSampled):
    """The most popular items as exact candidates, and samples of the others.

    A few items have most of the mass of a softmax. Scoring these exactly removes their variance
    from the estimate.

    Args:
        counts: [V], how often each item is a target in an epoch.
        num_exact: H, the number of exact candidates: the items with the highest counts; among
            items of equal count at the last place a hash of the id decides.
        rest: sampler of the other candidates.

    Raises:
        ConfigError: ``num_exact`` is less than 1 or more than V, or ``rest`` has exact
            candidates itself.
        DataError: the counts are not a vector of finite non-negative numbers with a positive
            sum.

    Example:
        >>> import torch
        >>> from candid.samplers import ExactPopular, Uniform
        >>> counts = torch.tensor([1, 9, 2, 8])
        >>> sampler = ExactPopular(counts, num_exact=2, rest=Uniform(4, num_candidates=4))
        >>> sampler.sample(torch.tensor([0, 1])).exact.ids
        tensor([1, 3])
    """

    class Config(SamplerConfig):
        """Settings of ``ExactPopular``."""

        num_exact: int = Field(
            64, ge=1, le=2**31, description="exact candidates: the most popular items"
        )
        rest: SamplerComponent = Field(
            default_factory=Popularity.Config, description="sampler of the other candidates"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return exact candidates and those of the rest; see ``SamplerConfig``."""
            return self.num_exact + self.rest.candidates_per_row(batch_rows)

        @property
        def parts(self) -> tuple[SamplerConfig, ...]:
            """The rest; see ``SamplerConfig``."""
            return (self.rest,)

        @property
        def has_exact(self) -> bool:
            """True; see ``SamplerConfig``."""
            return True

        def build(self, counts: Tensor) -> ExactPopular:
            """Build both parts for the same catalog."""
            return ExactPopular(counts, num_exact=self.num_exact, rest=self.rest.build(counts))

    _exact_ids: Tensor

    def __init__(self, counts: Counts, *, num_exact: int, rest: Sampler) -> None:
        checked = checked_counts(counts)
        if not 1 <= num_exact <= len(checked):
            raise ConfigError(
                f"num_exact must be between 1 and the {len(checked)} items of the catalog, got "
                f"{num_exact}"
            )
        exact_ids = most_popular(checked, num_exact)
        super().__init__(len(checked), rest)
        # The same items are excluded at every step, so this sampler is made once.
        self.rest = rest.excluding(exact_ids)
        self.num_exact = num_exact
        self.register_buffer("_exact_ids", exact_ids, persistent=False)

    def split(self, positive_ids: Tensor, query: Tensor | None) -> tuple[Tensor, Sampler]:
        """Return the most popular items, and the rest; see ``ExactAndSampled.split``."""
        return self._exact_ids, self.rest

    def support(self, is_positive: Tensor) -> Tensor:
        """Exact candidates, and items of the rest; see ``Sampler.support``."""
        support = super().support(is_positive).clone()
        support[self._exact_ids.cpu()] = True
        return support


def most_popular(counts: Tensor, num_items: int) -> Tensor:
    """Return [H] int64 ascending, the items with the highest counts.

    Among items whose count is that of the last place, a hash of the id decides: ids ascend with
    the source ids, and names must not decide which items are exact.
    """
    least = torch.topk(counts, num_items).values[-1]
    above, tied = (counts > least).nonzero()[:, 0], (counts == least).nonzero()[:, 0]
    order = splitmix64(tied.cpu().numpy().astype(np.uint64)).argsort(kind="stable")
    chosen = tied[torch.from_numpy(order[: num_items - len(above)]).to(tied.device)]
    return torch.cat([above, chosen]).sort().values
