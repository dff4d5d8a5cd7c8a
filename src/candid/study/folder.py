"""The folder of a study: the study file that it belongs to, and the commit of that file."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from candid.atomic import remove_stale, write_error
from candid.checksums import check_seal, verification, write_sealed_json
from candid.errors import ArtifactError, ConfigError
from candid.json_text import read_json
from candid.study.config import Study
from candid.study.records import RECORDS

STUDY: Final = "study.json"
LOCKS: Final = "locks"
PACKAGE: Final = Path(__file__).parents[1]
"""Folder with the code of candid."""
FORMAT: Final = 1
"""Version of ``study.json``."""


def open_folder(study: Study, out: Path) -> None:
    """Create the folder of a study, or check that it is that of this one.

    Raises:
        ConfigError: the folder holds something else.
        ArtifactError: the operating system refuses.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": study.config.name,
        "study": study.config.model_dump(mode="json"),
    }
    path = out / STUDY
    remove_stale(path)  # of a study that was killed before its first record
    try:
        if path.exists():
            # Without the checksum: the file is written again from the study file.
            with verification(False):
                before = read_study_manifest(out)
            if before["name"] != study.config.name:
                raise ConfigError(
                    f"{out} holds the study {before['name']!r}, not {study.config.name!r}; name "
                    "another folder with --out"
                )
        elif out.exists() and any(out.iterdir()) and not (out / RECORDS).exists():
            raise ConfigError(f"{out} is not empty and holds no study; name another with --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    write_sealed_json(path, content)


def read_study_manifest(folder: Path) -> dict[str, Any]:
    """Read ``study.json``, and compare it with its checksum.

    Raises:
        ArtifactError: missing, damaged or of another version.
        OSError: the operating system refuses.
    """
    path = folder / STUDY
    # Records of the same settings count without the file.
    has_records = (folder / RECORDS).exists()
    advice = "remove the file to continue the study" if has_records else "remove the folder"
    try:
        manifest: dict[str, Any] = read_json(path)
        name, version = manifest["name"], manifest["format"]
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged; {advice}") from None
    if not isinstance(name, str) or version != FORMAT:
        raise ArtifactError(f"{path} is damaged, or of another version of candid; {advice}")
    check_seal(path, manifest, advice)
    return manifest


@dataclass(frozen=True, slots=True)
class Commits:
    """Git commits, with "-dirty" after changes; None without a repository.

    Attributes:
        study: of the repository with the study file.
        code: of the repository with the code of candid; None where it is installed.
    """

    study: str | None
    code: str | None

    @classmethod
    def of(cls, study: Path) -> Self:
        """Return the commits of a folder with a study file and of the code."""
        # An environment may lie in the folder of another repository.
        is_tracked = _git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py") is not None
        return cls(commit_of(study), commit_of(PACKAGE) if is_tracked else None)


def commit_of(folder: Path) -> str | None:
    """Return the git commit of the folder's repository, with "-dirty" after changes; or None."""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command, or None where it fails or writes nothing."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
