"""Training: the step, the loop, optimizers, checkpoints and trackers."""

from candid.training.checkpoint import (
    RUN,
    Checkpoint,
    UnsetWeights,
    check_has_training_state,
    load_model,
    model_tensors,
    read_checkpoint,
    write_checkpoint,
)
from candid.training.config import TrainingConfig
from candid.training.kernel_cache import bound_kernel_cache
from candid.training.last_checkpoint import (
    LAST,
    PREVIOUS,
    SHARDS,
    has_checkpoint,
    read_last_checkpoint,
    read_last_shards,
)
from candid.training.row_optimizer import RowAdagrad, RowAdam
from candid.training.run_checkpoints import BEST, validated_checkpoint
from candid.training.shard_checkpoint import (
    read_shards,
    shard_checkpoints,
    write_shards,
)
from candid.training.shard_export import export_shards
from candid.training.state import Progress, TrainingLength, TrainState
from candid.training.trackers import TRACKERS, Tracker
from candid.training.trainer import DivergedError, Trainer

__all__ = [
    "BEST",
    "LAST",
    "PREVIOUS",
    "RUN",
    "SHARDS",
    "TRACKERS",
    "Checkpoint",
    "DivergedError",
    "Progress",
    "RowAdagrad",
    "RowAdam",
    "Tracker",
    "TrainState",
    "Trainer",
    "TrainingConfig",
    "TrainingLength",
    "UnsetWeights",
    "bound_kernel_cache",
    "check_has_training_state",
    "export_shards",
    "has_checkpoint",
    "load_model",
    "model_tensors",
    "read_checkpoint",
    "read_last_checkpoint",
    "read_last_shards",
    "read_shards",
    "shard_checkpoints",
    "validated_checkpoint",
    "write_checkpoint",
    "write_shards",
]
