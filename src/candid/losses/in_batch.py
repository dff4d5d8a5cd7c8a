"""The softmax over a batch's own positives, for models with vectors but no table of items."""

from __future__ import annotations

from torch import Tensor

from candid.errors import ConfigError
from candid.losses.blockwise.tiles import Precision
from candid.losses.comparison import Comparison
from candid.losses.correction import DEFAULT_CORRECTION, Correction, HitRule
from candid.losses.inputs import (
    check_finite_rows,
    check_ids,
    check_rows,
    check_users,
    check_width,
    wants_finite_check,
)
from candid.losses.output import LossOutput
from candid.losses.sampled import corrected_softmax
from candid.samplers.frequency import Counts, Frequency
from candid.samplers.in_batch import InBatch
from candid.samplers.negatives import check_negatives, with_negatives


def in_batch_softmax(
    query: Tensor,
    positive_vectors: Tensor,
    positive_ids: Tensor,
    *,
    frequency: Frequency | Counts | InBatch,
    user_ids: Tensor | None = None,
    negative_vectors: Tensor | None = None,
    negative_ids: Tensor | None = None,
    correction: Correction = DEFAULT_CORRECTION,
    jackknife: bool = False,
    temperature: float | Tensor = 1.0,
    accidental_hits: HitRule | None = None,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
    check_finite: bool | None = None,
) -> LossOutput:
    """Compute the softmax of each row's positive against the other rows' positives, corrected.

    It suits a model that encodes both sides of the batch (text retrieval, any two towers without
    a table of items). In-batch negatives follow item popularity: a document that is often a
    positive is often a negative too. The correction -log(n·Q) accounts for that. An item that is
    the positive of this row and of another one is an accidental hit, however often it was
    encoded; ``positive_ids`` identify it. It is masked or kept (``accidental_hits``).

    Args:
        query: [B, D].
        positive_vectors: [B, D], the positive of each row, as wide as ``query``; normalise both
            for cosine similarity, with a small temperature.
        positive_ids: [B] int64, the item of each positive.
        frequency: how often each item is a positive over all training data: counts [V] or a
            ``Frequency`` (counts are checked and normalised at every call; pass
            ``ExactFrequency(counts)`` in a loop), or an ``InBatch`` with its own settings.
            ``torch.ones(V)`` where all items are equally frequent.
        user_ids: [B] int64, the user of each row, not -1: the other positives of the same user are
            not negatives. None if every row belongs to another user.
        negative_vectors: [B, S, D], further negatives of each row (hard ones, mined ones), each
            compared exactly; see ``with_negatives``. They are not candidates of other rows.
        negative_ids: [B, S], the items of these negatives, -1 where a row has fewer than S.
        correction: correction of the scores for the expected counts; "none" is the usual
            contrastive loss with repetitions masked.
        jackknife: replace the loss by its jackknife over users; see ``corrected_log_softmax``.
        temperature: scores are divided by it.
        accidental_hits: "keep" or "mask", what happens to other rows with the row's positive;
            None for the default of the correction, see ``candid.losses.correction``.
        precision: dtype of the matrix products, as in ``sampled_softmax``.
        effective_sample_size: report ``effective_sample_size``.
        check_finite: refuse vectors that hold NaN; None checks on the CPU only.

    Returns:
        [B] losses with gradient, log Z' of the candidates, sample weights and, if requested,
        effective sample sizes; see ``LossOutput``. Only with the correction "refined" does the
        loss estimate the negative log-likelihood of the full softmax. A row whose
        candidates are all masked (a batch of one) has loss 0.

    Raises:
        ConfigError: shapes that do not fit together, negatives without vectors or without ids,
            or ``accidental_hits`` that the correction does not allow.
        DataError: an id outside the frequency's catalog, a user id of -1, or a positive with
            frequency 0 (all checked on the CPU only); NaN if it is checked.

    Example:
        >>> import torch
        >>> from candid.losses import in_batch_softmax
        >>> query, positives, ids = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([2, 0, 7])
        >>> in_batch_softmax(query, positives, ids, frequency=torch.ones(10)).loss.shape
        torch.Size([3])
    """
    check_rows(query, positive_ids)
    check_width(query, positive_vectors, len(query), "positive_vectors")
    check_users(user_ids, len(query))
    sampler = frequency if isinstance(frequency, InBatch) else InBatch(frequency)
    if sampler.distinct or sampler.num_candidates is not None:
        raise ConfigError(
            "in_batch_softmax uses all positives of a batch: create InBatch with distinct=False "
            "and num_candidates=None"
        )
    check_ids(positive_ids, sampler.frequency.num_items)
    candidates = sampler.sample(positive_ids, user_ids)
    negatives = _checked_negatives(query, negative_vectors, negative_ids)
    if negatives is not None:
        check_ids(negatives[1].clamp(min=0), sampler.frequency.num_items)
        candidates = with_negatives(candidates, negatives[1], sampler, positive_ids, user_ids)
    if wants_finite_check(check_finite, query):
        check_finite_rows(query, "query row")
        check_finite_rows(positive_vectors, "row of positive_vectors")
        if negatives is not None:
            check_finite_rows(negatives[0].flatten(0, 1), "row of negative_vectors (as [B·S, D])")
    comparison = Comparison(
        query / temperature,
        positive_vectors=positive_vectors,
        candidate_vectors=positive_vectors,
        exact_vectors=() if negatives is None else (negatives[0],),
        positive_ids=positive_ids,
        candidates=candidates,
        precision=precision,
    )
    return corrected_softmax(
        comparison,
        correction,
        accidental_hits,
        jackknife=jackknife,
        effective_sample_size=effective_sample_size,
    )


def _checked_negatives(
    query: Tensor, vectors: Tensor | None, ids: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return vectors [B, S, D] and ids [B, S], or None if there are no further negatives."""
    if vectors is None and ids is None:
        return None
    if vectors is None or ids is None:
        raise ConfigError("negative_vectors and negative_ids belong together: pass both or neither")
    check_negatives(ids, len(query))
    if vectors.shape != (*ids.shape, query.shape[1]):
        raise ConfigError(
            f"negative_vectors must be {[*ids.shape, query.shape[1]]}, one for each of "
            f"negative_ids and as wide as query, got {list(vectors.shape)}"
        )
    return vectors, ids
