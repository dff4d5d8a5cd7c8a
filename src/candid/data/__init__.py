"""Prepared datasets: interactions read, filtered, split and stored."""

from candid.data.all_training import with_all_training
from candid.data.config import (
    DataConfig,
    EventTypeConfig,
    ItemTableConfig,
    UserTableConfig,
)
from candid.data.dataset import (
    HeldOutTargets,
    HeldOutUsers,
    PreparedDataset,
    Role,
    held_out,
    held_out_users,
    targets_of_users,
)
from candid.data.dataset_files import SCHEMA_VERSION
from candid.data.in_memory import is_table, table_frame
from candid.data.inputs import MEMORY_NAMES
from candid.data.lookup import item_ids_of, user_ids_of
from candid.data.prepare import Prepared, prepare, prepare_folder
from candid.data.public_copy import PublicCopy, find_public_copy
from candid.data.public_sets import PUBLIC_SETS, PublicSet, RawFiles
from candid.data.split_config import SplitConfig
from candid.data.store import as_dataset, open_dataset

__all__ = [
    "MEMORY_NAMES",
    "PUBLIC_SETS",
    "SCHEMA_VERSION",
    "DataConfig",
    "EventTypeConfig",
    "HeldOutTargets",
    "HeldOutUsers",
    "ItemTableConfig",
    "Prepared",
    "PreparedDataset",
    "PublicCopy",
    "PublicSet",
    "RawFiles",
    "Role",
    "SplitConfig",
    "UserTableConfig",
    "as_dataset",
    "find_public_copy",
    "held_out",
    "held_out_users",
    "is_table",
    "item_ids_of",
    "open_dataset",
    "prepare",
    "prepare_folder",
    "table_frame",
    "targets_of_users",
    "user_ids_of",
    "with_all_training",
]
