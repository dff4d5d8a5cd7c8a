"""Binary cross-entropy on the positive and sampled negatives: the baselines.

These train scores as independent yes/no questions, not as a distribution over the catalog.
``log_z`` and ``sample_weight`` are nevertheless the softmax's (the candidates corrected
by their expected counts, equation (1) of ``corrected``, detached), so that the figures of a
run can be laid beside those of a softmax loss; they are not weights of these losses.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.comparison import Comparison, compare
from candid.losses.config import LossConfig
from candid.losses.corrected import widened
from candid.losses.output import ItemEmbeddings, LossOutput

Reduction = Literal["sum", "mean"]
"""How the terms of one row are joined; see ``binary_cross_entropy``."""


def binary_cross_entropy(
    *,
    positive: Tensor,
    candidates: Tensor,
    accidental_hits: Tensor | None = None,
    beta: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """- beta·log σ(positive) - Σ log(1 - σ(candidate)) over the candidates that are no hits.

    With beta 1 the loss of SASRec (Kang and McAuley, ICDM 2018); with beta < 1 generalised
    binary cross-entropy (Petrov and Macdonald, RecSys 2023, equation 8), σ(positive)^beta in
    the place of σ(positive). A row whose candidates are all hits has loss and gradient 0.

    Args:
        positive: [B] scores, float32 or float64.
        candidates: [B, N] scores.
        hits: [B, N] bool, True where the candidate is not a negative of the row; or None.
        beta: power of the positive's probability, in (0, 1].
        reduction: "sum" as SASRec writes it for one negative, or "mean" over the positive
            and the valid negatives, as gSASRec does.

    Returns:
        [B], in the dtype of the scores.
    """
    negative_terms = -logsigmoid(-candidates)
    if accidental_hits is None:
        accidental_hits = torch.zeros_like(negative_terms, dtype=torch.bool)
    num_valid = (~accidental_hits).sum(dim=1)
    loss = -beta * logsigmoid(positive) + negative_terms.masked_fill(accidental_hits, 0.0).sum(
        dim=1
    )
    if reduction == "mean":
        loss = loss / (num_valid + 1)
    return loss.masked_fill(num_valid == 0, 0.0)


def calibrated_beta(t: float, num_negatives: int, num_items: int) -> float:
    """The power beta of gBCE: alpha·(t·(1 - 1/alpha) + 1/alpha) = 1 - t·(1 - alpha).

    alpha = num_negatives / (V - 1) is the sampling rate (Petrov and Macdonald, RecSys 2023,
    equation 10); at most 1.

    Args:
        t: calibration, 0 for plain BCE to 1 for fully calibrated probabilities.
        num_negatives: negatives a row.
        num_items: V, at least 2 for a rate; with one item beta is 1.
    """
    alpha = min(num_negatives / (num_items - 1), 1.0) if num_items > 1 else 1.0
    return 1.0 - t * (1.0 - alpha)


class BCE:
    """Binary cross-entropy with sampled negatives; see ``binary_cross_entropy``.

    Args:
        reduction: "sum" or "mean" of a row's terms.
    """

    needs_candidates = True

    class Config(LossConfig):
        """Settings of ``BCE``."""

        needs_candidates = True

        @property
        def why_no_probability(self) -> str:
            """A pointwise loss trains independent yes/no questions."""
            return "the model was trained with a pointwise loss, whose scores form no softmax"

        reduction: Reduction = Field(
            "sum", description="join a row's terms by 'sum' (SASRec) or 'mean' (gSASRec)"
        )

        def build(self, num_items: int) -> BCE:
            """Build for a catalog of any size."""
            return BCE(self.reduction)

    def __init__(self, reduction: Reduction = "sum") -> None:
        self.reduction: Reduction = reduction

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Score and compare; see ``Loss``."""
        if candidates is None:
            raise ConfigError("the loss 'bce' needs a sampler to draw candidates")
        comparison = compare(query, item_embeddings, positive_ids, candidates)
        return _output(comparison, 1.0, self.reduction, effective_sample_size)


class GBCE:
    """Generalised binary cross-entropy; see ``binary_cross_entropy``, ``calibrated_beta``.

    The number of negatives is the number of candidates; of several sets, that of the longest.

    Args:
        num_items: V, the size of the catalog.
        t: calibration.
        reduction: "sum" or "mean" of a row's terms.

    Raises:
        ConfigError: ``t`` is outside [0, 1].
    """

    needs_candidates = True

    class Config(LossConfig):
        """Settings of ``GBCE``."""

        needs_candidates = True

        @property
        def why_no_probability(self) -> str:
            """A pointwise loss trains independent yes/no questions."""
            return "the model was trained with a pointwise loss, whose scores form no softmax"

        t: float = Field(
            0.75, ge=0, le=1, description="calibration: 0 is plain BCE, 1 fully calibrated"
        )
        reduction: Reduction = Field(
            "mean", description="join a row's terms by 'sum' (SASRec) or 'mean' (gSASRec)"
        )

        def build(self, num_items: int) -> GBCE:
            """Build for a catalog of ``num_items``."""
            return GBCE(num_items, self.t, self.reduction)

    def __init__(self, num_items: int, t: float = 0.75, reduction: Reduction = "mean") -> None:
        if not 0.0 <= t <= 1.0:
            raise ConfigError(f"the calibration t of gbce must be between 0 and 1, got {t}")
        self.num_items = num_items
        self.t = t
        self.reduction: Reduction = reduction

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Score and compare; see ``Loss``."""
        if candidates is None:
            raise ConfigError("the loss 'gbce' needs a sampler to draw candidates")
        comparison = compare(query, item_embeddings, positive_ids, candidates)
        num_negatives = comparison.everything()[0].shape[1]
        beta = calibrated_beta(self.t, num_negatives, self.num_items)
        return _output(comparison, beta, self.reduction, effective_sample_size)


def _output(
    comparison: Comparison, beta: float, reduction: Reduction, effective_sample_size: bool
) -> LossOutput:
    with torch.no_grad():
        softmax = comparison.softmax("refined", effective_sample_size=effective_sample_size)
    scores, accidental_hits = comparison.everything()
    return LossOutput(
        loss=binary_cross_entropy(
            positive=comparison.positive,
            candidates=widened(scores),
            accidental_hits=accidental_hits,
            beta=beta,
            reduction=reduction,
        ),
        log_z=softmax.log_z,
        sample_weight=softmax.sample_weight,
        effective_sample_size=softmax.effective_sample_size,
    )
