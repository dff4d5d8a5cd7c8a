"""The learnt partition function: a loss whose partition function is predicted from the query.

With log zeta = w · query + b, the prediction of log Z, and x(d) = exp(s(d)) / (zeta · e(d)) the
ratio of the model to the expected count of a candidate, the loss of a row with positive p is

    softplus(log c - log x(p)) + c · Σ softplus(log x(d) - log c) over the candidates d      (1)

with respect to the scores and to w and b. Its gradient is g(x(d)) at a candidate and
-g(x(p)) / x(p) at the positive, g(x) = x / (1 + x/c). Samples of the positive are candidates of the
row too. Averaged over positives from P and candidates with expected counts e(d), the gradient at d
is e(d) · g(x(d)) - P(d) · g(x(d)) / x(d): 0 where zeta = Z, x = P/e, for every number of
candidates and every c > 0.

c = 1 is noise contrastive estimation (Gutmann and Hyvärinen, AISTATS 2010) with a partition
function for each query. As c grows, (1) approaches the bound of Fagan and Iyengar (2018),
Z'/zeta + log zeta - 1 - s(p). A positive with P(p) far above e(p) has the gradient
-c · e(p) / P(p), c times that of ``logq``: fewer steps are wasted where a user's items are rarely
sampled. A candidate has a gradient of at most c: a large c is noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from candid.errors import ArtifactError
from candid.losses.blockwise.tiles import Precision
from candid.losses.comparison import Comparison
from candid.losses.config import PRECISION
from candid.losses.corrected_softmax import masked_logsumexp
from candid.losses.correction import SHIFTS_BOTH
from candid.losses.estimator import Estimator
from candid.losses.inputs import widened
from candid.losses.sampled_loss import SampledLoss, StatefulPart
from candid.samplers.table_module import TableModule, scalar_tensor


class PartitionHead(TableModule, StatefulPart):
    """The prediction log zeta = w · query + b, with its own steps of Adam.

    A loss records the gradient of a batch, and the training module takes the step after it.
    Before the first step there is no prediction.

    Args:
        lr: learning rate of w and b.
    """

    extra_tensor_names: ClassVar[tuple[str, ...]] = ("weights", "mean", "square", "num_steps")

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.num_steps = 0
        self._tensors: dict[str, Tensor] = {}
        # Sums over the rows, of gradient [D + 1] and log Z [], and their number [].
        self._recorded: tuple[Tensor, Tensor, Tensor] | None = None

    def predict(self, query: Tensor) -> Tensor | None:
        """Return log zeta [B] of queries [B, D], without gradient; None before the first step."""
        if not self.num_steps:
            return None
        if self._tensors["weights"].device != query.device:  # after a checkpoint was loaded
            self._tensors = {name: part.to(query.device) for name, part in self._tensors.items()}
        weights = self._tensors["weights"]
        return widened(query.detach()) @ weights[:-1] + weights[-1]

    def record(self, query: Tensor, slope: Tensor, log_z: Tensor) -> None:
        """Store the gradient of a batch for the next step.

        Args:
            query: [B, D].
            slope: [B], derivative of each row's loss with respect to log zeta.
            log_z: [B], estimates of log Z, for the first step.
        """
        rows = torch.cat([widened(query.detach()), torch.ones_like(slope)[:, None]], dim=1)
        self._recorded = (slope @ rows, log_z.sum(), log_z.new_tensor(float(len(rows))))

    def add_processes(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add the sums over rows; see ``StatefulPart.add_processes``."""
        if self._recorded is not None:
            gradient, log_z, num_rows = self._recorded
            total = add(torch.cat([gradient, torch.stack([log_z, num_rows]).to(gradient)]))
            self._recorded = total[:-2], total[-2], total[-1]

    @torch.no_grad()
    def step(self) -> None:
        """Take the step of the recorded gradient; the first one sets b to the mean of log Z."""
        if self._recorded is None:
            return
        sums, log_z, num_rows = self._recorded
        self._recorded = None
        num_rows = num_rows.clamp(min=1)
        gradient, log_z = sums / num_rows, log_z / num_rows
        if not self.num_steps:
            zeros = torch.zeros_like(gradient)
            weights = torch.cat([zeros[:-1], log_z[None].to(zeros.dtype)])
            self._tensors = {"weights": weights, "mean": zeros, "square": zeros.clone()}
            self.num_steps = 1
            return
        mean, square = self._tensors["mean"], self._tensors["square"]
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.001)
        step = self.lr * math.sqrt(1 - 0.999**self.num_steps) / (1 - 0.9**self.num_steps)
        self._tensors["weights"].addcdiv_(mean, square.sqrt().add_(1e-8), value=-step)
        self.num_steps += 1

    def get_extra_tensors(self) -> dict[str, Tensor]:
        """Return the weights and the state of Adam; only the number of steps before the first."""
        return self._tensors | {"num_steps": scalar_tensor(self.num_steps)}

    def set_extra_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state that ``get_extra_tensors`` returned.

        Raises:
            ArtifactError: weights are missing.
        """
        num_steps = int(state["num_steps"])
        tensors = {name: state[name] for name in ("weights", "mean", "square") if name in state}
        if num_steps and len(tensors) < 3:
            raise ArtifactError(
                "the state of the learnt partition function is incomplete: resume from another "
                "checkpoint"
            )
        self.num_steps = num_steps
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}


class LearntPartition(SampledLoss):
    """The loss (1) of ``candid.losses.learnt_partition``.

    It is consistent for every number of candidates, as ``logq``, and needs fewer steps where the
    items of a user are rarely sampled. In training, ``ObjectiveWithSampler`` trains the
    prediction of log zeta. Without it each row takes log zeta from its own candidates, which
    is biased. Scores are always computed at once, [B, N].

    Candidates from the batch as a set of distinct items (``in_batch`` with ``distinct``) leave out
    the positive, which adds a small bias.

    Args:
        cap: c in (1).
        head_lr: learning rate of the prediction, by Adam.
        precision: dtype of the matrix products.

    Example:
        >>> import torch
        >>> from candid.losses import LOSSES
        >>> from candid.losses.candidate_loss import ObjectiveWithSampler
        >>> from candid.samplers import Uniform
        >>> objective = LOSSES["learnt_partition"].Config(cap=10.0).build(10)
        >>> loss = ObjectiveWithSampler(objective, Uniform(10, num_candidates=4))
        >>> loss(torch.randn(2, 3), torch.randn(10, 3), torch.tensor([1, 2])).shape
        torch.Size([])
    """

    class Config(SampledLoss.Config):
        """Settings of ``LearntPartition``."""

        cap: float = Field(
            3.0,
            gt=0,
            le=1e12,  # gradients stay finite in float32
            description="largest gradient of a candidate: 1 is noise contrastive estimation; "
            "larger values learn rarely sampled items in fewer steps, with more noise",
        )
        head_lr: float = Field(
            0.01,
            gt=0,
            le=10.0,
            description="learning rate of the prediction of the partition function",
        )
        precision: Precision = Field("float32", description=PRECISION)

        @property
        def needs_full_support(self) -> bool:
            """True: an item that is never sampled is missing from the partition function."""
            return True

        @property
        def why_no_probability(self) -> None:
            """None: the scores are log-probabilities up to a constant of the row."""
            return None

        @property
        def estimator(self) -> Estimator:
            """The learnt partition function with this cap."""
            return Estimator(SHIFTS_BOTH, cap=self.cap)

        def build(self, num_items: int) -> LearntPartition:
            """Build for a catalog of any size."""
            return LearntPartition(cap=self.cap, head_lr=self.head_lr, precision=self.precision)

    def __init__(self, *, cap: float, head_lr: float, precision: Precision = "float32") -> None:
        super().__init__(precision=precision)
        self.cap = cap
        self.head = PartitionHead(head_lr)

    @property
    def state(self) -> PartitionHead:
        """The prediction of log zeta."""
        return self.head

    def row_losses(self, comparison: Comparison) -> Tensor:
        """The loss (1) of each row; 0 for a row without candidates."""
        ratios = log_ratios(comparison)
        log_zeta = self.head.predict(comparison.query)
        with torch.no_grad():
            log_z = ratios.log_z()
            if log_zeta is None:
                log_zeta = log_z
            positive, candidates = ratios.gradients(log_zeta, self.cap)
            # All log x fall as log zeta rises.
            self.head.record(comparison.query, -(positive + candidates.sum(dim=1)), log_z)
        return ratios.losses(log_zeta, self.cap)


@dataclass(frozen=True, slots=True, eq=False)
class LogRatios:
    """log(exp(s) / e), which is log x + log zeta in (1), for each positive and candidate.

    Attributes:
        positive: [B], +inf for a positive that is never sampled.
        candidates: [B, H + N], exact candidates first.
        mask: [B, H + N] bool, the candidates that do not count, samples of the positive included.
        num_hits: [B], how often the positive is among the candidates.
        is_empty: [B] bool, rows without candidates, which have no loss.
    """

    positive: Tensor
    candidates: Tensor
    mask: Tensor
    num_hits: Tensor
    is_empty: Tensor

    def of_hits(self, of_positive: Tensor) -> Tensor:
        """[B], values of the positive, 0 where it is not sampled: 0 hits times inf is not 0."""
        return torch.where(self.num_hits > 0, of_positive, 0.0)

    def log_z(self) -> Tensor:
        """[B], log of the sum over all candidates, an estimate of log Z; 0 for an empty row."""
        of_hits = torch.where(self.num_hits > 0, self.positive + self.num_hits.log(), -math.inf)
        log_z = torch.logaddexp(masked_logsumexp(self.candidates, self.mask), of_hits)
        return log_z.masked_fill(self.is_empty, 0.0)

    def losses(self, log_zeta: Tensor, cap: float) -> Tensor:
        """Return the loss (1) of each row, [B]; 0 for an empty row.

        Args:
            log_zeta: [B].
            cap: c.
        """
        shift = log_zeta + math.log(cap)
        of_positive = self.positive - shift
        of_candidates = softplus(self.candidates - shift[:, None]).masked_fill(self.mask, 0.0)
        loss = (
            softplus(-of_positive)
            + cap * self.num_hits * softplus(self.of_hits(of_positive))
            + cap * of_candidates.sum(dim=1)
        )
        return loss.masked_fill(self.is_empty, 0.0)

    def gradients(self, log_zeta: Tensor, cap: float) -> tuple[Tensor, Tensor]:
        """Return the derivatives of (1) with respect to the scores.

        Args:
            log_zeta: [B].
            cap: c.

        Returns:
            [B] of the positive, its samples included, and [B, H + N] of the other candidates.
        """
        shift = log_zeta + math.log(cap)
        of_positive = self.positive - shift
        of_hits = cap * self.num_hits * torch.sigmoid(self.of_hits(of_positive))
        of_candidates = cap * torch.sigmoid(self.candidates - shift[:, None])
        return (
            (of_hits - torch.sigmoid(-of_positive)).masked_fill(self.is_empty, 0.0),
            of_candidates.masked_fill(self.mask, 0.0),
        )


def log_ratios(comparison: Comparison) -> LogRatios:
    """Return the ratios of scores to expected counts that the loss (1) reads.

    Args:
        comparison: B rows.
    """
    shifts = comparison.shifts(SHIFTS_BOTH)
    positive, scores = comparison.positive_scores, widened(comparison.candidate_scores)
    if shifts.positive is not None:
        positive = positive - shifts.positive
    if shifts.candidates is not None:
        scores = scores - shifts.candidates
    if shifts.row is not None:
        scores = scores - shifts.row.to(scores.dtype)[:, None]
    log_share = log_share_of_others(comparison)
    if log_share is not None:
        positive = positive - log_share.to(positive.dtype)
        scores = scores - log_share.to(scores.dtype)[:, None]
    mask = comparison.accidental_hits
    if comparison.exact_scores is not None and comparison.exact_accidental_hits is not None:
        scores = torch.cat([widened(comparison.exact_scores), scores], dim=1)
        mask = torch.cat([comparison.exact_accidental_hits, mask], dim=1)
    num_hits = num_hits_of(comparison).to(positive.dtype)
    return LogRatios(
        positive=positive,
        candidates=scores,
        mask=mask,
        num_hits=num_hits,
        is_empty=mask.all(dim=1) & (num_hits == 0),
    )


def log_share_of_others(comparison: Comparison) -> Tensor | None:
    """[B], log of the share of the samples that come from other rows and users.

    Expected counts are those of all samples. ``logq`` does not need the share, because there it
    cancels. None where the shifts contain it, and where no sample is the row's own.
    """
    candidates = comparison.candidates
    is_from_batch = candidates.owner is not None or candidates.source_rows is not None
    if not is_from_batch or not candidates.num_samples or candidates.exact is not None:
        return None
    if candidates.row_counts is not None:
        return None
    others = (~candidates.accidental_hits(comparison.positive_ids, keep=True)).sum(dim=1)
    return torch.log(others / candidates.num_samples).masked_fill(others == 0, 0.0)


def num_hits_of(comparison: Comparison) -> Tensor:
    """[B], how often the positive of each row is among its candidates, the row itself left out."""
    candidates, positive_ids = comparison.candidates, comparison.positive_ids
    if candidates.keeps_hits:
        kept = candidates.accidental_hits(positive_ids, keep=True)
        num_hits = (comparison.accidental_hits & ~kept).sum(dim=1)
    elif candidates.owner is None and candidates.source_rows is None:
        is_hit = candidates.by_row(candidates.ids) == positive_ids[:, None]
        is_hit = is_hit & ~candidates.by_row(candidates.log_expected_count).isposinf()
        num_hits = is_hit.sum(dim=1)
    else:
        # The row's own positive is in the set too and cannot be separated from that of another row.
        num_hits = torch.zeros_like(positive_ids)
    if comparison.positive_in_exact is None:
        return num_hits
    return torch.where(comparison.positive_in_exact, 1, num_hits)
