"""The validation of a training, on a sample of users that is the same each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from candid.config import RunConfig
from candid.data import PreparedDataset, Role
from candid.distributed import Group
from candid.evaluation import catalog_mask, check_has_relevant, evaluate
from candid.runs.features import RunFeatures
from candid.towers import RetrievalModel


def validation_function(
    config: RunConfig,
    dataset: PreparedDataset,
    features: RunFeatures,
    *,
    item_counts: npt.NDArray[np.float64],
    needs_history: bool,
    group: Group,
) -> tuple[Callable[[RetrievalModel], Mapping[str, float]] | None, str]:
    """Return the validation function, None without validation targets, and a part of a sentence.

    The sentence states the number of users where they are a sample; otherwise it is empty.
    """
    ranked = catalog_mask(dataset, item_counts, config.evaluation.catalog)
    config.evaluation.check_fits(int(ranked.sum()))
    if not dataset.has_role(Role.VALIDATION):
        return None, ""
    settings, context = config.evaluation.during_training(), features.context_for(dataset)
    # Checked before the first epoch, which may take hours.
    if config.training.shards_tables and not group.is_single:
        settings.check_fits_shards()
    queries = check_has_relevant(
        dataset,
        settings,
        Role.VALIDATION,
        needs_history=needs_history,
        item_counts=item_counts,
    )

    def validate(model: RetrievalModel) -> Mapping[str, float]:
        report = evaluate(
            model,
            dataset,
            settings,
            role=Role.VALIDATION,
            max_length=config.batches.max_length,
            context=context,
            item_counts=item_counts,
            group=group,
        )
        return report.summary()

    users, population = queries.counts["users"], queries.num_population
    if users == population:
        return validate, ""
    return validate, (
        f"; validation on {users:,} of {population:,} users, the same each time "
        "(evaluation.validation_users)"
    )
