"""Paired comparison of several evaluation reports with the first one, in total and by slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from candid.component import lookup
from candid.errors import ConfigError, DataError
from candid.evaluation.comparison import Comparison, compare
from candid.evaluation.intervals import Estimate
from candid.evaluation.report import EvaluationReport, Slice


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of one report to the first in one metric.

    Attributes:
        comparison: report minus first, over the users of both.
        adjusted_p_value: after Holm, over all reports that are compared with the first.
    """

    comparison: Comparison
    adjusted_p_value: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self.comparison), "adjusted_p_value": self.adjusted_p_value}


@dataclass(frozen=True, slots=True)
class SliceDifferences:
    """One group of a slicing in every report.

    Attributes:
        label: name of the group.
        users: of the first report, over whom ranking metrics are means.
        values: of the main metric, by report name; None where a report lacks the group.
        differences: report minus first in the main metric, by name of the other reports; None
            where no user is in both.
    """

    label: str
    users: int
    values: Mapping[str, Estimate | None]
    differences: Mapping[str, Comparison | None]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; slices have no p-values."""
        values = {name: one and asdict(one) for name, one in self.values.items()}
        differences: dict[str, Any] = {}
        for name, one in self.differences.items():
            differences[name] = None
            if one is not None:
                keys = ("difference", "low", "high", "users")
                differences[name] = {key: getattr(one, key) for key in keys}
        return {
            "label": self.label,
            "users": self.users,
            "values": values,
            "differences": differences,
        }


@dataclass(frozen=True, repr=False)
class ReportComparison:
    """Several reports on the same targets, each compared with the first.

    Attributes:
        reports: by name, the first one is the reference.
        metrics: compared metrics, the main one first.
        differences: metric -> name of each other report -> difference to the first.
        slices: by slicing, the groups of the first report.
    """

    reports: Mapping[str, EvaluationReport]
    metrics: tuple[str, ...]
    differences: Mapping[str, Mapping[str, Difference]]
    slices: Mapping[str, tuple[SliceDifferences, ...]]

    def __repr__(self) -> str:
        return f"ReportComparison({', '.join(self.names)}; {len(self.metrics)} metrics)"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reports, the reference first."""
        return tuple(self.reports)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values.

        Keys: ``reference``, ``metrics``, ``reports`` {name: {metrics, counts, differences}},
        ``slices`` {slicing: [{label, users, values, differences}]}.
        """
        reports: dict[str, Any] = {}
        for name, report in self.reports.items():
            reports[name] = {
                "metrics": {one: asdict(report.metrics[one]) for one in report.metrics},
                "counts": dict(report.counts),
                "differences": {
                    metric: by_name[name].to_json()
                    for metric, by_name in self.differences.items()
                    if name in by_name
                },
            }
        return {
            "reference": self.names[0],
            "metrics": list(self.metrics),
            "reports": reports,
            "slices": {
                slicing: [group.to_json() for group in groups]
                for slicing, groups in self.slices.items()
            },
        }


def compare_reports(
    reports: Mapping[str, EvaluationReport],
    metrics: Sequence[str] | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> ReportComparison:
    """Compare reports with the first of them, user by user, as ``candid.compare`` does.

    With more than two reports the p-values of a metric are adjusted after Holm (1979), so that
    the probability of any false difference in that metric is at most the level. Intervals are
    those of single comparisons.

    Args:
        reports: at least two by name, on the same dataset and role.
        metrics: names, the main one first; None: the main metric of the first report, recall at
            the same cut-off and the NLL, as far as all reports have them.
        confidence: coverage of the intervals of differences.
        seed: of the sign flips of the test.

    Raises:
        ConfigError: fewer than two reports.
        UnknownNameError: a report lacks a metric.
        DataError: no user defines a metric in both reports.
    """
    if len(reports) < 2:
        raise ConfigError("a comparison needs at least two reports")
    first, *others = reports.values()
    if metrics is None:
        candidates = (first.metric, f"recall@{first.metric.split('@')[1]}", "nll")
        shared = [one for one in candidates if all(one in r.metrics for r in reports.values())]
        metrics = list(dict.fromkeys(shared))
    for metric in metrics:
        for report in reports.values():
            lookup(report.metrics, "metric", metric)
    names = list(reports)[1:]
    differences: dict[str, dict[str, Difference]] = {}
    for metric in metrics:
        comparisons = [
            compare(other, first, metric, confidence=confidence, seed=seed) for other in others
        ]
        adjusted = holm([one.p_value for one in comparisons])
        differences[metric] = {
            name: Difference(one, p)
            for name, one, p in zip(names, comparisons, adjusted, strict=True)
        }
    slices = {
        slicing: tuple(
            _slice_differences(reports, slicing, group, metrics[0], confidence) for group in groups
        )
        for slicing, groups in first.slices.items()
    }
    return ReportComparison(dict(reports), tuple(metrics), differences, slices)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of m tests after Holm (1979): the i-th smallest times m - i + 1, monotone.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def _slice_differences(
    reports: Mapping[str, EvaluationReport],
    slicing: str,
    group: Slice,
    metric: str,
    confidence: float,
) -> SliceDifferences:
    values: dict[str, Estimate | None] = {}
    differences: dict[str, Comparison | None] = {}
    for number, (name, report) in enumerate(reports.items()):
        labels = {other.label: other for other in report.slices.get(slicing, ())}
        same = labels.get(group.label)
        values[name] = None if same is None else same.metrics[metric]
        if number == 0:
            continue
        differences[name] = None
        if same is not None:
            try:
                differences[name] = compare(
                    same.per_user, group.per_user, metric, resamples=0, confidence=confidence
                )
            except DataError:  # no user of the group defines the metric in both reports
                continue
    return SliceDifferences(group.label, group.queries_ranked, values, differences)
