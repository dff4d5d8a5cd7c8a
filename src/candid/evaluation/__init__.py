"""Evaluation over the full catalog: metrics, slices, intervals, likelihood."""

from candid.evaluation.comparison import Comparison, compare
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.evaluation_pass import TrueLogProb
from candid.evaluation.evaluator import evaluate
from candid.evaluation.intervals import Estimate
from candid.evaluation.metrics import RANKING_METRICS
from candid.evaluation.queries import catalog_mask, check_has_relevant
from candid.evaluation.recommendation_lists import evaluate_lists
from candid.evaluation.report import EvaluationReport, PerUser, Slice
from candid.evaluation.report_comparison import (
    Difference,
    ReportComparison,
    SliceDifferences,
    compare_reports,
    holm,
)

__all__ = [
    "RANKING_METRICS",
    "Comparison",
    "Difference",
    "Estimate",
    "EvaluationConfig",
    "EvaluationReport",
    "PerUser",
    "ReportComparison",
    "Slice",
    "SliceDifferences",
    "TrueLogProb",
    "catalog_mask",
    "check_has_relevant",
    "compare",
    "compare_reports",
    "evaluate",
    "evaluate_lists",
    "holm",
]
