"""Study: corrections, samplers and numbers of candidates compared on a grid of trainings.

records.jsonl   the outcome of every cell
users/ID.npz    values of each user, for paired tests
"""

from candid.study.arms import ARMS, SAMPLERS, Arm
from candid.study.config import Study, parse_study, read_study
from candid.study.records import (
    CalibrationBin,
    CellKey,
    CurvePoint,
    Measured,
    PopularityGroup,
    Quantiles,
    Record,
    UserValues,
    append_record,
    read_records,
    read_users,
    write_users,
)
from candid.study.run import StudyProgress, StudyResult, StudyStatus, run_study

__all__ = [
    "ARMS",
    "SAMPLERS",
    "Arm",
    "CalibrationBin",
    "CellKey",
    "CurvePoint",
    "Measured",
    "PopularityGroup",
    "Quantiles",
    "Record",
    "Study",
    "StudyProgress",
    "StudyResult",
    "StudyStatus",
    "UserValues",
    "append_record",
    "parse_study",
    "read_records",
    "read_study",
    "read_users",
    "run_study",
    "write_users",
]
