"""Evaluation over the full catalog: metrics, slices, intervals, likelihood."""

from candid.evaluation.bootstrap import Estimate
from candid.evaluation.comparison import Comparison, compare
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.evaluator import TrueLogProb, evaluate
from candid.evaluation.metrics import RANKING_METRICS
from candid.evaluation.queries import check_relevant, seen_between
from candid.evaluation.report import EvaluationReport, PerUser, Slice
from candid.evaluation.two_tower_model import (
    StageProgress,
    TwoTowerModel,
    encoded_catalog,
    inference,
)

__all__ = [
    "RANKING_METRICS",
    "Comparison",
    "Estimate",
    "EvaluationConfig",
    "EvaluationReport",
    "PerUser",
    "Slice",
    "StageProgress",
    "TrueLogProb",
    "TwoTowerModel",
    "check_relevant",
    "compare",
    "encoded_catalog",
    "evaluate",
    "inference",
    "seen_between",
]
