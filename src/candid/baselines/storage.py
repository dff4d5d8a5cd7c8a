"""Arrays of a fitted baseline in one safetensors file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from candid.atomic import make_readable
from candid.baselines.baseline import Baseline
from candid.errors import ArtifactError

PARTS = ("data", "indices", "indptr", "shape")
"""Arrays of a sparse matrix, stored as NAME.data and so on."""


def write_arrays(path: Path, model: Baseline) -> None:
    """Write the arrays that ``Baseline.state`` names.

    Args:
        path: file to write.
        model: a fitted baseline.
    """
    arrays: dict[str, Any] = {}
    for name in model.state:
        value = getattr(model, name)
        if sparse.issparse(value):
            arrays |= {f"{name}.{part}": np.asarray(getattr(value, part)) for part in PARTS}
        else:
            arrays[name] = value
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    make_readable(path)


def read_baseline(path: Path, baseline: type[Baseline], config: Any) -> Baseline:
    """Build a fitted baseline from its config and the arrays of ``write_arrays``.

    Args:
        path: the file.
        baseline: class of the baseline.
        config: a ``Config`` of the class.

    Raises:
        ArtifactError: the file is missing, damaged, or of another baseline.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: save the baseline again")
    if not os.access(path, os.R_OK):
        raise ArtifactError(f"{path} cannot be read: give this user read permission")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return baseline(config, *(_value(arrays, name) for name in baseline.state))
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): save the baseline again") from None


def _value(arrays: dict[str, Any], name: str) -> Any:
    if name in arrays:
        return arrays[name]
    data, indices, indptr, shape = (arrays[f"{name}.{part}"] for part in PARTS)
    matrix = sparse.csr_array((data, indices, indptr), shape=tuple(shape.tolist()))
    matrix.check_format()
    return matrix
