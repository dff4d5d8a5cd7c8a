"""Checks of a model version before it serves: finite weights, vectors and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from candid.errors import ArtifactError
from candid.inference import (
    RecommendQuery,
    accepts_histories,
    query_for_history,
    query_for_user,
)
from candid.runs.saved_model import holds_baseline
from candid.serve.bundle import ServingBundle
from candid.serve.errors import RequestError
from candid.serve.model_files import ModelFiles
from candid.serve.model_version import ModelVersion
from candid.serve.requests import RecommendRequest

NUM_USERS: Final = 8
"""Users, and random histories, whose query vectors are checked."""
ROWS: Final = 1 << 16
"""Item vectors checked at a time."""
DIVERGED: Final = (
    "the model has diverged; serve an earlier run, or train again with a lower learning rate"
)


def check_version(version: ModelVersion, *, thorough: bool) -> None:
    """Answer queries of several kinds, so that one-time work does not delay the first request.

    Queries: users of the data with a history and without one, an empty history, and random
    histories, each where the model takes it.

    Args:
        version: to check.
        thorough: also read all weights of the model and all item vectors.

    Raises:
        ArtifactError: a weight, an item vector, a query vector or a score is not finite, or a
            query fails.
    """
    bundle = version.bundle
    if thorough:
        _check_weights(bundle)
        _check_item_vectors(bundle)
    size = version.search.max_queries
    for kind, queries in _queries(bundle).items():
        for begin in range(0, len(queries), size):
            if not _is_finite(bundle.encode(queries[begin : begin + size])):
                raise ArtifactError(
                    f"the model gives a query vector that is not finite for {kind}: {DIVERGED}"
                )
    _check_answers(version)
    with torch.inference_mode():
        version.search.live_mask()


def identity_of(bundle: ServingBundle, files: ModelFiles) -> str:
    """Hash what a bundle was loaded from: two loads of the same files have the same identity.

    The content of the weights counts, the token of the index, and size, time of the last change of
    the content, and inode of each file of the index and of the dataset, which stay mapped. Other
    permissions, owners and hard links, such as those of a backup, do not count.

    Args:
        bundle: opened.
        files: from which it was opened.
    """
    token = None if bundle.snapshot is None else bundle.snapshot.token
    digest = hashlib.sha256(f"{bundle.fingerprint} {token} {bundle.dataset.fingerprint}".encode())
    folders = [bundle.dataset.path, None if bundle.snapshot is None else bundle.snapshot.folder]
    if holds_baseline(files.run):
        folders.append(files.run)
    for folder in folders:
        for path in () if folder is None else _files_in(folder):
            stat = path.stat()
            facts = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            digest.update(f"{path.name} {facts}".encode())
    return digest.hexdigest()


def _files_in(folder: Path) -> Iterator[Path]:
    # A lock or a temporary file of a writer is not part of what was loaded.
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return (path for path in names if path.is_file())


def _check_weights(bundle: ServingBundle) -> None:
    if not isinstance(bundle.model, nn.Module):
        return
    for name, value in bundle.model.named_parameters():
        if not _is_finite(value):
            raise ArtifactError(f"the weights {name!r} hold NaN or infinite values: {DIVERGED}")


def _check_item_vectors(bundle: ServingBundle) -> None:
    if bundle.snapshot is None:
        return
    live = bundle.snapshot.index
    for vectors in (live.item_vectors, live.changes.vectors):
        for begin in range(0, len(vectors), ROWS):
            if not _is_finite(vectors[begin : begin + ROWS]):
                raise ArtifactError(
                    "item vectors of the index hold NaN or infinite values: build the index again "
                    f"with candid index; if that fails, {DIVERGED}"
                )


def _is_finite(values: Tensor) -> bool:
    if not values.is_floating_point() or not values.numel():
        return True
    with torch.inference_mode():
        # One pass without a mask as large as the values; NaN makes both ends NaN.
        return bool(torch.stack(torch.aminmax(values.detach())).isfinite().all())


def _queries(bundle: ServingBundle) -> dict[str, list[RecommendQuery]]:
    """Return queries by the words for their kind in a message."""
    dataset, model, length = bundle.dataset, bundle.model, bundle.max_length
    lengths = np.diff(dataset.user_offsets)
    queries = {}
    groups = [("a user with a history", np.flatnonzero(lengths > 0))]
    if not model.needs_history:
        groups.append(("a user without a history", np.flatnonzero(lengths == 0)))
    for kind, users in groups:
        chosen = users[np.linspace(0, len(users) - 1, min(NUM_USERS, len(users))).astype(np.int64)]
        queries[kind] = [query_for_user(dataset, int(u), max_length=length) for u in chosen]
    if not accepts_histories(model, with_features=False):
        return queries
    if not model.needs_history:
        queries["an empty history"] = [query_for_history(dataset, [], max_length=length)]
    rng = np.random.default_rng(0)
    longest = max(1, min(length, 100))
    queries["a random history"] = [
        query_for_history(
            dataset,
            rng.integers(dataset.num_items, size=size).tolist(),
            max_length=length,
        )
        for size in np.linspace(1, longest, NUM_USERS).astype(int).tolist()
    ]
    return queries


def _check_answers(version: ModelVersion) -> None:
    with_history = np.flatnonzero(np.diff(version.bundle.dataset.user_offsets) > 0)
    if not len(with_history):
        return
    [user] = version.users.source_ids([int(with_history[0])])
    for k in (1, 10):
        request = RecommendRequest(user=user, k=min(k, version.config.max_k))
        try:
            results = version.answer([version.prepare(request)] * 4)
        except RequestError as error:
            raise ArtifactError(f"the model cannot answer: {error.message}") from None
        for result in results:
            if isinstance(result, RequestError):
                raise ArtifactError(f"the model cannot answer: {result.message}")
            try:
                json.loads(result)
            except ValueError:  # "inf" and "nan" are not JSON.
                raise ArtifactError(
                    f"the model gives scores that are not finite: {DIVERGED}"
                ) from None
