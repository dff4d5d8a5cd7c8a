"""Repeated sampling of the candidates of audited rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.audit.batch_source import TrainingRows
from candid.candidates import Candidates, ExactCandidates
from candid.samplers.config import SamplerConfig
from candid.samplers.expected_count import beside_the_batch

OBSERVED_BATCHES = 100
"""Number of batches that a sampler observes before the first sample."""

_NO_USER = -2
"""User of a placeholder."""


@dataclass(frozen=True, slots=True)
class AuditRows:
    """Audited rows that share a batch.

    Attributes:
        query: [B, D].
        positive_ids: [B] int64.
        user_ids: [B] int64.
    """

    query: Tensor
    positive_ids: Tensor
    user_ids: Tensor

    @classmethod
    def of(cls, data: AuditInput, rows: slice | Tensor) -> AuditRows:
        """Select rows of an input."""
        return cls(data.query[rows], data.positive_ids[rows], data.user_ids[rows])


class AuditSampler:
    """Sampler of the candidates of audited rows, for many independent repeats.

    For most samplers only the samples are random, given the row. An in-batch sampler has no
    randomness of its own: there the *other rows of the batch* are random. They are sampled for each
    repeat from the batches of the input: whole units of the loader of a run, so that the rows of
    one user come together as in training, or independent training rows where the input has no
    batches. The audited rows share them; rows of the same user are masked. The unit of an audited
    row itself is left out, since the loss masks all of its rows; a sampler with
    ``exclude_same_user = false`` would use them as candidates, which the audit leaves out. A
    cross-batch memory is refilled for each repeat with the batches before this one.

    Args:
        config: settings of the sampler.
        data: the audited model; a sampler that follows the model gets its item vectors.
        batch_rows: number of other rows of the batch, for samplers that read the batch, where
            the input has no ``batches`` of its own.
        generator: source of randomness.
    """

    def __init__(
        self,
        config: SamplerConfig,
        data: AuditInput,
        *,
        batch_rows: int,
        generator: torch.Generator,
    ) -> None:
        self._sampler = config.build(data.counts)
        self._data = data
        self._batches = data.batches or data.independent_rows(batch_rows)
        self._generator = generator
        self._reads_batch = config.reads_batch
        self._samples_per_row = config.samples_per_row
        self._memory_rows = config.memory_rows
        self._needs_placeholder = any(
            part.reads_batch and part.is_set for part in _innermost(config)
        )
        if self._sampler.refresh_every is not None:
            self._sampler.refresh(data.item_vectors)
        if self._reads_batch:
            for _ in range(OBSERVED_BATCHES + config.warm_up_steps):
                self._sampler.observe(*self._batches.batch(generator))

    @property
    def has_exact(self) -> bool:
        """Whether samples come beside exact candidates."""
        return self._sampler.has_exact

    def log_expected_counts(self, rows: AuditRows) -> Tensor:
        """Return the log expected count of every item: [V], or [B, V] where rows differ."""
        ids = torch.arange(self._data.num_items)
        if self._reads_batch:
            positive_ids, user_ids = self._batches.batch(self._generator)
            query = self._data.query[:0]
            return self._sampler.log_expected_count_of(ids, positive_ids, user_ids, query)
        if self._samples_per_row:
            ids = ids.expand(len(rows.query), -1)
        return self._sampler.log_expected_count_of(
            ids, rows.positive_ids, rows.user_ids, rows.query
        )

    def sample(self, rows: AuditRows) -> Candidates:
        """Sample the candidates of one step for these rows."""
        if not self._reads_batch:
            return self._sampler.sample(
                rows.positive_ids, rows.user_ids, rows.query, self._generator
            )
        positive_ids, user_ids = self._other_rows()
        query = self._data.query[:0]
        candidates = self._sampler.sample(positive_ids, user_ids, query, self._generator)
        row_counts = candidates.row_counts
        if row_counts is not None:
            parts = self._sampler.count_parts(rows.positive_ids, positive_ids, user_ids, query)
            num_placeholders = int((user_ids == _NO_USER).sum())
            row_counts = beside_the_batch(row_counts, parts, rows.user_ids, num_placeholders)
        return replace(
            candidates,
            log_expected_count_positive=self._sampler.log_expected_count_of(
                rows.positive_ids, positive_ids, user_ids, query
            ),
            row_user_ids=None if candidates.owner is None else rows.user_ids,
            # The audited rows are not in the batch that was sampled.
            source_rows=None,
            row_counts=row_counts,
        )

    def _other_rows(self) -> TrainingRows:
        """Sample the other rows of a batch; a memory is filled with the rows before it."""
        batch = self._batches.beside_a_row(self._generator, self._memory_rows)
        if self._memory_rows:
            self._sampler.observe(*batch.memory)
        needs_placeholder = self._needs_placeholder and batch.num_own_rows > 0
        if not needs_placeholder or not len(batch.others.positive_ids):
            return batch.others
        # A set of the batch's items counts the rows of other users, from a batch that contains the
        # audited row's unit. Placeholders stand for that unit: their item is in the batch already
        # and their user does not exist, so the set does not change.
        positive_ids, user_ids = batch.others
        size = (batch.num_own_rows,)
        return TrainingRows(
            torch.cat([positive_ids, positive_ids[:1].expand(size)]),
            torch.cat([user_ids, torch.full(size, _NO_USER)]),
        )


def exact_ids(exact: ExactCandidates, num_rows: int) -> Tensor:
    """Return the ids of exact candidates in the order of their scores: [B, H]; 0 for padding."""
    ids = [part.ids.clamp(min=0) for part in exact.parts]
    return torch.cat([part.expand(num_rows, part.shape[-1]) for part in ids], dim=1)


def _innermost(config: SamplerConfig) -> Iterator[SamplerConfig]:
    """Yield the samplers that contain no other samplers."""
    if not config.parts:
        yield config
    for part in config.parts:
        yield from _innermost(part)
