"""Start of a training in a folder: one process writes it, and a start that was cut begins again.

A training holds the lock of its folder, and writes features, ids, dataset and ``run.json`` before
its first checkpoint. A process that is killed before it leaves these files and the lock file: an
interrupted start. No weights are lost with it, so the same command begins again, with or without
``--resume``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.atomic import TEMPORARY, remove_all_stale, write_error
from candid.data import PreparedDataset
from candid.errors import ConfigError
from candid.locks import LOCK, check_not_held, one_writer, stored_purpose
from candid.runs.features import FEATURES
from candid.runs.folder import BEFORE_REFIT, DATA, MANIFEST, check_is_empty, read_manifest
from candid.runs.refit import check_refit_flag
from candid.runs.trained_ids import ITEMS, USERS
from candid.runs.warm_start import check_resumes_init
from candid.training import Trainer

ANOTHER: Final = "name another folder with --out"
START: Final = re.compile(
    "|".join(
        (
            *map(re.escape, (LOCK, MANIFEST, FEATURES, ITEMS, USERS, DATA, BEFORE_REFIT)),
            r"metrics\.jsonl",
            "tensorboard",
            TEMPORARY.pattern,
        )
    )
)
"""Names of the files and folders that a training writes before it stores weights."""


@dataclass(frozen=True)
class RunStart:
    """The start of a training in its folder.

    Attributes:
        resume: whether files of an earlier start are there to continue with; False: the folder is
            empty.
        init: folder of the earlier run whose weights the training starts from; None: it starts
            without one, or ``run.json`` has it.
        begins_again: whether an interrupted start was removed.
        kept: names of files in the folder that no failure may remove.
    """

    resume: bool
    init: Path | str | None
    begins_again: bool
    kept: frozenset[str]


def check_is_free(out: Path) -> None:
    """Refuse a folder that has content, except an interrupted start, or that a process writes.

    Raises:
        ConfigError: the folder holds a run or other files, or another process trains in it.
    """
    check_not_held(out / LOCK, out, ANOTHER)
    _check_content(out)


@contextmanager
def training_folder(
    out: Path, dataset: PreparedDataset, init: Path | str | None, *, resume: bool, refit: bool
) -> Iterator[RunStart]:
    """Hold the folder of a training for a block; other processes are refused.

    Args:
        out: the folder. A missing one is created with the folders above it; those that the block
            leaves empty are removed again.
        dataset: of the training; one that an interrupted start stored in the folder stays.
        init: folder of the earlier run whose weights the training starts from, or None.
        resume: whether an interrupted training continues; an interrupted start that stored no
            ``run.json`` begins again, with the ``init`` of its first start.
        refit: whether the training has a refit.

    Raises:
        ConfigError: another process trains in the folder; without ``resume``, it holds a run or
            other files; with it, the interrupted start had other arguments.
        ArtifactError: the operating system refuses; or with ``resume``, there is no run.
    """
    # The folder and the folders above it that this creates, innermost first.
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    is_stored = dataset.path is not None and dataset.path.resolve() == (out / DATA).resolve()
    kept = frozenset({DATA} if is_stored else ())
    purpose: dict[str, Any] = {
        "init": None if init is None else str(Path(init).resolve()),
        "refit": refit,
    }
    has_manifest = False
    if not resume:
        check_is_free(out)
    else:
        check_not_held(out / LOCK, out, ANOTHER)
        has_manifest = (out / MANIFEST).exists() or (out / BEFORE_REFIT / MANIFEST).exists()
        if not has_manifest:
            purpose = _purpose_of(out, init, refit)
            init = purpose["init"]
    with ExitStack() as held:
        for folder in reversed(created):
            held.callback(_remove_if_empty, folder)
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(one_writer(out / LOCK, out, ANOTHER, purpose))
        except OSError as error:
            raise write_error(out, error) from error
        try:
            for folder in (out, out / BEFORE_REFIT):
                remove_all_stale(folder)
            if has_manifest:
                yield RunStart(True, init, begins_again=False, kept=kept)
            else:
                _check_content(out)  # another process may have ended its training meanwhile
                yield RunStart(False, init, begins_again=_clear(out, kept), kept=kept)
        finally:
            # A second Ctrl-C may leave files of the start, which the lock file marks as such.
            lock.keeps_file = len(os.listdir(out)) > 1 and _is_interrupted_start(out)


@contextmanager
def run_folder(out: Path, trainer: Trainer, kept: Collection[str] = ()) -> Iterator[None]:
    """Create the folder of a new run, and clear it if the run fails before its first step.

    Args:
        out: the folder, without other content.
        trainer: of the run.
        kept: names of files and folders in it that stay.

    Raises:
        ArtifactError: the folder cannot be created.
    """
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    try:
        yield
    except BaseException:
        if trainer.state.step == 0:
            _clear(out, kept)
            if is_new:
                _remove_if_empty(out)
        raise


def _check_content(out: Path) -> None:
    if _is_interrupted_start(out):
        return
    if (out / MANIFEST).exists() or (out / BEFORE_REFIT / MANIFEST).exists():
        if out.is_symlink():
            raise ConfigError(
                f"{out} is a link to a run, which a server may have open: train into a new folder, "
                "then let the link name that folder and reload the server"
            )
        raise ConfigError(
            f"{out} already holds a run: continue it with --resume, or name another folder with "
            "--out"
        )
    check_is_empty(out, "--out")


def _is_interrupted_start(out: Path) -> bool:
    """Whether a training stopped in this folder before it stored weights, and nothing else is."""
    if out.is_symlink() or not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    return (
        bool(names & {LOCK, MANIFEST, BEFORE_REFIT})
        and all(START.fullmatch(name) for name in names)
        and not _has_weights(out)
        and not _has_weights(out / BEFORE_REFIT)
    )


def _has_weights(folder: Path) -> bool:
    """Whether a training stored weights in this folder, or ended: they may have been moved."""
    if any(folder.glob("*.safetensors")):
        return True
    try:
        return "result" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True  # Unknown: nothing is removed.


def _purpose_of(out: Path, init: Path | str | None, refit: bool) -> dict[str, Any]:
    """Return the arguments of an interrupted start that stored no ``run.json``.

    Raises:
        ConfigError: it had other arguments, or did not store them.
        ArtifactError: the folder is not a run.
    """
    if not _is_interrupted_start(out):
        read_manifest(out)
    purpose = stored_purpose(out / LOCK)
    if purpose is None:
        raise ConfigError(
            f"{out} was stopped before its settings were stored: run the same command without "
            "--resume"
        )
    stored = purpose["init"]
    check_refit_flag(out, purpose["refit"], refit)
    check_resumes_init(out, {"init": stored and {"run": stored}}, init)
    return purpose


def _clear(folder: Path, kept: Collection[str]) -> bool:
    """Remove the content of a folder, except its lock; return whether there was any."""
    entries = [path for path in folder.iterdir() if path.name not in {LOCK, *kept}]
    for path in entries:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return bool(entries)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
