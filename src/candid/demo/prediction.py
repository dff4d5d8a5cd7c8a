"""Predictions for the runs of the demo: the drift of each correction at the true distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from candid.audit import (
    AuditInput,
    AuditSampler,
    Drift,
    DriftBudget,
    Estimator,
    measure_drift,
    proposal_distance,
    sampler_config,
)
from candid.audit.synthetic_inputs import synthetic_inputs
from candid.demo.regimes import sampler_settings
from candid.errors import ConfigError
from candid.synthetic import SyntheticConfig

_SAMPLES = 1 << 13
"""Samples of candidates for each user: repeats times n."""
_REPEATS = (64, 512)
"""Least and largest number of repeats."""
_NUM_POSITIVES = 8
"""Positives of each user that are compared with a sample."""


@dataclass(frozen=True)
class Prediction:
    """What the true distribution of a regime predicts.

    Attributes:
        mean_p: mean true probability of a choice, over users and choices.
        chi2: 10, 50 and 90 % quantiles over users of Σ P²/Q - 1.
        kl: the same quantiles of KL(P || Q), in nats.
        drifts: drift by number of candidates and estimator.
    """

    mean_p: float
    chi2: tuple[float, float, float]
    kl: tuple[float, float, float]
    drifts: Mapping[tuple[int, Estimator], Drift]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``mean_p``, and ``chi2`` and ``kl`` {p10, median, p90}."""
        names = ("p10", "median", "p90")
        return {
            "mean_p": self.mean_p,
            "chi2": dict(zip(names, self.chi2, strict=True)),
            "kl": dict(zip(names, self.kl, strict=True)),
        }


def predict(
    synthetic: SyntheticConfig,
    num_candidates: Sequence[int],
    estimators: Sequence[Estimator],
    *,
    num_users: int = 128,
    seed: int = 0,
) -> Prediction:
    """Measure drifts and distances at the true distribution, for a sample of users.

    Args:
        synthetic: settings of the data, mode ``softmax``.
        num_candidates: of the popularity sampler.
        estimators: to measure.
        num_users: users, each with the history of one of its interactions.
        seed: of users and samples.

    Raises:
        ConfigError: ``num_candidates`` is empty.
    """
    if not num_candidates:
        raise ConfigError("the demo needs at least one number of candidates, got none")
    truth = synthetic_inputs(num_users, synthetic, seed=seed)[-1]
    log_p = (truth.query.double() @ truth.item_vectors.double().T).log_softmax(dim=1)
    drifts = {}
    for n in num_candidates:
        low, high = _REPEATS
        repeats = min(max(_SAMPLES // n, low), high)
        budget = DriftBudget(repeats=repeats, num_positives=_NUM_POSITIVES, seed=seed)
        sampler = _sampler(truth, n, seed)
        measured = measure_drift(truth, sampler, estimators, budget)
        drifts.update({(n, one): drift for one, drift in zip(estimators, measured, strict=True)})
    distance = proposal_distance(truth, sampler)
    assert distance is not None  # popularity samples have no exact candidates
    return Prediction(
        mean_p=float((2.0 * log_p).exp().sum(dim=1).mean()),
        chi2=_quantiles(distance.chi2),
        kl=_quantiles(distance.kl),
        drifts=drifts,
    )


def _sampler(truth: AuditInput, num_candidates: int, seed: int) -> AuditSampler:
    return AuditSampler(
        sampler_config(sampler_settings(num_candidates)),
        truth,
        batch_rows=len(truth.query),
        generator=torch.Generator().manual_seed(seed),
    )


def _quantiles(values: torch.Tensor) -> tuple[float, float, float]:
    low, median, high = values.double().quantile(torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    return low, median, high
