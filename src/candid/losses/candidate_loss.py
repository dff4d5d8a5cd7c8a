"""Losses that sample their own candidates, for the trainer and for any other training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, get_args

import torch
from torch import Tensor

from candid.candidates import Candidates
from candid.errors import ConfigError, DataError, UnknownNameError
from candid.losses.inputs import check_ids, check_rows, check_users
from candid.losses.output import ItemEmbeddings, Loss, LossOutput
from candid.samplers.negatives import check_negatives, with_negatives
from candid.samplers.sampler import Sampler, sample_groups
from candid.samplers.table_module import TableModule, scalar_tensor

Reduction = Literal["mean", "sum", "none"]
"""Reduction of the rows' losses to the value of a module: a scalar, or [B] with "none"."""

REDUCTION: Final[Reduction] = "mean"
"""Default of ``reduction``."""

NUM_GROUPS: Final = 1
"""Default of ``num_groups``."""


@dataclass(frozen=True, slots=True)
class BatchShare:
    """The rows of a batch that one of several processes computes.

    Candidates are those of the whole batch, sampled alike on every process.

    Attributes:
        rows: [b] int64, their numbers in the batch, on the device of ``positive_ids``.
        gather: returns the vectors [B, D] of the batch, in its order, from those of the rows
            [b, D]; all processes call it.
        add: returns the sum of a tensor over all processes.
    """

    rows: Tensor
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]


