"""The base class of losses over a positive and sampled candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from candid.candidates import Candidates
from candid.errors import ConfigError
from candid.losses.blockwise.tiles import Precision
from candid.losses.comparison import Comparison, compare
from candid.losses.config import LossConfig
from candid.losses.corrected_softmax import dense_softmax
from candid.losses.correction import ESTIMATES_NLL
from candid.losses.output import ItemEmbeddings, LossOutput


class StatefulPart(nn.Module, ABC):
    """A part of a loss that changes with every training step."""

    @abstractmethod
    def step(self) -> None:
        """Take the step of the batch that the loss was computed for last."""

    def add_processes(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add what the batch has recorded over processes, each of which has some of its rows.

        Called before ``step`` if there are several processes; all of them call it.

        Args:
            add: returns the sum of a tensor over all processes, the same on each.

        Raises:
            ConfigError: by default, because the states of the processes would differ.
        """
        raise ConfigError(
            f"{type(self).__name__} does not define add_processes: train with this loss in one "
            "process"
        )


class SampledLoss:
    """Base of losses that compare a positive with sampled candidates.

    A subclass defines ``row_losses`` and a nested ``Config(SampledLoss.Config)`` with a
    ``build``; candidates, vectors, masks and the reported figures come from here.

    Args:
        precision: dtype of the matrix products.

    Example:
        >>> from torch.nn.functional import softplus
        >>> from candid.losses import SampledLoss
        >>> class BPR(SampledLoss):
        ...     class Config(SampledLoss.Config):
        ...         def build(self, num_items):
        ...             return BPR()
        ...
        ...     def row_losses(self, comparison):
        ...         scores, mask = comparison.negatives()
        ...         gap = scores - comparison.positive_scores[:, None]
        ...         return softplus(gap).masked_fill(mask, 0.0).sum(dim=1)
    """

    needs_candidates = True

    class Config(LossConfig):
        """Settings of a loss over sampled candidates."""

        needs_candidates: ClassVar[bool] = True

        @abstractmethod
        def build(self, num_items: int) -> SampledLoss:
            """Build the loss for a catalog of V = ``num_items`` items."""

    def __init__(self, *, precision: Precision = "float32") -> None:
        self.precision: Precision = precision

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    @property
    def state(self) -> StatefulPart | None:
        """A part of the loss that changes with every training step, or None.

        ``ObjectiveWithSampler`` calls its ``step`` after each training step, and checkpoints
        contain its ``state_dict``.
        """
        return None

    def __call__(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates | None = None,
        *,
        effective_sample_size: bool = False,
    ) -> LossOutput:
        """Compare positives with candidates.

        Args:
            query: [B, D].
            item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D].
            positive_ids: [B] int64.
            candidates: as a sampler returned them.
            effective_sample_size: report ``effective_sample_size``.

        Raises:
            ConfigError: no candidates, or shapes that do not fit together.
            DataError: an id outside the table (checked on the CPU only).
        """
        if candidates is None:
            raise ConfigError(
                f"the loss {type(self).__name__} needs candidates: add a sampler, or pass the "
                "candidates that one returned"
            )
        # The training step checks the loss for NaN, so the vectors are not checked here.
        comparison = compare(
            query, item_embeddings, positive_ids, candidates, precision=self.precision
        )
        return self.output(comparison, effective_sample_size=effective_sample_size)

    def row_losses(self, comparison: Comparison) -> Tensor:
        """Return the loss of each row, [B] float32 or wider, from scores and masks."""
        raise NotImplementedError(f"{type(self).__name__} defines neither row_losses nor output")

    def output(self, comparison: Comparison, *, effective_sample_size: bool) -> LossOutput:
        """Return ``row_losses`` beside the figures of a softmax over the same scores.

        ``log_z`` and ``sample_weight`` are those of the correction "refined", which estimate
        those of the full softmax, detached; they are not weights of this loss.
        """
        # The loss first: scores that are first computed without gradient would stay so.
        loss = self.row_losses(comparison)
        with torch.no_grad():
            softmax = dense_softmax(
                comparison, ESTIMATES_NLL, effective_sample_size=effective_sample_size
            )
        return LossOutput(
            loss=loss,
            log_z=softmax.log_z,
            sample_weight=softmax.sample_weight,
            effective_sample_size=softmax.effective_sample_size,
        )
