"""The sampled softmax as a module that samples its own candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.blockwise.tiles import Precision
from candid.losses.candidate_loss import (
    NUM_GROUPS,
    REDUCTION,
    CandidateLoss,
    Reduction,
    check_known,
)
from candid.losses.correction import DEFAULT_CORRECTION, Correction, HitRule, hit_rule
from candid.losses.output import ItemEmbeddings, LossOutput
from candid.losses.sampled import sampled_softmax
from candid.samplers.sampler import Sampler
from candid.samplers.support import check_support_covers

F = TypeVar("F", bound=Callable[..., Any])
_not_compiled = cast(Callable[[F], F], torch.compiler.disable)


class SampledSoftmaxLoss(CandidateLoss):
    """A corrected sampled softmax that samples the candidates of each batch itself.

    In training mode a sampler that follows the model gets the item vectors before the first
    step and then every ``refresh_every`` steps, and a sampler that reads the stream of batches
    observes each batch once. In evaluation mode nothing changes.

    Candidates come from torch's global random state of the device, unless a generator is given.
    Move the loss with ``loss.to(device)``. Under bfloat16 autocast the matrix products are
    bfloat16 and the sums are float32.

    Under ``DistributedDataParallel`` each process samples for its own rows, and averaging the
    gradients remains correct, because each row's estimate is. Seed the processes differently;
    otherwise all draw the same samples. A sampler that observes batches should stay outside the
    wrapped module, or the wrapper needs ``broadcast_buffers=False``. With ``torch.compile``
    sampling runs uncompiled (a graph break) and the rest is traced; with ``fullgraph=True`` use
    ``sampled_softmax`` with candidates that are sampled outside.

    Args:
        sampler: source of the candidates.
        correction: correction of the scores for the expected counts; see
            ``corrected_log_softmax``.
        jackknife: replace the loss by its jackknife over users; see ``corrected_log_softmax``.
            Not for a sampler of a set of distinct items.
        temperature: scores are divided by it; an ``nn.Parameter`` is trained with the model.
        reduction: "mean" or "sum" over the rows, or "none" for [B].
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction; see ``sampled_softmax``.
        precision: dtype of the matrix products; see ``sampled_softmax``.
        num_groups: independent samples per step, each shared by an equal part of the rows.
        check_finite: refuse NaN in queries and item vectors; None checks on the CPU only.
        softmax_over: "all" items, all of which the sampler must be able to draw; or the
            "trained" ones, those that are ever a positive: others are then left out of the
            softmax.

    Raises:
        ConfigError: a setting is out of its range, the sampler can never draw an item that the
            softmax is over (named), or a jackknife over candidates that are a set.
        UnknownNameError: a setting has an unknown name.

    Example:
        >>> import torch
        >>> from candid import SampledSoftmaxLoss
        >>> from candid.samplers import Mixture, Popularity, Uniform
        >>> counts = torch.tensor([9, 7, 5, 3, 2, 1, 1, 0])
        >>> sampler = Mixture([Popularity(counts, num_candidates=4), Uniform(8, num_candidates=4)])
        >>> loss = SampledSoftmaxLoss(sampler)
        >>> item_embeddings = torch.randn(8, 16, requires_grad=True)
        >>> loss(torch.randn(2, 16), item_embeddings, torch.tensor([0, 3])).backward()
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        correction: Correction = DEFAULT_CORRECTION,
        jackknife: bool = False,
        temperature: float | Tensor = 1.0,
        reduction: Reduction = REDUCTION,
        accidental_hits: HitRule | None = None,
        precision: Precision = "float32",
        num_groups: int = NUM_GROUPS,
        check_finite: bool | None = None,
        softmax_over: Literal["all", "trained"] = "all",
    ) -> None:
        super().__init__(
            sampler, temperature=temperature, reduction=reduction, num_groups=num_groups
        )
        check_known("correction", correction, get_args(Correction))
        self.accidental_hits: HitRule = hit_rule(correction, accidental_hits)
        check_known("precision", precision, get_args(Precision))
        check_known("softmax_over", softmax_over, ("all", "trained"))
        if jackknife and sampler.is_set:
            raise ConfigError(
                "jackknife does not work with a sampler of distinct=True: it adds a bias that does "
                "not shrink with the number of candidates; set one of the two to False"
            )
        if softmax_over == "all":
            # There is no training data: the items in the sampler's support count as trained.
            is_positive = sampler.support(torch.ones(sampler.num_items, dtype=torch.bool))
            check_support_covers(sampler, is_positive, "all", key="softmax_over")
        self.correction: Correction = correction
        self.jackknife = jackknife
        self.precision: Precision = precision
        self.check_finite = check_finite

    # Applied here and not in the base class: it loads torch's compiler, which takes a second.
    _sample = _not_compiled(CandidateLoss._sample)

    def _compare(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates,
        effective_sample_size: bool,
    ) -> LossOutput:
        return sampled_softmax(
            query,
            item_embeddings,
            positive_ids,
            candidates,
            correction=self.correction,
            jackknife=self.jackknife,
            temperature=self.temperature,
            accidental_hits=self.accidental_hits,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
            check_finite=self.check_finite,
        )
