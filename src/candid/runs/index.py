"""The index of a run: opened from its folder, or built in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from candid.index import ExactIndex, Snapshot, open_snapshot, snapshot_in_memory
from candid.index.snapshot_files import MANIFEST
from candid.inference import StageProgress, encode_catalog, inference_mode
from candid.runs.run import Run

INDEX = "index"
"""Default folder of the index, inside the folder of the run."""


def model_fingerprint(run: Run) -> str:
    """Hash everything that the item vectors depend on: weights, features and dataset."""
    digest = hashlib.sha256(str(run.manifest["dataset"]["fingerprint"]).encode())
    digest.update(str(run.manifest.get("features")).encode())
    for name, value in sorted(run.model.state_dict().items()):
        weights = value.detach().cpu().contiguous()
        digest.update(f"{name} {weights.dtype} {list(weights.shape)}".encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(np.ascontiguousarray(weights.reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()


def open_index(
    run: Run, folder: Path | str | None = None, progress: StageProgress | None = None
) -> Snapshot:
    """Open the index of a run, or build an exact index in memory if the run has no index.

    Retired items are hidden, unless the index has an update of them.

    Args:
        run: the trained run.
        folder: of the index; None: the index in the folder of the run, if there is one.
        progress: called with (stage, done, total) while items are encoded.

    Raises:
        ArtifactError: ``folder`` holds no index, a damaged one, or the index of another model.
        ConfigError: the library of this index is not installed.
    """
    fingerprint = model_fingerprint(run)
    if folder is not None or (run.folder / INDEX / MANIFEST).exists():
        snapshot = open_snapshot(Path(folder or run.folder / INDEX), fingerprint=fingerprint)
        _hide_retired(run, snapshot)
        return snapshot
    with inference_mode(run.model):
        vectors = encode_catalog(run.model, progress).float().cpu().clone()
    config = ExactIndex.Config()
    snapshot = snapshot_in_memory(
        config.build(vectors),
        vectors,
        run.dataset.items["source_id"],
        config=config,
        fingerprint=fingerprint,
    )
    _hide_retired(run, snapshot)
    return snapshot


def _hide_retired(run: Run, snapshot: Snapshot) -> None:
    if run.dataset.retired_items is not None:
        retired = torch.from_numpy(np.flatnonzero(run.dataset.retired_items))
        snapshot.index.delete(retired[snapshot.index.changes.rows_of(retired) < 0])
