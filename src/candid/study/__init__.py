"""Study: corrections, samplers and numbers of candidates compared on a grid of trainings.

records.jsonl   the outcome of every cell
users/ID.npz    values of each user, for paired tests
"""

from candid.study.arms import ARMS, SAMPLERS, Arm
from candid.study.claims import CLAIMS, Claim, judge_claims
from candid.study.config import Study, parse_study, read_study
from candid.study.progress import StudyProgress, StudyResult, StudyStatus
from candid.study.records import (
    CalibrationBin,
    CellKey,
    CurvePoint,
    Measured,
    PopularityGroup,
    Quantiles,
    Record,
    append_record,
    read_records,
)
from candid.study.run import run_study
from candid.study.statistics import (
    PairedDifference,
    RankCorrelation,
    paired_difference,
    rank_correlation,
)
from candid.study.study_cells import GridPoint, StudyCells
from candid.study.summary import StudySummary, summarize
from candid.study.tables import ArmRow, arm_rows
from candid.study.user_values import UserValues, read_users, write_users
from candid.study.verdicts import Judgement

__all__ = [
    "ARMS",
    "CLAIMS",
    "SAMPLERS",
    "Arm",
    "ArmRow",
    "CalibrationBin",
    "CellKey",
    "Claim",
    "CurvePoint",
    "GridPoint",
    "Judgement",
    "Measured",
    "PairedDifference",
    "PopularityGroup",
    "Quantiles",
    "RankCorrelation",
    "Record",
    "Study",
    "StudyCells",
    "StudyProgress",
    "StudyResult",
    "StudyStatus",
    "StudySummary",
    "UserValues",
    "append_record",
    "arm_rows",
    "judge_claims",
    "paired_difference",
    "parse_study",
    "rank_correlation",
    "read_records",
    "read_study",
    "read_users",
    "run_study",
    "summarize",
    "write_users",
]
