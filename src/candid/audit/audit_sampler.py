"""Repeated sampling of the candidates of audited rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.candidates import Candidates, ExactCandidates
from candid.samplers.config import SamplerConfig

OBSERVED_BATCHES = 100
"""Number of batches that a sampler observes before the first sample."""


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
    randomness of its own: there the *other rows of the batch* are random. ``batch_rows`` rows are
    sampled for each repeat from the training rows, independently and with replacement, which is
    the assumption behind the item frequency of the correction. The audited rows share them;
    rows of the same user are masked. A cross-batch memory is refilled for each repeat, from the
    training rows in the same way.

    Args:
        config: settings of the sampler.
        data: the audited model; a sampler that follows the model gets its item vectors.
        batch_rows: number of other rows of the batch, for samplers that read the batch.
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
        self._batch_rows = batch_rows
        self._generator = generator
        self._reads_batch = config.reads_batch
        self._memory_rows = config.memory_rows
        self._needs_placeholder = any(
            part.reads_batch and part.is_set for part in _innermost(config)
        )
        if self._sampler.refresh_every is not None:
            self._sampler.refresh(data.item_vectors)
        if self._reads_batch:
            for _ in range(OBSERVED_BATCHES + config.warm_up_steps):
                self._sampler.observe(*self._training_rows(batch_rows))

    def sample(self, rows: AuditRows) -> Candidates:
        """Sample the candidates of one step for these rows."""
        if not self._reads_batch:
            return self._sampler.sample(
                rows.positive_ids, rows.user_ids, rows.query, self._generator
            )
        if self._memory_rows:
            self._sampler.observe(*self._training_rows(self._memory_rows))
        positive_ids, user_ids = self._other_rows()
        query = self._data.query[:0]
        candidates = self._sampler.sample(positive_ids, user_ids, query, self._generator)
        return replace(
            candidates,
            log_expected_count_positive=self._sampler.log_expected_count_of(
                rows.positive_ids, positive_ids, user_ids, query
            ),
            row_user_ids=None if candidates.owner is None else rows.user_ids,
        )

    def _training_rows(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Sample positive ids and user ids of training rows, each [num_rows]."""
        data = self._data
        rows = torch.randint(
            len(data.training_positive_ids), (num_rows,), generator=self._generator
        )
        return data.training_positive_ids[rows], data.training_user_ids[rows]

    def _other_rows(self) -> tuple[Tensor, Tensor]:
        positive_ids, user_ids = self._training_rows(self._batch_rows)
        if not self._needs_placeholder:
            return positive_ids, user_ids
        # A set of the batch's items counts the rows of other users, from a batch that contains the
        # audited row. A placeholder stands for that row: its item is in the batch already and
        # its user does not exist, so the set does not change.
        return (
            torch.cat([positive_ids, positive_ids[:1]]),
            torch.cat([user_ids, torch.full_like(user_ids[:1], -2)]),
        )


def candidates_of_rows(candidates: Candidates, rows: slice) -> Candidates:
    """Return the part of a sample that concerns some of its rows."""
    owner, exact = candidates.owner, candidates.exact
    row_user_ids = candidates.row_user_ids
    return replace(
        candidates,
        ids=_take_rows(candidates.ids, rows),
        log_expected_count=_take_rows(candidates.log_expected_count, rows),
        log_expected_count_positive=candidates.log_expected_count_positive[rows],
        owner=None if owner is None else _take_rows(owner, rows),
        row_user_ids=None if row_user_ids is None else row_user_ids[rows],
        exact=None if exact is None else _exact_of_rows(exact, rows),
    )


def exact_ids(exact: ExactCandidates, num_rows: int) -> Tensor:
    """Return the ids of exact candidates in the order of their scores: [B, H]; 0 for padding."""
    ids = [part.ids.clamp(min=0) for part in exact.parts]
    return torch.cat([part.expand(num_rows, part.shape[-1]) for part in ids], dim=1)


def _exact_of_rows(exact: ExactCandidates, rows: slice) -> ExactCandidates:
    row_candidates = (
        None if exact.row_candidates is None else _exact_of_rows(exact.row_candidates, rows)
    )
    return ExactCandidates(
        _take_rows(exact.ids, rows), _take_rows(exact.log_expected_count, rows), row_candidates
    )


def _take_rows(values: Tensor, rows: slice) -> Tensor:
    return values if values.ndim == 1 else values[rows]


def _innermost(config: SamplerConfig) -> Iterator[SamplerConfig]:
    """Yield the samplers that contain no other samplers."""
    if not config.parts:
        yield config
    for part in config.parts:
        yield from _innermost(part)
