"""Start of a training in a folder: one process writes it, and a start that was cut begins again.

A training holds the lock of its folder, and writes features, ids, dataset and ``run.json`` before
its first checkpoint. A process that is killed before it leaves these files and the lock file: an
interrupted start. No weights are lost with it, so the same command begins again, with or without
``--resume``. Names alone do not make an interrupted start: the lock file has the arguments of its
training, or ``run.json`` the checksum of its content. Everything else is refused and stays.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from candid.atomic import TEMPORARY, remove_all_stale, write_error
from candid.checksums import has_valid_seal
from candid.data import PreparedDataset
from candid.distributed import Group, job_id
from candid.errors import ArtifactError, ConfigError
from candid.json_text import read_json
from candid.locks import LOCK, check_not_held, is_lock_file, one_writer, stored_purpose
from candid.runs.features import FEATURES
from candid.runs.folder import BEFORE_REFIT, DATA, MANIFEST, check_is_empty, read_manifest
from candid.runs.refit import check_refit_flag
from candid.runs.trained_ids import ITEMS, USERS
from candid.runs.warm_start import check_resumes_init
from candid.training import Trainer

JOB: Final = "job"
"""Key of ``run.json`` with the id of the job of torchrun that trains."""

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
    _check_content(out, _stored_arguments(out))


def is_restart(out: Path) -> bool:
    """Whether torchrun starts the training of this folder again, after one of its processes ended.

    The same command then continues, without ``--resume``.
    """
    job = job_id()
    manifests = map(_own_manifest, (out, out / BEFORE_REFIT))
    return job is not None and any(m is not None and m.get(JOB) == job for m in manifests)


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
        ArtifactError: the operating system refuses; or with ``resume``, there is no run, or its
            ``run.json`` is damaged.
    """
    # The folder and the folders above it that this creates, innermost first.
    created = [folder for folder in (out, *out.parents) if not folder.exists()]
    is_stored = dataset.path is not None and dataset.path.resolve() == (out / DATA).resolve()
    kept = frozenset({DATA} if is_stored else ())
    purpose: dict[str, Any] = {
        "init": None if init is None else str(Path(init).resolve()),
        "refit": refit,
    }
    # Read before the lock is taken, which replaces them.
    before = _stored_arguments(out)
    has_manifest = False
    if not resume:
        check_is_free(out)
    else:
        check_not_held(out / LOCK, out, ANOTHER)
        manifests = [folder for folder in (out, out / BEFORE_REFIT) if (folder / MANIFEST).exists()]
        has_manifest = bool(manifests)
        if has_manifest:
            # Before anything is changed: the folder may be of another program.
            read_manifest(manifests[0])
        else:
            purpose = _purpose_of(out, init, refit)
            init = purpose["init"]
    purpose["stored_data"] = dataset.path is None or _stored_data(out, before)
    with ExitStack() as held:
        for folder in reversed(created):
            held.callback(_remove_if_empty, folder)
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(one_writer(out / LOCK, out, ANOTHER, purpose))
        except OSError as error:
            raise write_error(out, error) from error
        has_begun = False
        try:
            for folder in (out, out / BEFORE_REFIT):
                remove_all_stale(folder)
            if has_manifest:
                has_begun = True
                yield RunStart(True, init, begins_again=False, kept=kept)
            else:
                _check_content(out, before)  # another process may have written meanwhile
                has_begun = True
                yield RunStart(False, init, begins_again=_clear(out, kept), kept=kept)
        finally:
            # A second Ctrl-C may leave files of the start, which the lock file marks as such.
            has_files = has_begun and len(os.listdir(out)) > 1
            lock.keeps_file = has_files and _is_interrupted_start(out, purpose)


