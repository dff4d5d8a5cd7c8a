"""Entry of an audit: everything that was measured of one estimator with one sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from candid.audit.batch_effects import BatchEffects
from candid.audit.cost import Cost
from candid.audit.drift import Drift, ProposalDistance
from candid.audit.statistics import EstimatorStatistics
from candid.losses.estimator import Estimator

ALL_ROWS = "all"
"""Key of the statistics over all rows; the other keys are the names of the slices."""


@dataclass(frozen=True, eq=False, kw_only=True)
class InputMeasurement:
    """Measurement of one estimator on one input.

    Attributes:
        drift: in nats, of the users of the drift measurement.
        distance: of the sampler's Q from the model's P, for the same users; None beside exact
            candidates.
        slices: statistics given the positive: "all", "rare", "middle", "popular".
        in_batch: what the error comes from, where candidates are those of real batches.
    """

    drift: Drift
    distance: ProposalDistance | None
    slices: Mapping[str, EstimatorStatistics]
    in_batch: BatchEffects | None = None

    @property
    def statistics(self) -> EstimatorStatistics:
        """The statistics over all rows."""
        return self.slices[ALL_ROWS]

    @property
    def chi2(self) -> float | None:
        """Median over the users of chi2 = Σ P²/Q - 1; None where it is not defined or infinite."""
        return None if self.distance is None else finite(float(self.distance.chi2.median()))

    @property
    def kl(self) -> float | None:
        """Median over the users of KL(P || Q), nats; None where it is not defined or infinite."""
        return None if self.distance is None else finite(float(self.distance.kl.median()))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        distance = self.distance
        drift = {
            "users": len(self.drift.by_user),
            **_by_user(self.drift.by_user),
            "se": rounded(self.drift.error),
            "se_of_samples": rounded(self.drift.block_error),
        }
        return {
            "drift": drift,
            "chi2": None if distance is None else _by_user(distance.chi2),
            "kl": None if distance is None else _by_user(distance.kl),
            "slices": {name: one.to_json() for name, one in self.slices.items()},
            "in_batch": None if self.in_batch is None else self.in_batch.to_json(),
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class AuditEntry:
    """The measurement of one estimator with one sampler and one number of candidates.

    Attributes:
        name: name of the audit case.
        num_candidates: n, requested number of candidates.
        estimator: the correction, or the learnt partition function.
        sampler: the settings, as a recipe table with its ``type``.
        distinct: whether the candidates are a set of distinct items.
        is_recipe: whether the audited recipe trains with this sampler.
        num_scores: actual number of scores of a row in a step, exact candidates included.
        inputs: measurement by name of the input.
        cost: of a step.
    """

    name: str
    num_candidates: int
    estimator: Estimator
    sampler: Mapping[str, Any]
    distinct: bool
    is_recipe: bool
    num_scores: int
    inputs: Mapping[str, InputMeasurement]
    cost: Cost

    @property
    def label(self) -> str:
        """Name in sentences."""
        return f"{self.name}, {self.estimator.label}, n = {self.num_candidates}"

    def to_json(self, ranked_by: str, noise: float) -> dict[str, Any]:
        """Return plain values.

        Args:
            ranked_by: name of the input of ``drift``, ``drift_se``, ``chi2``, ``kl`` and ``rmse``.
            noise: see ``expected_excess``.
        """
        one = self.inputs[ranked_by]
        return {
            "name": self.name,
            "sampler": self.sampler["type"],
            "settings": {key: value for key, value in self.sampler.items() if key != "type"},
            "loss": "sampled_softmax" if self.estimator.cap is None else "learnt_partition",
            "cap": self.estimator.cap,
            "correction": self.estimator.correction if self.estimator.cap is None else None,
            "accidental_hits": self.estimator.accidental_hits,
            "jackknife": self.estimator.jackknife,
            "distinct": self.distinct,
            "n": self.num_candidates,
            "drift": rounded(one.drift.mean),
            "drift_se": rounded(one.drift.error),
            "chi2": rounded(one.chi2),
            "kl": rounded(one.kl),
            "rmse": rounded(one.statistics.rmse),
            "expected_excess": rounded(expected_excess(one, noise)),
            "cost": {key: rounded(value) for key, value in asdict(self.cost).items()},
            "num_scores": self.num_scores,
            "is_recipe": self.is_recipe,
            "inputs": {name: part.to_json() for name, part in self.inputs.items()},
        }


def expected_excess(measurement: InputMeasurement, noise: float) -> float:
    """Return the expected excess NLL of training over the truth that sampling causes, in nats.

    drift + noise · RMSE². The first part is where training converges. The second is the price of
    the randomness of the candidates. RMSE² is the variance that they add to the gradient of a row,
    relative to the variance that the choice of the positive brings to the full softmax. The full
    softmax ends above its optimum by an amount in proportion to the variance of its gradient: by
    ``noise`` nats. A sampled loss ends above it by noise · RMSE² more.

    Args:
        measurement: of an estimator; a drift below 0 counts as 0.
        noise: excess NLL of the full softmax over its optimum after the same training, nats.
    """
    return max(measurement.drift.mean, 0.0) + noise * measurement.statistics.rmse**2


def rounded(value: float | None) -> float | None:
    """Round to six significant digits; None for None, nan and infinity, which JSON lacks."""
    value = finite(value)
    return None if value is None else float(f"{value:.6g}")


def finite(value: float | None) -> float | None:
    """Return the value; None for nan and infinity."""
    return value if value is not None and math.isfinite(value) else None


def _by_user(values: Tensor) -> dict[str, float | None]:
    """Return mean and quantiles over users [U]."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    # The nearest user: no mean of a finite and an infinite value.
    quantiles = torch.quantile(values.double(), levels, interpolation="nearest")
    names = ("quantile_10", "quantile_50", "quantile_90")
    return {"mean": rounded(float(values.mean()))} | {
        name: rounded(float(value)) for name, value in zip(names, quantiles, strict=True)
    }
