"""A module that compares each row's positive with those of the other rows of the batch."""

from __future__ import annotations

from torch import Tensor

from candid.losses.blockwise.tiles import Precision
from candid.losses.candidate_loss import CandidateLoss, RowReduction
from candid.losses.correction import Correction
from candid.losses.in_batch import BatchRows, in_batch_softmax
from candid.losses.output import LossOutput
from candid.samplers import InBatch
from candid.samplers.frequency import Counts, Frequency


class InBatchSoftmaxLoss(CandidateLoss):
    """Compare each row's positive with those of the other rows: ``in_batch_softmax``.

    For models that encode both sides of a batch. In training mode a frequency that is learnt
    from the stream sees each batch once, after it was used; what it learnt is part of
    ``state_dict``.

    Under ``DistributedDataParallel`` each process compares within its own rows.

    Args:
        frequency: counts [V], how often each item is a positive; or a ``Frequency``.
        correction: see ``corrected_log_softmax``.
        jackknife: see ``corrected_log_softmax``.
        temperature: scores are divided by it; an ``nn.Parameter`` is learnt with the model.
        reduction: "mean" or "sum" over the rows, or "none" for [B].
        precision: see ``sampled_softmax``.
        check_finite: see ``sampled_softmax``.

    Raises:
        ConfigError: a setting that cannot work.
        DataError: counts that are not finite non-negative numbers with a positive sum.
    """

    sampler: InBatch

    def __init__(
        self,
        frequency: Frequency | Counts,
        *,
        correction: Correction = "refined",
        jackknife: bool = False,
        temperature: float | Tensor = 1.0,
        reduction: RowReduction = "mean",
        precision: Precision = "float32",
        check_finite: bool | None = None,
    ) -> None:
        super().__init__(
            InBatch(frequency),
            correction,
            jackknife,
            temperature,
            precision,
            reduction,
            check_finite,
        )

    def forward(
        self,
        query: Tensor,
        positive_vectors: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        *,
        negative_vectors: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> Tensor:
        """Compare and reduce.

        Args:
            query: see ``in_batch_softmax``, as all others.
            positive_vectors: see there.
            positive_ids: see there.
            user_ids: see there.
            negative_vectors: see there.
            negative_ids: see there.

        Returns:
            a scalar, or [B] with reduction "none"; float32 at least.

        Raises:
            ConfigError: see there.
            DataError: see there.
        """
        out = self.compare(
            query,
            positive_vectors,
            positive_ids,
            user_ids,
            negative_vectors=negative_vectors,
            negative_ids=negative_ids,
        )
        return self._reduced(out.loss)

    def compare(
        self,
        query: Tensor,
        positive_vectors: Tensor,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        *,
        negative_vectors: Tensor | None = None,
        negative_ids: Tensor | None = None,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """As ``forward``, with everything that is known of each row.

        Args:
            query: see ``in_batch_softmax``, as all others.
            positive_vectors: see there.
            positive_ids: see there.
            user_ids: see there.
            negative_vectors: see there.
            negative_ids: see there.
            effective_sample_size: report ``effective_sample_size``.
        """
        out = in_batch_softmax(
            query,
            positive_vectors,
            positive_ids,
            frequency=self.sampler,
            user_ids=user_ids,
            negative_vectors=negative_vectors,
            negative_ids=negative_ids,
            correction=self.correction,
            jackknife=self.jackknife,
            temperature=self.temperature,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
            check_finite=self.check_finite,
        )
        self._observe(BatchRows(positive_ids, positive_ids if user_ids is None else user_ids))
        return out
