"""Scores of each row's positive and candidates, and which candidates are no negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from candid.errors import DataError
from candid.losses.corrected import Correction, corrected_log_softmax, widened
from candid.losses.output import ItemEmbeddings, LossOutput
from candid.proposals import Candidates


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a sampled loss compares.

    Attributes:
        positive: [B] float32 (float64 for float64 vectors), the scores of the positives.
        candidates: [B, N] scores, in the wider dtype of query and item vectors.
        hits: [B, N] bool, True where the candidate is not a negative of the row.
        drawn: the candidates as the proposal drew them.
    """

    positive: Tensor
    candidates: Tensor
    hits: Tensor
    drawn: Candidates

    def softmax(
        self, correction: Correction, *, jackknife: bool = False, effective: bool = False
    ) -> LossOutput:
        """The corrected softmax of these scores; see ``corrected_log_softmax``."""
        constant = None
        if correction == "refined":
            constant = row_constant(self.drawn, self.hits, self.positive.dtype)
        return corrected_log_softmax(
            positive=self.positive,
            candidates=self.candidates,
            log_count=self.drawn.by_row(self.drawn.log_count),
            log_count_positive=self.drawn.log_count_positive,
            hits=self.hits,
            correction=correction,
            jackknife=jackknife,
            row_constant=constant,
            effective=effective,
        )


def compare(
    query: Tensor, item_embeddings: ItemEmbeddings, positive_ids: Tensor, candidates: Candidates
) -> Comparison:
    """Score positives and candidates by the inner product with the query.

    Args:
        query: [B, D].
        item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D] (called
            once, for positives and candidates together).
        positive_ids: [B] int64.
        candidates: ids [N] shared by all rows (one matrix product) or [G, N] shared by runs of
            rows (one batched product).

    Raises:
        DataError: an id outside the table (checked on the CPU, where it needs no device
            synchronisation).
    """
    positive_vectors, candidate_vectors = _vectors(item_embeddings, positive_ids, candidates.ids)
    # Under autocast the towers may leave one side narrower than the other.
    wide = torch.promote_types(query.dtype, candidate_vectors.dtype)
    rows, others = query.to(wide), candidate_vectors.to(wide)
    return Comparison(
        positive=(widened(query) * widened(positive_vectors)).sum(dim=1),
        candidates=rows @ others.T if others.ndim == 2 else _scores_by_group(rows, others),
        hits=accidental_hits(positive_ids, candidates),
        drawn=candidates,
    )


def accidental_hits(positive_ids: Tensor, candidates: Candidates) -> Tensor:
    """[B, N] bool, True where the candidate is not a negative of the row.

    That is, where it is the row's positive, or comes from the row's own user, or only fills
    up a set.
    """
    hits = candidates.by_row(candidates.ids) == positive_ids[:, None]
    if candidates.owner is not None and candidates.row_user_ids is not None:
        hits = hits | (candidates.by_row(candidates.owner) == candidates.row_user_ids[:, None])
    if candidates.ids.ndim > 1:
        hits = hits | candidates.by_row(candidates.log_count.isposinf())
    return hits


def _scores_by_group(rows: Tensor, others: Tensor) -> Tensor:
    """[B, N] scores of rows [B, D] and the candidates [G, N, D] of their group."""
    num_rows, num_groups = len(rows), len(others)
    size = -(-num_rows // max(1, num_groups))
    padded = nn.functional.pad(rows, (0, 0, 0, num_groups * size - num_rows))
    scores = padded.view(num_groups, size, rows.shape[1]) @ others.mT
    return scores.flatten(0, 1)[:num_rows]


def row_constant(candidates: Candidates, hits: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Log of (n_valid / n) / (1 - Q(p)) for draws with replacement (any at all): [B], else None.

    Args:
        candidates: what was drawn.
        hits: [B, N] bool.
        dtype: of the result, and of the arithmetic.
    """
    n = candidates.num_draws
    if not n:
        return None
    num_valid = (~hits).sum(dim=1)
    log_q = candidates.log_count_positive.to(dtype) - math.log(n)
    # log Q(p) may round to just above 0, where log1p would be nan.
    constant = torch.log(num_valid.to(dtype) / n) - torch.log1p(-log_q.clamp(max=0.0).exp())
    return constant.masked_fill(num_valid == 0, 0.0)


def _vectors(
    item_embeddings: ItemEmbeddings, positive_ids: Tensor, candidate_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Vectors of positives [B, D] and candidates [N, D] or [G, N, D], gathered once."""
    if candidate_ids is positive_ids:
        vectors = gather(item_embeddings, positive_ids)
        return vectors, vectors
    gathered = gather(item_embeddings, torch.cat([positive_ids, candidate_ids.flatten()]))
    positives, others = gathered.split([len(positive_ids), candidate_ids.numel()])
    return positives, others.view(*candidate_ids.shape, gathered.shape[-1])


def gather(item_embeddings: ItemEmbeddings, ids: Tensor) -> Tensor:
    """Vectors [n, D] of items [n] int64.

    Raises:
        DataError: an id outside the table (checked on the CPU only).
    """
    if not isinstance(item_embeddings, Tensor):
        return item_embeddings(ids)
    check_ids(item_embeddings, ids)
    return nn.functional.embedding(ids, item_embeddings)


def check_ids(table: Tensor, ids: Tensor) -> None:
    """Refuse ids that are no row of the table [V, D], on the CPU, where looking is free.

    Raises:
        DataError: an id below 0 or above V - 1.
    """
    if ids.device.type == "cpu" and len(ids):
        lowest, highest = (int(extreme) for extreme in torch.aminmax(ids))
        if lowest < 0 or highest >= len(table):
            raise DataError(
                f"item id {lowest if lowest < 0 else highest} is outside the catalog: "
                f"ids must be 0 to {len(table) - 1}"
            )
