"""Parts of the error of in-batch candidates: frequency, clusters of rows, and number of rows.

Three measurements separate them. The first has the batches of the loader and the frequency that
the sampler states. The second has as many independent rows and the frequency of the dealt rows:
what is left is the error of n independent samples. The third is the error that no number of rows
removes: that of a frequency Q_s that differs from the frequency Q_d of the dealt rows. With many
rows the share of an item d in the estimated Z' of ``refined`` is exp(s(d)) · Q_d(d) / Q_s(d) times
(1 - Q_s(p)) / (1 - Q_d(p)), for the positive p. The difference between the first two that the
third does not explain comes from clusters: rows of a unit belong to one user.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.audit.audit_sampler import AuditRows, AuditSampler
from candid.audit.full_softmax import FullSoftmaxReference
from candid.audit.measurement import SamplingBudget, measure
from candid.audit.statistics import EstimatorStatistics
from candid.losses.estimator import Estimator
from candid.samplers.config import SamplerConfig

BLOCK_SCORES = 1 << 22
"""Number of scores in memory at a time: 32 MiB in float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyError:
    """Distance of the frequency that a sampler states from that of the dealt rows.

    Attributes:
        total_variation: half the sum over items of |Q_s - Q_d|.
        log_ratio_quantile: 99 % quantile over the dealt rows of |log(Q_s / Q_d)|; inf where the
            sampler states that an item of so many rows is never sampled.
        bias: relative bias of the gradient of ``refined`` with infinitely many rows.
        excess_nll: nats above the best model to which training converges with infinitely many
            rows, mean over the audited rows: KL(P || P · Q_s / Q_d) over the dealt items; inf
            where a dealt item is stated never to be sampled.
    """

    total_variation: float
    log_ratio_quantile: float
    bias: float
    excess_nll: float

    def to_json(self) -> dict[str, float | None]:
        """Return plain values, rounded to six significant digits; None where infinite."""
        return {name: _finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEffects:
    """The error of one estimator with in-batch candidates, and where it comes from.

    Attributes:
        mean_rows: mean number of rows of other units beside an audited row.
        real: statistics with the batches of the loader.
        independent: statistics with ``mean_rows`` independent rows and the dealt frequency.
        frequency: the error of the stated frequency; None for mixtures and sets, where the
            expected counts are not a frequency.
    """

    mean_rows: float
    real: EstimatorStatistics
    independent: EstimatorStatistics
    frequency: FrequencyError | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "mean_rows": self.mean_rows,
            "real": _summary(self.real),
            "independent": _summary(self.independent),
            "frequency": None if self.frequency is None else self.frequency.to_json(),
        }

    def sentence(self) -> str:
        """Return one sentence for a report."""
        text = (
            f"real batches have {self.mean_rows:,.0f} rows of other units beside a row, a gradient "
            f"bias of {self.real.bias:.4f} and a standard deviation of the estimated partition "
            f"function of {self.real.z_sd:.3f}; as many independent rows would have "
            f"{self.independent.bias:.4f} and {self.independent.z_sd:.3f}"
        )
        if self.frequency is None:
            return text
        return (
            f"{text}; the stated frequency leaves a bias of {self.frequency.bias:.4f} at any "
            "number of rows"
        )


def measure_batch_effects(
    data: AuditInput,
    reference: FullSoftmaxReference,
    config: SamplerConfig,
    estimators: Sequence[Estimator],
    real: Sequence[EstimatorStatistics],
    budget: SamplingBudget,
    *,
    seed: int = 0,
) -> list[BatchEffects] | None:
    """Measure what the error of in-batch candidates comes from.

    Args:
        data: the audited model.
        reference: its full softmax.
        config: settings of the sampler.
        estimators: A estimators.
        real: their statistics with the batches of the input.
        budget: number of repeats.
        seed: of the samples.

    Returns:
        the parts for each estimator; None for a sampler that does not read the batch, and for an
        input without batches, whose rows are independent already.
    """
    if not config.reads_batch or data.batches is None:
        return None
    mean_rows = data.batches.mean_other_rows
    dealt = torch.bincount(data.training_positive_ids, minlength=data.num_items)
    independent = replace(data, counts=dealt, batches=None)
    sampler = _sampler(config, independent, round(mean_rows), seed)
    means = measure(independent, reference, sampler, estimators, budget)
    frequency = _frequency_error_of(config, data, seed)
    return [
        BatchEffects(
            mean_rows=mean_rows,
            real=of_real,
            independent=one.statistics(),
            frequency=frequency,
        )
        for of_real, one in zip(real, means, strict=True)
    ]


