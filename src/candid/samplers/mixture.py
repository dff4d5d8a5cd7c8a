"""Candidates from several samplers, each corrected by the whole mixture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from candid.candidates import Candidates, Positives
from candid.errors import ConfigError
from candid.samplers.adaptive import Compound
from candid.samplers.config import SamplerComponent, SamplerConfig
from candid.samplers.excluding import excluding
from candid.samplers.sampler import Sampler
from candid.samplers.support import support


class Mixture(Compound):
    """The candidates of every component, one after the other.

    The expected count of an item is the sum over the components, whichever of them drew it:
    e(d) = Σ_k n_k·Q_k(d), the balance heuristic of multiple importance sampling (Veach and
    Guibas 1995). Correcting a component's draws by that component alone, or uniform draws by
    popularity, is a bias that does not go away with n.

    Where all components draw with replacement, ``num_samples`` is Σ n_k and the loss drops a
    row's hits and renormalises the rest. For one component that is exact; a mixture has a
    fixed number of draws of each component, so the renormalised estimate of Z' carries a
    relative error of at most about max_k Q_k(p) / n: nothing for tail positives, and with 16
    uniform and 16 popularity draws from 30 items, for a positive of 30 % of the popularity,
    less than a hundredth (a test holds it). With an in-batch component, the rows of a row's own
    user are masked too: its part of the balance is then over-stated by that user's share of the
    batch.

    Where a component draws for each row apart, so does the mixture: what others share is then
    repeated for every row.

    Args:
        components: the samplers.

    Raises:
        ConfigError: no component.
    """

    class Config(SamplerConfig):
        """Settings of ``Mixture``."""

        components: tuple[SamplerComponent, ...] = Field(
            min_length=1, description="the samplers to draw from, each a table with its type"
        )

        def candidates_per_row(self, batch_rows: int) -> int:
            """The sum over the components; see ``SamplerConfig``."""
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
        self.components = tuple(components)
        self.parts = {str(place): part for place, part in enumerate(self.components)}

    def excluding(self, exact_ids: Tensor) -> Mixture:
        """Every component without these items, where it can; see ``Avoiding.outside``."""
        return Mixture([excluding(component, exact_ids) for component in self.components])

    def sample(self, batch: Positives, generator: torch.Generator | None = None) -> Candidates:
        """Draw from every component, in order; see ``Sampler.draw``.

        Raises:
            ConfigError: a component has a head.
        """
        parts = [component.sample(batch, generator) for component in self.components]
        if any(part.exact is not None for part in parts):
            raise ConfigError(
                "a component of a mixture cannot have a head: make the mixture the tail of a "
                "exact_popular sampler"
            )
        num_rows = len(batch.positive_ids)
        ids = _side_by_side([part.ids for part in parts], num_rows)
        draws = [part.num_samples for part in parts]
        has_owner = any(part.owner is not None for part in parts)
        return Candidates(
            ids=ids,
            log_expected_count=self.log_expected_count_of(ids, batch),
            log_expected_count_positive=self.log_expected_count_of(batch.positive_ids, batch),
            num_samples=None if None in draws else sum(n for n in draws if n is not None),
            owner=_side_by_side([_owner(p) for p in parts], num_rows) if has_owner else None,
            row_user_ids=batch.user_ids if has_owner else None,
        )

    def log_expected_count_of(self, ids: Tensor, batch: Positives) -> Tensor:
        """Log expected count of any items; see ``Sampler.log_expected_count_of``."""
        counts = [component.log_expected_count_of(ids, batch) for component in self.components]
        return torch.logsumexp(torch.stack(torch.broadcast_tensors(*counts)), dim=0)

    def support(self, is_positive: Tensor) -> Tensor:
        """What any component can draw; see ``HasSupport.support``."""
        return torch.stack([support(part, is_positive) for part in self.components]).any(dim=0)


def _owner(part: Candidates) -> Tensor:
    return torch.full_like(part.ids, -1) if part.owner is None else part.owner


def _side_by_side(parts: Sequence[Tensor], num_rows: int) -> Tensor:
    """[N] where all parts are shared [n], else [B, N]."""
    if all(part.ndim == 1 for part in parts):
        return torch.cat(list(parts))
    return torch.cat([p if p.ndim > 1 else p.expand(num_rows, -1) for p in parts], dim=1)
