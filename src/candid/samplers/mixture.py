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
from candid.samplers.expected_count import BatchSource, CountParts, make_row_counts
from candid.samplers.sampler import Sampler


class Mixture(Sampler):
    """The candidates of every component, one after the other.

    The expected count of an item is the sum over the components, e(d) = Σ_k n_k·Q_k(d), no
    matter which component sampled the candidate. This is the balance heuristic of
    multiple importance sampling (Veach and Guibas 1995). Correcting a component's samples by
    that component alone, or uniform samples by popularity, adds a bias that does not shrink
    with n.

    A component that takes rows of the batch, or of earlier batches, loses the rows of a row's own
    user: of n such rows, m of the own user, the row is compared with n - m, and the component's
    part of e(d) is (n - m)·Q(d). Other components lose nothing. So e(d) differs between rows by one
    number for each such component (``Candidates.row_counts``).

    These counts are those of the items other than the positive among the candidates that are
    not masked, so Z' is unbiased as it stands: the loss drops a row's accidental hits and does
    not renormalize, because the number of samples of each component is fixed. A mixture of
    one component is that component.

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
        self.takes_batch_rows = any(component.takes_batch_rows for component in components)

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
        if len(samples) == 1:
            return samples[0]
        num_rows = len(positive_ids)
        ids = _side_by_side([sample.ids for sample in samples], num_rows)
        sizes = [sample.num_samples for sample in samples]
        owners = [_or_minus_one(sample.owner, sample) for sample in samples]
        sources = [_or_minus_one(sample.source_rows, sample) for sample in samples]
        has_source = any(sample.source_rows is not None for sample in samples)
        has_owner = any(sample.owner is not None for sample in samples)
        log_counts = self.log_expected_count_of(ids, positive_ids, user_ids, query)
        row_counts = None
        if self.takes_batch_rows:
            row_counts = make_row_counts(
                log_counts,
                self.count_parts(ids, positive_ids, user_ids, query),
                self.count_parts(positive_ids, positive_ids, user_ids, query),
                self._batch_sources(samples),
            )
        return Candidates(
            ids=ids,
            log_expected_count=log_counts,
            log_expected_count_positive=self.log_expected_count_of(
                positive_ids, positive_ids, user_ids, query
            ),
            num_samples=None if None in sizes else sum(n for n in sizes if n is not None),
            owner=_side_by_side(owners, num_rows) if has_owner else None,
            row_user_ids=user_ids if has_owner else None,
            source_rows=_side_by_side(sources, num_rows) if has_source else None,
            is_mixture=True,
            row_counts=row_counts,
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
        return _log_sum(counts)

    def count_parts(
        self,
        ids: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        query: Tensor | None = None,
    ) -> CountParts:
        """Return the parts of all components, in order; see ``Sampler.count_parts``."""
        parts = [
            component.count_parts(ids, positive_ids, user_ids, query)
            for component in self.parts.values()
        ]
        fixed = [part.log_fixed for part in parts if part.log_fixed is not None]
        return CountParts(
            _log_sum(fixed) if fixed else None,
            tuple(log_q for part in parts for log_q in part.log_q),
        )

    def support(self, is_positive: Tensor) -> Tensor:
        """Items of any component; see ``Sampler.support``."""
        supports = [component.support(is_positive) for component in self.parts.values()]
        return torch.stack(supports).any(dim=0)

    def _batch_sources(self, samples: Sequence[Candidates]) -> list[BatchSource]:
        """Return the sources of ``count_parts`` that take rows of the batch, as sampled."""
        sources = []
        for component, sample in zip(self.parts.values(), samples, strict=True):
            if sample.row_counts is not None:
                sources += [BatchSource.of_part(part) for part in sample.row_counts.parts]
            elif component.takes_batch_rows:
                others, num_rows = sample.num_of_others(), sample.ids.shape[-1]
                sources.append(BatchSource(others, False, num_rows, sample.owner))
        return sources


def _log_sum(log_counts: Sequence[Tensor]) -> Tensor:
    return torch.logsumexp(torch.stack(torch.broadcast_tensors(*log_counts)), dim=0)


def _or_minus_one(values: Tensor | None, sample: Candidates) -> Tensor:
    return torch.full_like(sample.ids, -1) if values is None else values


def _side_by_side(samples: Sequence[Tensor], num_rows: int) -> Tensor:
    """Concatenate to [N] where all are shared [n], else to [B, N]."""
    if all(sample.ndim == 1 for sample in samples):
        return torch.cat(list(samples))
    by_row = [s if s.ndim > 1 else s.expand(num_rows, -1) for s in samples]
    return torch.cat(by_row, dim=1)
