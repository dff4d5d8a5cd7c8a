"""Evaluation over the full catalog: metrics, slices, intervals, likelihood."""

from candid.evaluation.bootstrap import Estimate
from candid.evaluation.comparison import Comparison, compare
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.encoder import Encoder, StageProgress, encoded_catalog, inference
from candid.evaluation.evaluator import TrueLogProb, evaluate
from candid.evaluation.metrics import RANKING_METRICS
from candid.evaluation.questions import check_relevant, seen_between
from candid.evaluation.report import EvaluationReport, PerUser, Slice

__all__ = [
    "RANKING_METRICS",
    "Comparison",
    "Encoder",
    "Estimate",
    "EvaluationConfig",
    "EvaluationReport",
    "PerUser",
    "Slice",
    "StageProgress",
    "TrueLogProb",
    "check_relevant",
    "compare",
    "encoded_catalog",
    "evaluate",
    "inference",
    "seen_between",
]
