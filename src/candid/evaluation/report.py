"""Evaluation reports: the numbers of an evaluation as tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from candid.atomic import write_json
from candid.batches import Ints
from candid.evaluation.intervals import Estimate
from candid.evaluation.metric_sums import MetricSums
from candid.evaluation.metrics import RANKING_METRICS, Floats
from candid.evaluation.queries import no_relevant_error, num_population

SCHEMA = 1
"""Version of the JSON; it increases when the meaning of a key changes."""


@dataclass(frozen=True)
class Slice:
    """One group of a slicing.

    Attributes:
        label: name of the group.
        queries: queries with a target in it.
        targets: targets in it.
        metrics: by name, as in the report.
        per_user: values of each user, for ``compare``; not part of the JSON.
    """

    label: str
    queries: int
    targets: int
    metrics: Mapping[str, Estimate]
    per_user: PerUser

    @property
    def queries_ranked(self) -> int:
        """Queries with a target that ``filter_seen`` leaves; ranking metrics average them."""
        names = self.per_user.names
        column = next(c for c, name in enumerate(names) if name.split("@")[0] in RANKING_METRICS)
        return int((self.per_user.denominators[:, column] > 0).sum())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: of the attributes but ``per_user``."""
        return {
            "label": self.label,
            "queries": self.queries,
            "queries_ranked": self.queries_ranked,
            "targets": self.targets,
            "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()},
        }


