"""A trained run, or an untrained model of a recipe, as audit inputs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from candid.audit.audit_input import AuditInput
from candid.audit.batch_source import TrainingRows, UnitBatches
from candid.audit.cases import AuditCase, estimators_for
from candid.batches import Batch, Loader, target_counts, unit_targets
from candid.config import RunConfig
from candid.data import PreparedDataset
from candid.runs import Run, build_model
from candid.runs.features import RunFeatures, fit_features
from candid.towers import RetrievalModel


def run_inputs(run: Run, num_rows: int, *, seed: int = 0) -> list[AuditInput]:
    """Return the run's model at initialisation and as trained, over the same training rows.

    Args:
        run: the trained run.
        num_rows: Q, maximum number of users; each contributes one random training row.
        seed: of the choice of rows.

    Raises:
        DataError: the dataset has no training rows.
        ArtifactError: the model has diverged.
    """
    untrained = untrained_input(run.config, run.dataset, num_rows, seed=seed, features=run.features)
    return [untrained, trained_input(run, num_rows, seed=seed)]


def trained_input(run: Run, num_rows: int, *, seed: int = 0) -> AuditInput:
    """Return the run's model as trained.

    Args:
        run: the trained run.
        num_rows: Q, maximum number of users; each contributes one random training row.
        seed: of the choice of rows.

    Raises:
        DataError: the dataset has no training rows.
        ArtifactError: the model has diverged.
    """
    return _audit_input("trained", run.model, run.config, run.dataset, run.features, num_rows, seed)


def untrained_input(
    config: RunConfig,
    dataset: PreparedDataset,
    num_rows: int,
    *,
    seed: int = 0,
    features: RunFeatures | None = None,
) -> AuditInput:
    """Return the model of a recipe before its first step.

    Args:
        config: the recipe.
        dataset: the data.
        num_rows: Q, maximum number of users; each contributes one random training row.
        seed: of the choice of rows; the model has the recipe's seed.
        features: features fitted on the dataset; None: they are fitted here.

    Raises:
        DataError: the dataset has no training rows.
    """
    features = fit_features(config.features, dataset) if features is None else features
    torch.manual_seed(config.seed)
    model = build_model(config, dataset, features)
    return _audit_input("at initialisation", model, config, dataset, features, num_rows, seed)


def recipe_case(config: RunConfig, dataset: PreparedDataset) -> AuditCase | None:
    """Return the sampler and estimators of a recipe; None for other losses.

    The recipe's own estimator comes first, then the others that are defined for its sampler.
    """
    own = config.loss.estimator
    if config.sampler is None or own is None:
        return None
    batch_rows = len(Loader(dataset, config.batches, seed=config.seed).batch(0, 0))
    others = (one for one in estimators_for(config.sampler) if one != own)
    return AuditCase(
        "recipe",
        config.sampler,
        num_candidates=config.sampler.candidates_per_row(batch_rows),
        estimators=(own, *others),
        batch_rows=batch_rows,
        is_recipe=True,
    )


def _audit_input(
    name: str,
    model: RetrievalModel,
    config: RunConfig,
    dataset: PreparedDataset,
    features: RunFeatures,
    num_rows: int,
    seed: int,
) -> AuditInput:
    loader = Loader(dataset, config.batches, seed=seed, context=features.context_for(dataset))
    rng = np.random.default_rng(seed)
    queries: list[Tensor] = []
    positive_ids: list[Tensor] = []
    user_ids = torch.empty(0, dtype=torch.int64)
    model.eval()
    with torch.no_grad():
        item_vectors = model.encode_catalog().float().cpu()
        for step in range(loader.num_batches):
            batch = loader.batch(0, step)
            rows = _one_row_per_new_user(batch, user_ids, rng)[: num_rows - len(user_ids)]
            queries.append(model.encode_queries(batch.to(model.device))[rows].float().cpu())
            positive_ids.append(batch.positive_ids[rows])
            user_ids = torch.cat([user_ids, batch.user_ids[rows]])
            if len(user_ids) >= num_rows:
                break
    units = unit_targets(dataset, config.batches)
    training = TrainingRows(
        torch.from_numpy(dataset.item_ids[units.events].astype(np.int64)),
        torch.from_numpy(units.user_ids),
    )
    size, drop_last = config.batches.batch_size, config.batches.drop_last
    batches = UnitBatches(training, units.offsets, size, drop_last=drop_last)
    return AuditInput(
        name=name,
        query=torch.cat(queries),
        item_vectors=item_vectors,
        positive_ids=torch.cat(positive_ids),
        user_ids=user_ids,
        counts=torch.from_numpy(target_counts(dataset, config.batches)),
        training_positive_ids=training.positive_ids,
        training_user_ids=training.user_ids,
        # Units of one row are as good as independent.
        batches=batches if bool((batches.lengths != 1).any()) else None,
    )


def _one_row_per_new_user(batch: Batch, earlier_users: Tensor, rng: np.random.Generator) -> Tensor:
    """Return random rows of a batch in random order, one for each user not in ``earlier_users``."""
    shuffled = torch.from_numpy(rng.permutation(len(batch)))
    shuffled = shuffled[~torch.isin(batch.user_ids[shuffled], earlier_users)]
    _, first = np.unique(batch.user_ids[shuffled].numpy(), return_index=True)
    return shuffled[torch.from_numpy(rng.permutation(first))]