def frequency_error(data: AuditInput, log_stated: Tensor) -> FrequencyError:
    """Compute the error of a stated frequency on an input, in closed form.

    Args:
        data: the audited model, with the dealt rows.
        log_stated: [V], log Q_s.
    """
    counts = torch.bincount(data.training_positive_ids, minlength=data.num_items).double()
    dealt = counts / counts.sum()
    stated = log_stated.double().softmax(dim=0)
    is_dealt = dealt > 0
    # An item that can never be sampled contributes nothing, as in a step.
    log_ratio = torch.where(is_dealt & (stated > 0), dealt.log() - stated.log(), -torch.inf)
    deviation = log_ratio.abs()[is_dealt]
    order = deviation.argsort()
    rank = torch.searchsorted(dealt[is_dealt][order].cumsum(0), 0.99)
    squared_bias, exact_square, excess = (0.0, 0.0, 0.0)
    size = max(1, BLOCK_SCORES // data.num_items)
    for begin in range(0, len(data.query), size):
        rows = slice(begin, begin + size)
        scores = data.query[rows].double() @ data.item_vectors.double().T
        positives = data.positive_ids[rows, None]
        own = scores.gather(1, positives)
        exact = scores.softmax(dim=1)
        exact = exact.scatter_add(1, positives, torch.full_like(own, -1.0))
        estimated = (scores + log_ratio).scatter(1, positives, -torch.inf)
        log_scale = torch.log1p(-stated[positives]) - torch.log1p(-dealt[positives])
        estimated = (estimated + log_scale).scatter(1, positives, own).softmax(dim=1)
        estimated = estimated.scatter_add(1, positives, torch.full_like(own, -1.0))
        squared_bias += float((estimated - exact).square().sum())
        exact_square += float(exact.square().sum())
        excess += float(_excess_nll(scores[:, is_dealt], log_ratio[is_dealt]).sum())
    if not bool(log_ratio[is_dealt].isfinite().all()):
        excess = math.inf
    return FrequencyError(
        total_variation=float((stated - dealt).abs().sum() / 2),
        log_ratio_quantile=float(deviation[order][rank.clamp(max=len(order) - 1)]),
        bias=math.sqrt(squared_bias / exact_square) if exact_square > 0 else 0.0,
        excess_nll=excess / len(data.query),
    )


def _excess_nll(scores: Tensor, log_ratio: Tensor) -> Tensor:
    """Return KL(P || P · exp(-log_ratio)) of each row: [B]."""
    log_p = scores.log_softmax(dim=1)
    log_converged = (scores - log_ratio).log_softmax(dim=1)
    return (log_p.exp() * (log_p - log_converged)).sum(dim=1)


def _frequency_error_of(
    config: SamplerConfig, data: AuditInput, seed: int
) -> FrequencyError | None:
    if config.parts or config.is_set:
        return None
    sampler = _sampler(config, data, 1, seed)
    return frequency_error(data, sampler.log_expected_counts(AuditRows.of(data, slice(0, 1))))


def _sampler(config: SamplerConfig, data: AuditInput, batch_rows: int, seed: int) -> AuditSampler:
    generator = torch.Generator().manual_seed(seed)
    return AuditSampler(config, data, batch_rows=batch_rows, generator=generator)


def _summary(statistics: EstimatorStatistics) -> dict[str, float | None]:
    names = ("bias", "bias_error", "rmse", "loss_bias", "loss_bias_error", "z_mean", "z_sd")
    return {name: _finite(getattr(statistics, name)) for name in names}


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
