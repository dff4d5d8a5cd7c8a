"""The folder of a run: its manifest, and checks before writing into it."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from candid.atomic import atomic_folder
from candid.checksums import check_seal, read_error
from candid.config import RunConfig, parse_config
from candid.data import PreparedDataset, as_dataset
from candid.errors import ArtifactError, ConfigError
from candid.json_text import read_json
from candid.training import (
    BEST,
    LAST,
    PREVIOUS,
    TrainState,
    read_checkpoint,
    validated_checkpoint,
)
from candid.version import __version__

MANIFEST = "run.json"
BASELINE = "baseline.json"
"""The manifest of a saved baseline."""
DATA: Final = "data"
"""Folder, in that of a model, of a dataset that was in memory when the model was made."""
BEFORE_REFIT: Final = "before-refit"
"""Folder of the first pass of a training with a refit, in the folder of the run."""
FORMAT: Final = 3
"""Version of ``run.json`` and the checkpoints beside it; 1 had no "format" key."""
TRAIN_AGAIN: Final = "restore it from a copy, or train again"


def new_manifest(
    config: RunConfig, dataset: PreparedDataset, device: torch.device, folder: Path
) -> dict[str, Any]:
    """Return the content of ``run.json`` before the first step, as plain JSON values.

    Args:
        config: of the run.
        dataset: that the run is trained on.
        device: of the training.
        folder: of the run.
    """
    return {
        "format": FORMAT,
        "candid": __version__,
        "config": config.model_dump(mode="json"),
        "dataset": dataset_facts(dataset, folder),
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


def dataset_facts(dataset: PreparedDataset, folder: Path | None = None) -> dict[str, Any]:
    """Return path, fingerprint and sizes of a dataset, as plain JSON values.

    The path is absolute, or relative to the folder of the model if the dataset is stored there:
    such a folder can be moved.

    Args:
        dataset: in memory, or in a folder.
        folder: of the model; None: it has none yet.
    """
    path = DATA
    if dataset.path is not None and (folder is None or not _is_stored(dataset, folder)):
        path = str(dataset.path.resolve())
    return {
        "path": path,
        "fingerprint": dataset.fingerprint,
        "users": dataset.num_users,
        "items": dataset.num_items,
    }


def store_dataset(folder: Path, dataset: PreparedDataset) -> None:
    """Write a dataset in memory into the folder of its model, so that the model can be opened.

    Nothing is written for a dataset that has a folder, or that is stored already. A refit links the
    files that its first pass stored, so that they are on the disk once and each of the two folders
    can be moved or removed.

    Raises:
        ArtifactError: the operating system refuses.
    """
    if dataset.path is not None or (folder / DATA).exists():
        return
    of_first_pass = folder / BEFORE_REFIT / DATA
    if not of_first_pass.exists() or as_dataset(of_first_pass).fingerprint != dataset.fingerprint:
        dataset.save(folder / DATA)
        return
    with atomic_folder(folder / DATA) as temporary:
        for file in of_first_pass.iterdir():
            try:
                os.link(file, temporary / file.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, temporary / file.name)


def _is_stored(dataset: PreparedDataset, folder: Path) -> bool:
    return dataset.path is not None and dataset.path.resolve() == (folder / DATA).resolve()


def result_of(state: TrainState, device: torch.device, keep: str) -> dict[str, Any]:
    """Return the result of training for ``run.json``: wall and CPU seconds, memory in MiB, best.

    Args:
        state: at the end of training.
        device: of the training.
        keep: ``training.keep``; with "all", the result names the file of each validated model.
    """
    result: dict[str, Any] = {
        "metric": state.metric,
        "best": state.best,
        "best_epoch": state.best_epoch,
        "best_step": state.best_step,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "train_seconds": round(state.train_seconds, 2),
        "cpu_seconds": round(state.cpu_seconds, 2),
        "rows": state.rows,
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    if keep == "all":
        steps = [int(validation["step"]) for validation in state.history]
        result["checkpoints"] = [validated_checkpoint(step) for step in steps]
    if device.type == "cuda":
        result["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return result


def peak_memory_mib() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def check_is_empty(out: Path, option: str) -> None:
    """Refuse a folder that already has content.

    Args:
        out: the folder.
        option: of the command line, that names it.

    Raises:
        ConfigError: the folder has content, or is a file.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        reason = "is not empty" if out.is_dir() else "is a file"
        raise ConfigError(f"{out} {reason}: name a new or empty folder with {option}")


