"""Results of baselines as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from candid.baselines.measurement import BaselineResults
from candid.evaluation import Estimate, compare


def to_json(results: BaselineResults) -> dict[str, Any]:
    """Return the results as plain JSON values.

    Keys: ``metric``, ``split``, ``tuned_on`` (validation users, or null), ``skipped`` {name:
    reason}, and ``baselines``, best first: ``name``, ``settings``, ``validation``, ``trials``,
    ``is_complete``, ``seconds``, ``compared_to_best`` (difference in the metric, its interval and
    p-value; null for the best) and ``report``, as ``EvaluationReport.to_json`` returns it.
    """
    return {
        "metric": results.metric,
        "split": results.role.name.lower(),
        "tuned_on": results.tuned_on,
        "skipped": dict(results.skipped),
        "baselines": [
            {
                "name": one.name,
                "settings": dict(one.settings),
                "validation": one.validation,
                "trials": one.trials,
                "is_complete": one.is_complete,
                "seconds": one.seconds,
                "compared_to_best": _against_best(results, place),
                "report": one.report.to_json(),
            }
            for place, one in enumerate(results.results)
        ],
    }


def table(results: BaselineResults) -> Table:
    """Return one line per baseline: metric with interval, test against the best, settings, time."""
    split = results.role.name.lower()
    title = f"{split}: baselines by {results.metric}"
    if results.results:
        title += f", {results.results[0].report.counts['users_ranked']:,} users"
    shown = Table(title=title, caption="\n".join(notes_of(results)))
    k = results.metric.partition("@")[2]
    recall = f"recall@{k}"
    shown.add_column("baseline", no_wrap=True)
    shown.add_column(results.metric, justify="right")
    shown.add_column(recall, justify="right")
    shown.add_column("p (best)", justify="right")
    shown.add_column("CPU s", justify="right")
    shown.add_column("settings")
    for place, one in enumerate(results.results):
        difference = _against_best(results, place)
        shown.add_row(
            one.name,
            cell(one.report.metrics[results.metric]),
            cell(one.report.metrics[recall]),
            "" if difference is None else f"{difference['p_value']:.3f}",
            f"{one.seconds:,.1f}",
            ", ".join(f"{name} {value:g}" for name, value in one.settings.items()),
        )
    return shown


def notes_of(results: BaselineResults) -> list[str]:
    """Return what a reader of a table needs: skipped baselines, and how they were tuned."""
    notes = [f"not measured: {name}: {reason}" for name, reason in results.skipped.items()]
    if results.tuned_on is None:
        notes.append("default settings, not tuned")
    else:
        notes.append(f"settings tuned on {results.tuned_on:,} validation users")
    cut = [one.name for one in results.results if not one.is_complete]
    if cut:
        notes.append(f"tuning stopped by the time limit: {', '.join(cut)}")
    return notes


def cell(estimate: Estimate) -> str:
    """Return a value with half of its interval."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} ±{(estimate.high - estimate.low) / 2:.4f}"


def _against_best(results: BaselineResults, place: int) -> Mapping[str, Any] | None:
    """Compare a baseline with the best one: the difference is its own metric minus the best."""
    if place == 0:
        return None
    one, best = results.results[place], results.results[0]
    comparison = compare(one.report, best.report, results.metric)
    return {
        "difference": comparison.difference,
        "low": comparison.low,
        "high": comparison.high,
        "p_value": comparison.p_value,
        "users": comparison.users,
    }
