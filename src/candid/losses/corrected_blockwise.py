"""The corrected softmax of vectors: dense for few scores, in tiles for many."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from candid.errors import UnknownNameError
from candid.losses.blockwise import AccidentalHits, IdMatch, Others, Precision, blockwise_softmax
from candid.losses.comparison import Vectors, expected_count_of_positive, log_renormalization_of
from candid.losses.corrected import Correction, masked_logsumexp, widened
from candid.losses.exact_candidates import exact_accidental_hits, positive_in_exact
from candid.losses.output import LossOutput

DENSE_SCORES = 2**17
"""Up to so many scores B·N are made at once: tiles would only add to the calls."""
MOST_OWN = 8
"""Up to so many head items of a row's own are looked for among the draws without [B, N]."""
NO_ID = torch.iinfo(torch.int64).min
"""An id that no row has."""


def corrected_softmax(
    vectors: Vectors,
    correction: Correction,
    *,
    jackknife: bool = False,
    effective_sample_size: bool = False,
) -> LossOutput:
    """What ``corrected_log_softmax`` makes of the scores of these vectors.

    Scores of shared candidates [N] are made in tiles once there are more than ``DENSE_SCORES``,
    with the same result but for rounding. Always dense: the jackknife (a loss for each candidate
    left out), candidates of groups of rows, float16, and what ``torch.compile`` traces.

    Args:
        vectors: what is compared.
        correction: see ``corrected_log_softmax``.
        jackknife: see there.
        effective: see there.

    Raises:
        UnknownNameError: no such correction.
    """
    precision = None if jackknife else _tile_precision(vectors)
    if precision is None:
        return vectors.scored().softmax(
            correction, jackknife=jackknife, effective_sample_size=effective_sample_size
        )
    if correction not in get_args(Correction):
        raise UnknownNameError("correction", correction, get_args(Correction))
    parts = _parts(vectors, correction, precision)
    loss, log_z = parts.softmax()
    return LossOutput(
        loss=loss,
        log_z=log_z,
        sample_weight=torch.sigmoid(log_z - parts.positive).detach(),
        effective_sample_size=parts.effective_count(log_z.detach())
        if effective_sample_size
        else None,
    )


def _tile_precision(vectors: Vectors) -> Precision | None:
    """Precision of the products where tiles are right, None where dense scores are."""
    num_scores = len(vectors.query) * vectors.candidates.shape[0]
    if vectors.candidates.ndim != 2 or num_scores <= DENSE_SCORES:
        return None
    if torch.compiler.is_compiling():
        return None
    exact = vectors.sampled.exact
    row_candidates = (
        [] if exact is None else [part.ids for part in exact.parts if part.ids.ndim == 2]
    )
    if any(ids.shape[1] > MOST_OWN for ids in row_candidates):
        return None
    dtype, device = vectors.product_dtype, vectors.query.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = dtype if dtype == torch.float64 else torch.get_autocast_dtype(device)
    if dtype == torch.bfloat16 or vectors.precision == "bfloat16":
        return "bfloat16"
    return "float32" if dtype in (torch.float32, torch.float64) else None


@dataclass(frozen=True)
class _Parts:
    """The arguments of ``blockwise_softmax``, float32 at least, and the scores of the head."""

    query: Tensor
    candidates: Tensor
    positive: Tensor
    others: Others
    exact: Tensor | None
    exact_accidental_hits: Tensor | None

    def softmax(self) -> tuple[Tensor, Tensor]:
        log_head = (
            None if self.exact is None else masked_logsumexp(self.exact, self.exact_accidental_hits)
        )
        return blockwise_softmax(self.query, self.candidates, self.positive, self.others, log_head)

    @torch.no_grad()
    def effective_count(self, log_z: Tensor) -> Tensor:
        """(Σ w)² / Σ w², where the second sum is that of the doubled logits."""
        others = self.others
        doubled = replace(
            self,
            query=2.0 * self.query,
            others=replace(
                others,
                shift=None if others.shift is None else 2.0 * others.shift,
                row_shift=None if others.row_shift is None else 2.0 * others.row_shift,
            ),
            exact=None if self.exact is None else 2.0 * self.exact,
        )
        count = torch.exp(2.0 * log_z - doubled.softmax()[1])
        return count.masked_fill(log_z.isneginf(), 0.0)


def _parts(vectors: Vectors, correction: Correction, precision: Precision) -> _Parts:
    sampled = vectors.sampled
    wide = torch.promote_types(vectors.query.dtype, vectors.candidates.dtype)
    wide = torch.promote_types(wide, torch.float32)
    positive, exact = vectors.positive_scores().to(wide), vectors.scores_of_head()
    is_in_head = accidental_hits = sampled_in_exact = None
    if sampled.exact is not None:
        accidental_hits = exact_accidental_hits(vectors.positive_ids, sampled.exact)
        is_in_head = positive_in_exact(vectors.positive_ids, sampled.exact)
        sampled_in_exact = _drawn_in_shared_head(vectors)
    accidental = _accidental(vectors, sampled_in_exact)
    if correction == "logq":
        positive = positive - expected_count_of_positive(sampled, is_in_head)
    row_shift = None
    if correction == "refined" and sampled.num_samples:
        num_valid = len(sampled.ids) - accidental.num_hits()
        if sampled_in_exact is not None:
            num_valid = num_valid - sampled_in_exact.sum()
        row_shift = log_renormalization_of(sampled, num_valid, accidental_hits)
    shift = None if correction == "none" else sampled.log_expected_count.to(wide)
    if sampled_in_exact is not None:
        shift = positive.new_zeros(len(sampled.ids)) if shift is None else shift
        shift = shift.masked_fill(sampled_in_exact, math.inf)
    return _Parts(
        query=vectors.query.to(wide),
        candidates=vectors.candidates.to(wide),
        positive=positive,
        others=Others(
            accidental, shift, None if row_shift is None else row_shift.to(wide), precision
        ),
        exact=None if exact is None else widened(exact).to(wide),
        exact_accidental_hits=accidental_hits,
    )


def _drawn_in_shared_head(vectors: Vectors) -> Tensor | None:
    """[N] bool, True where a draw is an item of the head that all rows share; None without."""
    exact = vectors.sampled.exact
    shared = [] if exact is None else [part.ids for part in exact.parts if part.ids.ndim == 1]
    return torch.isin(vectors.sampled.ids, shared[0]) if shared else None


def _accidental(vectors: Vectors, sampled_in_exact: Tensor | None) -> AccidentalHits:
    """What ``accidental_hits`` says of shared candidates, but for the shared head."""
    sampled = vectors.sampled

    def seen(ids: Tensor) -> Tensor:
        # What no row is compared with is nobody's hit: it is counted once, apart.
        ids = ids.long()
        return ids if sampled_in_exact is None else ids.masked_fill(sampled_in_exact, NO_ID)

    of_rows = [(vectors.positive_ids, sampled.ids)]
    if sampled.owner is not None and sampled.row_user_ids is not None:
        of_rows.append((sampled.row_user_ids, sampled.owner))
    if sampled.exact is not None:
        row_candidates = [part.ids for part in sampled.exact.parts if part.ids.ndim == 2]
        of_rows += [(column, sampled.ids) for ids in row_candidates for column in ids.unbind(dim=1)]
    return AccidentalHits(*(IdMatch(row.long(), seen(ids)) for row, ids in of_rows))