@dataclass(frozen=True)
class PerUser:
    """The contribution of each user to each metric; a metric is Σ numerator / Σ denominator.

    Attributes:
        user_ids: [Q] ascending.
        names: C metrics.
        numerators: [Q, C].
        denominators: [Q, C].
    """

    user_ids: Ints
    names: tuple[str, ...]
    numerators: Floats
    denominators: Floats

    @classmethod
    def of(cls, user_ids: Ints, sums: MetricSums) -> PerUser:
        """Take the rows of metric sums without slices: one row per user."""
        return cls(user_ids, sums.names, sums.numerators, sums.denominators)

    def to_frame(self) -> pl.DataFrame:
        """Return ``user_id`` and one column per metric: the user's value, null where undefined."""
        columns: dict[str, pl.Series] = {"user_id": pl.Series(self.user_ids)}
        for c, name in enumerate(self.names):
            ratio = pl.Series(self.numerators[:, c]) / pl.Series(self.denominators[:, c])
            columns[name] = ratio.fill_nan(None)
        return pl.DataFrame(columns)


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """The numbers of one evaluation.

    Attributes:
        metrics: by name: ``recall@k``, ``hit_rate@k``, ``ndcg@k``, ``mrr@k``, ``precision@k``,
            ``map@k``, ``serendipity@k``, ``popularity@k`` (mean training count of the recommended
            items: how often training has them as a target), ``popularity_percentile@k``,
            ``mean_inv_user_freq@k`` (novelty, in bits), ``intra_list_diversity@k``,
            ``coverage@k`` (share of the catalog recommended to any user), and ``nll``,
            ``true_nll``, ``excess_nll`` in nats where they were computed. Those of ranks are
            expectations over the orders of items with equal scores.
        metric: the metric that summaries show first.
        slices: by slicing: ``target_popularity``, ``history_length``, ``target_warmth`` and
            ``user_warmth`` (where some targets, or users, were never trained on); only groups
            that hold targets.
        counts: numbers of users, targets and items, including those left out. Ranking metrics are
            means over ``users_ranked``: ``users`` without the ``users_without_relevant``, whose
            targets ``filter_seen`` hides. ``tied_targets`` are targets that share their score
            with another item and can be in the first k ranks of the largest k.
        settings: settings that the numbers depend on, beside model and data. ``item_counts`` is
            "targets" where training counts are those of the targets of an epoch, as in the
            report of a run, and "interactions" where they are the stored interactions.
        per_user: values of each user; not part of the JSON.
    """

    metrics: Mapping[str, Estimate]
    metric: str
    slices: Mapping[str, tuple[Slice, ...]]
    counts: Mapping[str, int]
    settings: Mapping[str, Any]
    per_user: PerUser

    def __repr__(self) -> str:
        value = self.metrics[self.metric].value
        shown = "undefined" if value is None else f"{value:.4f}"
        return (
            f"EvaluationReport({self.metric}={shown}, {self.counts['users']:,} users, "
            f"{len(self.metrics)} metrics)"
        )

    def summary(self) -> dict[str, float]:
        """Return plain values for training logs and early stopping, ``metric`` first.

        Undefined metrics are left out. Where users were sampled, ``standard_error`` is the
        ``sampling_error`` of ``metric``.

        Raises:
            DataError: ``metric`` is undefined.
        """
        if self.metrics[self.metric].value is None:
            raise no_relevant_error(self.settings["role"], self.counts["targets"], self.metric)
        first = {self.metric: self.metrics[self.metric]} | dict(self.metrics)
        values = {name: one.value for name, one in first.items() if one.value is not None}
        error = self.sampling_error()
        return values if error is None else values | {"standard_error": error}

    def sampling_error(self) -> float | None:
        """Return the standard error of ``metric`` as an estimate of its value for all users.

        The variance of a ratio of sums over a sample without replacement of n of N users (Cochran,
        "Sampling Techniques", 1977, 6.4): the sum of squared residuals over the squared total,
        times n / (n - 1), times 1 - n / N. None for an evaluation of all users, and where fewer
        than two users define the metric.
        """
        column = self.per_user.names.index(self.metric)
        numerators = self.per_user.numerators[:, column]
        denominators = self.per_user.denominators[:, column]
        num_users, total = int((denominators > 0).sum()), float(denominators.sum())
        share = self.counts["users"] / num_population(self.counts)
        if share == 1 or num_users < 2:
            return None
        residuals = numerators - numerators.sum() / total * denominators
        variance = float(np.square(residuals).sum()) / total**2
        return math.sqrt(variance * num_users / (num_users - 1) * (1 - share))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values.

        Keys: ``schema``, ``metric``, ``metrics`` {name: {value, low, high}}, ``slices``
        {slicing: [{label, queries, queries_ranked, targets, metrics}]}, ``counts``,
        ``settings``. An undefined value, or an interval that was not computed, is null.
        """
        return {
            "schema": SCHEMA,
            "metric": self.metric,
            "metrics": {name: asdict(estimate) for name, estimate in self.metrics.items()},
            "slices": {
                name: [part.to_json() for part in parts] for name, parts in self.slices.items()
            },
            "counts": dict(self.counts),
            "settings": dict(self.settings),
        }

    def save(self, path: Path | str) -> None:
        """Write the JSON atomically: the file is complete or unchanged.

        Raises:
            ArtifactError: the file cannot be written.
        """
        write_json(Path(path), self.to_json())

    def table(self) -> Table:
        """Return metrics by cut-off, with their intervals; hidden and tied targets below them.

        The title has the number of users over whom ranking metrics are means.
        """
        ks = sorted({int(name.split("@")[1]) for name in self.metrics if "@" in name})
        part, counts = self.settings["catalog"], self.counts
        restriction = "" if part == "all" else f", among {part} items"
        users = f"{counts['users_ranked']:,}"
        if counts["users_without_relevant"]:
            users += f" of {counts['users']:,}"
        title = f"{self.settings['role']}: {users} users{restriction}"
        notes = []
        if hidden := counts["targets_seen_before"]:
            notes.append(
                f"targets_seen_before: {hidden:,}, in the history and so not ranked "
                "(evaluation.filter_seen)"
            )
        if tied := counts["tied_targets"]:
            notes.append(f"tied_targets: {tied:,}, metrics are means over the orders of ties")
        if self.settings.get("item_counts") == "interactions":
            notes.append("item_counts: interactions, not the targets of a loader")
        table = Table(title=title, caption="\n".join(notes) or None)
        table.add_column("metric", no_wrap=True)
        for k in ks:
            table.add_column(f"@{k}", justify="right")
        for name in dict.fromkeys(name.split("@")[0] for name in self.metrics if "@" in name):
            table.add_row(name, *(_cell(self.metrics.get(f"{name}@{k}")) for k in ks))
        for name in (name for name in self.metrics if "@" not in name):
            table.add_row(name, _cell(self.metrics[name]), *[""] * (len(ks) - 1))
        return table

    def slice_table(self, slicing: str) -> Table:
        """Return ``metric``, recall at the same cut-off and NLL by slice.

        ``users`` is the number over whom ranking metrics are means.
        """
        names = [self.metric, f"recall@{self.metric.split('@')[1]}", "nll"]
        names = [name for name in dict.fromkeys(names) if name in self.metrics]
        table = Table(title=slicing.replace("_", " "))
        table.add_column("slice")
        table.add_column("users", justify="right")
        table.add_column("targets", justify="right")
        for name in names:
            table.add_column(name, justify="right")
        for part in self.slices[slicing]:
            cells = (_cell(part.metrics.get(name)) for name in names)
            table.add_row(part.label, f"{part.queries_ranked:,}", f"{part.targets:,}", *cells)
        return table


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)} ±{_number((estimate.high - estimate.low) / 2)}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
