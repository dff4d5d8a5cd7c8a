"""The audit itself: every plan on every subject, with its cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from candid.audit.cost import Cost, exact_cost, sampled_cost
from candid.audit.estimators import Plan
from candid.audit.exact import ExactSoftmax, exact_softmax
from candid.audit.measure import Effort, measure
from candid.audit.moments import Finding, Moments
from candid.audit.recommendation import WHOLE, Budget, Entry
from candid.audit.report import AuditReport, described
from candid.audit.sampler import AuditSampler, Rows
from candid.audit.subject import SLICES, Subject
from candid.component import type_name
from candid.errors import ConfigError
from candid.samplers import SAMPLERS

AuditProgress = Callable[[int, int, str], None]
"""Told before each measurement: (done, in all, what comes)."""


def audit(
    subjects: Sequence[Subject],
    plans: Sequence[Plan],
    *,
    effort: Effort | None = None,
    budget: Budget | None = None,
    averaged: int = 100,
    cost_rows: int = 256,
    seed: int = 0,
    notes: Sequence[str] = (),
    progress: AuditProgress | None = None,
) -> AuditReport:
    """Hold estimators of the softmax loss against the exact one, on someone's own model.

    The gradient is that with respect to the logits: what reaches the towers is this gradient
    times the vectors, which are the same for all estimators.

    Args:
        subjects: models over one catalog, the one that decides the ranking last.
        plans: samplers and corrections.
        effort: how long to draw.
        budget: what a step may cost.
        averaged: T, steps that errors are averaged over for the ranking: bias² + variance / T.
        cost_rows: B, rows of the step whose cost is measured.
        seed: of the draws.
        notes: sentences for the report, on what is not measured.
        progress: told of the measurements.

    Raises:
        ConfigError: nothing to audit, or a sampler that cannot work.
    """
    if not subjects or not plans:
        raise ConfigError("an audit needs at least one subject and one plan")
    if averaged < 1 or cost_rows < 1:
        raise ConfigError(
            f"averaged and cost_rows must be at least 1, got {averaged} and {cost_rows}"
        )
    effort, budget = effort or Effort(), budget or Budget()
    exacts = [exact_softmax(subject) for subject in subjects]
    total = len(subjects) * len(plans) + 1
    entries: list[Entry] = []
    for place, plan in enumerate(plans):
        found: list[list[dict[str, Finding]]] = []
        for number, (subject, exact) in enumerate(zip(subjects, exacts, strict=True)):
            if progress is not None:
                done = place * len(subjects) + number
                progress(done, total, f"{plan.name}, n = {plan.n}, {subject.name}")
            found.append(_findings(subject, exact, plan, effort, seed))
        entries += _entries(subjects, plan, found, cost_rows, seed)
    if progress is not None:
        progress(total - 1, total, "full softmax")
    return AuditReport(
        entries=entries,
        subjects={
            subject.name: described(subject, float(exact.nll.mean()))
            for subject, exact in zip(subjects, exacts, strict=True)
        },
        exact=exact_cost(subjects[-1], cost_rows),
        averaged=averaged,
        budget=budget,
        notes=notes,
        settings={
            "seed": seed,
            "effort": asdict(effort),
            "cost_rows": cost_rows,
            "threads": torch.get_num_threads(),
            "gradient": "with respect to the logits",
            "random": "candidates, given the row; in-batch: the other rows of the batch",
        },
    )


def _findings(
    subject: Subject, exact: ExactSoftmax, plan: Plan, effort: Effort, seed: int
) -> list[dict[str, Finding]]:
    """What each variant of a plan comes to, over all rows and by slice."""
    sampler = _sampler(subject, plan, seed)
    slices = subject.slices()

    def by_slice(moments: Moments) -> dict[str, Finding]:
        masks = {name: slices == place for place, name in enumerate(SLICES)}
        parts = {name: moments.find(mask) for name, mask in masks.items() if bool(mask.any())}
        return {WHOLE: moments.find(), **parts}

    return [by_slice(one) for one in measure(subject, exact, sampler, plan.variants, effort)]


def _entries(
    subjects: Sequence[Subject],
    plan: Plan,
    found: Sequence[Sequence[dict[str, Finding]]],
    cost_rows: int,
    seed: int,
) -> list[Entry]:
    judged = subjects[-1]
    sampler = _sampler(judged, plan, seed)
    scores = _scores_a_row(judged, sampler, cost_rows)
    table = {
        "type": type_name(SAMPLERS, "sampler", plan.config),
        **plan.config.model_dump(mode="json"),
    }
    entries = []
    for variant, of_variant in zip(plan.variants, zip(*found, strict=True), strict=True):
        cost: Cost = sampled_cost(judged, sampler, variant, cost_rows)
        findings = {s.name: parts for s, parts in zip(subjects, of_variant, strict=True)}
        entries.append(
            Entry(plan.name, plan.n, variant, table, plan.is_yours, scores, findings, cost)
        )
    return entries


def _scores_a_row(subject: Subject, sampler: AuditSampler, num_rows: int) -> int:
    places = torch.arange(num_rows) % len(subject.query)
    drawn = sampler.sample(Rows.of(subject, places))
    in_head = 0 if drawn.exact is None else sum(p.ids.shape[-1] for p in drawn.exact.parts)
    return drawn.ids.shape[-1] + in_head


def _sampler(subject: Subject, plan: Plan, seed: int) -> AuditSampler:
    generator = torch.Generator().manual_seed(seed)
    batch_rows = plan.n if plan.batch_rows is None else plan.batch_rows
    return AuditSampler(plan.config.build(subject.counts), subject, batch_rows, generator)
