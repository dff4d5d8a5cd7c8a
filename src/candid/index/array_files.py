"""The arrays of an index in one safetensors file, mapped when it is opened.

Processes that open the same file share its pages. A file of ``save_file`` has each array aligned to
its numbers, but not to cache lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from candid.errors import ArtifactError


def map_arrays(file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a file of ``safetensors.numpy.save_file`` by name, not copied.

    A change of an array does not change the file. The file must not be written in place while an
    array exists.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        # With NumPy as framework the arrays would be copies.
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name).numpy() for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise damaged(file) from error


def damaged(file: Path) -> ArtifactError:
    """Return the error of a file whose content cannot be that of an index."""
    return ArtifactError(f"{file} is damaged; build it again with candid index")
