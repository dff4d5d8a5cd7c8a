"""Values of the test users of each cell of a study: files users/ID.npz in its folder."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from candid.atomic import replacing
from candid.checksums import checksum, is_verifying
from candid.errors import ArtifactError
from candid.study.records import RECORDS, CellKey, Record

USERS: Final = "users"
_UNREADABLE: Final = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),
)
"""Errors of NumPy and zipfile for a file that is missing or damaged."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class UserValues:
    """Values of the test users of one cell; users are the same in all cells of a dataset and split.

    Attributes:
        user_ids: [Q] int64 ascending, rows of the dataset's users.
        ndcg: [Q] float64, NDCG@10; NaN where every target is a seen item.
        nll: [Q] float64, mean NLL of the user's targets under the full softmax, in nats.
        decile: [Q] int64, popularity of the user's first target: 1 (least popular) to 10, each with
            about a tenth of the training targets; 0: training never has it as a target.
        probability: [Q] float64, P(target | user) under the full softmax, the geometric mean over
            the user's targets.
    """

    user_ids: Ints
    ndcg: Floats
    nll: Floats
    decile: Ints
    probability: Floats


def write_users(folder: Path | str, key: CellKey, values: UserValues) -> str:
    """Write the values of each user of a cell, and return the file relative to ``folder``.

    Raises:
        ArtifactError: the operating system refuses.
    """
    name = f"{USERS}/{key.id}.npz"
    arrays = {one.name: getattr(values, one.name) for one in fields(UserValues)}
    with replacing(Path(folder) / name) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return name


def read_users(folder: Path | str, record: Record) -> UserValues:
    """Read the values of each user of a finished cell.

    Raises:
        ArtifactError: the file is missing or damaged, or the cell has none.
    """
    if record.users is None:
        raise ArtifactError(f"{record.key.label} has no values of users")
    path = Path(folder) / record.users
    advice = f"remove the line of the cell {record.key.label} in {RECORDS} to run it again"
    try:
        stored = record.users_checksum
        if stored is not None and is_verifying() and checksum(path) != stored:
            raise ArtifactError(f"{path} differs from its checksum; {advice}")
        # NumPy does not close a damaged file that it has opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return UserValues(**{one.name: arrays[one.name] for one in fields(UserValues)})
    except _UNREADABLE as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}); {advice}") from None