def check_resumable(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Refuse to resume a different run; return the manifest of the run so far.

    Raises:
        ArtifactError: not a run, or a run of another dataset or of an older version.
        ConfigError: the model, the objective, the batches or the early stopping metric differ.
    """
    before = read_manifest(out)
    if before["dataset"]["fingerprint"] != manifest["dataset"]["fingerprint"]:
        raise ArtifactError(f"{out} was trained on another dataset; resume with that dataset")
    # Only the length of the training may change on resume.
    try:
        earlier = parse_config(before["config"], str(out / MANIFEST)).model_dump(mode="json")
    except ConfigError as error:
        raise ArtifactError(f"{error}; train again in another folder") from None
    for section in sorted(earlier.keys() - {"training", "evaluation", "threads"}):
        # Compared as text: the weights depend on the order of features, which == of dicts ignores.
        if json.dumps(earlier[section]) != json.dumps(manifest["config"].get(section)):
            raise ConfigError(
                f"{out} was started with another section [{section}]: resume with the same recipe"
            )
    for key in ("metric", "filter_seen"):
        old, new = (config["evaluation"][key] for config in (earlier, manifest["config"]))
        if old != new:
            raise ConfigError(
                f"{out} selected its best model by evaluation.{key} = {old!r}, not {new!r}: resume "
                "with the same value"
            )
    kept, keep = (config["training"]["keep"] for config in (earlier, manifest["config"]))
    if kept != keep:
        raise ConfigError(
            f"{out} was started with training.keep = {kept!r}, not {keep!r}: resume with the same "
            "value"
        )
    return before


def check_stored_no_weights(out: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse to begin a training again that stored weights, and lost the state to continue from.

    Args:
        out: folder of the run, without a checkpoint to continue from.
        manifest: content of its ``run.json``.

    Raises:
        ArtifactError: the run has best weights from after its first checkpoint, or ended.
    """
    if "result" in manifest or _had_a_checkpoint(out, manifest):
        raise ArtifactError(
            f"{out} has neither {LAST} nor {PREVIOUS} to continue from, and has stored weights: "
            "restore one of them from a copy, or train again in another folder"
        )


def _had_a_checkpoint(out: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the best weights are from after the first checkpoint.

    Earlier ones are written before it, so that a kill may leave them alone.
    """
    if not (out / BEST).exists():
        return False
    state = read_checkpoint(out / BEST).meta["state"]
    steps: int = state["step"] - state["start_step"]
    training = manifest["config"]["training"]
    by_steps = training.get("checkpoint_every_steps")
    first = by_steps or training["checkpoint_every"] * manifest["steps_per_epoch"]
    return steps > int(first)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read ``run.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path)
        manifest["config"], manifest["dataset"]["fingerprint"], manifest["dataset"]["path"]
        run_format = manifest.get("format", 1)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / BASELINE).exists():
            raise ArtifactError(
                f"{folder} is a saved baseline and this needs a trained run: name the folder of a "
                "run (recommend, evaluate, compare, serve, export and candid.load take baselines)"
            ) from None
        raise ArtifactError(f"{folder} is not a run: it has no {MANIFEST}") from None
    except OSError as error:
        raise read_error(path, error) from error
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged; {TRAIN_AGAIN}") from None
    if run_format != FORMAT:
        raise ArtifactError(
            f"{folder} holds a run of format {run_format} and this version of candid reads format "
            f"{FORMAT}: train again"
        )
    check_seal(path, manifest, TRAIN_AGAIN)
    return manifest


def served_checkpoint(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Return the checkpoint whose weights a run serves: the best, or the last without a best one.

    Args:
        folder: of the run.
        manifest: content of ``run.json``.

    Raises:
        ArtifactError: the best one is missing; the last one would give other answers.
    """
    best = folder / BEST
    if best.exists():
        return best
    if has_best(manifest):
        raise ArtifactError(f"{best} is missing; {TRAIN_AGAIN}")
    return folder / LAST


def has_best(manifest: Mapping[str, Any]) -> bool:
    """Return whether a complete run stored the model of its best validation.

    Args:
        manifest: content of ``run.json``.
    """
    keep = manifest["config"].get("training", {}).get("keep")
    return keep != "none" and manifest.get("result", {}).get("best") is not None


def config_of(folder: Path, manifest: Mapping[str, Any]) -> RunConfig:
    """Return the recipe in the manifest of a run.

    Raises:
        ArtifactError: this version of candid cannot read it.
    """
    try:
        return parse_config(manifest["config"], str(folder / MANIFEST))
    except ConfigError as error:
        raise ArtifactError(
            f"{error}; the file is damaged or of another version of candid: train again"
        ) from None


def dataset_of(
    folder: Path,
    facts: Mapping[str, Any],
    data: PreparedDataset | Path | str | None,
    *,
    made: str = "trained",
    again: str = "train again",
    wait: bool = True,
) -> PreparedDataset:
    """Open the dataset that a model was made from.

    Args:
        folder: of the model, for messages.
        facts: of ``dataset_facts``, from its manifest.
        data: the dataset or its folder; None: the one that ``facts`` name.
        made: how the model was made, for messages.
        again: advice to make it again, for messages.
        wait: as for ``open_dataset``.

    Raises:
        ArtifactError: the dataset does not exist, or is another one.
    """
    if data is None:
        data = folder / (facts["path"] or DATA)
        if not data.exists():
            raise ArtifactError(
                f"{folder} was {made} on {data}, which does not exist: pass the dataset as data "
                "(--data)"
            )
    dataset = as_dataset(data, wait=wait)
    if facts["fingerprint"] != dataset.fingerprint:
        raise ArtifactError(
            f"{folder} was {made} on another version of the dataset than {dataset.origin}: pass "
            f"that version as data (--data), or {again}"
        )
    return dataset
