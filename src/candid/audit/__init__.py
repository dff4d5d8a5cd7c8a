"""How far estimators of the softmax loss are from the full softmax, on a model of one's own.

For every sampler, correction and number of candidates: bias and RMSE of the gradient, bias of
the loss, effective sample size, and what a step costs. ``docs/audit.md`` says how to read it.
"""

from candid.audit.auditing import AuditProgress, audit
from candid.audit.cost import Cost
from candid.audit.estimators import (
    ALL,
    REFINED,
    Plan,
    Variant,
    affordable,
    sampler_config,
    standard_plans,
    variants_of,
)
from candid.audit.measure import Effort
from candid.audit.moments import Finding
from candid.audit.recommendation import WHOLE, Budget, Entry
from candid.audit.report import AuditReport
from candid.audit.subject import SLICES, Subject

__all__ = [
    "ALL",
    "REFINED",
    "SLICES",
    "WHOLE",
    "AuditProgress",
    "AuditReport",
    "Budget",
    "Cost",
    "Effort",
    "Entry",
    "Finding",
    "Plan",
    "Subject",
    "Variant",
    "affordable",
    "audit",
    "sampler_config",
    "standard_plans",
    "variants_of",
]
