"""Construction of the model, the loss and the sampler of a run, and choice of its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candid.batches import target_counts
from candid.config import RunConfig
from candid.data import MEMORY_NAMES, PreparedDataset
from candid.distributed import Group
from candid.errors import ArtifactError, ConfigError
from candid.losses import Loss
from candid.runs.features import RunFeatures, fit_features, tower_context
from candid.samplers import Sampler, check_support_covers
from candid.towers import RetrievalModel


def build_model(
    config: RunConfig,
    dataset: PreparedDataset,
    features: RunFeatures | None = None,
    *,
    is_read: bool = False,
    is_trained: Mapping[str, npt.NDArray[np.bool_]] | None = None,
) -> RetrievalModel:
    """Build an untrained model for a dataset, on the CPU.

    Args:
        config: of the run.
        dataset: the prepared dataset.
        features: fitted features; None: they are fitted first.
        is_read: whether the weights are read from a file afterwards, so that initial vectors
            need not be computed.
        is_trained: for "item" and "user" which of them have trained rows, [n] bool; None: those
            with a target in the dataset.

    Raises:
        ConfigError: a table lacks a column of a feature, or the towers do not fit together.
        DataError: the values of a column do not fit the type of the feature.
    """
    features = fit_features(config.features, dataset) if features is None else features
    vectors = None if is_read else partial(_initial_item_vectors, dataset)
    context = tower_context(dataset, config.batches, features, initial_item_vectors=vectors)
    if is_trained is not None:
        context = replace(
            context,
            item_is_trained=torch.from_numpy(is_trained["item"]),
            user_is_trained=torch.from_numpy(is_trained["user"]),
        )
    return config.model.build(context)


def _initial_item_vectors(dataset: PreparedDataset, dim: int) -> Tensor:
    # Imported here because scipy, which it needs, takes a fifth of a second to import.
    from candid.runs.initial_vectors import initial_item_vectors

    return initial_item_vectors(dataset, dim)


def build_objective(
    config: RunConfig, dataset: PreparedDataset, counts: npt.NDArray[np.float64] | None = None
) -> tuple[Loss, Sampler | None]:
    """Build the loss and the sampler; None for a config without a sampler.

    The counts of the sampler are those of the targets that the loader deals. Candidates from
    batches follow them, and not the stored interactions: a loader of histories leaves out the
    first interaction of each user.

    Args:
        config: of the run.
        dataset: the data.
        counts: [V] float64, ``target_counts`` of the dataset and the batch settings; None: they
            are computed here.

    Raises:
        DataError: there is nothing to train on.
    """
    sampler = None
    if config.sampler is not None:
        counts = target_counts(dataset, config.batches) if counts is None else counts
        sampler = config.sampler.build(torch.from_numpy(counts))
    return config.loss.build(dataset.num_items), sampler


def check_sampler_covers_catalog(
    config: RunConfig,
    dataset: PreparedDataset,
    sampler: Sampler | None,
    counts: npt.NDArray[np.float64],
) -> None:
    """Refuse a loss whose estimate would miss items that the sampler can never draw.

    It may miss retired items, which are never ranked.

    Args:
        config: of the run.
        dataset: the data; its source ids are in the message.
        sampler: of the run, or None.
        counts: [V] float64, ``target_counts`` of the dataset and the batch settings.

    Raises:
        ConfigError: there is such an item; the message has its source id and the remedies.
    """
    if sampler is not None and config.loss.needs_full_support:
        retired = dataset.retired_items
        check_support_covers(
            sampler,
            torch.from_numpy(counts > 0),
            config.training.softmax_over,
            dataset.items["source_id"].to_list(),
            may_miss=None if retired is None else torch.from_numpy(np.array(retired)),
        )


def check_can_rank_cold_items(config: RunConfig, model: RetrievalModel) -> None:
    """Refuse an evaluation of cold items for a model that reads no features of items.

    Raises:
        ConfigError: the model cannot rank them.
    """
    if config.evaluation.catalog == "cold" and not model.reads_item_features:
        raise ConfigError(
            'evaluation.catalog = "cold" ranks items that training never has as a target, and an '
            "item tower without features learns nothing about them: set model.item_tower.type = "
            '"item_features", or another evaluation.catalog'
        )


def check_dataset_matches(config: RunConfig, dataset: PreparedDataset) -> None:
    """Refuse a dataset that was prepared with other settings than ``[data]`` of the recipe.

    ``ids_from`` may differ: it changes ids, not the interactions. So may the files, where the
    dataset was prepared from a table in memory.

    Raises:
        ArtifactError: a setting differs; the message has the first such key.
    """
    prepared = dataset.manifest.get("config")
    if config.data is None or prepared is None:
        return
    expected = config.data.model_dump(mode="json")
    ignored = {"ids_from"}
    for key, name in MEMORY_NAMES.items():
        if _path_of(prepared, key) == name:
            ignored |= {"interactions", "format", "separator"} if key == "interactions" else {key}
    for key in sorted((expected.keys() | prepared.keys()) - ignored):
        if expected.get(key) != prepared.get(key):
            raise ArtifactError(
                f"{dataset.origin} was prepared with data.{key} = {prepared.get(key)!r}, but the "
                f"recipe has {expected.get(key)!r}: run candid prepare with this recipe, or name "
                "another dataset with --data"
            )


def _path_of(settings: Mapping[str, Any], key: str) -> Any:
    table = settings.get(key)
    return table.get("path") if isinstance(table, Mapping) else table


def pick_device(name: str, group: Group | None = None) -> torch.device:
    """Return the device of a config.

    Args:
        name: "auto", or a name of torch.
        group: processes of the training; each has a CUDA device of its own where there are enough.

    Raises:
        ConfigError: the device is unknown, not on this machine, or has no float64.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and group is not None and not group.is_single and torch.cuda.is_available():
        name = f"cuda:{group.local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        # Expected counts and exact search compute in float64, which not every device has.
        torch.empty(0, device=device, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'device {name!r} cannot be used here: {reason}; set device = "cpu"'
        ) from None
    return device


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads of torch; None keeps torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)
