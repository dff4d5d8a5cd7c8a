"""Trained runs opened from their folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from candid.checksums import verification
from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.distributed import Group
from candid.runs.build import build_model, pick_device, set_threads
from candid.runs.features import RunFeatures, read_features
from candid.runs.folder import config_of, dataset_of, read_manifest, served_checkpoint
from candid.runs.refit import dataset_of_refit
from candid.runs.run import Run
from candid.towers import RetrievalModel, sharded_from_start
from candid.training import RUN, UnsetWeights, load_model, read_checkpoint


def load_run(
    folder: Path | str,
    data: PreparedDataset | Path | str | None = None,
    *,
    verify: bool = True,
    apply_threads: bool = True,
    map_weights: bool = False,
) -> Run:
    """Open a trained run, its model in evaluation mode on the device of its config.

    Args:
        folder: of ``train_run`` or ``candid train``.
        data: the prepared dataset, or its folder; None: the one that ``run.json`` names.
        verify: whether to compare the files of run and dataset with their checksums.
        apply_threads: whether to set the number of CPU threads of torch, which holds for the
            whole process, to ``threads`` of the config.
        map_weights: whether weights on a CPU stay in the file of the checkpoint until they are
            read: processes of a machine then share them, and a table that is larger than memory
            can be read. The file must not be changed in place.

    Raises:
        ArtifactError: not a run, a run of an older version, no checkpoint, a damaged one, another
            dataset, or features that are not those of training.
        ConfigError: the device of the run cannot be used on this machine.
    """
    with verification(verify):
        return _load_run(Path(folder), data, apply_threads, map_weights)


def _load_run(
    folder: Path, data: PreparedDataset | Path | str | None, apply_threads: bool, map_weights: bool
) -> Run:
    manifest = read_manifest(folder)
    config = config_of(folder, manifest)
    dataset = dataset_of(folder, manifest["dataset"], data, wait=False)
    dataset = dataset_of_refit(manifest, dataset)
    if apply_threads:
        set_threads(config.threads)
    features = read_features(config.features, dataset, folder, manifest.get("features"))
    run = Run(folder, config, _unset_model(config, dataset, features), dataset, manifest, features)
    _load_weights(run, map_weights)
    dataset.wait_until_verified()
    run.model.to(pick_device(config.device)).eval()
    return run


def with_sharded_tables(run: Run, group: Group) -> Run:
    """Return a run whose tables of users and items have the rows of this process only.

    Only those rows are read from the checkpoint, whose checksum is not compared again. All
    processes of the group use the model at the same time.

    Args:
        run: as ``load_run`` opens it, on every process.
        group: the processes.

    Raises:
        ArtifactError: the checkpoint is missing or damaged.
        ConfigError: the device of the run cannot be used on this machine.
    """
    with sharded_from_start(group):
        model = _unset_model(run.config, run.dataset, run.features)
    sharded = replace(run, model=model)
    with verification(False):
        _load_weights(sharded, mapped=True)
    model.to(pick_device(run.config.device, group)).eval()
    return sharded


def _unset_model(
    config: RunConfig, dataset: PreparedDataset, features: RunFeatures
) -> RetrievalModel:
    with UnsetWeights():
        return build_model(config, dataset, features, is_read=True)


def _load_weights(run: Run, mapped: bool) -> None:
    path = served_checkpoint(run.folder, run.manifest)
    checkpoint = read_checkpoint(path, run=run.manifest.get(RUN))
    load_model(run.model, checkpoint, path, averaged=True, mapped=mapped)
