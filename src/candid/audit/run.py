"""The audit: every case measured on every input, with its cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from candid.audit.audit_input import SLICES, AuditInput
from candid.audit.audit_sampler import AuditRows, AuditSampler
from candid.audit.batch_effects import BatchEffects, measure_batch_effects
from candid.audit.cases import AuditCase
from candid.audit.cost import full_softmax_cost, sampled_cost
from candid.audit.drift import measure_drift, proposal_distance
from candid.audit.drift_sampling import DriftSampling
from candid.audit.entry import ALL_ROWS, AuditEntry, InputMeasurement
from candid.audit.full_softmax import FullSoftmaxReference, compute_full_softmax
from candid.audit.measurement import SamplingBudget, measure
from candid.audit.recommendation import CostBudget
from candid.audit.report import AuditReport, describe
from candid.audit.statistics import EstimatorStatistics, GroupMeans
from candid.component import type_name
from candid.errors import ConfigError
from candid.samplers.registry import SAMPLERS

AuditProgress = Callable[[int, int, str], None]
"""Callback before each measurement: (number done, total, description of the next one)."""


def audit(
    inputs: Sequence[AuditInput],
    cases: Sequence[AuditCase],
    *,
    sampling: SamplingBudget | None = None,
    drift: DriftSampling | None = None,
    budget: CostBudget | None = None,
    noise: float = 0.1,
    cost_rows: int = 256,
    seed: int = 0,
    notes: Sequence[str] = (),
    progress: AuditProgress | None = None,
) -> AuditReport:
    """Compare estimators of the softmax loss with the full softmax, on your own model.

    The first measure is the drift: the excess negative log-likelihood in nats to which training
    with the estimator converges; see ``candid.audit.drift``. The gradient is that with respect to
    the logits. The gradient of the towers is this one times the vectors, which are the same for
    all estimators.

    Args:
        inputs: models over one catalog; the last one decides the ranking.
        cases: samplers and estimators.
        sampling: number of repeats for bias and RMSE; None: the defaults of ``SamplingBudget``.
        drift: users and samples for the drift; None: the defaults of ``DriftSampling``.
        budget: largest cost of a step; None: no limit.
        noise: excess NLL in nats that the full softmax keeps after training, because a training
            is finite; the ranking is by drift + noise · RMSE². Larger for little data.
        cost_rows: B, rows of the step whose cost is measured.
        seed: of the samples.
        notes: sentences for the report, on what was not measured.
        progress: called before each measurement.

    Raises:
        ConfigError: no inputs or cases, or settings with which a sampler cannot work.

    Example:
        >>> from candid.audit import standard_cases
        >>> from candid.audit.synthetic_inputs import synthetic_inputs
        >>> inputs = synthetic_inputs(num_rows=64)  # doctest: +SKIP
        >>> cases = standard_cases([16, 64], inputs[-1].num_items)  # doctest: +SKIP
        >>> entry, sentence = audit(inputs, cases).recommendation()  # doctest: +SKIP
    """
    if not inputs or not cases:
        raise ConfigError("an audit needs at least one input and one case")
    if cost_rows < 1 or not (noise >= 0 and math.isfinite(noise)):
        raise ConfigError(
            f"cost_rows must be at least 1 and noise a number of nats from 0, got {cost_rows} and "
            f"{noise:g}"
        )
    sampling, drift = sampling or SamplingBudget(), drift or DriftSampling()
    budget = budget or CostBudget()
    references = [compute_full_softmax(data) for data in inputs]
    total = len(inputs) * len(cases) + 1
    entries: list[AuditEntry] = []
    for case_index, case in enumerate(cases):
        by_input: list[list[InputMeasurement]] = []
        for input_index, (data, reference) in enumerate(zip(inputs, references, strict=True)):
            if progress is not None:
                done = case_index * len(inputs) + input_index
                progress(done, total, f"{case.name}, n = {case.num_candidates}, {data.name}")
            by_input.append(_measurements(data, reference, case, sampling, drift, cost_rows, seed))
        entries += _entries(inputs, case, by_input, cost_rows, seed)
    if progress is not None:
        progress(total - 1, total, "full softmax")
    return AuditReport(
        entries=entries,
        inputs={
            data.name: describe(data, float(reference.nll.mean()))
            for data, reference in zip(inputs, references, strict=True)
        },
        full_softmax_cost=full_softmax_cost(inputs[-1], cost_rows),
        noise=noise,
        budget=budget,
        notes=[*notes, *_batch_notes(entries, inputs[-1].name)],
        settings={
            "seed": seed,
            "sampling": asdict(sampling),
            "drift": asdict(drift),
            "cost_rows": cost_rows,
            "threads": torch.get_num_threads(),
            "gradient": "with respect to the logits",
            "random": "candidates, given the row; in-batch: the other rows of the batch",
        },
    )


def _measurements(
    data: AuditInput,
    reference: FullSoftmaxReference,
    case: AuditCase,
    sampling: SamplingBudget,
    drift: DriftSampling,
    cost_rows: int,
    seed: int,
) -> list[InputMeasurement]:
    """Return the measurement of each estimator of a case."""
    slices = data.slices()
    means = measure(data, reference, _sampler(data, case, seed), case.estimators, sampling)
    users = drift.users_of(data)
    sampler = _sampler(users, case, seed)
    num_scores = _scores_per_row(users, sampler, cost_rows)
    budget = drift.budget(
        len(users.query), num_scores, seed, samples_per_row=case.sampler.samples_per_row
    )
    distance = proposal_distance(users, sampler)
    drifts = measure_drift(users, sampler, case.estimators, budget)
    parts = [_by_slice(means_of_one, slices) for means_of_one in means]
    statistics = [part[ALL_ROWS] for part in parts]
    effects = measure_batch_effects(
        data, reference, case.sampler, case.estimators, statistics, sampling, seed=seed
    )
    in_batch: Sequence[BatchEffects | None] = effects or [None] * len(parts)
    return [
        InputMeasurement(
            drift=drift_of_one, distance=distance, slices=part, in_batch=effects_of_one
        )
        for drift_of_one, part, effects_of_one in zip(drifts, parts, in_batch, strict=True)
    ]


def _batch_notes(entries: Sequence[AuditEntry], name: str) -> list[str]:
    """Return a sentence on the first in-batch estimator on an input, the recipe's if there is one.

    The estimators of the recipe are measured first.
    """
    effects = [(entry, entry.inputs[name].in_batch) for entry in entries]
    return [
        f"candidates from batches ({entry.label}): {one.sentence()}"
        for entry, one in effects
        if one is not None
    ][:1]


def _by_slice(means: GroupMeans, slices: Tensor) -> dict[str, EstimatorStatistics]:
    masks = {name: slices == index for index, name in enumerate(SLICES)}
    parts = {name: means.statistics(mask) for name, mask in masks.items() if bool(mask.any())}
    return {ALL_ROWS: means.statistics(), **parts}


def _entries(
    inputs: Sequence[AuditInput],
    case: AuditCase,
    by_input: Sequence[Sequence[InputMeasurement]],
    cost_rows: int,
    seed: int,
) -> list[AuditEntry]:
    """Return an entry for each estimator of a case; its cost is measured on the last input."""
    last = inputs[-1]
    sampler = _sampler(last, case, seed)
    num_scores = _scores_per_row(last, sampler, cost_rows)
    table = {
        "type": type_name(SAMPLERS, "sampler", case.sampler),
        **case.sampler.model_dump(mode="json"),
    }
    return [
        AuditEntry(
            name=case.name,
            num_candidates=case.num_candidates,
            estimator=estimator,
            sampler=table,
            distinct=case.sampler.is_set,
            is_recipe=case.is_recipe,
            num_scores=num_scores,
            inputs={data.name: one for data, one in zip(inputs, of_estimator, strict=True)},
            cost=sampled_cost(last, sampler, estimator, cost_rows),
        )
        for estimator, of_estimator in zip(
            case.estimators, zip(*by_input, strict=True), strict=True
        )
    ]


def _scores_per_row(data: AuditInput, sampler: AuditSampler, num_rows: int) -> int:
    rows = torch.arange(num_rows) % len(data.query)
    candidates = sampler.sample(AuditRows.of(data, rows))
    exact = candidates.exact
    num_exact = 0 if exact is None else sum(part.ids.shape[-1] for part in exact.parts)
    return candidates.ids.shape[-1] + num_exact


def _sampler(data: AuditInput, case: AuditCase, seed: int) -> AuditSampler:
    batch_rows = case.num_candidates if case.batch_rows is None else case.batch_rows
    generator = torch.Generator().manual_seed(seed)
    return AuditSampler(case.sampler, data, batch_rows=batch_rows, generator=generator)
