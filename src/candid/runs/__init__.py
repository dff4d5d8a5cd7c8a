"""Runs: from a config and a prepared dataset to a trained, measured model in one folder.

run.json             what was run: resolved config, dataset, versions, results so far
best.safetensors     the model of the best validation
last.safetensors     everything that an exact resume needs
metrics.jsonl        the metrics log
tensorboard/         the same for TensorBoard
index/               item vectors and an index over them, from ``candid index``
evaluation-<split>.json   what ``evaluate`` measured; -warm and -cold: of that part of the catalog
"""

from candid.runs.folder import MANIFEST, check_is_free, peak_memory_mib
from candid.runs.index import INDEX, model_fingerprint, open_index
from candid.runs.new_items import read_new_items
from candid.runs.run import (
    Run,
    TrainResult,
    build_model,
    build_objective,
    check_dataset_matches,
    evaluate_run,
    load_run,
    pick_device,
    set_threads,
    train_run,
)

__all__ = [
    "INDEX",
    "MANIFEST",
    "Run",
    "TrainResult",
    "build_model",
    "build_objective",
    "check_dataset_matches",
    "check_is_free",
    "evaluate_run",
    "load_run",
    "model_fingerprint",
    "open_index",
    "peak_memory_mib",
    "pick_device",
    "read_new_items",
    "set_threads",
    "train_run",
]
