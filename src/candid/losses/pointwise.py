"""Binary cross-entropy on the positive and sampled negatives: BCE and gBCE, the baselines.

They train scores as independent binary classifications, not as a distribution over the catalog.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from candid.errors import ConfigError
from candid.losses.comparison import Comparison
from candid.losses.sampled_loss import SampledLoss

RowReduction = Literal["sum", "mean"]
"""Reduction of the terms of one row; see ``binary_cross_entropy``."""

ROW_REDUCTION = "reduction of a row's terms: 'sum' (SASRec) or 'mean' (gSASRec)"
"""Description of the field ``row_reduction``."""


def binary_cross_entropy(
    *,
    positive: Tensor,
    candidates: Tensor,
    accidental_hits: Tensor | None = None,
    beta: float = 1.0,
    row_reduction: RowReduction = "sum",
) -> Tensor:
    """Compute - beta·log σ(positive) - Σ log(1 - σ(candidate)) over unmasked candidates.

    beta = 1 gives the loss of SASRec (Kang and McAuley, ICDM 2018); beta < 1 gives generalised
    binary cross-entropy (Petrov and Macdonald, RecSys 2023, equation 8), with σ(positive)^beta
    in the place of σ(positive). A row whose candidates are all masked has loss and gradient 0.

    Args:
        positive: [B] scores, float32 or float64.
        candidates: [B, N] scores.
        accidental_hits: [B, N] bool, True where the candidate is not a negative of the row; or
            None.
        beta: power of the positive's probability, in (0, 1].
        row_reduction: "sum" as SASRec writes it for one negative, or "mean" over the positive
            and the valid negatives, as gSASRec does.

    Returns:
        [B], in the dtype of the scores.

    Example:
        >>> import torch
        >>> from candid.losses import binary_cross_entropy
        >>> binary_cross_entropy(positive=torch.zeros(1), candidates=torch.zeros(1, 3))
        tensor([2.7726])
    """
    negative_terms = -logsigmoid(-candidates)
    if accidental_hits is None:
        accidental_hits = torch.zeros_like(negative_terms, dtype=torch.bool)
    num_valid = (~accidental_hits).sum(dim=1)
    loss = -beta * logsigmoid(positive) + negative_terms.masked_fill(accidental_hits, 0.0).sum(
        dim=1
    )
    if row_reduction == "mean":
        loss = loss / (num_valid + 1)
    return loss.masked_fill(num_valid == 0, 0.0)


def calibrated_beta(t: float, num_negatives: int, num_items: int) -> float:
    """Compute the power beta of gBCE: alpha·(t·(1 - 1/alpha) + 1/alpha) = 1 - t·(1 - alpha).

    alpha = num_negatives / (V - 1) is the sampling rate (Petrov and Macdonald, RecSys 2023,
    equation 10), at most 1.

    Args:
        t: calibration, 0 for plain BCE to 1 for fully calibrated probabilities.
        num_negatives: negatives per row.
        num_items: V; with one item beta is 1.
    """
    alpha = min(num_negatives / (num_items - 1), 1.0) if num_items > 1 else 1.0
    return 1.0 - t * (1.0 - alpha)


class _PointwiseLoss(SampledLoss):
    """A loss that trains each score as a separate binary classification.

    Args:
        row_reduction: "sum" or "mean" of a row's terms.
    """

    class Config(SampledLoss.Config):
        """Settings of a pointwise loss."""

        @property
        def why_no_probability(self) -> str:
            """The reason: scores of independent classifications form no softmax."""
            return "the model was trained with a pointwise loss, whose scores form no softmax"

    def __init__(self, *, row_reduction: RowReduction) -> None:
        super().__init__()
        self.row_reduction: RowReduction = row_reduction

    def row_losses(self, comparison: Comparison) -> Tensor:
        """``binary_cross_entropy`` of each row."""
        positive = comparison.positive_scores
        candidates, accidental_hits = comparison.negatives()
        return binary_cross_entropy(
            positive=positive,
            candidates=candidates,
            accidental_hits=accidental_hits,
            beta=self.beta(candidates.shape[1]),
            row_reduction=self.row_reduction,
        )

    def beta(self, num_negatives: int) -> float:
        """The power of the positive's probability."""
        return 1.0


class BCE(_PointwiseLoss):
    """Binary cross-entropy with sampled negatives; see ``binary_cross_entropy``.

    Args:
        row_reduction: "sum" or "mean" of a row's terms.
    """

    class Config(_PointwiseLoss.Config):
        """Settings of ``BCE``."""

        row_reduction: RowReduction = Field("sum", description=ROW_REDUCTION)

        def build(self, num_items: int) -> BCE:
            """Build for a catalog of any size."""
            return BCE(row_reduction=self.row_reduction)


class GBCE(_PointwiseLoss):
    """Generalised binary cross-entropy; see ``binary_cross_entropy``, ``calibrated_beta``.

    The number of negatives is the number of candidates; of several sets, that of the largest.

    Args:
        num_items: V, the size of the catalog.
        t: calibration.
        row_reduction: "sum" or "mean" of a row's terms.

    Raises:
        ConfigError: ``t`` is outside [0, 1].
    """

    class Config(_PointwiseLoss.Config):
        """Settings of ``GBCE``."""

        t: float = Field(
            0.75, ge=0, le=1, description="calibration: 0 is plain BCE, 1 fully calibrated"
        )
        row_reduction: RowReduction = Field("mean", description=ROW_REDUCTION)

        def build(self, num_items: int) -> GBCE:
            """Build for a catalog of ``num_items``."""
            return GBCE(num_items, t=self.t, row_reduction=self.row_reduction)

    def __init__(self, num_items: int, *, t: float, row_reduction: RowReduction) -> None:
        if not 0.0 <= t <= 1.0:
            raise ConfigError(f"the calibration t of gbce must be between 0 and 1, got {t}")
        super().__init__(row_reduction=row_reduction)
        self.num_items = num_items
        self.t = t

    def beta(self, num_negatives: int) -> float:
        """The calibrated power of the positive's probability."""
        return calibrated_beta(self.t, num_negatives, self.num_items)
