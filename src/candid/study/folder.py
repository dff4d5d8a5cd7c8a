"""The folder of a study: the study file that it belongs to, and the commit of that file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

from candid.atomic import remove_stale, write_error
from candid.checksums import write_sealed_json
from candid.errors import ArtifactError, ConfigError
from candid.json_text import read_json
from candid.study.config import Study

STUDY: Final = "study.json"
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
            before = read_json(path)
            if before["name"] != study.config.name:
                raise ConfigError(
                    f"{out} holds the study {before['name']!r}, not {study.config.name!r}; name "
                    "another folder with --out"
                )
        elif out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty and holds no study; name another with --out")
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{path} is damaged; remove the file to continue the study") from None
    write_sealed_json(path, content)


def commit_of(folder: Path) -> str | None:
    """Return the git commit of the folder's repository, with "-dirty" after changes; or None."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
