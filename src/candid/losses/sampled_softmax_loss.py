"""A module that draws candidates and compares with them in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

import pydantic
import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.component import ComponentConfig
from candid.errors import ConfigError, UnknownNameError
from candid.losses.blockwise.tiles import Precision
from candid.losses.candidate_loss import CandidateLoss, RowReduction, refresh_interval
from candid.losses.correction import Correction
from candid.losses.inputs import check_ids, check_rows
from candid.losses.output import ItemEmbeddings, LossOutput
from candid.losses.sampled import sampled_softmax
from candid.samplers import (
    AdaptiveSampler,
    EncodedBatch,
    Mixture,
    Popularity,
    Sampler,
    SamplerComponent,
    SamplerConfig,
    Uniform,
    check_support_covers,
    sample_groups,
    with_negatives,
)
from candid.samplers.frequency import Counts, checked_counts
from candid.samplers.negatives import check_negatives

F = TypeVar("F", bound=Callable[..., Any])
_uncompiled = cast(Callable[[F], F], torch.compiler.disable)


class SampledSoftmaxLoss(CandidateLoss):
    """Draw candidates for a batch and compare with them: ``sampled_softmax`` in one call.

    In training mode a sampler that follows the model is given the item vectors every so many
    calls, and one that learns from the stream sees each batch once; in evaluation mode nothing
    is learnt. What a sampler must not lose is part of ``state_dict``, as tensors.

    Candidates come from torch's global random state of the device, unless a generator is given.
    Tensors of the sampler follow ``positive_ids`` from device to device. Under bfloat16
    autocast the matrix products are narrow and the sums are float32.

    Under ``DistributedDataParallel`` every process draws for its own rows, and averaging the
    gradients stays right: each row's estimate is. Seed the processes differently, or all draw
    the same. With ``torch.compile`` the draw runs uncompiled (a graph break) and the rest
    is traced; ``fullgraph=True`` needs candidates from outside and ``sampled_softmax``.

    Args:
        catalog: counts [V], how often each item is a training target, or V alone.
        sampler: where candidates come from: a sampler, a sampler's config or its name in
            ``SAMPLERS`` (these are built from the counts). None for 128 draws by popularity
            and 128 uniform ones, or 256 uniform ones where there are no counts.
        correction: see ``corrected_log_softmax``.
        jackknife: see ``corrected_log_softmax``.
        temperature: scores are divided by it; an ``nn.Parameter`` is learnt with the model.
        reduction: "mean" or "sum" over the rows, or "none" for [B].
        precision: see ``sampled_softmax``.
        num_groups: independent draws a step, each shared by an equal part of the rows.
        check_finite: see ``sampled_softmax``.
        softmax_over: "all" items, or the "trained" ones, those with a count, alone: others may
            then be out of the sampler's reach.

    Raises:
        ConfigError: a setting that cannot work; a sampler by name that needs counts where
            ``catalog`` has none, or one of another catalog, or one that can never draw an item
            that the softmax is over: names the first.
        DataError: counts that are not finite non-negative numbers with a positive sum.
    """

    def __init__(
        self,
        catalog: Counts | int,
        sampler: Sampler | SamplerConfig | Mapping[str, Any] | str | None = None,
        *,
        correction: Correction = "refined",
        jackknife: bool = False,
        temperature: float | Tensor = 1.0,
        reduction: RowReduction = "mean",
        precision: Precision = "float32",
        num_groups: int = 1,
        check_finite: bool | None = None,
        softmax_over: Literal["all", "trained"] = "all",
    ) -> None:
        if num_groups < 1:
            raise ConfigError(f"num_groups must be at least 1, got {num_groups}")
        if softmax_over not in ("all", "trained"):
            raise UnknownNameError("softmax_over", softmax_over, ("all", "trained"))
        built, num_items = built_sampler(catalog, sampler)
        check_support_covers(built, _has_count(catalog), softmax_over, key="softmax_over")
        super().__init__(
            built, correction, jackknife, temperature, precision, reduction, check_finite
        )
        self.num_items = num_items
        self.num_groups = num_groups

    def forward(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw, compare, reduce.

        Args:
            query: [B, D].
            item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D].
            positive_ids: [B] int64.
            user_ids: [B] int64, whose row it is; only samplers from the batch ask. None where
                every row is another user's.
            negative_ids: [B, S], further negatives of each row, compared exactly, -1 where a
                row has fewer; see ``with_negatives``.
            generator: of the draws, on the device of ``positive_ids``.

        Returns:
            a scalar, or [B] with reduction "none"; float32 at least.

        Raises:
            ConfigError: shapes that do not fit together.
            DataError: an id outside the catalog (checked on the CPU only), or NaN where it is
                looked for.
        """
        out = self.compare(
            query, item_embeddings, positive_ids, user_ids, negative_ids, generator=generator
        )
        return self._reduced(out.loss)

    def compare(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """As ``forward``, with everything that is known of each row.

        Args:
            query: see ``forward``, as all others.
            item_embeddings: see there.
            positive_ids: see there.
            user_ids: see there.
            negative_ids: see there.
            generator: see there.
            effective_sample_size: report ``effective_sample_size``.
        """
        candidates = self._draw(
            query, item_embeddings, positive_ids, user_ids, negative_ids, generator
        )
        return sampled_softmax(
            query,
            item_embeddings,
            positive_ids,
            candidates,
            correction=self.correction,
            jackknife=self.jackknife,
            temperature=self.temperature,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
            check_finite=self.check_finite,
        )

    @_uncompiled
    @torch.no_grad()
    def _draw(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None,
        negative_ids: Tensor | None,
        generator: torch.Generator | None,
    ) -> Candidates:
        check_rows(query, positive_ids)
        check_ids(positive_ids, self.num_items)
        if isinstance(item_embeddings, Tensor) and len(item_embeddings) != self.num_items:
            raise ConfigError(
                f"item_embeddings has {len(item_embeddings)} rows, but the catalog of the loss "
                f"has {self.num_items} items"
            )
        if user_ids is None:
            user_ids = torch.arange(len(query), device=positive_ids.device)
        scaled = (query.detach() / self.temperature).float()
        batch = EncodedBatch(positive_ids, user_ids, scaled)
        self._refresh_if_due(item_embeddings, positive_ids.device)
        candidates = sample_groups(self.sampler, batch, self.num_groups, generator)
        if negative_ids is not None:
            check_negatives(negative_ids, len(query))
            check_ids(negative_ids.clamp(min=0), self.num_items)
            candidates = with_negatives(candidates, negative_ids, self.sampler, batch)
        self._observe(batch)
        return candidates

    def _refresh_if_due(self, item_embeddings: ItemEmbeddings, device: torch.device) -> None:
        every = refresh_interval(self.sampler)
        if every is None or not isinstance(self.sampler, AdaptiveSampler):
            return
        # Evaluation may come before any training step, and must find item vectors too.
        if self._steps == 0 or (self.training and self._steps % every == 0):
            vectors = (
                item_embeddings
                if isinstance(item_embeddings, Tensor)
                else item_embeddings(torch.arange(self.num_items, device=device))
            )
            self.sampler.refresh(vectors.detach().float())


def _has_count(catalog: Counts | int) -> Tensor:
    """[V] bool on the CPU, which items are ever a positive; of V alone none is known not to be."""
    if isinstance(catalog, int):
        return torch.ones(catalog, dtype=torch.bool)
    return checked_counts(catalog).cpu() > 0


class _Choice(ComponentConfig):
    sampler: SamplerComponent


def built_sampler(
    catalog: Counts | int,
    sampler: Sampler | SamplerConfig | Mapping[str, Any] | str | None,
) -> tuple[Sampler, int]:
    """The sampler of a module, and V; see ``SampledSoftmaxLoss``.

    Raises:
        ConfigError: it cannot be built from what is known, or is of another catalog.
        DataError: the counts are none.
    """
    counts = None if isinstance(catalog, int) else checked_counts(catalog)
    num_items = catalog if isinstance(catalog, int) else len(catalog)
    if sampler is None:
        if counts is None:
            return Uniform(num_items, 256), num_items
        return Mixture([Popularity(counts, 128), Uniform(num_items, 128)]), num_items
    if not isinstance(sampler, SamplerConfig | Mapping | str):
        of_sampler = getattr(sampler, "num_items", num_items)
        if of_sampler != num_items:
            raise ConfigError(
                f"the sampler draws from {of_sampler} items, but the catalog has {num_items}"
            )
        return sampler, num_items
    try:
        config = _Choice(sampler=sampler).sampler
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{key}: {first['msg']}, got {first['input']!r}") from None
    if counts is None:
        if not isinstance(config, Uniform.Config):
            raise ConfigError(
                "only the sampler 'uniform' can be built from the number of items: give counts "
                "[V], how often each item is a training target (torch.ones(V) where all are alike)"
            )
        counts = torch.ones(num_items)
    return config.build(counts), num_items
