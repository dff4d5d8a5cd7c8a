"""The in-batch softmax as a module, for models that encode both sides of a batch."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from candid.losses.blockwise.tiles import Precision
from candid.losses.candidate_loss import (
    REDUCTION,
    Reduction,
    check_device,
    check_known,
    check_temperature,
    reduce_rows,
)
from candid.losses.correction import DEFAULT_CORRECTION, Correction, HitRule, hit_rule
from candid.losses.in_batch import in_batch_softmax
from candid.losses.output import LossOutput
from candid.samplers.frequency import Counts, Frequency
from candid.samplers.in_batch import InBatch
from candid.samplers.table_module import TableModule


class InBatchSoftmaxLoss(TableModule):
    """The softmax of each row's positive against those of the other rows: ``in_batch_softmax``.

    In training mode a frequency that is estimated from the stream observes each batch once,
    after it was used; its estimate is part of ``state_dict``.

    Under ``DistributedDataParallel`` each process compares within its own rows.

    Args:
        frequency: counts [V], how often each item is a positive; or a ``Frequency``.
        correction: correction of the scores for the expected counts; see
            ``corrected_log_softmax``.
        jackknife: replace the loss by its jackknife over users; see ``corrected_log_softmax``.
        temperature: scores are divided by it; an ``nn.Parameter`` is trained with the model.
        reduction: "mean" or "sum" over the rows, or "none" for [B].
        accidental_hits: "keep" or "mask", what happens to samples of a row's positive; None for
            the default of the correction; see ``sampled_softmax``.
        precision: dtype of the matrix products; see ``sampled_softmax``.
        check_finite: refuse NaN in the vectors; None checks on the CPU only.

    Raises:
        ConfigError: ``temperature`` is not above 0.
        UnknownNameError: a setting has an unknown name.
        DataError: counts that are not finite non-negative numbers with a positive sum.

    Example:
        >>> import torch
        >>> from candid import InBatchSoftmaxLoss
        >>> loss = InBatchSoftmaxLoss(torch.ones(10), temperature=0.05)
        >>> query, positive_vectors = torch.randn(3, 4), torch.randn(3, 4)
        >>> loss(query, positive_vectors, torch.tensor([2, 0, 7])).shape
        torch.Size([])
    """

    def __init__(
        self,
        frequency: Frequency | Counts,
        *,
        correction: Correction = DEFAULT_CORRECTION,
        jackknife: bool = False,
        temperature: float | Tensor = 1.0,
        reduction: Reduction = REDUCTION,
        accidental_hits: HitRule | None = None,
        precision: Precision = "float32",
        check_finite: bool | None = None,
    ) -> None:
        super().__init__()
        check_known("correction", correction, get_args(Correction))
        self.accidental_hits: HitRule = hit_rule(correction, accidental_hits)
        check_known("reduction", reduction, get_args(Reduction))
        check_known("precision", precision, get_args(Precision))
        check_temperature(temperature)
        self.sampler = InBatch(frequency)
        self.correction: Correction = correction
        self.jackknife = jackknife
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.precision: Precision = precision
        self.check_finite = check_finite

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
        """Compute the loss of each row and reduce.

        Args:
            query: [B, D].
            positive_vectors: [B, D], the vector of each row's positive.
            positive_ids: [B] int64.
            user_ids: [B] int64, the user of each row, not -1; None if every row belongs to another
                user.
            negative_vectors: [B, S, D], further negatives of each row, or None.
            negative_ids: [B, S], their ids, -1 where a row has fewer; needed with
                ``negative_vectors``.

        Returns:
            a scalar, or [B] with reduction "none"; float32 or wider.

        Raises:
            ConfigError: shapes or devices that do not fit together, or negatives
                without vectors or without ids.
            DataError: an id outside the catalog, a user id of -1, or a positive with frequency 0
                (all checked on the CPU only), or NaN if it is checked.
        """
        output = self.compare(
            query,
            positive_vectors,
            positive_ids,
            user_ids,
            negative_vectors=negative_vectors,
            negative_ids=negative_ids,
        )
        return reduce_rows(output.loss, self.reduction)

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
        """Return the loss and the figures of each row, not reduced.

        Args:
            query: as for ``forward``.
            positive_vectors: as for ``forward``.
            positive_ids: as for ``forward``.
            user_ids: as for ``forward``.
            negative_vectors: as for ``forward``.
            negative_ids: as for ``forward``.
            effective_sample_size: report ``effective_sample_size``.

        Returns:
            the figures of each row, [B]; see ``LossOutput``.

        Raises:
            CandidError: as for ``forward``.
        """
        check_device(self.sampler, positive_ids)
        output = in_batch_softmax(
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
            accidental_hits=self.accidental_hits,
            precision=self.precision,
            effective_sample_size=effective_sample_size,
            check_finite=self.check_finite,
        )
        if self.training:
            self.sampler.observe(positive_ids, user_ids)
        return output
