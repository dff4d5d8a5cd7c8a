"""Runs: training from a config and a prepared dataset, and the folder with its results.

A folder of a run:

run.json             the manifest: resolved config, dataset, versions, results so far
trained_items.parquet, trained_users.parquet   source ids that the run was trained on
features.json        the fitted features, if there are any
data/                the dataset, if it was in memory
best.safetensors     the model of the best validation
checkpoints/         each validated model, with ``training.keep = "all"``
last.safetensors     everything that an exact resume needs
metrics.jsonl        the metrics log
tensorboard/         the metrics log for TensorBoard
index/               item vectors and an index over them, from ``candid index``
evaluation-<split>.json   the report of ``candid evaluate``; -warm, -cold: of a part of the catalog;
                     -set-<hash>: with other settings
before-refit/        the run of the first pass of a training with a refit
baselines-<split>.json    the model beside baselines, from ``candid evaluate --baselines``

A folder of a saved baseline:

baseline.json        the manifest: name, settings, tuning, dataset, version
arrays.safetensors   the arrays of the fit
data/                the dataset, if it was in memory
items.parquet        the source id of each item, in the order of the arrays
"""

from candid.runs.baseline_fit import fit_baseline, fitted_baseline
from candid.runs.baselines import beside_baselines, beside_cheap_baselines
from candid.runs.build import build_model, build_objective, pick_device, set_threads
from candid.runs.bulk import BulkResult, write_recommendations, write_similar
from candid.runs.comparison import compare_runs, load_runs
from candid.runs.features import RunFeatures, fit_features
from candid.runs.fitted_baseline import FittedBaseline
from candid.runs.folder import DATA, MANIFEST, check_is_empty, peak_memory_mib
from candid.runs.given_lists import evaluate_recommendations
from candid.runs.index import INDEX, model_fingerprint, open_index
from candid.runs.load import load_run
from candid.runs.measured_training import train
from candid.runs.new_items import read_new_items
from candid.runs.run import Run
from candid.runs.run_start import check_is_free
from candid.runs.saved_model import SavedModel, holds_baseline, load, load_baseline
from candid.runs.training import TrainResult, train_run

__all__ = [
    "DATA",
    "INDEX",
    "MANIFEST",
    "BulkResult",
    "FittedBaseline",
    "Run",
    "RunFeatures",
    "SavedModel",
    "TrainResult",
    "beside_baselines",
    "beside_cheap_baselines",
    "build_model",
    "build_objective",
    "check_is_empty",
    "check_is_free",
    "compare_runs",
    "evaluate_recommendations",
    "fit_baseline",
    "fit_features",
    "fitted_baseline",
    "holds_baseline",
    "load",
    "load_baseline",
    "load_run",
    "load_runs",
    "model_fingerprint",
    "open_index",
    "peak_memory_mib",
    "pick_device",
    "read_new_items",
    "set_threads",
    "train",
    "train_run",
    "write_recommendations",
    "write_similar",
]
