"""Candidates from several samplers, each corrected by the whole mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.sampler import Sampler


class Mixture(Sampler):
    """The candidates of every component, one after the other.

    The expected count of an item is the sum over the components, e(d) = Σ_k n_k·Q_k(d), no
    matter which component sampled the candidate. This is the balance heuristic of
    multiple importance sampling (Veach and Guibas 1995). Correcting a component's samples by
    that component alone, or uniform samples by popularity, adds a bias that does not shrink
    with n.

    If all components sample with replacement, ``num_samples`` is Σ n_k and the loss drops a
    row's accidental hits and renormalises the rest. For one component that is exact. A mixture
    has a fixed number of samples of each component, so the renormalised estimate of Z' carries
    a relative error of at most about max_k Q_k(p) / n: nothing for rare positives; with 16
    uniform and 16 popularity samples from 30 items, for a positive with 30 % of the popularity,
    less than a hundredth (checked by a test). With an in-batch component, the rows of a row's own
    user are masked too: its part of the sum is then too high by that user's share of the batch.

    If a component has a sample for each row, the mixture has one too: shared candidates are
    repeated for every row.

    Args:
        components: the samplers.

    Raises:
        ConfigError: there is no component, one has exact candidates, or they belong to
            different catalogs.

    Example:
        >>> import torch
        >>> from candid.samplers import Mixture, Popularity, Uniform
        >>> counts = torch.tensor([5, 3, 1, 0])
        >>> sampler = Mixture([Popularity(counts, num_candidates=4), Uniform(4, num_candidates=4)])
        >>> sampler.sample(torch.tensor([0, 1])).ids.shape
        torch.Size([8])
    """

    class Config(SamplerConfig):
        """Settings of ``Mixture``."""

        components: tuple[SamplerComponent, ...] = Field(
            min_length=1, description="the samplers to mix, each a table with its type"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """Return the sum over the components; see ``SamplerConfig``."""
            return sum(part.candidates_per_row(batch_rows) for part in self.components)

        @property
        def parts(self) -> tuple[SamplerConfig, ...]:
            """The components; see ``SamplerConfig``."""
            return self.components

        def build(self, counts: Tensor) -> Mixture:
            """Build every component for the same catalog."""
            return Mixture([component.build(counts) for component in self.components])

    def __init__(self, components: Sequence[Sampler]) -> None:
        if not components:
            raise ConfigError("a mixture needs at least one sampler in 'components'")
        sizes = sorted({component.num_items for component in components})
        if len(sizes) > 1:
            raise ConfigError(
                f"the components of a mixture belong to catalogs of {sizes[0]} and {sizes[-1]} "
                "items: build them for the same catalog"
            )
        if any(component.has_exact for component in components):
            raise ConfigError(
                "a component of a mixture cannot have exact candidates: make the mixture the "
                "'rest' of an exact_popular or exact_nearest sampler"
            )
        super().__init__(sizes[0])
        self.components = nn.ModuleList(components)

    @property
    def parts(self) -> Mapping[str, Sampler]:
        """The components by position; see ``Sampler.parts``."""
        components = cast("Sequence[Sampler]", self.components)
        return {str(position): component for position, component in enumerate(components)}

    def excluding(self, ids: Tensor) -> Mixture:
        """Exclude the items in every component that can; see ``Sampler.excluding``."""
        return Mixture([component.excluding(ids) for component in self.parts.values()])

    def sample(
        self,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Candidates:
        """Sample from every component, in order; see ``Sampler.sample``."""
        samples = [
            component.sample(positive_ids, user_ids, query, generator)
            for component in self.parts.values()
        ]
        num_rows = len(positive_ids)
        ids = _side_by_side([sample.ids for sample in samples], num_rows)
        sizes = [sample.num_samples for sample in samples]
        owners = [_owner(sample) for sample in samples]
        has_owner = any(sample.owner is not None for sample in samples)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, positive_ids, user_ids, query),
            log_expected_count_positive=self.log_expected_count_of(
                positive_ids, positive_ids, user_ids, query
            ),
            num_samples=None if None in sizes else sum(n for n in sizes if n is not None),
            owner=_side_by_side(owners, num_rows) if has_owner else None,
            row_user_ids=user_ids if has_owner else None,
        )

    def log_expected_count_of(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Return the log expected count of items; see ``Sampler.log_expected_count_of``."""
        counts = [
            component.log_expected_count_of(ids, positive_ids, user_ids, query)
            for component in self.parts.values()
        ]
        return torch.logsumexp(torch.stack(torch.broadcast_tensors(*counts)), dim=0)

    def support(self, is_positive: Tensor) -> Tensor:
        """Items of any component; see ``Sampler.support``."""
        supports = [component.support(is_positive) for component in self.parts.values()]
        return torch.stack(supports).any(dim=0)


def _owner(sample: Candidates) -> Tensor:
    return torch.full_like(sample.ids, -1) if sample.owner is None else sample.owner


def _side_by_side(samples: Sequence[Tensor], num_rows: int) -> Tensor:
    """Concatenate to [N] where all are shared [n], else to [B, N]."""
    if all(sample.ndim == 1 for sample in samples):
        return torch.cat(list(samples))
    by_row = [s if s.ndim > 1 else s.expand(num_rows, -1) for s in samples]
    return torch.cat(by_row, dim=1)
