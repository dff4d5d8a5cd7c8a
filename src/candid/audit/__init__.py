"""Audit of estimators of the softmax loss against the full softmax, on your own model.

For every sampler, correction and number of candidates it measures the drift (where training with
the estimator converges), the RMSE of the gradient, biases given the positive, effective sample
size, and the cost of a step. The guide "Audit" of the docs explains the numbers.
"""

from candid.audit.audit_input import SLICES, AuditInput
from candid.audit.audit_sampler import AuditSampler
from candid.audit.cases import (
    ALL_ESTIMATORS,
    AuditCase,
    affordable_cases,
    estimators_for,
    sampler_config,
    standard_cases,
)
from candid.audit.cost import Cost
from candid.audit.drift import (
    Drift,
    DriftBudget,
    ProposalDistance,
    measure_drift,
    proposal_distance,
)
from candid.audit.drift_sampling import DriftSampling
from candid.audit.entry import ALL_ROWS, AuditEntry, InputMeasurement, expected_excess
from candid.audit.measurement import SamplingBudget
from candid.audit.recommendation import CostBudget
from candid.audit.report import AuditReport
from candid.audit.run import AuditProgress, audit
from candid.audit.statistics import EstimatorStatistics
from candid.losses.estimator import Estimator

__all__ = [
    "ALL_ESTIMATORS",
    "ALL_ROWS",
    "SLICES",
    "AuditCase",
    "AuditEntry",
    "AuditInput",
    "AuditProgress",
    "AuditReport",
    "AuditSampler",
    "Cost",
    "CostBudget",
    "Drift",
    "DriftBudget",
    "DriftSampling",
    "Estimator",
    "EstimatorStatistics",
    "InputMeasurement",
    "ProposalDistance",
    "SamplingBudget",
    "affordable_cases",
    "audit",
    "estimators_for",
    "expected_excess",
    "measure_drift",
    "proposal_distance",
    "sampler_config",
    "standard_cases",
]
