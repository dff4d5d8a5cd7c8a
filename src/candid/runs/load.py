"""Trained runs opened from their folders."""

from __future__ import annotations

from pathlib import Path

from candid.checksums import verification
from candid.data import PreparedDataset
from candid.runs.build import build_model, pick_device, set_threads
from candid.runs.features import read_features
from candid.runs.folder import config_of, dataset_of, read_manifest, served_checkpoint
from candid.runs.refit import dataset_of_refit
from candid.runs.run import Run
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
    with UnsetWeights():
        model = build_model(config, dataset, features, is_read=True)
    path = served_checkpoint(folder, manifest)
    checkpoint = read_checkpoint(path, run=manifest.get(RUN))
    load_model(model, checkpoint, path, averaged=True, mapped=map_weights)
    dataset.wait_until_verified()
    model.to(pick_device(config.device)).eval()
    return Run(folder, config, model, dataset, manifest, features)
