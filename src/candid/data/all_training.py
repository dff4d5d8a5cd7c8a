"""A dataset whose interactions all train: the data of a refit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

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
    roles = np.array(dataset.roles)
    roles[roles >= Role.VALIDATION] = Role.TRAIN
    if dataset.manifest.get("split", {}).get("kind", "column") != "column":
        is_target = dataset.is_target_event_type
        if is_target is None:
            roles[:] = Role.TRAIN
        else:
            assert dataset.event_types is not None
            roles[is_target[dataset.event_types]] = Role.TRAIN
    manifest = {**dataset.manifest, "fingerprint": dataset.fingerprint}
    changed = replace(dataset, roles=roles, manifest=manifest)
    # Datasets of earlier versions have no ranks; their times order all but ties.
    keys = dataset.timestamps if dataset.order_ranks is None else dataset.order_ranks
    if keys is None:
        return changed
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    order = np.lexsort((keys, owners))
    if np.array_equal(order, np.arange(len(order))):
        return changed
    return _reordered(changed, order)


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
