"""Prepared datasets: interactions read, filtered, split and stored."""

from candid.data.config import (
    DataConfig,
    EventTypeConfig,
    ItemTableConfig,
    UserTableConfig,
)
from candid.data.dataset import HeldOutTargets, PreparedDataset, Role, held_out
from candid.data.lookup import item_ids_of, user_ids_of
from candid.data.prepare import Prepared, prepare
from candid.data.split_config import SplitConfig
from candid.data.store import SCHEMA_VERSION, open_dataset

__all__ = [
    "SCHEMA_VERSION",
    "DataConfig",
    "EventTypeConfig",
    "HeldOutTargets",
    "ItemTableConfig",
    "Prepared",
    "PreparedDataset",
    "Role",
    "SplitConfig",
    "UserTableConfig",
    "held_out",
    "item_ids_of",
    "open_dataset",
    "prepare",
    "user_ids_of",
]
