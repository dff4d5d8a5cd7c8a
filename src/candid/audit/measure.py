"""The measuring core: many draws of every row, until their bias is known well enough."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.estimators import Variant
from candid.audit.exact import ExactSoftmax
from candid.audit.moments import GROUPS, Finding, Moments, error_of_root, joined
from candid.audit.sampler import AuditSampler, Rows, part_of
from candid.audit.subject import Subject
from candid.audit.sums import GradientSums
from candid.candidates import Candidates
from candid.losses.comparison import Comparison, accidental_hits, compare

BATCH_ROWS = 64
"""Audited rows that share a draw."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to go on, with one sampler on one subject.

    Attributes:
        accuracy: largest standard error of a relative bias; draws are added until every
            variant's is below it.
        max_draws: draws of a block of rows at most.
        draws: so many, whatever the error; None: as many as the accuracy needs.
        seconds: no draws are added that would take longer than this in all, whatever the error
            (16 are made in any case); None: no limit. How many draws come is then a matter of
            the machine.
        memory: bytes for the sums of gradients; where they would not fit, the rows are cut
            into blocks that are measured one after the other.
    """

    accuracy: float = 0.005
    max_draws: int = 2048
    draws: int | None = None
    seconds: float | None = None
    memory: int = 1 << 30


def measure(
    subject: Subject,
    exact: ExactSoftmax,
    sampler: AuditSampler,
    variants: Sequence[Variant],
    effort: Effort,
) -> list[Moments]:
    """Draw for every row of a subject and compare with the full softmax.

    Args:
        subject: what is audited.
        exact: its full softmax.
        sampler: where candidates come from.
        variants: corrections, all measured on the same draws.
        effort: how long to go on.

    Returns:
        the moments of each variant.
    """
    num_rows = len(subject.query)
    batches = [slice(b, min(b + BATCH_ROWS, num_rows)) for b in range(0, num_rows, BATCH_ROWS)]
    size = _rows_that_fit(subject, sampler, batches[0], len(variants), effort)
    blocks = [
        (batch, slice(begin, min(begin + size, batch.stop)))
        for batch in batches
        for begin in range(batch.start, batch.stop, size)
    ]
    parts = [
        _measured_block(subject, exact, sampler, variants, effort, batch, block, len(blocks))
        for batch, block in blocks
    ]
    return [joined(of_variant) for of_variant in zip(*parts, strict=True)]


def _rows_that_fit(
    subject: Subject, sampler: AuditSampler, batch: slice, num_variants: int, effort: Effort
) -> int:
    """Rows of a block whose sums stay within the memory, however many items the draws touch."""
    drawn = sampler.sample(Rows.of(subject, batch))
    in_head = 0 if drawn.exact is None else sum(p.ids.numel() for p in drawn.exact.parts)
    most = effort.max_draws if effort.draws is None else effort.draws
    touched = min(subject.num_items, in_head + drawn.ids.numel() * max(most, 2 * GROUPS))
    return min(BATCH_ROWS, max(1, effort.memory // (8 * GROUPS * num_variants * touched)))


def _measured_block(
    subject: Subject,
    exact: ExactSoftmax,
    sampler: AuditSampler,
    variants: Sequence[Variant],
    effort: Effort,
    batch: slice,
    block: slice,
    num_blocks: int,
) -> list[Moments]:
    """Measure the rows ``block``, which stand in ``batch``, until they are known well enough."""
    rows = Rows.of(subject, batch)
    inside = slice(block.start - batch.start, block.stop - batch.start)
    sums = GradientSums(subject, exact, block, variants)
    scores = _Scores(subject, block)
    draws, target = 0, 2 * GROUPS if effort.draws is None else max(effort.draws, 2 * GROUPS)
    began = time.perf_counter()
    while True:
        for draw in range(draws, target):
            candidates = sampler.sample(rows)
            if block != batch:
                candidates = part_of(candidates, inside)
            sums.add(draw % GROUPS, scores.compared(candidates))
        draws = target
        found = sums.moments(draws)
        enough = effort.draws is not None or draws >= effort.max_draws
        if enough or all(_is_known(one.find(), effort.accuracy, num_blocks) for one in found):
            return found
        target = min(2 * draws, effort.max_draws)
        if effort.seconds is not None:
            taken = time.perf_counter() - began
            target = min(target, int(draws * effort.seconds / num_blocks / taken))
        if target <= draws:
            return found


class _Scores:
    """Compares the rows of a block with draws; what stays from draw to draw is scored once."""

    def __init__(self, subject: Subject, block: slice) -> None:
        self._query = subject.query[block].double()
        self._positive_ids = subject.positive_ids[block]
        self._item_vectors = subject.item_vectors
        self._last: tuple[list[Tensor], Comparison] | None = None

    def compared(self, candidates: Candidates) -> Comparison:
        """What ``losses.comparison.compare`` gives, in float64."""
        exact = candidates.exact
        parts = [] if exact is None else [part.ids for part in exact.parts]
        if not parts or self._last is None or not _are_same(self._last[0], parts):
            compared = compare(self._query, self._vectors_of, self._positive_ids, candidates)
            self._last = parts, compared
            return compared
        vectors = self._vectors_of(candidates.ids)
        scores = (
            self._query @ vectors.T
            if vectors.ndim == 2
            else torch.einsum("bd,bnd->bn", self._query, candidates.by_row(vectors))
        )
        return replace(
            self._last[1],
            candidates=scores,
            accidental_hits=accidental_hits(self._positive_ids, candidates),
            sampled=candidates,
        )

    def _vectors_of(self, ids: Tensor) -> Tensor:
        return self._item_vectors[ids].double()


def _are_same(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return len(before) == len(now) and all(
        one is other or torch.equal(one, other) for one, other in zip(before, now, strict=True)
    )


def _is_known(found: Finding, accuracy: float, num_blocks: int) -> bool:
    """Whether the pooled error will be small enough if every block is as uncertain as this."""
    floor = max(found.bias, 0.0) ** 2
    error = (found.bias_error + math.sqrt(floor)) ** 2 - floor
    return error_of_root(floor, error / math.sqrt(num_blocks)) <= accuracy
