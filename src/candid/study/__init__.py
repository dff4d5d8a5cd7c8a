"""Study: corrections, samplers and numbers of candidates compared on a grid of trainings.

records.jsonl   the outcome of every cell
users/ID.npz    values of each user, for paired tests
"""

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
from candid.study.statistics import (
    PairedDifference,
    RankCorrelation,
    paired_difference,
    rank_correlation,
)

__all__ = [
    "CalibrationBin",
    "CellKey",
    "CurvePoint",
    "Measured",
    "PairedDifference",
    "PopularityGroup",
    "Quantiles",
    "RankCorrelation",
    "Record",
    "UserValues",
    "append_record",
    "paired_difference",
    "rank_correlation",
    "read_records",
    "read_users",
    "write_users",
]
