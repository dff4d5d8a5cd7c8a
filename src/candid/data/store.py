"""The prepared dataset on disk: opening, with memory-mapped arrays, and checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from candid.checksums import FileChecks, check_file, read_error, verification
from candid.data.chunks import row_chunks
from candid.data.dataset import PreparedDataset, Role
from candid.data.dataset_files import (
    ALIGNED,
    ARRAYS,
    OPTIONAL,
    PREPARE_AGAIN,
    TABLES,
    check_files,
    read_manifest,
)
from candid.data.readers.files import is_out_of_memory, memory_error
from candid.errors import ArtifactError, ConfigError


def read_table(path: Path, manifest: Mapping[str, Any], name: str) -> pl.DataFrame:
    """Read the table ``users`` or ``items`` of a prepared dataset.

    Args:
        path: folder of the dataset.
        manifest: result of ``read_manifest``.
        name: of the table.

    Raises:
        ArtifactError: the file is damaged.
    """
    file = path / f"{name}.parquet"
    check_file(file, manifest["files"].get(file.name, {"bytes": -1}), PREPARE_AGAIN)
    table: pl.DataFrame = _load(file)
    return table


def open_dataset(path: Path | str, *, verify: bool = True, wait: bool = True) -> PreparedDataset:
    """Open a prepared dataset; its arrays are memory-mapped.

    The checksums of all files are compared. Threads read arrays of 64 MiB or more, about 1.5 GB a
    second each, while the rest is opened.

    Args:
        path: folder that ``prepare`` wrote.
        verify: whether to compare checksums; without them only sizes and ranges are checked.
        wait: whether to wait for the comparison of large arrays. A caller that does not wait calls
            ``PreparedDataset.wait_until_verified`` before it returns results.

    Raises:
        ArtifactError: not a dataset, of another version, or damaged; the message names the file.

    Example:
        >>> dataset = open_dataset("data/films")  # doctest: +SKIP
        >>> dataset.num_users, dataset.num_items  # doctest: +SKIP
        (6040, 3706)
    """
    path = Path(path)
    with verification(verify):
        manifest = read_manifest(path)
        checks = check_files(path, manifest)
    dataset = _open(path, manifest, checks)
    _check_structure(dataset, path)
    if wait:
        checks.wait()
    return dataset


def open_written(path: Path, manifest: Mapping[str, Any]) -> PreparedDataset:
    """Open a dataset that this process has just written, without a check, which would read it.

    Args:
        path: folder of the dataset.
        manifest: as it was written.
    """
    with verification(False):
        return _open(path, dict(manifest), check_files(path, manifest))


def _open(path: Path, manifest: dict[str, Any], checks: FileChecks) -> PreparedDataset:
    content: dict[str, Any] = {}
    for name in ARRAYS:
        if name in OPTIONAL and f"{name}.npy" not in manifest["files"]:
            continue
        content[name] = _load(path / f"{name}.npy")
    for name in TABLES:
        content[name] = _load(path / f"{name}.parquet")
    return PreparedDataset(
        **content,
        event_type_names=tuple(manifest["event_types"]),
        target_event_types=tuple(manifest["target_event_types"]),
        manifest=manifest,
        path=path,
        checks=checks,
    )


def as_dataset(data: PreparedDataset | Path | str, *, wait: bool = True) -> PreparedDataset:
    """Return a dataset, opened if its folder is given.

    Args:
        data: a prepared dataset, or its folder.
        wait: as for ``open_dataset``.

    Raises:
        ConfigError: ``data`` is neither, such as a table.
        ArtifactError: the folder holds no dataset, one of another version, or a damaged one.
    """
    if isinstance(data, PreparedDataset):
        return data
    if isinstance(data, str | os.PathLike):
        return open_dataset(data, wait=wait)
    raise ConfigError(
        f"data must be a prepared dataset or its folder, got {type(data).__name__}; "
        "candid.prepare makes a dataset from a table"
    )


def _check_structure(dataset: PreparedDataset, path: Path) -> None:
    """Refuse arrays that do not fit together, which would cause reads out of bounds.

    One pass over the item ids and roles, which training and evaluation read anyway.
    """
    num_events, offsets = len(dataset.item_ids), dataset.user_offsets
    aligned = ("roles", *ALIGNED)
    wrong_length = [
        name
        for name in aligned
        if (array := getattr(dataset, name)) is not None and len(array) != num_events
    ]
    is_damaged = {
        "user_offsets": not _is_ragged(dataset.item_ids, offsets, dataset.users.height),
        "item_ids": num_events > 0
        and not 0 <= dataset.item_ids.min() <= dataset.item_ids.max() < dataset.items.height,
        "event_types": dataset.event_types is not None
        and num_events > 0
        and dataset.event_types.max() >= len(dataset.event_type_names),
        "negative_offsets": (dataset.negative_ids is None) != (dataset.negative_offsets is None)
        or (
            dataset.negative_ids is not None
            and dataset.negative_offsets is not None
            and not _is_ragged(dataset.negative_ids, dataset.negative_offsets, num_events)
        ),
        "negative_ids": dataset.negative_ids is not None
        and len(dataset.negative_ids) > 0
        and not 0 <= dataset.negative_ids.min() <= dataset.negative_ids.max() < dataset.num_items,
        "retired_items": dataset.retired_items is not None
        and dataset.retired_items.shape != (dataset.num_items,),
        "roles": num_events > 0 and dataset.roles.max() > max(Role),
        **dict.fromkeys(wrong_length, True),
    }
    for name, damaged in is_damaged.items():
        if damaged:
            raise ArtifactError(f"{path / name}.npy is damaged; prepare again")


def _is_ragged(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], num_rows: int) -> bool:
    """Whether offsets [R + 1] divide all values [M] into R rows."""
    return bool(
        len(offsets) == num_rows + 1
        and offsets[0] == 0
        and offsets[-1] == len(values)
        and all(
            (offsets[rows.start + 1 : rows.stop + 1] >= offsets[rows]).all()
            for rows in row_chunks(num_rows)
        )
    )


def _load(file: Path) -> Any:
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r")
        return pl.read_parquet(file, glob=False)
    except (OSError, MemoryError, ValueError, pl.exceptions.PolarsError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise read_error(file, error) from error
        if is_out_of_memory(error):
            raise memory_error(file) from error
        raise ArtifactError(f"{file} is damaged; prepare again") from error
