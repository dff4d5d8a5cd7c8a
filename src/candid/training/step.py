"""One training step up to its gradients: encode, sample, compute the loss, propagate it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

from candid.batches import Batch, Queries
from candid.distributed import Group
from candid.errors import ConfigError
from candid.features.transfer import to_device
from candid.losses.candidate_loss import BatchShare, ObjectiveWithSampler
from candid.losses.output import Loss, LossOutput, ShardedLoss
from candid.samplers.sampler import Sampler
from candid.towers import RetrievalModel
from candid.towers.row_noise import seed_noise
from candid.training.batch_shares import Share
from candid.training.config import TrainingConfig
from candid.training.gradient_cache import GradientCache, WholeBatch
from candid.training.gradient_sums import GradientSums
from candid.training.step_values import weighted_mean

SAMPLE_STREAM = 1
NOISE_STREAM = 2
PROCESS_STREAM = 3
"""Streams of random numbers of a seed: of the samples; of dropout and hidden values; and of towers
that draw from the generator of torch, which is another one on each process."""


class Step:
    """The loss of a batch and its gradients, on one process or on several.

    With several processes each computes the rows of its share. Candidates are sampled for the whole
    batch on every process, from one state of the generator, and the loss of the batch is a sum over
    processes: its gradients are those of one process up to rounding.

    Args:
        model: on its device.
        loss: objective; if it needs candidates, ``sampler`` must be given.
        sampler: source of the candidates, or None.
        config: settings.
        micro_batch: units of a part that is encoded at once; None: the whole batch.
        seed: seed of dropout and of the sampler.
        item_is_trained: [V] bool, needed if ``config.softmax_over`` is "trained".
        group: of the processes.

    Attributes:
        candidate_loss: the loss with its sampler; None for a loss over the whole catalog.
        generator: source of the samples.

    Raises:
        ConfigError: the settings do not fit together.
    """

    def __init__(
        self,
        *,
        model: RetrievalModel,
        loss: Loss,
        sampler: Sampler | None,
        config: TrainingConfig,
        micro_batch: int | None,
        seed: int,
        item_is_trained: Tensor | None,
        group: Group,
    ) -> None:
        self._model = model
        self._loss = loss
        self._config = config
        self._seed = seed
        self._group = group
        self._sums = GradientSums(model, group)
        self._encoder = (
            WholeBatch(model, self._encode_queries)
            if micro_batch is None
            else GradientCache(model, self._encode_queries, micro_batch, group)
        )
        # Parts of a batch are cut on the CPU.
        self._cuts_batch = micro_batch is not None or not group.is_single
        self._sharded_loss: ShardedLoss | None = None
        if model.own_items is not None and not loss.needs_candidates:
            if not isinstance(loss, ShardedLoss):
                raise ConfigError(
                    "this loss needs the vectors of all items, and no process holds all rows of "
                    "sharded tables: set training.tables without 'sharded_', or define "
                    "compare_shards of the loss"
                )
            self._sharded_loss = loss
        self._trained: tuple[Tensor, Tensor] | None = None
        if config.softmax_over == "trained":
            if item_is_trained is None:
                raise ConfigError("training.softmax_over = 'trained' needs item_is_trained")
            is_trained = item_is_trained.to(model.device)
            self._trained = is_trained.nonzero()[:, 0], is_trained.cumsum(0) - 1
        self.generator = torch.Generator(device=model.device)
        self.candidate_loss: ObjectiveWithSampler | None = None
        if sampler is not None and loss.needs_candidates:
            self.candidate_loss = ObjectiveWithSampler(
                loss, sampler, num_groups=config.num_groups
            ).to(model.device)

    def seed_samples(self) -> None:
        """Seed the samples of a new run: dropout must not share their stream."""
        self.generator.manual_seed(derived_seed(self._seed, SAMPLE_STREAM))

    def placed(self, batch: Batch) -> Batch:
        """Return a batch where ``gradients`` needs it, on the device unless it is cut first."""
        return batch if self._cuts_batch else batch.to(self._model.device)

    def gradients(
        self, batch: Batch, step: int, effective_sample_size: bool = False
    ) -> tuple[Tensor, LossOutput]:
        """Compute the gradients of the mean loss of a batch.

        Args:
            batch: the whole batch, the same on every process; on the CPU if there are several or
                a micro-batch.
            step: number of the step, from 0.
            effective_sample_size: report ``effective_sample_size``.

        Returns:
            the mean loss [] (detached), the same on every process, and the output of the rows of
            this process.
        """
        seed_noise(self._model, derived_seed(self._seed, NOISE_STREAM, step))
        if self._group.is_single:
            output = self._output(batch, effective_sample_size)
            value = weighted_mean(output.loss, self._weights(batch))
            self._encoder.backward(value)
            return value.detach(), output
        share = Share.of(batch, self._group)
        with self._own_random_numbers(step):
            output = self._output(batch, effective_sample_size, share)
            value = self._share_of_mean(output.loss, batch, share)
            self._encoder.backward(value)
        return self._sums.add(value), output

    def item_vectors(self) -> Tensor:
        """Return the vectors of all items, without dropout: [V, D]."""
        was_training = self._model.training
        self._model.eval()
        vectors = self._model.encode_catalog()
        self._model.train(was_training)
        return vectors

    def _output(
        self, batch: Batch, effective_sample_size: bool, share: Share | None = None
    ) -> LossOutput:
        query = self._encoder.queries(batch if share is None else share.queries)
        positive_ids = self._on_device(batch.positive_ids)
        rows = None if share is None else self._on_device(share.rows)
        if self.candidate_loss is None:
            own_ids = positive_ids if rows is None else positive_ids[rows]
            return self._compare_with_catalog(query, own_ids, effective_sample_size, share)
        batch_share = None
        if share is not None and rows is not None:
            group = self._group
            batch_share = BatchShare(rows, lambda v: share.gather(v, group), group.sum)
        return self.candidate_loss.compare(
            query,
            self._encoder.items,
            positive_ids,
            self._on_device(batch.user_ids),
            None if batch.negative_ids is None else self._on_device(batch.negative_ids),
            generator=self.generator,
            item_vectors=self.item_vectors,
            effective_sample_size=effective_sample_size,
            share=batch_share,
        )

    def _compare_with_catalog(
        self,
        query: Tensor,
        positive_ids: Tensor,
        effective_sample_size: bool,
        share: Share | None,
    ) -> LossOutput:
        """Compute the loss of the rows of this process over all items, or over the trained ones."""
        own, num_items, item_ids = self._model.own_items, self._model.item_tower.num_items, None
        if self._trained is not None:
            # The items of the softmax are counted among the trained ones.
            item_ids, position = self._trained
            positive_ids, num_items = position[positive_ids], len(item_ids)
        if own is None or self._sharded_loss is None:
            every = self._encoder.catalog() if item_ids is None else self._encoder.items(item_ids)
            return self._loss(
                query, every, positive_ids, effective_sample_size=effective_sample_size
            )
        if item_ids is None:
            vectors = self._encoder.own_items()
        else:
            edges = torch.tensor([own.start, own.stop], device=item_ids.device)
            own = range(*torch.searchsorted(item_ids, edges).tolist())
            vectors = self._encoder.items(item_ids[own.start : own.stop])
        return self._sharded_loss.compare_shards(
            query,
            vectors,
            positive_ids,
            own_items=own,
            num_items=num_items,
            group=self._group,
            counts=None if share is None else share.counts,
            effective_sample_size=effective_sample_size,
        )

    def _share_of_mean(self, loss: Tensor, batch: Batch, share: Share) -> Tensor:
        """Return the part of the mean loss of the batch that comes from the rows of this process.

        The denominator is that of the whole batch: a mean of the means of shares would weigh the
        rows of small shares more.
        """
        weights = self._weights(batch)
        if weights is None:
            return loss.sum() / len(batch)
        total = weights.sum()
        own = weights[self._on_device(share.rows)]
        return (loss * own).sum() / torch.where(total > 0, total, 1.0)

    def _weights(self, batch: Batch) -> Tensor | None:
        return None if batch.weights is None else self._on_device(batch.weights)

    def _encode_queries(self, queries: Queries) -> Tensor:
        is_narrow = self._config.precision == "bfloat16"
        device = self._model.device.type
        with torch.autocast(device, torch.bfloat16) if is_narrow else nullcontext():
            return self._model.encode_queries(queries)

    def _on_device(self, values: Tensor) -> Tensor:
        return to_device(values, self._model.device)

    @contextmanager
    def _own_random_numbers(self, step: int) -> Iterator[None]:
        """Give towers that draw from the generator of torch other numbers on each process.

        Afterwards the generator is where it was, the same on all processes: the rounding of
        bfloat16 tables must not differ between them.
        """
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(derived_seed(self._seed, PROCESS_STREAM, step, self._group.rank))
            yield


def derived_seed(seed: int, *stream: int) -> int:
    """Return the seed of a stream of random numbers."""
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0])
