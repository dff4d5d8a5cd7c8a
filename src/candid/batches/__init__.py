"""Batches of training rows, made by array operations over a prepared dataset."""

from candid.batches.config import BatchesConfig
from candid.batches.loader import Loader, Position
from candid.batches.new_targets import NewTargets
from candid.batches.packing import (
    Ints,
    event_type_of,
    offsets_of,
    pack_histories,
    ranges,
    times_of,
)
from candid.batches.parts import Part, parts_of, without_rows
from candid.batches.prefetch import prefetch
from candid.batches.records import UNKNOWN_TIME, Batch, History, Queries
from candid.batches.targets import (
    EpochTargets,
    TargetSummary,
    UnitTargets,
    epoch_targets,
    target_counts,
    unit_targets,
    users_with_rows,
)

__all__ = [
    "UNKNOWN_TIME",
    "Batch",
    "BatchesConfig",
    "EpochTargets",
    "History",
    "Ints",
    "Loader",
    "NewTargets",
    "Part",
    "Position",
    "Queries",
    "TargetSummary",
    "UnitTargets",
    "epoch_targets",
    "event_type_of",
    "offsets_of",
    "pack_histories",
    "parts_of",
    "prefetch",
    "ranges",
    "target_counts",
    "times_of",
    "unit_targets",
    "users_with_rows",
    "without_rows",
]
