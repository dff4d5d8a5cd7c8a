"""Saved models: trained runs and fitted baselines, opened from their folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from candid.checksums import verification
from candid.data import PreparedDataset
from candid.runs.baseline_folder import read_baseline_manifest, read_saved_baseline
from candid.runs.fitted_baseline import FittedBaseline
from candid.runs.folder import BASELINE, DATA, read_manifest
from candid.runs.load import load_run
from candid.runs.run import Run

SavedModel = Run | FittedBaseline
"""A model that recommends and can be evaluated. Only a ``Run`` has towers."""


def load(
    folder: Path | str,
    data: PreparedDataset | Path | str | None = None,
    *,
    verify: bool = True,
) -> SavedModel:
    """Open a trained run or a saved baseline.

    Args:
        folder: of ``candid.train`` or ``FittedBaseline.save``.
        data: the prepared dataset, or its folder; None: the one that the folder names.
        verify: whether to compare the files of model and dataset with their checksums.

    Raises:
        ArtifactError: neither of the two, a damaged one, or another dataset.
        ConfigError: the device of a run cannot be used on this machine.

    Example:
        >>> model = candid.load("baselines/item_knn")
        >>> model.recommend(users=[12], k=5)
    """
    folder = Path(folder)
    if holds_baseline(folder):
        return load_baseline(folder, data, verify=verify)
    return load_run(folder, data, verify=verify)


def load_baseline(
    folder: Path | str,
    data: PreparedDataset | Path | str | None = None,
    *,
    verify: bool = True,
) -> FittedBaseline:
    """Open a saved baseline.

    Args:
        folder: of ``FittedBaseline.save`` or ``candid baselines --save``.
        data: the prepared dataset, or its folder; None: the one that ``baseline.json`` names.
        verify: whether to compare the files of baseline and dataset with their checksums.

    Raises:
        ArtifactError: not a saved baseline, one of another version, a damaged one, or another
            dataset.
    """
    with verification(verify):
        saved = read_saved_baseline(Path(folder), data)
    return FittedBaseline(
        saved.name, saved.model, saved.dataset, saved.evaluation, saved.manifest, Path(folder)
    )


def holds_baseline(folder: Path | str) -> bool:
    """Return whether a folder holds a saved baseline."""
    # Also a link that leads nowhere: reading it names the reason.
    return os.path.lexists(Path(folder) / BASELINE)


def dataset_facts_of(folder: Path | str) -> dict[str, Any]:
    """Return path and fingerprint of the dataset of a saved model, without opening the model.

    Raises:
        ArtifactError: the folder holds no saved model, or a damaged one.
    """
    folder = Path(folder)
    read = read_baseline_manifest if holds_baseline(folder) else read_manifest
    facts: dict[str, Any] = read(folder)["dataset"]
    return {**facts, "path": str(folder / (facts["path"] or DATA))}
