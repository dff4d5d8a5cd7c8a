"""Repeated sampling for every audited row, until each bias has the requested accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candid.audit.accumulators import GradientAccumulator
from candid.audit.audit_input import AuditInput
from candid.audit.audit_sampler import AuditRows, AuditSampler
from candid.audit.full_softmax import FullSoftmaxReference
from candid.audit.statistics import (
    NUM_GROUPS,
    EstimatorStatistics,
    GroupMeans,
    concatenate,
    error_of_root,
)
from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.comparison import Comparison, compare
from candid.losses.estimator import Estimator

BATCH_ROWS = 64
"""Number of audited rows that share a sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBudget:
    """Number of repeats, for one sampler on one input.

    A repeat is one independent sample of the candidates of a block of rows.

    Attributes:
        accuracy: largest standard error of a relative bias; repeats are added until every
            estimator's error is below it.
        max_repeats: maximum number of repeats of a block of rows.
        repeats: fixed number of repeats; None: as many as ``accuracy`` needs.
        seconds: time limit; repeats that would exceed it are not made (16 repeats are always
            made). The number of repeats then depends on the machine. None: no limit.
        memory: bytes for the sums of gradients; if they do not fit, the rows are divided into
            blocks that are measured one after the other.
    """

    accuracy: float = 0.02
    max_repeats: int = 2048
    repeats: int | None = None
    seconds: float | None = None
    memory: int = 1 << 30


def measure(
    data: AuditInput,
    exact: FullSoftmaxReference,
    sampler: AuditSampler,
    estimators: Sequence[Estimator],
    budget: SamplingBudget,
) -> list[GroupMeans]:
    """Sample candidates for every row repeatedly and compare with the full softmax.

    Args:
        data: the audited model.
        exact: its full softmax.
        sampler: source of the candidates.
        estimators: estimators, all measured on the same candidates.
        budget: number of repeats.

    Returns:
        the means of each estimator.

    Raises:
        ConfigError: there are no candidates.
    """
    num_rows = len(data.query)
    batches = [slice(b, min(b + BATCH_ROWS, num_rows)) for b in range(0, num_rows, BATCH_ROWS)]
    size = _rows_per_block(data, sampler, batches[0], len(estimators), budget)
    blocks = [
        (batch, slice(begin, min(begin + size, batch.stop)))
        for batch in batches
        for begin in range(batch.start, batch.stop, size)
    ]
    parts = [
        _measure_block(data, exact, sampler, estimators, budget, batch, block, len(blocks))
        for batch, block in blocks
    ]
    return [concatenate(of_estimator) for of_estimator in zip(*parts, strict=True)]


def _rows_per_block(
    data: AuditInput,
    sampler: AuditSampler,
    batch: slice,
    num_estimators: int,
    budget: SamplingBudget,
) -> int:
    """Return the number of rows whose sums fit into the memory for any number of touched items."""
    candidates = sampler.sample(AuditRows.of(data, batch))
    exact = candidates.exact
    num_exact = 0 if exact is None else sum(part.ids.numel() for part in exact.parts)
    repeats = budget.max_repeats if budget.repeats is None else budget.repeats
    num_sampled = candidates.ids.numel() * max(repeats, 2 * NUM_GROUPS)
    touched = min(data.num_items, num_exact + num_sampled)
    if touched == 0:
        raise ConfigError(
            "there are no candidates to audit, because the batches of the run hold one user each; "
            "raise batches.batch_size in the recipe, or choose a sampler that does not need batches"
        )
    return min(BATCH_ROWS, max(1, budget.memory // (8 * NUM_GROUPS * num_estimators * touched)))


def _measure_block(
    data: AuditInput,
    exact: FullSoftmaxReference,
    sampler: AuditSampler,
    estimators: Sequence[Estimator],
    budget: SamplingBudget,
    batch: slice,
    block: slice,
    num_blocks: int,
) -> list[GroupMeans]:
    """Measure the rows ``block`` of the rows ``batch`` that share a sample."""
    rows = AuditRows.of(data, batch)
    inside = slice(block.start - batch.start, block.stop - batch.start)
    accumulator = GradientAccumulator(data, exact, block, estimators)
    scorer = _BlockScorer(data, block)
    done = 0
    target = 2 * NUM_GROUPS if budget.repeats is None else max(budget.repeats, 2 * NUM_GROUPS)
    began = time.perf_counter()
    while True:
        for repeat in range(done, target):
            candidates = sampler.sample(rows)
            if block != batch:
                candidates = candidates.of_rows(inside)
            accumulator.add(repeat % NUM_GROUPS, scorer.compare(candidates))
        done = target
        means = accumulator.means(done)
        is_limit = budget.repeats is not None or done >= budget.max_repeats
        if is_limit or all(
            _is_accurate(one.statistics(), budget.accuracy, num_blocks) for one in means
        ):
            return means
        target = min(2 * done, budget.max_repeats)
        if budget.seconds is not None:
            elapsed = time.perf_counter() - began
            target = min(target, int(done * budget.seconds / num_blocks / elapsed))
        if target <= done:
            return means


class _BlockScorer:
    """Scorer of the candidates of a block of rows; unchanged exact candidates are scored once."""

    def __init__(self, data: AuditInput, block: slice) -> None:
        self._query = data.query[block].double()
        self._positive_ids = data.positive_ids[block]
        self._item_vectors = data.item_vectors
        self._last: tuple[list[Tensor], Comparison] | None = None

    def compare(self, candidates: Candidates) -> Comparison:
        """Return the same as ``losses.comparison.compare``, in float64."""
        exact = candidates.exact
        parts = [] if exact is None else [part.ids for part in exact.parts]
        if not parts or self._last is None or not _are_equal(self._last[0], parts):
            comparison = compare(self._query, self._vectors, self._positive_ids, candidates)
            self._last = parts, comparison
            return comparison
        return self._last[1].with_candidates(candidates, self._vectors(candidates.ids))

    def _vectors(self, ids: Tensor) -> Tensor:
        return self._item_vectors[ids].double()


def _are_equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return len(before) == len(now) and all(
        one is other or torch.equal(one, other) for one, other in zip(before, now, strict=True)
    )


def _is_accurate(statistics: EstimatorStatistics, accuracy: float, num_blocks: int) -> bool:
    """Return whether the pooled error is small enough if every block has this block's error."""
    floor = max(statistics.bias, 0.0) ** 2
    error = (statistics.bias_error + math.sqrt(floor)) ** 2 - floor
    return error_of_root(floor, error / math.sqrt(num_blocks)) <= accuracy
