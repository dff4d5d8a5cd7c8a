"""Measurements of one trained model: metrics, values of users, calibration, chi2 and drift."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from candid.audit import (
    AuditCase,
    AuditInput,
    AuditSampler,
    DriftSampling,
    SamplingBudget,
    measure_drift,
    proposal_distance,
)
from candid.audit.full_softmax import compute_full_softmax
from candid.audit.measurement import measure
from candid.audit.run_inputs import recipe_case, trained_input
from candid.data import Role
from candid.evaluation import EvaluationReport
from candid.evaluation.queries import EvaluationQueries, catalog_mask, select_queries
from candid.evaluation.report import PerUser
from candid.evaluation.slices import by_popularity
from candid.inference import held_out_queries, inference_mode
from candid.runs import Run
from candid.study.config import MeasureConfig
from candid.study.records import CalibrationBin, Measured, PopularityGroup, Quantiles, finite
from candid.study.user_values import Floats, UserValues

MIN_USERS = 256
"""Least number of users of a test measurement, however large the catalog is."""
DRIFT_ROWS = 256
"""Training rows, each of another user, of chi2 and of the gradient bias."""
DRIFT_USERS = 64
"""Users of a drift, the first of these rows."""
DRIFT = DriftSampling(users=DRIFT_USERS, memory=1 << 28, scores=1 << 26)
"""64 users of 65,536 items fit into the memory. With up to 512 candidates there are 2,048 samples;
with 60,000 items a drift takes 3 CPU seconds."""
BIAS = SamplingBudget(repeats=128)
NUM_GROUPS = 10
BIN_EDGES = np.array([0.0, *(10.0 ** np.arange(-7, 0.5, 0.5))])
"""Edges of the bins of P(item | user): two for each power of ten."""


@dataclass(frozen=True, slots=True)
class TestMeasurement:
    """The measurement of a model on the test split.

    Attributes:
        metrics: by name.
        popularity: by popularity of the target.
        users: values of each user.
    """

    __test__ = False  # for pytest: not a class of tests

    metrics: Mapping[str, Measured]
    popularity: tuple[PopularityGroup, ...]
    users: UserValues


def validation_metrics(run: Run) -> dict[str, Measured]:
    """Measure a model on the users of the validations during training.

    Raises:
        DataError: no validation target can be recommended.
    """
    config = run.config.evaluation.during_training()
    return _measurements(run.evaluate("validation", config))


def measure_on_test(run: Run, settings: MeasureConfig) -> TestMeasurement:
    """Measure a model on the test split, over the whole catalog.

    Raises:
        DataError: no test target can be recommended.
    """
    limit = max(MIN_USERS, int(settings.max_scores / run.dataset.num_items))
    asked = run.config.evaluation.max_users
    config = run.config.evaluation.model_copy(
        update={
            "max_users": min(limit, asked or limit),
            "popularity_slices": NUM_GROUPS,
            "intervals": False,
        }
    )
    report = run.evaluate("test", config)
    held_out = _queries(run, config.max_users).held_out
    groups = by_popularity(run.item_counts, NUM_GROUPS).groups
    columns = {name: _column(report.per_user, name) for name in ("ndcg@10", "nll")}
    nll = columns["nll"]
    users = UserValues(
        user_ids=report.per_user.user_ids,
        ndcg=columns["ndcg@10"],
        nll=nll,
        decile=groups[held_out.target_ids[held_out.target_offsets[:-1]]],
        probability=np.exp(-nll),
    )
    popularity = tuple(
        PopularityGroup(
            part.label,
            part.targets,
            _measured(part.per_user, "ndcg@10"),
            _measured(part.per_user, "nll"),
        )
        for part in report.slices["target_popularity"]
    )
    return TestMeasurement(_measurements(report), popularity, users)


def measure_calibration(run: Run, settings: MeasureConfig) -> tuple[CalibrationBin, ...]:
    """Compare the stated P(item | user) of all pairs with the share of targets among them.

    A user has the probabilities of the full softmax over the items that the evaluation ranks, and
    each of the user's targets counts with an equal share, 1 in sum. Bins without a pair are left
    out.
    """
    ranked = catalog_mask(run.dataset, run.item_counts, run.config.evaluation.catalog)
    num_items = run.dataset.num_items
    limit = min(settings.calibration_users, max(MIN_USERS, int(settings.max_scores / num_items)))
    if not limit:
        return ()
    held_out = _queries(run, limit).held_out
    size = len(BIN_EDGES) - 1
    pairs, stated, observed = np.zeros(size), np.zeros(size), np.zeros(size)
    edges = torch.from_numpy(BIN_EDGES[1:-1])
    column_of = np.cumsum(ranked) - 1
    batches = held_out_queries(
        run.dataset,
        held_out,
        max_length=run.config.batches.max_length,
        batch_size=64,
        context=run.context,
    )
    with inference_mode(run.model):
        items = run.model.encode_catalog().float()[torch.from_numpy(ranked)]
        for rows, queries in batches:
            query = run.model.encode_queries(queries.to(run.model.device)).float()
            p = torch.softmax(query @ items.T, dim=1).double().cpu()
            bins = torch.bucketize(p, edges, right=True)
            pairs += torch.bincount(bins.flatten(), minlength=size).numpy()
            stated += torch.bincount(bins.flatten(), p.flatten(), minlength=size).numpy()
            offsets = held_out.target_offsets[rows.start : rows.stop + 1]
            counts = np.diff(offsets)
            targets = torch.from_numpy(column_of[held_out.target_ids[offsets[0] : offsets[-1]]])
            of_user = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
            share = torch.from_numpy(np.repeat(1.0 / counts, counts))
            observed += torch.bincount(bins[of_user, targets], share, minlength=size).numpy()
    return tuple(
        CalibrationBin(
            low=float(BIN_EDGES[b]),
            high=float(BIN_EDGES[b + 1]),
            pairs=int(pairs[b]),
            stated=float(stated[b] / pairs[b]),
            observed=float(observed[b] / pairs[b]),
        )
        for b in range(size)
        if pairs[b]
    )


@dataclass(frozen=True, slots=True)
class EstimatorMeasurement:
    """The estimator of a cell at its trained model.

    Attributes:
        chi2: by user; None beside exact candidates.
        drift: in nats.
        gradient_bias: given the positive, relative to the length of the gradient.
        users: number of users of ``chi2`` and ``gradient_bias``.
        drift_users: number of users of ``drift``.
    """

    chi2: Quantiles | None
    drift: Measured
    gradient_bias: Measured
    users: int
    drift_users: int


def measure_estimator(run: Run, settings: MeasureConfig) -> EstimatorMeasurement | None:
    """Measure the estimator of a recipe, with its sampler, at the trained model.

    Returns:
        None where the loss estimates no softmax from candidates, or the catalog is larger than
        ``drift_max_items``.

    Raises:
        ArtifactError: the model has diverged.
    """
    case = recipe_case(run.config, run.dataset)
    if case is None or not settings.drift or run.dataset.num_items > settings.drift_max_items:
        return None
    return estimator_at(case, trained_input(run, DRIFT_ROWS))


def estimator_at(case: AuditCase, data: AuditInput) -> EstimatorMeasurement:
    """Measure the first estimator of a case at a model.

    The catalog are the items that the sampler can draw: training with it leaves the others out
    of the softmax.
    """
    support = case.sampler.build(data.counts).support(data.counts > 0)
    data = data.restricted_to(support)
    few = DRIFT.users_of(data)
    generator = torch.Generator().manual_seed(0)
    batch_rows = case.num_candidates if case.batch_rows is None else case.batch_rows
    sampler, sampler_of_few = (
        AuditSampler(case.sampler, one, batch_rows=batch_rows, generator=generator)
        for one in (data, few)
    )
    distance = proposal_distance(data, sampler)
    own = case.estimators[:1]
    budget = DRIFT.budget(
        len(few.query), case.num_candidates, 0, samples_per_row=case.sampler.samples_per_row
    )
    drift = measure_drift(few, sampler_of_few, own, budget)[0]
    bias = measure(data, compute_full_softmax(data), sampler, own, BIAS)[0].statistics()
    quantiles = None
    if distance is not None:
        levels = np.quantile(distance.chi2.numpy(), (0.1, 0.5, 0.9))
        quantiles = Quantiles(*map(finite, levels))
    return EstimatorMeasurement(
        quantiles,
        Measured(drift.mean, finite(drift.error)),
        Measured(bias.bias, finite(bias.bias_error)),
        bias.num_rows,
        len(drift.by_user),
    )


def _queries(run: Run, max_users: int | None) -> EvaluationQueries:
    """Return the test users that an evaluation with this ``max_users`` measures."""
    config = run.config.evaluation
    return select_queries(
        run.dataset,
        Role.TEST,
        needs_history=run.model.needs_history,
        max_users=max_users,
        seed=config.seed,
        catalog=config.catalog,
        item_counts=run.item_counts,
    )


def _measurements(report: EvaluationReport) -> dict[str, Measured]:
    names = [name for name, estimate in report.metrics.items() if estimate.value is not None]
    columns = set(report.per_user.names)
    values = {name: _measured(report.per_user, name) for name in names if name in columns}
    return {name: value for name, value in values.items() if value is not None}


def _measured(per_user: PerUser, name: str) -> Measured | None:
    """Return a ratio of sums over users with its standard error (linearisation of the ratio)."""
    if name not in per_user.names:
        return None
    column = per_user.names.index(name)
    numerators = per_user.numerators[:, column]
    denominators = per_user.denominators[:, column]
    total, users = float(denominators.sum()), int((denominators > 0).sum())
    if not users:
        return None
    value = float(numerators.sum()) / total
    if users < 2:
        return Measured(value)
    squares = float(np.square(numerators - value * denominators).sum())
    return Measured(value, math.sqrt(squares * users / (users - 1)) / total)


def _column(per_user: PerUser, name: str) -> Floats:
    """Return the value of each user, NaN where it is undefined."""
    if name not in per_user.names:
        return np.full(len(per_user.user_ids), np.nan)
    column = per_user.names.index(name)
    numerators = per_user.numerators[:, column]
    denominators = per_user.denominators[:, column]
    values = np.full(len(numerators), np.nan)
    np.divide(numerators, denominators, out=values, where=denominators > 0)
    return values
