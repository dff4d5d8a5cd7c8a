"""Softmax over a batch's own positives, where there are vectors and no table of items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from candid.errors import ConfigError
from candid.losses.blockwise import Precision
from candid.losses.comparison import Vectors
from candid.losses.corrected import Correction
from candid.losses.corrected_blockwise import corrected_softmax
from candid.losses.inputs import (
    check_finite_rows,
    check_ids,
    check_rows,
    check_width,
    wants_finite_check,
)
from candid.losses.output import LossOutput
from candid.samplers import InBatch, with_negatives
from candid.samplers.frequency import Counts, Frequency
from candid.samplers.negatives import check_negatives


@dataclass(frozen=True, slots=True)
class BatchRows:
    """What a sampler needs of a batch; see ``Positives``."""

    positive_ids: Tensor
    user_ids: Tensor


def in_batch_softmax(
    query: Tensor,
    positive_vectors: Tensor,
    positive_ids: Tensor,
    *,
    frequency: Frequency | Counts | InBatch,
    user_ids: Tensor | None = None,
    negative_vectors: Tensor | None = None,
    negative_ids: Tensor | None = None,
    correction: Correction = "refined",
    jackknife: bool = False,
    temperature: float | Tensor = 1.0,
    precision: Precision = "float32",
    effective_sample_size: bool = False,
    check_finite: bool | None = None,
) -> LossOutput:
    """Compare each row's positive with the positives of the other rows, corrected.

    For a model that encodes both sides of the batch (text retrieval, any two towers without a
    table of items). The positives of a batch are draws from their frequency: a document that
    is often a positive is often a negative too, and -log(n·Q) takes that back. An item that is
    another row's positive and this row's too is no negative of this row, however often it was
    encoded: that is what ``positive_ids`` are for.

    Args:
        query: [B, D].
        positive_vectors: [B, D], the positive of each row, as wide as ``query``; normalise both
            for cosine similarity, with a small temperature.
        positive_ids: [B] int64, which item each positive is.
        frequency: how often each item is a positive over all that is trained on: counts [V] or
            a ``Frequency`` (counts are checked and normalised at every call; hand over
            ``ExactFrequency(counts)`` in a loop), or an ``InBatch`` with settings of its own.
            ``torch.ones(V)`` where all are alike.
        user_ids: [B] int64, whose row it is: the other positives of the same user are no
            negatives. None where every row is another's.
        negative_vectors: [B, S, D], negatives of the row's own (hard ones, mined ones), each
            compared exactly; see ``with_negatives``. They are no candidates of other rows.
        negative_ids: [B, S], which items these are, -1 where a row has fewer than S.
        correction: see ``corrected_log_softmax``; "none" is the usual contrastive loss with
            repetitions masked.
        jackknife: see ``corrected_log_softmax``.
        temperature: scores are divided by it.
        precision: see ``sampled_softmax``.
        effective_sample_size: report ``effective_sample_size``.
        check_finite: see ``sampled_softmax``.

    Returns:
        see ``corrected_log_softmax``. A row whose candidates are all its own (a batch of one)
        has loss 0.

    Raises:
        ConfigError: shapes that do not fit together, or negatives with vectors and no ids.
        DataError: an id outside the frequency's catalog, or a positive that it says never
            occurs (both checked on the CPU only); NaN where it is looked for.
    """
    check_rows(query, positive_ids)
    check_width(query, positive_vectors, len(query), "positive_vectors")
    sampler = frequency if isinstance(frequency, InBatch) else InBatch(frequency)
    if sampler.distinct or sampler.num_candidates is not None:
        raise ConfigError(
            "in_batch_softmax takes all the positives of a batch as they are: InBatch must have "
            "distinct=False and num_candidates=None"
        )
    check_ids(positive_ids, sampler.frequency.num_items)
    if user_ids is None:
        user_ids = torch.arange(len(query), device=query.device)
    batch = BatchRows(positive_ids, user_ids)
    candidates = sampler.sample(batch)
    given = _given_negatives(query, negative_vectors, negative_ids)
    if given is not None:
        check_ids(given[1].clamp(min=0), sampler.frequency.num_items)
        candidates = with_negatives(candidates, given[1], sampler, batch)
    if wants_finite_check(check_finite, query):
        check_finite_rows(query, "query row")
        check_finite_rows(positive_vectors, "row of positive_vectors")
        if given is not None:
            check_finite_rows(given[0].flatten(0, 1), "row of negative_vectors (as [B·S, D])")
    vectors = Vectors(
        query / temperature,
        positive=positive_vectors,
        candidates=positive_vectors,
        exact=[] if given is None else [given[0]],
        positive_ids=positive_ids,
        sampled=candidates,
        precision=precision,
    )
    return corrected_softmax(
        vectors, correction, jackknife=jackknife, effective_sample_size=effective_sample_size
    )


def _given_negatives(
    query: Tensor, vectors: Tensor | None, ids: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Vectors [B, S, D] and ids [B, S], or None where there are none."""
    if vectors is None and ids is None:
        return None
    if vectors is None or ids is None:
        raise ConfigError("negative_vectors and negative_ids go together: give both or none")
    check_negatives(ids, len(query))
    if vectors.shape != (*ids.shape, query.shape[1]):
        raise ConfigError(
            f"negative_vectors must be {[*ids.shape, query.shape[1]]}, one for each of "
            f"negative_ids and as wide as query, got {list(vectors.shape)}"
        )
    return vectors, ids
