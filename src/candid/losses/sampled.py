"""Softmax over a positive and candidates of a sampler."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.blockwise.tiles import Precision
from candid.losses.comparison import Comparison, compare
from candid.losses.config import PRECISION
from candid.losses.corrected_softmax import dense_softmax
from candid.losses.correction import (
    DEFAULT_CORRECTION,
    Correction,
    HitRule,
    check_defined,
    hit_rule,
    why_no_probability,
)
from candid.losses.estimator import Estimator
from candid.losses.inputs import wants_finite_check
from candid.losses.output import ItemEmbeddings, LossOutput
from candid.losses.sampled_loss import SampledLoss
from candid.losses.tiled_softmax import tiled_softmax

DENSE_SCORES = 2**17
"""Most scores B·N that are computed at once; tiles would only add calls."""
MAX_ROW_EXACT = 8
"""Most exact candidates of each row that are looked up among the samples without [B, N]."""


def sampled_softmax(
    query: Tensor,
    item_embeddings: ItemEmbeddings,
    positive_ids: Tensor,
    candidates: Candidates,
    *,
    correction: Correction = DEFAULT_CORRECTION,
    jackknife: bool = False,
    temperature: float | Tensor = 1.0,
    accidental_hits: HitRule | None = None,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
    check_finite: bool | None = None,
) -> LossOutput:
    """Compute the softmax of each row's positive against candidates of a sampler, corrected.

    A candidate that is the row's positive, or comes from the row's own user, is not a negative
    of the row. A correction that shifts the positive keeps samples of the positive by default
    (``accidental_hits``). For samples with replacement and the correction "refined" the rest are
    renormalized: with n samples of which n_valid are left, e(d) = n_valid · Q(d) / (1 - Q(p)),
    the Q' of Khrylchenko et al. (RecSys 2025). The other corrections do not renormalize; see
    ``candid.losses.correction``.

    Args:
        query: [B, D].
        item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D] (called
            once, for positives and candidates together).
        positive_ids: [B] int64.
        candidates: ids [N] shared by all rows (one matrix product) or [G, N] shared by runs of
            rows.
        correction: correction of the scores for the expected counts of the candidates.
        jackknife: replace the loss by its jackknife, which removes the leading bias; see
            ``corrected_log_softmax``. It leaves out users where candidates have owners, otherwise
            single candidates, for ids [N], [G, N] and [B, N] alike.
        temperature: scores are divided by it.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction, see ``candid.losses.correction``.
        precision: dtype of the matrix products, as in ``full_softmax``. Vectors that are already
            bfloat16 are multiplied as such in either case. Shared candidates [N] beyond 131,072
            scores are compared in tiles, without the [B, N] scores, unless there is a jackknife.
        effective_sample_size: report ``effective_sample_size``.
        check_finite: refuse queries and item vectors that hold NaN, named by row and by item.
            None checks on the CPU only: on a GPU the check forces a synchronisation.

    Returns:
        [B] losses with gradient, log Z' of the candidates, sample weights and, if requested,
        effective sample sizes; see ``LossOutput``. Only with the correction "refined" does the
        loss estimate the negative log-likelihood of the full softmax.

    Raises:
        ConfigError: shapes that do not fit together, or ``accidental_hits`` that the correction
            does not allow.
        DataError: an id outside the table (checked on the CPU, where it needs no device
            synchronisation), or NaN if it is checked.

    Example:
        >>> import torch
        >>> from candid.losses import sampled_softmax
        >>> from candid.samplers import Uniform
        >>> positive_ids, items = torch.tensor([1, 2]), torch.randn(10, 4)
        >>> candidates = Uniform(10, num_candidates=5).sample(positive_ids)
        >>> sampled_softmax(torch.randn(2, 4), items, positive_ids, candidates).loss.shape
        torch.Size([2])
    """
    comparison = compare(
        query / temperature,
        item_embeddings,
        positive_ids,
        candidates,
        precision=precision,
        check_finite=wants_finite_check(check_finite, query),
    )
    return corrected_softmax(
        comparison,
        correction,
        accidental_hits,
        jackknife=jackknife,
        effective_sample_size=effective_sample_size,
    )


def corrected_softmax(
    comparison: Comparison,
    correction: Correction,
    accidental_hits: HitRule | None = None,
    *,
    jackknife: bool = False,
    effective_sample_size: bool = False,
) -> LossOutput:
    """Compute the corrected softmax of a comparison, from all scores at once or in tiles.

    Args:
        comparison: rows and candidates.
        correction: see ``candid.losses.correction``.
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction.
        jackknife: as in ``corrected_log_softmax``; always from dense scores [B, N], because it
            needs the loss without each group of candidates.
        effective_sample_size: report ``effective_sample_size``.

    Raises:
        UnknownNameError: no such correction or rule.
        ConfigError: the correction is not defined with this rule.
    """
    precision = None if jackknife else _tile_precision(comparison)
    if precision is None:
        return dense_softmax(
            comparison,
            correction,
            accidental_hits,
            jackknife=jackknife,
            effective_sample_size=effective_sample_size,
        )
    return tiled_softmax(
        comparison,
        correction,
        precision,
        accidental_hits,
        effective_sample_size=effective_sample_size,
    )


class SampledSoftmax(SampledLoss):
    """``sampled_softmax`` with its settings.

    Args:
        correction: correction of the scores for the expected counts of the candidates.
        jackknife: replace the loss by its jackknife over users or samples.
        precision: dtype of the matrix products.
        accidental_hits: what happens to samples of a row's positive; None for the default of the
            correction.

    Raises:
        ConfigError: ``accidental_hits`` that the correction does not allow.
    """

    class Config(SampledLoss.Config):
        """Settings of ``SampledSoftmax``."""

        correction: Correction = Field(
            DEFAULT_CORRECTION,
            description="correction of the scores for the expected counts: 'none', 'logq' "
            "(candidates and positive), 'refined' (candidates only; its loss estimates the NLL) or "
            "'published_code' (the baseline of the paper's code, for comparison only)",
        )
        jackknife: bool = Field(
            False,
            description="jackknife over users, or over samples that come from no user: less "
            "bias, slightly more variance; not for sets (distinct = true), where it adds a bias",
        )
        precision: Precision = Field("float32", description=PRECISION)
        accidental_hits: HitRule | None = Field(
            None,
            description="samples of the row's positive: 'keep' ('logq' alone) or 'mask'; absent: "
            "'keep' for 'logq', 'mask' for the others",
        )

        @model_validator(mode="after")
        def _rule_is_defined(self) -> Self:
            try:
                hit_rule(self.correction, self.accidental_hits)
            except ConfigError as error:
                raise ValueError(str(error)) from None
            return self

        @property
        def needs_full_support(self) -> bool:
            """True: an item that is never sampled is missing from the partition function."""
            return True

        @property
        def why_no_probability(self) -> str | None:
            """The reason for an uncorrected softmax; None for the others."""
            return why_no_probability(self.correction)

        @property
        def estimator(self) -> Estimator:
            """The correction with jackknife and rule of accidental hits."""
            return Estimator(self.correction, self.jackknife, self.accidental_hits)

        @property
        def works_with_sets(self) -> bool:
            """False with the jackknife, which adds a bias to sets."""
            return not self.jackknife

        def check_candidates(self, *, has_exact: bool, is_set: bool) -> None:
            """Refuse candidates for which the correction is not defined."""
            check_defined(self.correction, has_exact=has_exact, is_set=is_set)

        def build(self, num_items: int) -> SampledSoftmax:
            """Build for a catalog of any size."""
            return SampledSoftmax(
                correction=self.correction,
                jackknife=self.jackknife,
                precision=self.precision,
                accidental_hits=self.accidental_hits,
            )

    def __init__(
        self,
        *,
        correction: Correction,
        jackknife: bool,
        precision: Precision,
        accidental_hits: HitRule | None = None,
    ) -> None:
        super().__init__(precision=precision)
        self.correction: Correction = correction
        self.jackknife = jackknife
        self.accidental_hits: HitRule = hit_rule(correction, accidental_hits)

    def output(self, comparison: Comparison, *, effective_sample_size: bool) -> LossOutput:
        """The corrected softmax, dense or in tiles."""
        return corrected_softmax(
            comparison,
            self.correction,
            self.accidental_hits,
            jackknife=self.jackknife,
            effective_sample_size=effective_sample_size,
        )


def _tile_precision(comparison: Comparison) -> Precision | None:
    """Return the precision of the products in tiles; None where dense scores are better.

    Dense scores serve up to ``DENSE_SCORES`` scores, candidates of groups of rows, more than
    ``MAX_ROW_EXACT`` exact candidates of each row, float16, and code that ``torch.compile`` traces.
    """
    num_scores = len(comparison.query) * comparison.candidate_vectors.shape[0]
    if comparison.candidate_vectors.ndim != 2 or num_scores <= DENSE_SCORES:
        return None
    if torch.compiler.is_compiling():
        return None
    exact = comparison.candidates.exact
    parts = () if exact is None else exact.parts
    if any(part.ids.ndim == 2 and part.ids.shape[1] > MAX_ROW_EXACT for part in parts):
        return None
    dtype, device = comparison.product_dtype, comparison.query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = dtype if dtype == torch.float64 else torch.get_autocast_dtype(device)
    if dtype == torch.bfloat16 or comparison.precision == "bfloat16":
        return "bfloat16"
    return "float32" if dtype in (torch.float32, torch.float64) else None
