"""A trained run, or a dataset alone, as subjects of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from candid.audit import Plan, Subject, Variant, variants_of
from candid.batches import Batch, Loader
from candid.config import RunConfig
from candid.data import PreparedDataset, Role
from candid.losses import SampledSoftmax
from candid.runs.features import RunFeatures, fit_features
from candid.runs.run import Run, build_model
from candid.towers import RetrievalModel


def run_subjects(run: Run, num_rows: int, seed: int = 0) -> list[Subject]:
    """The run's model at initialisation and as trained, over the same training rows.

    Args:
        run: the trained run.
        num_rows: Q, users at most: one random training row of each.
        seed: of the choice of rows.

    Raises:
        DataError: there is nothing to train on.
        ArtifactError: the model has diverged.
    """
    fresh = fresh_subject(run.config, run.dataset, num_rows, seed, run.features)
    trained = _subject("trained", run.model, run.config, run.dataset, run.features, num_rows, seed)
    return [fresh, trained]


def fresh_subject(
    config: RunConfig,
    dataset: PreparedDataset,
    num_rows: int,
    seed: int = 0,
    features: RunFeatures | None = None,
) -> Subject:
    """The model of a recipe before its first step; see ``run_subjects``."""
    features = fit_features(config.features, dataset) if features is None else features
    torch.manual_seed(config.seed)
    model = build_model(config, dataset, features)
    return _subject("at initialisation", model, config, dataset, features, num_rows, seed)


def plan_of(config: RunConfig, dataset: PreparedDataset) -> Plan | None:
    """What a recipe trains with, as a plan; None where it is no sampled softmax."""
    if config.sampler is None or not isinstance(config.loss, SampledSoftmax.Config):
        return None
    yours = Variant(config.loss.correction, config.loss.jackknife)
    batch_rows = len(Loader(dataset, config.batches, config.seed).batch(0, 0))
    return Plan(
        name="the recipe's",
        config=config.sampler,
        n=_num_candidates(config.sampler.model_dump(), batch_rows),
        variants=(
            yours,
            *(variant for variant in variants_of(config.sampler) if variant != yours),
        ),
        batch_rows=batch_rows,
        is_yours=True,
    )


def _num_candidates(table: Mapping[str, Any], batch_rows: int) -> int:
    """Candidates that the settings of a sampler ask for, those of its parts and head included."""
    parts = [*table.get("components", ()), *([table["tail"]] if "tail" in table else [])]
    own = int(table["k"] if table.get("shared") is False else table.get("num_exact", 0))
    if "size" in table:  # a memory, beside the batch
        own += table["size"] + batch_rows
    elif not parts:
        own += table["num_candidates"] or batch_rows
    return own + sum(_num_candidates(part, batch_rows) for part in parts)


def _subject(
    name: str,
    model: RetrievalModel,
    config: RunConfig,
    dataset: PreparedDataset,
    features: RunFeatures,
    num_rows: int,
    seed: int,
) -> Subject:
    loader = Loader(dataset, config.batches, seed, features.context_of(dataset))
    rng = np.random.default_rng(seed)
    queries: list[Tensor] = []
    positive_ids: list[Tensor] = []
    user_ids = torch.empty(0, dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        item_vectors = model.encode_catalog().float().cpu()
        for step in range(loader.num_batches):
            batch = loader.batch(0, step)
            rows = _one_of_each_user(batch, user_ids, rng)[: num_rows - len(user_ids)]
            queries.append(model.encode_queries(batch.to(model.device))[rows].float().cpu())
            positive_ids.append(batch.positive_ids[rows])
            user_ids = torch.cat([user_ids, batch.user_ids[rows]])
            if len(user_ids) >= num_rows:
                break
    is_target = np.asarray(dataset.roles) == Role.TRAIN
    owners = np.repeat(np.arange(dataset.num_users), np.diff(dataset.user_offsets))
    return Subject(
        name=name,
        query=torch.cat(queries),
        item_vectors=item_vectors,
        positive_ids=torch.cat(positive_ids),
        user_ids=user_ids,
        counts=torch.from_numpy(dataset.train_counts),
        training_positive_ids=torch.from_numpy(dataset.item_ids[is_target].astype(np.int64)),
        training_user_ids=torch.from_numpy(owners[is_target]),
    )


def _one_of_each_user(batch: Batch, seen: Tensor, rng: np.random.Generator) -> Tensor:
    """Places of random rows of a batch, in random order: one of each user not seen before."""
    shuffled = torch.from_numpy(rng.permutation(len(batch)))
    shuffled = shuffled[~torch.isin(batch.user_ids[shuffled], seen)]
    _, first = np.unique(batch.user_ids[shuffled].numpy(), return_index=True)
    return shuffled[torch.from_numpy(rng.permutation(first))]
