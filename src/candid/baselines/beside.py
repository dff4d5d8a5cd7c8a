"""A trained model beside the baselines: the same users, paired tests, and a sentence about them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from candid.baselines.measurement import BaselineResults
from candid.baselines.report import cell, notes_of, to_json
from candid.evaluation import Comparison, EvaluationReport, compare

CHEAP = ("popularity", "item_knn", "markov", "co_visits", "session_knn")
"""Baselines that take seconds for a million interactions. The last ones are left out where time is
short: the queries of session_knn take longest on long histories."""
SIGNIFICANT = 0.05
"""Largest p-value of a difference that counts."""
MANY_COLD = 0.5
"""Share of targets that are cold items from which it is the likely reason."""
PERFECT = 1 - 1e-9
"""Smallest value of a metric that counts as its largest, 1."""
MANY_REPEATS = 0.2
"""Share of hidden targets from which it is the likely reason."""
FEW_MEASURED = 30
"""Number of measured users below which it is the likely reason of a difference within chance."""
FEW_USERS = 1000
"""Number of training users below which it is the likely reason."""
FEW_STEPS = 1000
"""Number of steps below which it is the likely reason."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a trained model that explain a poor result.

    Attributes:
        reads_history: whether the query depends on the history.
        reads_item_features: whether item vectors depend on the features of the items.
        is_improving: whether the last validation of the training was the best one.
        num_users: users with a training row.
        num_steps: steps of the training.
    """

    reads_history: bool
    reads_item_features: bool
    is_improving: bool
    num_users: int
    num_steps: int


@dataclass(frozen=True)
class ModelBesideBaselines:
    """The evaluation of a model and those of baselines on the same targets.

    Attributes:
        report: of the model.
        facts: of the model.
        results: of the baselines, best first; at least one.
        comparisons: model minus baseline over the users of both, in the order of the results.
    """

    report: EvaluationReport
    facts: ModelFacts
    results: BaselineResults
    comparisons: tuple[Comparison, ...]

    @classmethod
    def of(
        cls, report: EvaluationReport, facts: ModelFacts, results: BaselineResults
    ) -> ModelBesideBaselines:
        """Compare a model with each baseline.

        Raises:
            DataError: the reports share no user.
        """
        comparisons = (compare(report, one.report, results.metric) for one in results.results)
        return cls(report, facts, results, tuple(comparisons))

    @property
    def beats_best(self) -> bool:
        """Whether the model is better than the best baseline by more than chance."""
        first = self.comparisons[0]
        return first.difference > 0 and first.p_value < SIGNIFICANT

    @property
    def sentence(self) -> str:
        """State whether the model beats the best baseline, and the likely reason if not."""
        best, first = self.results.results[0], self.comparisons[0]
        measured = len(self.results.results)
        which = f"the best of the {measured} baselines measured here, {best.name}"
        if measured == 1:
            which = f"the only baseline measured here, {best.name}"
        if first.difference == 0 and best.value >= PERFECT:
            return (
                f"the model and {which}, are both perfect ({first.metric} {best.value:.4f}, "
                f"{first.users:,} users), so that nothing can be gained"
            )
        model = first.difference + best.value
        numbers = (
            f"{first.metric} {model:.4f} against {best.value:.4f}, p {first.p_value:.3f}, "
            f"{first.users:,} users"
        )
        if self.beats_best:
            return f"the model beats {which} ({numbers})"
        # A lead within chance is named as such, so that the numbers do not contradict the words.
        chance = ", by more than chance" if first.difference > 0 else ""
        return (
            f"the model does not beat {which}{chance} ({numbers}); likely reason: "
            f"{self._likely_reason()}"
        )

    def _likely_reason(self) -> str:
        counts, facts = self.report.counts, self.facts
        if self.results.results[0].model.reads_history and not facts.reads_history:
            new = "most users are new and " if 2 * counts["cold_users"] > counts["users"] else ""
            return (
                f"{new}the model does not read the history; choose a query tower that does, such "
                "as causal_transformer"
            )
        cold = counts["cold_targets"] / counts["targets"]
        if cold > MANY_COLD and not facts.reads_item_features:
            return (
                f"{cold:.0%} of the targets are items without a training target; train an item "
                "tower that reads features (item_features), or choose another split"
            )
        hidden = counts["targets_seen_before"] / counts["targets"]
        if hidden > MANY_REPEATS:
            return (
                f"{hidden:.0%} of the targets are repeats, which evaluation.filter_seen hides; "
                "set it to false if repeats are worth a recommendation"
            )
        users = self.comparisons[0].users
        if users < FEW_MEASURED and self.comparisons[0].p_value >= SIGNIFICANT:
            return f"{users} users are too few to measure a difference; hold out more users"
        if facts.is_improving:
            return "the last validation was the best one; raise training.epochs"
        if facts.num_steps < FEW_STEPS:
            return (
                f"only {facts.num_steps:,} steps of training; raise training.epochs or lower "
                "batches.batch_size"
            )
        if facts.num_users < FEW_USERS:
            return (
                f"only {facts.num_users:,} users to learn from; try a smaller width and more "
                "dropout, or use the baseline"
            )
        return "the settings do not suit the data; tune training.lr, dropout and the width"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: ``sentence``, ``beats_best``, ``comparisons``, ``results``."""
        pairs = zip(self.results.results, self.comparisons, strict=True)
        return {
            "sentence": self.sentence,
            "beats_best": self.beats_best,
            "comparisons": [{"baseline": one.name, **asdict(pair)} for one, pair in pairs],
            "results": to_json(self.results),
        }

    def table(self) -> Table:
        """Return one line per baseline: its metric and the difference of the model."""
        metric = self.results.metric
        users = f"{self.comparisons[0].users:,} users"
        shown = Table(
            title=f"{self.results.role.name.lower()}: the model beside baselines, {users}",
            caption="\n".join(notes_of(self.results)),
        )
        shown.add_column("baseline", no_wrap=True)
        for name in (metric, "model - baseline", "p"):
            shown.add_column(name, justify="right")
        for one, pair in zip(self.results.results, self.comparisons, strict=True):
            interval = "" if pair.low is None else f" [{pair.low:+.4f}, {pair.high:+.4f}]"
            shown.add_row(
                one.name,
                cell(one.report.metrics[metric]),
                f"{pair.difference:+.4f}{interval}",
                f"{pair.p_value:.3f}",
            )
        return shown
