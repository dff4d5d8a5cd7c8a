"""A dataset whose interactions all train: the data of a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from candid.data.chunks import UserChunk, owners_of, user_chunks
from candid.data.dataset import PreparedDataset, Role


def with_all_training(dataset: PreparedDataset) -> PreparedDataset:
    """Return a dataset of the same ids in which the held-out interactions train as well.

    Validation and test targets become training targets. History does too where it was only set
    aside by the split (``split.validation_users``, held-out users of a cross-validation). It
    stays history where it is never a target: event types that are history only, and the role
    ``history`` of a column split.

    The interactions of each user are in order of time and order: a column split and a
    cross-validation of interactions store them by role first. Path and fingerprint are those of
    ``dataset``.

    Example:
        >>> with_all_training(dataset).roles.max()  # doctest: +SKIP
        1
    """
    manifest = {**dataset.manifest, "fingerprint": dataset.fingerprint}
    changed = replace(dataset, roles=_training_roles(dataset), manifest=manifest)
    # Datasets of earlier versions have no ranks; their times order all but ties.
    keys = dataset.timestamps if dataset.order_ranks is None else dataset.order_ranks
    if keys is None:
        return changed
    chunks = list(user_chunks(dataset.user_offsets))
    if all(_is_ordered(dataset, chunk, keys) for chunk in chunks):
        return changed
    order = [
        np.lexsort((keys[chunk.rows], owners_of(dataset.user_offsets, chunk))) + chunk.rows.start
        for chunk in chunks
    ]
    return _reordered(changed, np.concatenate(order))


def _training_roles(dataset: PreparedDataset) -> npt.NDArray[np.uint8]:
    """Return the roles [E] of a refit."""
    is_target = None
    if dataset.manifest.get("split", {}).get("kind", "column") != "column":
        is_target = dataset.is_target_event_type
        if is_target is None:
            # One value in memory stands for those of all interactions.
            return np.broadcast_to(np.uint8(Role.TRAIN), dataset.roles.shape)
    roles = np.array(dataset.roles)
    roles[roles >= Role.VALIDATION] = Role.TRAIN
    if is_target is not None:
        assert dataset.event_types is not None
        roles[is_target[dataset.event_types]] = Role.TRAIN
    return roles


def _is_ordered(dataset: PreparedDataset, chunk: UserChunk, keys: npt.NDArray[Any]) -> bool:
    """Return whether the keys [E] ascend within each user of a chunk."""
    owners, values = owners_of(dataset.user_offsets, chunk), keys[chunk.rows]
    return bool(((values[1:] >= values[:-1]) | (owners[1:] != owners[:-1])).all())


def _reordered(dataset: PreparedDataset, order: npt.NDArray[np.int64]) -> PreparedDataset:
    """Return the interactions in another order within each user."""
    arrays: dict[str, Any] = {"order_ranks": None}
    arrays |= {
        name: None if (array := getattr(dataset, name)) is None else np.asarray(array)[order]
        for name in ("item_ids", "roles", "timestamps", "weights", "event_types")
    }
    if dataset.negative_ids is not None:
        assert dataset.negative_offsets is not None
        starts = np.asarray(dataset.negative_offsets[:-1])[order]
        lengths = np.diff(dataset.negative_offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        arrays["negative_ids"] = np.asarray(dataset.negative_ids)[positions]
        arrays["negative_offsets"] = offsets
    return replace(dataset, **arrays)