@contextmanager
def shared_training_folder(
    group: Group,
    out: Path,
    dataset: PreparedDataset,
    init: Path | str | None,
    *,
    resume: bool,
    refit: bool,
) -> Iterator[RunStart]:
    """Hold the folder of a training of several processes: rank 0 does, and the others wait.

    Args:
        group: of the processes; all of them call this.
        out: as for ``training_folder``.
        dataset: as for ``training_folder``.
        init: as for ``training_folder``.
        resume: as for ``training_folder``.
        refit: as for ``training_folder``.
    """
    if not group.is_main:
        resumes, stored, begins_again, kept = group.broadcast_json(None)
        yield RunStart(resumes, stored, begins_again, frozenset(kept))
        return
    resume |= is_restart(out)
    with training_folder(out, dataset, init, resume=resume, refit=refit) as start:
        stored = None if start.init is None else str(start.init)
        group.broadcast_json([start.resume, stored, start.begins_again, sorted(start.kept)])
        yield start


@contextmanager
def run_folder(out: Path, trainer: Trainer, kept: Collection[str] = ()) -> Iterator[None]:
    """Create the folder of a new run, and clear it if the run fails before its first step.

    Args:
        out: the folder, without other content.
        trainer: of the run.
        kept: names of files and folders in it that stay, as do those that are there already.

    Raises:
        ArtifactError: the folder cannot be created.
    """
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        kept = {*kept, *os.listdir(out)}
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


def _check_content(out: Path, arguments: dict[str, Any] | None) -> None:
    """Refuse a folder with content that is not an interrupted start.

    Args:
        out: the folder.
        arguments: those that the start stored in its lock file.

    Raises:
        ConfigError: the folder holds a run or other files.
    """
    if _is_interrupted_start(out, arguments):
        return
    if any(
        (folder / MANIFEST).exists() and (_has_weights(folder) or _own_manifest(folder))
        for folder in (out, out / BEFORE_REFIT)
    ):
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


def _is_interrupted_start(out: Path, arguments: dict[str, Any] | None) -> bool:
    """Whether a training stopped in this folder before it stored weights, and nothing else is.

    Args:
        out: the folder.
        arguments: those that the start stored in its lock file; None: it stored none.
    """
    if out.is_symlink() or not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    if names == {LOCK}:
        return is_lock_file(out / LOCK)
    manifests = [
        _own_manifest(folder)
        for folder in (out, out / BEFORE_REFIT)
        if (folder / MANIFEST).exists()
    ]
    first_pass = _names_in(out / BEFORE_REFIT)
    return (
        None not in manifests
        and (arguments is not None or bool(manifests))
        and all(START.fullmatch(name) for name in names | first_pass)
        and (DATA not in names | first_pass or _stored_data(out, arguments))
        and not _has_weights(out)
        and not _has_weights(out / BEFORE_REFIT)
    )


def _names_in(folder: Path) -> set[str]:
    if folder.is_symlink():
        return {folder.name, ".."}  # Not written by a training: it matches no name of a start.
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _stored_arguments(out: Path) -> dict[str, Any] | None:
    """Return the arguments that a training stored in its lock file; None: no training did."""
    arguments = stored_purpose(out / LOCK)
    return arguments if arguments is not None and {"init", "refit"} <= arguments.keys() else None


def _stored_data(out: Path, arguments: dict[str, Any] | None) -> bool:
    """Whether a training stored its dataset in this folder, or was about to."""
    if arguments is not None and arguments.get("stored_data") is True:
        return True
    manifests = map(_own_manifest, (out, out / BEFORE_REFIT))
    return any(manifest["dataset"]["path"] == DATA for manifest in manifests if manifest)


def _own_manifest(folder: Path) -> dict[str, Any] | None:
    """Return ``run.json`` if a training wrote it; None: it is missing, damaged or another file."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return None
    return manifest if has_valid_seal(manifest) else None


def _has_weights(folder: Path) -> bool:
    """Whether a training stored weights in this folder, or ended: they may have been moved."""
    if any(folder.glob("*.safetensors")):
        return True
    try:
        manifest = read_json(folder / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True  # Unknown: nothing is removed.
    return not isinstance(manifest, dict) or "result" in manifest


def _purpose_of(out: Path, init: Path | str | None, refit: bool) -> dict[str, Any]:
    """Return the arguments of an interrupted start that stored no ``run.json``.

    Raises:
        ConfigError: it had other arguments, or did not store them.
        ArtifactError: the folder is not a run.
    """
    purpose = _stored_arguments(out)
    if not _is_interrupted_start(out, purpose):
        read_manifest(out)
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
