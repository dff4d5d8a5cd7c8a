"""Scores of each row's positive and candidates, and which candidates are no negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from candid.candidates import Candidates
from candid.losses.blockwise import Precision
from candid.losses.corrected import Correction, corrected_log_softmax, widened
from candid.losses.exact_candidates import (
    exact_accidental_hits,
    exact_scores,
    exact_share,
    positive_in_exact,
    sampled_in_exact,
)
from candid.losses.inputs import check_finite_rows, check_ids, check_shapes, check_width
from candid.losses.output import ItemEmbeddings, LossOutput


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a sampled loss compares.

    Attributes:
        positive: [B] float32 (float64 for float64 vectors), the scores of the positives.
        candidates: [B, N] scores, in the wider dtype of query and item vectors.
        hits: [B, N] bool, True where the candidate is not a negative of the row.
        drawn: the candidates as the sampler drew them.
        head: [B, H] scores of the exact head, or None.
        head_hits: [B, H] bool, True where a head item is not a negative of the row; or None.
        positive_in_head: [B] bool, or None without a head.
    """

    positive: Tensor
    candidates: Tensor
    accidental_hits: Tensor
    sampled: Candidates
    exact: Tensor | None = None
    exact_accidental_hits: Tensor | None = None
    positive_in_exact: Tensor | None = None

    def softmax(
        self,
        correction: Correction,
        *,
        jackknife: bool = False,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """The corrected softmax of these scores; see ``corrected_log_softmax``."""
        constant = None
        if correction == "refined":
            constant = log_renormalization(
                self.sampled, self.accidental_hits, self.exact_accidental_hits
            )
            constant = None if constant is None else constant.to(self.positive.dtype)
        return corrected_log_softmax(
            positive=self.positive,
            candidates=self.candidates,
            log_expected_count=self.sampled.by_row(self.sampled.log_expected_count),
            log_expected_count_positive=self.log_expected_count_positive,
            accidental_hits=self.accidental_hits,
            correction=correction,
            jackknife=jackknife,
            log_renormalization=constant,
            exact=self.exact,
            exact_accidental_hits=self.exact_accidental_hits,
            effective_sample_size=effective_sample_size,
        )

    @property
    def log_expected_count_positive(self) -> Tensor:
        """[B], the log expected count of each row's positive, in the head or among the draws."""
        return expected_count_of_positive(self.sampled, self.positive_in_exact)

    def everything(self) -> tuple[Tensor, Tensor]:
        """Scores [B, H + N] of head and draws alike, and which are no negatives."""
        if self.exact is None or self.exact_accidental_hits is None:
            return self.candidates, self.accidental_hits
        scores = torch.cat([self.exact, self.candidates], dim=1)
        return scores, torch.cat([self.exact_accidental_hits, self.accidental_hits], dim=1)


def expected_count_of_positive(sampled: Candidates, is_in_head: Tensor | None) -> Tensor:
    """[B], the log expected count of each row's positive; 0 where it is in the head."""
    if is_in_head is None:
        return sampled.log_expected_count_positive
    # What is in the head is expected once, whatever the draws expect of it.
    return sampled.log_expected_count_positive.masked_fill(is_in_head, 0.0)


@dataclass(frozen=True, slots=True)
class Vectors:
    """What a sampled loss compares, before it is scored.

    Attributes:
        query: [B, D].
        positive: [B, D].
        candidates: [N, D] or [G, N, D], those of ``drawn.ids``.
        head: [H, D] or [B, H, D] of each part of the head; none without a head.
        positive_ids: [B] int64.
        drawn: the candidates as the sampler drew them.
        precision: of the matrix products.
    """

    query: Tensor
    positive: Tensor
    candidates: Tensor
    exact: Sequence[Tensor]
    positive_ids: Tensor
    sampled: Candidates
    precision: Precision = "float32"

    @property
    def product_dtype(self) -> torch.dtype:
        """Of the matrix products."""
        if self.precision == "bfloat16":
            return torch.bfloat16
        # Under autocast the towers may leave one side narrower than the other.
        return torch.promote_types(self.query.dtype, self.candidates.dtype)

    def positive_scores(self) -> Tensor:
        """[B], float32 at least."""
        return (widened(self.query) * widened(self.positive)).sum(dim=1)

    def scores_of_head(self) -> Tensor | None:
        """[B, H] in the dtype of the products, or None without a head."""
        if not self.exact:
            return None
        dtype = self.product_dtype
        return exact_scores(self.query.to(dtype), [part.to(dtype) for part in self.exact])

    def scored(self) -> Comparison:
        """All scores at once."""
        dtype, exact = self.product_dtype, self.sampled.exact
        rows, others = self.query.to(dtype), self.candidates.to(dtype)
        return Comparison(
            positive=self.positive_scores(),
            candidates=rows @ others.T if others.ndim == 2 else _scores_by_group(rows, others),
            accidental_hits=accidental_hits(self.positive_ids, self.sampled),
            sampled=self.sampled,
            exact=self.scores_of_head(),
            exact_accidental_hits=None
            if exact is None
            else exact_accidental_hits(self.positive_ids, exact),
            positive_in_exact=None
            if exact is None
            else positive_in_exact(self.positive_ids, exact),
        )


def compare(
    query: Tensor,
    item_embeddings: ItemEmbeddings,
    positive_ids: Tensor,
    candidates: Candidates,
) -> Comparison:
    """Score positives and candidates; see ``gather_vectors`` and ``Vectors.scored``."""
    return gather_vectors(query, item_embeddings, positive_ids, candidates).scored()


def gather_vectors(
    query: Tensor,
    item_embeddings: ItemEmbeddings,
    positive_ids: Tensor,
    candidates: Candidates,
    *,
    precision: Precision = "float32",
    check_finite: bool = False,
) -> Vectors:
    """Look up what is to be compared by the inner product with the query.

    Args:
        query: [B, D].
        item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D] (called
            once, for positives and candidates together).
        positive_ids: [B] int64.
        candidates: ids [N] shared by all rows (one matrix product) or [G, N] shared by runs of
            rows (one batched product).
        precision: of the matrix products.
        check_finite: refuse NaN, by row and by item.

    Raises:
        ConfigError: shapes that do not fit together.
        DataError: an id outside the table (checked on the CPU, where it needs no device
            synchronisation), or a vector with NaN where that is looked for.
    """
    check_shapes(query, positive_ids, candidates)
    if check_finite:
        check_finite_rows(query, "query row")
    exact = candidates.exact
    # -1 fills up a head: any vector will do, its score never counts.
    of_head = [part.ids.clamp(min=0) for part in exact.parts] if exact is not None else []
    # The batch's own positives are gathered once.
    is_in_batch = candidates.ids is positive_ids
    parts = [positive_ids, *([] if is_in_batch else [candidates.ids]), *of_head]
    ids = torch.cat([part.flatten() for part in parts]) if len(parts) > 1 else positive_ids
    gathered = gather(item_embeddings, ids)
    check_width(query, gathered, len(ids))
    if check_finite:
        check_finite_rows(gathered, "the vector of item", ids)
    vectors = [
        flat.view(*part.shape, query.shape[1])
        for part, flat in zip(parts, gathered.split([part.numel() for part in parts]), strict=True)
    ]
    return Vectors(
        query,
        positive=vectors[0],
        candidates=vectors[0 if is_in_batch else 1],
        exact=vectors[len(vectors) - len(of_head) :],
        positive_ids=positive_ids,
        sampled=candidates,
        precision=precision,
    )


def accidental_hits(positive_ids: Tensor, candidates: Candidates) -> Tensor:
    """[B, N] bool, True where the candidate is not a negative of the row.

    That is, where it is the row's positive, or comes from the row's own user, or is in the
    head already, or only fills up a set.
    """
    accidental_hits = candidates.by_row(candidates.ids) == positive_ids[:, None]
    if candidates.owner is not None and candidates.row_user_ids is not None:
        accidental_hits = accidental_hits | (
            candidates.by_row(candidates.owner) == candidates.row_user_ids[:, None]
        )
    if candidates.ids.ndim > 1:
        accidental_hits = accidental_hits | candidates.by_row(
            candidates.log_expected_count.isposinf()
        )
    if candidates.exact is not None:
        accidental_hits = accidental_hits | sampled_in_exact(candidates, candidates.exact)
    return accidental_hits


def _scores_by_group(rows: Tensor, others: Tensor) -> Tensor:
    """[B, N] scores of rows [B, D] and the candidates [G, N, D] of their group."""
    num_rows, num_groups = len(rows), len(others)
    size = -(-num_rows // max(1, num_groups))
    padded = nn.functional.pad(rows, (0, 0, 0, num_groups * size - num_rows))
    scores = padded.view(num_groups, size, rows.shape[1]) @ others.mT
    return scores.flatten(0, 1)[:num_rows]


def log_renormalization(
    candidates: Candidates, accidental_hits: Tensor, exact_accidental_hits: Tensor | None = None
) -> Tensor | None:
    """Log of (n_valid / n) / (1 - Q(p and head)) for draws with replacement: [B] float64.

    None for sets, and where nothing was drawn at all.

    Args:
        candidates: what was drawn.
        hits: [B, N] bool.
        hits_of_head: [B, H] bool, where there is a head.
    """
    return log_renormalization_of(candidates, (~accidental_hits).sum(dim=1), exact_accidental_hits)


def log_renormalization_of(
    candidates: Candidates, num_valid: Tensor, exact_accidental_hits: Tensor | None = None
) -> Tensor | None:
    """As ``log_renormalization``, from how many candidates of each row are no hits: [B]."""
    n = candidates.num_samples
    if not n:
        return None
    dtype = torch.float64
    share = torch.exp(candidates.log_expected_count_positive.to(dtype) - math.log(n))
    if candidates.exact is not None and exact_accidental_hits is not None:
        share = share + exact_share(candidates.exact, exact_accidental_hits, n, dtype)
    # Shares may round to just above 1 in all, where log1p would be nan.
    constant = torch.log(num_valid.to(dtype) / n) - torch.log1p(-share.clamp(max=1.0))
    return constant.masked_fill(num_valid == 0, 0.0)


def gather(item_embeddings: ItemEmbeddings, ids: Tensor) -> Tensor:
    """Vectors [n, D] of items [n] int64.

    Raises:
        DataError: an id outside the table (checked on the CPU only).
    """
    if not isinstance(item_embeddings, Tensor):
        return item_embeddings(ids)
    check_ids(ids, len(item_embeddings))
    return nn.functional.embedding(ids, item_embeddings)
