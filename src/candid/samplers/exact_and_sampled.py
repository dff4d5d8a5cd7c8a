"""Base of samplers with exact candidates that sample the other items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from candid.candidates import Candidates, ExactCandidates
from candid.errors import ConfigError
from candid.samplers.sampler import Sampler


class ExactAndSampled(Sampler):
    """Exact candidates with expected count 1, and samples for the rest of the catalog.

    The estimate of Z' is unbiased for *any* exact candidates that are fixed before the rest is
    sampled: they are summed, all others are estimated. They may therefore be stale, badly
    chosen, or chosen from the same rows that they are compared with. They may even include a
    row's positive: the loss masks it there as it does among the samples, because Z' is a sum
    over the *other* items.

    If the rest can exclude items (``Sampler.excluding``), it is sampled without the shared
    exact candidates, and every sample counts. Samplers that cannot exclude items, and exact
    candidates of each row, lose the samples that are exact candidates. The estimate of a row
    that loses all its samples misses the share of the rest. That happens with probability
    Q(exact)^n. ``log_expected_count_of`` returns the expected counts of the *samples*.

    Args:
        num_items: V.
        rest: sampler of the other candidates.

    Raises:
        ConfigError: ``rest`` has exact candidates itself, or belongs to another catalog.
    """

    has_exact = True

    def __init__(self, num_items: int, rest: Sampler) -> None:
        if rest.has_exact:
            raise ConfigError(
                "the 'rest' of a sampler with exact candidates cannot have exact candidates "
                "itself: choose another sampler"
            )
        if rest.num_items != num_items:
            raise ConfigError(
                f"the 'rest' has {rest.num_items} items, but the catalog has {num_items}"
            )
        super().__init__(num_items)
        self.rest = rest

    @property
    def parts(self) -> Mapping[str, Sampler]:
        """The rest; see ``Sampler.parts``."""
        return {"rest": self.rest}

    @abstractmethod
    def split(self, positive_ids: Tensor, query: Tensor | None) -> tuple[Tensor, Sampler]:
        """Return exact ids as in ``ExactCandidates.ids``, and the sampler of the rest.

        Args:
            positive_ids: as for ``sample``.
            query: as for ``sample``.
        """

    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Sample the rest of one step; see ``Sampler.sample``."""
        exact_ids, rest = self.split(positive_ids, query)
        sampled = rest.sample(positive_ids, user_ids, query, generator)
        ids = exact_ids.clamp(min=0)
        if sampled.ids.ndim > 1 and ids.ndim == 1:
            # The rest has a sample for each row, and expected counts of each row too.
            ids = ids.expand(len(positive_ids), -1)
        log_counts = rest.log_expected_count_of(ids, positive_ids, user_ids, query)
        return replace(sampled, exact=ExactCandidates(exact_ids, log_counts))

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return log expected counts among the samples; see ``Sampler.log_expected_count_of``."""
        rest = self.split(positive_ids, query)[1]
        return rest.log_expected_count_of(ids, positive_ids, user_ids, query)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items of the rest: exact candidates may change; see ``Sampler.support``."""
        return self.rest.support(is_positive)