class CandidateLoss(TableModule, ABC):
    """A module that samples candidates for a batch and computes a loss with them.

    One call refreshes the sampler if a refresh is due, samples, adds given negatives, computes
    the loss and passes the batch to the sampler. In evaluation mode the sampler does not observe
    the batch, and steps are not counted. A refresh passes the sampler a copy of the item
    vectors, so that an optimizer that writes to the table in place cannot change it.

    The sampler is a submodule: ``loss.to(device)`` moves its tables, and ``state_dict`` holds
    all that a resumed run needs, as plain tensors.

    Args:
        sampler: source of the candidates.
        temperature: scores are divided by it; an ``nn.Parameter`` is trained with the model.
        reduction: "mean" or "sum" over the rows, or "none" for [B].
        num_groups: independent samples per step, each shared by an equal part of the rows.

    Attributes:
        num_steps: training steps so far.

    Raises:
        ConfigError: ``sampler`` is not a sampler, ``temperature`` is not above 0, or
            ``num_groups`` is less than 1.
        UnknownNameError: ``reduction`` is unknown.
    """

    extra_tensor_names: ClassVar[tuple[str, ...]] = ("num_steps",)

    def __init__(
        self,
        sampler: Sampler,
        *,
        temperature: float | Tensor = 1.0,
        reduction: Reduction = REDUCTION,
        num_groups: int = NUM_GROUPS,
    ) -> None:
        super().__init__()
        if not isinstance(sampler, Sampler):
            raise ConfigError(
                f"sampler must be a candid sampler, got {type(sampler).__name__}: write for "
                "example Popularity(counts, num_candidates=256)"
            )
        check_known("reduction", reduction, get_args(Reduction))
        check_temperature(temperature)
        if num_groups < 1:
            raise ConfigError(f"num_groups must be at least 1, got {num_groups}")
        self.sampler = sampler
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.num_groups = num_groups
        self.num_steps = 0

    def forward(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        item_vectors: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """Sample candidates, compute the loss of each row and reduce.

        Args:
            query: [B, D].
            item_embeddings: the table [V, D], or a callable from ids [n] to vectors [n, D].
            positive_ids: [B] int64.
            user_ids: [B] int64, the user of each row, not -1; only samplers from the batch use it.
                None if every row belongs to another user.
            negative_ids: [B, S], further negatives of each row, compared exactly, -1 where a
                row has fewer; see ``with_negatives``.
            generator: source of randomness of the sample, on the device of ``positive_ids``.
            item_vectors: returns the item vectors [V, D] for a refresh, such as those of the
                model in evaluation mode. None: they come from ``item_embeddings``.

        Returns:
            a scalar, or [B] with reduction "none"; float32 or wider.

        Raises:
            ConfigError: shapes or devices that do not fit together.
            DataError: an id outside the catalog, a user id of -1, or a candidate that the sampler
                states to be impossible (all checked on the CPU only), or NaN if it is checked.
            ArtifactError: an item vector of a refresh is not finite.
        """
        output = self.compare(
            query,
            item_embeddings,
            positive_ids,
            user_ids,
            negative_ids,
            generator=generator,
            item_vectors=item_vectors,
        )
        return reduce_rows(output.loss, self.reduction)

    def compare(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        item_vectors: Callable[[], Tensor] | None = None,
        effective_sample_size: bool = False,
        share: BatchShare | None = None,
    ) -> LossOutput:
        """Sample candidates and return the loss and the figures of each row, not reduced.

        Args:
            query: as for ``forward``; with a share those of its rows, [b, D].
            item_embeddings: as for ``forward``.
            positive_ids: as for ``forward``.
            user_ids: as for ``forward``.
            negative_ids: as for ``forward``.
            generator: as for ``forward``.
            item_vectors: as for ``forward``.
            effective_sample_size: report ``effective_sample_size``.
            share: rows of the batch that this process computes, with ``num_groups`` 1; None: all.
                The other arguments are always those of the whole batch.

        Returns:
            the figures of each row, [B], or [b] with a share; see ``LossOutput``.

        Raises:
            CandidError: as for ``forward``.
        """
        candidates = self._sample(
            query,
            item_embeddings,
            positive_ids,
            user_ids,
            negative_ids,
            generator,
            item_vectors,
            share,
        )
        if share is not None:
            positive_ids, candidates = positive_ids[share.rows], candidates.of_rows(share.rows)
        output = self._compare(
            query, item_embeddings, positive_ids, candidates, effective_sample_size
        )
        if self.training:
            self._end_step(share)
        return output

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the sampler, each name below ``sampler``."""
        return {f"sampler/{name}": value for name, value in self.sampler.metrics().items()}

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the number of training steps."""
        return {"num_steps": scalar_tensor(self.num_steps)}

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a number of training steps."""
        self.num_steps = int(state["num_steps"])

    @abstractmethod
    def _compare(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates,
        effective_sample_size: bool,
    ) -> LossOutput:
        """Compute the loss of each row with its candidates."""

    def _end_step(self, share: BatchShare | None) -> None:
        """Update the state of the loss after a training step; a loss without one does nothing."""

    @torch.no_grad()
    def _sample(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        user_ids: Tensor | None,
        negative_ids: Tensor | None,
        generator: torch.Generator | None,
        item_vectors: Callable[[], Tensor] | None,
        share: BatchShare | None,
    ) -> Candidates:
        sampler, num_rows = self.sampler, len(positive_ids)
        check_rows(query, positive_ids if share is None else share.rows)
        check_ids(positive_ids, sampler.num_items)
        check_users(user_ids, num_rows)
        if isinstance(item_embeddings, Tensor) and len(item_embeddings) != sampler.num_items:
            raise ConfigError(
                f"item_embeddings has {len(item_embeddings)} rows, but the catalog of the sampler "
                f"has {sampler.num_items} items"
            )
        check_device(self.sampler, positive_ids)
        if negative_ids is not None:
            check_negatives(negative_ids, num_rows)
            check_ids(negative_ids.clamp(min=0), sampler.num_items)
        self._refresh_if_due(item_embeddings, positive_ids.device, item_vectors)
        scaled_query: Tensor | None = None
        if share is None or sampler.reads_query:
            whole = query.detach() if share is None else share.gather(query.detach())
            # One tensor object for all calls: ``ExactNearest`` searches once for each object.
            scaled_query = (whole / self.temperature).float()
        candidates = sample_groups(
            sampler, self.num_groups, positive_ids, user_ids, scaled_query, generator
        )
        _check_possible(candidates)
        if negative_ids is not None:
            candidates = with_negatives(
                candidates, negative_ids, sampler, positive_ids, user_ids, scaled_query
            )
        if self.training:
            # Last: the expected counts must be those from before this batch was observed.
            sampler.observe(positive_ids, user_ids)
            self.num_steps += 1
        return candidates

    def _refresh_if_due(
        self,
        item_embeddings: ItemEmbeddings,
        device: torch.device,
        item_vectors: Callable[[], Tensor] | None,
    ) -> None:
        every = self.sampler.refresh_every
        # Evaluation may come before the first training step and needs item vectors too.
        is_due = self.num_steps == 0 or (self.training and self.num_steps % (every or 1) == 0)
        if every is None or not is_due:
            return
        if item_vectors is not None:
            vectors = item_vectors()
        elif isinstance(item_embeddings, Tensor):
            vectors = item_embeddings
        else:
            vectors = item_embeddings(torch.arange(self.sampler.num_items, device=device))
        # A copy: the vectors may be the table that the next optimizer step writes to.
        self.sampler.refresh(vectors.detach().to(torch.float32, copy=True))


class ObjectiveWithSampler(CandidateLoss):
    """A loss of ``LOSSES`` with the sampler of its candidates, as training uses it.

    Args:
        objective: a loss that needs candidates.
        sampler: source of the candidates.
        num_groups: independent samples per step, each shared by an equal part of the rows.

    Example:
        >>> import torch
        >>> from candid.losses import LOSSES
        >>> from candid.losses.candidate_loss import ObjectiveWithSampler
        >>> from candid.samplers import Uniform
        >>> objective = LOSSES["bce"].Config().build(10)
        >>> loss = ObjectiveWithSampler(objective, Uniform(10, num_candidates=4))
        >>> loss(torch.randn(2, 3), torch.randn(10, 3), torch.tensor([1, 2])).shape
        torch.Size([])
    """

    def __init__(self, objective: Loss, sampler: Sampler, *, num_groups: int = NUM_GROUPS) -> None:
        super().__init__(sampler, num_groups=num_groups)
        self.objective = objective
        # Registered here, so that it moves to the device and is part of state_dict.
        self.objective_state = getattr(objective, "state", None)

    def _compare(
        self,
        query: Tensor,
        item_embeddings: ItemEmbeddings,
        positive_ids: Tensor,
        candidates: Candidates,
        effective_sample_size: bool,
    ) -> LossOutput:
        return self.objective(
            query,
            item_embeddings,
            positive_ids,
            candidates,
            effective_sample_size=effective_sample_size,
        )

    def _end_step(self, share: BatchShare | None) -> None:
        if self.objective_state is not None:
            if share is not None:
                self.objective_state.add_processes(share.add)
            self.objective_state.step()


def reduce_rows(loss: Tensor, reduction: Reduction) -> Tensor:
    """Reduce the losses [B] of the rows to a scalar, or return them with "none"."""
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def check_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    """Refuse the name of a setting that does not exist.

    Raises:
        UnknownNameError: it is not in ``known``.
    """
    if name not in known:
        raise UnknownNameError(kind, name, known)


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a temperature that is not above 0; a tensor may change and is not checked.

    Raises:
        ConfigError: it is not above 0.
    """
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ConfigError(f"the temperature must be above 0, got {temperature}")


def check_device(sampler: Sampler, positive_ids: Tensor) -> None:
    """Refuse positives on another device than the sampler's tables.

    Raises:
        ConfigError: the devices differ.
    """
    table = next(sampler.buffers(), positive_ids)
    if table.device != positive_ids.device:
        raise ConfigError(
            f"positive_ids are on {positive_ids.device}, but the tables of the sampler are on "
            f"{table.device}: call loss.to({str(positive_ids.device)!r}) first"
        )


def _check_possible(candidates: Candidates) -> None:
    """Refuse candidates with expected count 0, on the CPU: their gradient would be NaN."""
    is_impossible = candidates.log_expected_count.isneginf()
    if candidates.ids.device.type != "cpu" or not bool(is_impossible.any()):
        return
    ids = candidates.ids[is_impossible]
    # A sample that rounds onto an exact candidate is masked; it needs no count.
    if candidates.exact is not None:
        ids = ids[~torch.isin(ids, candidates.exact.ids)]
    if len(ids):
        raise DataError(
            f"the sampler returned item {int(ids[0])} and states that its expected count is 0 "
            "(log_expected_count is -inf): state the count with which it was sampled"
        )
