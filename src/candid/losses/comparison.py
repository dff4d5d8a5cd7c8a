"""The vectors that a sampled loss compares, with their scores and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from candid.candidates import Candidates
from candid.losses.blockwise.tiles import Precision
from candid.losses.correction import Correction, HitRule, Shifts, shifts_of
from candid.losses.inputs import check_finite_rows, check_ids, check_shapes, check_width, widened
from candid.losses.jackknife import Groups
from candid.losses.output import ItemEmbeddings

T = TypeVar("T")


class _cached(Generic[T]):
    """``functools.cached_property`` without a lock, which ``torch.compile`` cannot trace."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> T | Self:
        if instance is None:
            return self
        value = vars(instance)[self._compute.__name__] = self._compute(instance)
        return value


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, their positives and their candidates, as vectors.

    Scores and masks are computed on first use and stored.

    Attributes:
        query: [B, D].
        positive_vectors: [B, D].
        candidate_vectors: [N, D] or [G, N, D], those of ``candidates.ids``.
        exact_vectors: [H, D] or [B, H, D] of each part of the exact candidates; may be empty.
        positive_ids: [B] int64.
        candidates: as the sampler returned them.
        precision: dtype of the matrix products.
        vectors_by_id: whether candidates of equal ids have one vector, so that they can be merged;
            False where each row has its own.
    """

    query: Tensor
    positive_vectors: Tensor
    candidate_vectors: Tensor
    exact_vectors: tuple[Tensor, ...]
    positive_ids: Tensor
    candidates: Candidates
    precision: Precision = "float32"
    vectors_by_id: bool = False

    @property
    def product_dtype(self) -> torch.dtype:
        """Dtype of the matrix products."""
        if self.precision == "bfloat16":
            return torch.bfloat16
        # Under autocast the towers may leave one side narrower than the other.
        return torch.promote_types(self.query.dtype, self.candidate_vectors.dtype)

    @_cached
    def positive_scores(self) -> Tensor:
        """[B] float32, float64 for float64 vectors."""
        return (widened(self.query) * widened(self.positive_vectors)).sum(dim=1)

    @_cached
    def candidate_scores(self) -> Tensor:
        """[B, N] in the dtype of the products, those of the sampled candidates."""
        dtype = self.product_dtype
        rows, others = self.query.to(dtype), self.candidate_vectors.to(dtype)
        return rows @ others.T if others.ndim == 2 else _scores_by_group(rows, others)

    @_cached
    def exact_scores(self) -> Tensor | None:
        """[B, H] in the dtype of the products; None without exact candidates."""
        if not self.exact_vectors:
            return None
        dtype = self.product_dtype
        rows = self.query.to(dtype)
        scores = [
            rows @ part.T if part.ndim == 2 else torch.einsum("bd,bhd->bh", rows, part)
            for part in (vectors.to(dtype) for vectors in self.exact_vectors)
        ]
        return scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)

    @_cached
    def accidental_hits(self) -> Tensor:
        """[B, N] bool, True where a sampled candidate is not a negative of the row."""
        return self.candidates.accidental_hits(self.positive_ids)

    def masked(self, hit_rule: HitRule) -> Tensor:
        """[B, N] bool, True where a row is not compared with a sampled candidate.

        Args:
            hit_rule: see ``candid.losses.correction``; "mask" gives ``accidental_hits``.
        """
        if hit_rule == "mask" or not self.candidates.keeps_hits:
            return self.accidental_hits
        mask = self.candidates.accidental_hits(self.positive_ids, keep=True)
        if self.replaced_samples is None or not mask.shape[1]:
            return mask
        position = self.replaced_samples[0][:, None]
        return mask.scatter(1, position.clamp(min=0), mask[:, :1] | (position >= 0))

    @_cached
    def exact_accidental_hits(self) -> Tensor | None:
        """[B, H] bool, the same of the exact candidates; None without any."""
        exact = self.candidates.exact
        return None if exact is None else exact.accidental_hits(self.positive_ids)

    @_cached
    def positive_in_exact(self) -> Tensor | None:
        """[B] bool, whether the positive is an exact candidate; None without any."""
        exact = self.candidates.exact
        return None if exact is None else exact.has_positive(self.positive_ids)

    @_cached
    def replaced_samples(self) -> tuple[Tensor, Tensor] | None:
        """``Candidates.replaced_samples`` beside exact candidates, None without any or for sets."""
        if self.positive_in_exact is None or not self.candidates.keeps_hits:
            return None
        return self.candidates.replaced_samples(self.positive_in_exact)

    @_cached
    def groups(self) -> Groups:
        """Candidates that the jackknife leaves out together: those of one owner."""
        owner = self.candidates.owner
        if owner is None:
            return Groups()
        groups = Groups.of_owners(owner)
        by_row = self.candidates.by_row
        return Groups(
            None if groups.column is None else by_row(groups.column),
            None if groups.is_single is None else by_row(groups.is_single),
        )

    def negatives(self) -> tuple[Tensor, Tensor]:
        """Scores [B, H + N] of exact and sampled candidates, float32 at least, and their mask."""
        scores, mask = self.candidate_scores, self.accidental_hits
        if self.exact_scores is not None and self.exact_accidental_hits is not None:
            scores = torch.cat([self.exact_scores, scores], dim=1)
            mask = torch.cat([self.exact_accidental_hits, mask], dim=1)
        return widened(scores), mask

    def shifts(self, correction: Correction) -> Shifts:
        """Return the shifts of a correction, those of the candidates [N] or [B, N].

        Args:
            correction: see ``candid.losses.correction``.

        Raises:
            UnknownNameError: no such correction.
        """
        shifts = shifts_of(
            correction,
            self.candidates,
            num_valid=lambda: (~self.accidental_hits).sum(dim=1),
            exact_accidental_hits=self.exact_accidental_hits,
            positive_in_exact=self.positive_in_exact,
            num_of_others=self.num_of_others,
        )
        if shifts.candidates is None:
            return shifts
        by_row = self.candidates.by_row
        of_candidates = by_row(shifts.candidates)
        if shifts.row_counts is not None:
            dtype = widened(self.candidate_scores).dtype
            ratio = shifts.row_counts.log_ratio(slice(None), by_row, dtype)
            of_candidates = of_candidates + ratio
        return replace(shifts, candidates=of_candidates, row_counts=None)

    @property
    def num_of_others(self) -> Callable[[], Tensor] | None:
        """As for ``shifts_of``: None without exact candidates and for sets."""
        if self.candidates.exact is None or not self.candidates.keeps_hits:
            return None
        return self._num_of_others

    def _num_of_others(self) -> Tensor:
        assert self.replaced_samples is not None
        return self.replaced_samples[1]

    def with_candidates(self, candidates: Candidates, vectors: Tensor) -> Comparison:
        """Return the same rows with other sampled candidates, reusing the scores of all others.

        Args:
            candidates: with the same exact candidates as before.
            vectors: [N, D] or [G, N, D], those of ``candidates.ids``.
        """
        other = replace(self, candidates=candidates, candidate_vectors=vectors)
        of_rows = ("positive_scores", "exact_scores", "exact_accidental_hits", "positive_in_exact")
        vars(other).update({name: vars(self)[name] for name in of_rows if name in vars(self)})
        return other


def compare(
    query: Tensor,
    item_embeddings: ItemEmbeddings,
    positive_ids: Tensor,
    candidates: Candidates,
    *,
    precision: Precision = "float32",
    check_finite: bool = False,
) -> Comparison:
    """Look up the vectors of positives and candidates.

    Args:
        query: [B, D].
        item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D] (called
            once, for positives and candidates together).
        positive_ids: [B] int64.
        candidates: ids [N] shared by all rows (one matrix product) or [G, N] shared by runs of
            rows (one batched product).
        precision: dtype of the matrix products.
        check_finite: refuse NaN, by row and by item.

    Raises:
        ConfigError: shapes that do not fit together.
        DataError: an id outside the table (checked on the CPU, where it needs no device
            synchronisation), or a vector with NaN if ``check_finite``.
    """
    check_shapes(query, positive_ids, candidates)
    if check_finite:
        check_finite_rows(query, "query row")
    exact = candidates.exact
    # -1 pads a row of exact candidates: its score is masked, so that any vector serves.
    exact_ids = [] if exact is None else [part.ids.clamp(min=0) for part in exact.parts]
    # The batch's own positives are gathered once.
    is_in_batch = candidates.ids is positive_ids
    parts = [positive_ids, *([] if is_in_batch else [candidates.ids]), *exact_ids]
    ids = torch.cat([part.flatten() for part in parts]) if len(parts) > 1 else positive_ids
    gathered = _gather(item_embeddings, ids)
    check_width(query, gathered, len(ids))
    if check_finite:
        check_finite_rows(gathered, "the vector of item", ids)
    vectors = [
        flat.view(*part.shape, query.shape[1])
        for part, flat in zip(parts, gathered.split([part.numel() for part in parts]), strict=True)
    ]
    return Comparison(
        query,
        positive_vectors=vectors[0],
        candidate_vectors=vectors[0 if is_in_batch else 1],
        exact_vectors=tuple(vectors[len(vectors) - len(exact_ids) :]),
        positive_ids=positive_ids,
        candidates=candidates,
        precision=precision,
        vectors_by_id=True,
    )


def _scores_by_group(rows: Tensor, others: Tensor) -> Tensor:
    """[B, N] scores of rows [B, D] and the candidates [G, N, D] of their group."""
    num_rows, num_groups = len(rows), len(others)
    size = -(-num_rows // max(1, num_groups))
    padded = nn.functional.pad(rows, (0, 0, 0, num_groups * size - num_rows))
    scores = padded.view(num_groups, size, rows.shape[1]) @ others.mT
    return scores.flatten(0, 1)[:num_rows]


def _gather(item_embeddings: ItemEmbeddings, ids: Tensor) -> Tensor:
    """Vectors [n, D] of items [n]; ids outside the table are refused (on the CPU only)."""
    if not isinstance(item_embeddings, Tensor):
        return item_embeddings(ids)
    check_ids(ids, len(item_embeddings))
    return nn.functional.embedding(ids, item_embeddings)
