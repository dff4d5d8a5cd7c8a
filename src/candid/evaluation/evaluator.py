"""Evaluation of a model over the full catalog, in one pass, with one query per user."""

from __future__ import annotations

from dataclasses import replace

from candid.data import PreparedDataset, Role
from candid.distributed import Group, current_group
from candid.errors import ConfigError
from candid.evaluation.catalog_scores import catalog_scorer
from candid.evaluation.config import EvaluationConfig
from candid.evaluation.evaluation_pass import EvaluationPass, TrueLogProb
from candid.evaluation.metrics import Floats
from candid.evaluation.queries import catalog_mask, counts_or_stored, select_queries
from candid.evaluation.report import EvaluationReport
from candid.features import Context
from candid.inference import (
    ScoringModel,
    StageProgress,
    TwoTowerModel,
    held_out_queries,
    inference_mode,
    is_sharded,
    scores_catalog,
)


def evaluate(
    model: TwoTowerModel | ScoringModel,
    dataset: PreparedDataset,
    config: EvaluationConfig,
    *,
    role: Role = Role.TEST,
    max_length: int,
    context: Context | None = None,
    item_counts: Floats | None = None,
    true_log_prob: TrueLogProb | None = None,
    progress: StageProgress | None = None,
    group: Group | None = None,
) -> EvaluationReport:
    """Evaluate a model on every user with targets of ``role``.

    Each user has one query for all targets: the history before the first target and, if the
    model reads it, the context with the time and event type of that target.
    The list is the exact top-k of the whole catalog, and every metric is the expectation over the
    orders of items with equal scores, so the ids of items have no influence. With
    ``filter_seen`` the list leaves out the items of the whole history (with event types: of
    target event types only), and a target among them is not relevant (``counts`` has their
    number). Ranking metrics are means over users who have a relevant item left, and undefined
    without such a user. The NLL is over all targets and the unfiltered catalog, as in training.
    With ``config.catalog`` "warm" or "cold" the lists, the coverage, the NLL and the targets are
    restricted to that part of the catalog. Retired items are never ranked;
    a target among them is a miss, and there is no NLL then.

    Args:
        model: encodes queries and items into vectors, or scores the whole catalog for a query
            (``ScoringModel``); runs in inference mode. Rows of scores [batch_size, V] exist for
            one batch at a time. A model whose scores are not a probability has no NLL.
        dataset: the prepared dataset.
        config: metrics, users and items of the evaluation.
        role: whose targets are predicted, ``Role.VALIDATION`` or ``Role.TEST``.
        max_length: longest history that the model reads.
        context: encodes the context of queries; None for a model that reads no context.
        item_counts: [V], how often training has each item as a target: the counts of popularity
            metrics and slices; items of count 0 are cold. ``candid.batches.target_counts`` gives
            those of a loader. None: the stored training interactions of the dataset. The setting
            ``item_counts`` of the report is "targets" or "interactions".
        true_log_prob: true log-probabilities, where they are known (synthetic data); adds
            ``true_nll`` and ``excess_nll``.
        progress: called with (stage, done, total) while items are encoded and after each batch
            of users.
        group: processes that share the users; all of them call this and return the same report,
            that of one process. With sharded tables they share the items instead, and all encode
            every query. None: this process alone.

    Returns:
        metrics, slices, counts and the values of each user.

    Raises:
        ConfigError: a cut-off k is larger than the catalog, true probabilities are given without
            nll, or the model has another number of items than the dataset.
        DataError: there are no targets, no user whom the model can encode, or not one count per
            item.
        ArtifactError: the vectors of the model are not finite.
    """
    group = Group() if group is None else group
    items_group = group
    if is_sharded(model):
        # All processes take part in every look-up, and so encode every query: items are shared.
        config.check_fits_shards()
        items_group, group = current_group() if group.is_single else group, Group()
    counts = counts_or_stored(dataset, item_counts)
    config.check_fits(int(catalog_mask(dataset, counts, config.catalog).sum()))
    if true_log_prob is not None and not config.nll:
        raise ConfigError("evaluation.nll must be true to compare with the true probabilities")
    queries = select_queries(
        dataset,
        role,
        needs_history=model.needs_history,
        max_users=config.max_users,
        seed=config.seed,
        catalog=config.catalog,
        item_counts=counts,
    )
    if scores_catalog(model) and not model.estimates_probability:
        if true_log_prob is not None:
            raise ConfigError(
                "the scores of the model are not a probability: leave out true_log_prob"
            )
        config = config.model_copy(update={"nll": False})
    with inference_mode(model):
        is_ranked = catalog_mask(dataset, counts, config.catalog)
        num_unranked = int((~is_ranked[queries.held_out.target_ids]).sum())
        if num_unranked:
            # A target that no list can contain has no likelihood; it is a miss of every metric.
            config = config.model_copy(update={"nll": False})
        score, device, item_vectors = catalog_scorer(model, is_ranked, progress, items_group)
        evaluation = EvaluationPass(
            is_ranked, dataset, config, queries, counts, item_vectors, true_log_prob
        )
        batches = held_out_queries(
            dataset,
            queries.held_out,
            max_length=max_length,
            batch_size=config.batch_size,
            context=context,
            share=slice(group.rank, None, group.world_size),
        )
        for rows, batch in batches:
            evaluation.add_batch(rows, score(batch.to(device)))
            if progress is not None:
                progress("evaluating users", rows.stop, len(queries))
    evaluation.add_processes(group)
    is_stored = item_counts is None
    report = evaluation.report(role, max_length, "interactions" if is_stored else "targets")
    if num_unranked:
        report = replace(report, counts={**report.counts, "unranked_targets": num_unranked})
    return report
