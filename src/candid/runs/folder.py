"""The folder of a run: what it says of itself, and who may write into it."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import candid
from candid.atomic import write_error
from candid.config import RunConfig, parse_config
from candid.data import PreparedDataset
from candid.errors import ArtifactError, ConfigError
from candid.training import Trainer, TrainState

MANIFEST = "run.json"


def new_manifest(
    config: RunConfig, dataset: PreparedDataset, device: torch.device
) -> dict[str, Any]:
    """What ``run.json`` says before the first step: plain JSON values."""
    return {
        "candid": candid.__version__,
        "config": config.model_dump(mode="json"),
        "dataset": {
            "path": None if dataset.path is None else str(dataset.path.resolve()),
            "fingerprint": dataset.manifest.get("fingerprint"),
            "users": dataset.num_users,
            "items": dataset.num_items,
        },
        "machine": {
            "device": str(device),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "command": shlex.join(sys.argv),
    }


def result_of(state: TrainState, device: torch.device) -> dict[str, Any]:
    """What training came to, for ``run.json``: seconds of wall and CPU time, memory in MiB."""
    result = {
        "metric": state.metric,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "train_seconds": round(state.train_seconds, 2),
        "cpu_seconds": round(state.cpu_seconds, 2),
        "rows": state.rows,
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    if device.type == "cuda":
        result["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return result


def peak_memory_mib() -> float:
    """Largest resident set of this process so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def check_is_free(out: Path) -> None:
    """Refuse a folder that a new run would mix with something else.

    Raises:
        ConfigError: it holds a run or other files.
    """
    if (out / MANIFEST).exists():
        raise ConfigError(
            f"{out} already holds a run: add --resume to go on with it, or name another --out"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"{out} {what}: name a new or empty folder with --out")


@contextmanager
def claimed(out: Path, trainer: Trainer) -> Iterator[None]:
    """Make ``out`` a new run's folder, and clear it if the run ends before its first step."""
    check_is_free(out)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    try:
        yield
    except BaseException:
        if trainer.state.step == 0:
            for entry in out.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            if is_new:
                out.rmdir()
        raise


def check_resumable(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Refuse to resume what would not be the same run; the run's manifest so far.

    Raises:
        ArtifactError: not a run, or of another dataset.
        ConfigError: another model, objective or batches, or another measure of the best.
    """
    before = read_manifest(out)
    if before["dataset"]["fingerprint"] != manifest["dataset"]["fingerprint"]:
        raise ArtifactError(f"{out} was trained on another dataset; resume with that one")
    # How long to train may change on resume; what is trained may not.
    try:
        earlier = parse_config(before["config"], str(out / MANIFEST)).model_dump(mode="json")
    except ConfigError as error:
        raise ArtifactError(f"{error}; train again in another folder") from None
    for section in sorted(earlier.keys() - {"training", "evaluation", "threads"}):
        # As text: the order of features is that of their weights, and equal dicts forget it.
        if json.dumps(earlier[section]) != json.dumps(manifest["config"].get(section)):
            raise ConfigError(
                f"{out} was started with another {section!r} section: resume with the same recipe"
            )
    for key in ("metric", "filter_seen"):
        kept, asked = (c["evaluation"][key] for c in (earlier, manifest["config"]))
        if kept != asked:
            raise ConfigError(
                f"{out} kept its best model by evaluation.{key} = {kept!r}, which {asked!r} is no "
                "match for: resume with the same"
            )
    return before


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        ArtifactError: missing or damaged.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manifest["config"], manifest["dataset"]["fingerprint"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder} is not a run: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged; train again") from None
    return manifest


def check_fingerprint(folder: Path, manifest: dict[str, Any], dataset: PreparedDataset) -> None:
    """Refuse a dataset that the run was not trained on.

    Raises:
        ArtifactError: the fingerprints differ.
    """
    if manifest["dataset"]["fingerprint"] != dataset.manifest.get("fingerprint"):
        raise ArtifactError(
            f"{folder} was trained on another version of the dataset than {dataset.path}: "
            "name the right one with --data, or train again"
        )
