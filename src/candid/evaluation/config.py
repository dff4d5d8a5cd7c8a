"""Settings of an evaluation."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from candid.component import ComponentConfig
from candid.errors import ConfigError, UnknownNameError
from candid.evaluation.metrics import DEFAULT_METRICS, METRICS, RANKING_METRICS

CatalogPart = Literal["all", "warm", "cold"]
"""Items of an evaluation: all, only targets of training, or only the others."""


class EvaluationConfig(ComponentConfig):
    """Settings of an evaluation: metrics, users and items."""

    ks: tuple[int, ...] = Field(
        (1, 5, 10, 20, 100), min_length=1, description="cut-offs k of recall@k, ndcg@k, …"
    )
    metric: str = Field("ndcg@10", description="metric of early stopping and of summaries")
    metrics: tuple[str, ...] = Field(
        DEFAULT_METRICS,
        description="metrics to report, by name without cut-off; intra_list_diversity only if it "
        "is listed",
    )
    diversity_attribute: str | None = Field(
        None,
        description="item attribute whose values define the distance of items in "
        "intra_list_diversity; none: the item vectors of the model",
    )
    filter_seen: bool = Field(
        True,
        description="leave out the items of the user's whole history; with event types only items "
        "of target event types, because an item that was only viewed may still be bought",
    )
    catalog: CatalogPart = Field(
        "all",
        description="items that are ranked and count as targets: all, only those that training has "
        "as a target (warm), or only the others (cold)",
    )
    nll: bool = Field(
        True, description="also report the full-softmax negative log-likelihood of the targets"
    )
    max_users: int | None = Field(
        None,
        ge=1,
        description="size of a fixed random sample of users to evaluate; none: all users",
    )
    validation_users: int | None = Field(
        2048,
        ge=1,
        description="size of the sample of each validation during training, the same users each "
        "time; none: all users",
    )
    batch_size: int = Field(512, ge=1, le=2**31, description="queries encoded at once")
    intervals: bool = Field(True, description="also report confidence intervals over users")
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    popularity_slices: int = Field(
        10,
        ge=0,
        description="slices of target items by training count, each with about the same share "
        "of the training targets; 0: no slices",
    )
    history_slices: tuple[int, ...] = Field(
        (5, 10, 20, 50, 100, 200),
        description="history lengths at which a new slice of users begins; empty: no slices",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the sample of users")

    @field_validator("ks")
    @classmethod
    def _ks_positive_and_sorted(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1:
            raise ValueError(f"a cut-off k must be at least 1, got {min(ks)}")
        return tuple(sorted(set(ks)))

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            if name in METRICS:
                continue
            base = name.split("@")[0]
            if base in METRICS and base != name:
                raise ValueError(f"write {base!r}, not {name!r}: evaluation.ks lists the cut-offs")
            if name == "nll":
                raise ValueError("'nll' has no cut-off and its own key: evaluation.nll")
            raise ValueError(str(UnknownNameError("metric", name, METRICS)))
        return tuple(name for name in METRICS if name in metrics)

    @field_validator("history_slices")
    @classmethod
    def _edges_ascend(cls, edges: tuple[int, ...]) -> tuple[int, ...]:
        if any(edge < 1 for edge in edges):
            raise ValueError("a slice of history lengths must begin at 1 or more")
        return tuple(sorted(set(edges)))

    @model_validator(mode="after")
    def _metric_is_reported(self) -> Self:
        known = [f"{m}@{k}" for m in RANKING_METRICS if m in self.metrics for k in self.ks]
        if not known:
            raise ValueError(
                f"metrics must list one of {', '.join(RANKING_METRICS)}, for evaluation.metric"
            )
        if self.metric not in known:
            raise ValueError(f"metric {self.metric!r} is not reported; known: {', '.join(known)}")
        if "intra_list_diversity" in self.metrics and self.ks[-1] < 2:
            raise ValueError("intra_list_diversity needs a cut-off k of at least 2 in ks")
        return self

    def check_fits(self, num_items: int) -> None:
        """Refuse cut-offs beyond the number of ranked items.

        Raises:
            ConfigError: a cut-off k exceeds ``num_items``; the message has settings that fit. Or
                there are no items to rank.
        """
        if num_items == 0:
            reason = "every item is" if self.catalog == "cold" else "no item is"
            raise ConfigError(
                f"evaluation.catalog = {self.catalog!r} has no items to rank, because {reason} a "
                "target in training; set evaluation.catalog = 'all'"
            )
        if self.ks[-1] <= num_items:
            return
        fitting_ks = [k for k in self.ks if k <= num_items] or [num_items]
        advice = f"set evaluation.ks = {fitting_ks}"
        name, _, k = self.metric.partition("@")
        if int(k) not in fitting_ks:
            advice = f'{advice} and evaluation.metric = "{name}@{fitting_ks[-1]}"'
        raise ConfigError(
            f"evaluation.ks: {self.ks[-1]} exceeds the {num_items} items of the catalog; {advice}"
        )

    def check_fits_shards(self) -> None:
        """Refuse metrics that need the vectors of all items on one process.

        Raises:
            ConfigError: there is such a metric; tables are sharded over several processes.
        """
        if "intra_list_diversity" in self.metrics and self.diversity_attribute is None:
            raise ConfigError(
                "intra_list_diversity needs the vectors of all items, and those of sharded tables "
                "are on several processes: set evaluation.diversity_attribute, or leave the metric "
                "out"
            )

    def during_training(self) -> EvaluationConfig:
        """Return the settings of a validation during training: no intervals and no slices."""
        return self.model_copy(
            update={
                "max_users": self.validation_users,
                "intervals": False,
                "popularity_slices": 0,
                "history_slices": (),
            }
        )
