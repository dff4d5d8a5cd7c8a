"""Settings of an evaluation."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from candid.component import ComponentConfig
from candid.errors import ConfigError
from candid.evaluation.item_subset import Ranked
from candid.evaluation.metrics import RANKING_METRICS


class EvaluationConfig(ComponentConfig):
    """What is measured, and on what."""

    ks: tuple[int, ...] = Field(
        (1, 5, 10, 20, 100), min_length=1, description="cut-offs k of recall@k, ndcg@k, …"
    )
    metric: str = Field(
        "ndcg@10", description="the metric that early stopping and summaries look at"
    )
    filter_seen: bool = Field(
        True,
        description="never recommend what is in the user's history, however long ago; of several "
        "kinds of interaction those that are targets count: what was only viewed may be bought",
    )
    catalog: Ranked = Field(
        "all",
        description="items that are ranked and asked for: all, only those trained on (warm), or "
        "only those never trained on (cold)",
    )
    nll: bool = Field(
        True, description="also report the full-softmax negative log-likelihood of the targets"
    )
    max_users: int | None = Field(
        None, ge=1, description="evaluate a fixed random sample of so many users; none: all"
    )
    validation_users: int | None = Field(
        None, ge=1, description="the same for each validation while training; none: all"
    )
    batch_size: int = Field(512, ge=1, description="queries encoded at once")
    bootstrap: int = Field(
        1000, ge=0, description="resamples of users behind each interval; 0: no intervals"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="coverage of the intervals")
    popularity_slices: int = Field(
        10,
        ge=0,
        description="slices of target items by training count, each with about the same share "
        "of the training interactions; 0: none",
    )
    history_slices: tuple[int, ...] = Field(
        (5, 10, 20, 50, 100, 200),
        description="history lengths at which a new slice of users begins; empty: none",
    )
    seed: int = Field(0, ge=0, description="of the sample of users and of the resamples")

    @field_validator("ks")
    @classmethod
    def _ks_positive_and_sorted(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1:
            raise ValueError(f"a cut-off k must be at least 1, got {min(ks)}")
        return tuple(sorted(set(ks)))

    @field_validator("history_slices")
    @classmethod
    def _edges_ascend(cls, edges: tuple[int, ...]) -> tuple[int, ...]:
        if any(edge < 1 for edge in edges):
            raise ValueError("a slice of history lengths must begin at 1 or more")
        return tuple(sorted(set(edges)))

    @model_validator(mode="after")
    def _metric_is_reported(self) -> Self:
        known = [f"{name}@{k}" for name in RANKING_METRICS for k in self.ks]
        if self.metric not in known:
            raise ValueError(f"metric {self.metric!r} is not reported; known: {', '.join(known)}")
        return self

    def check_fits(self, num_items: int) -> None:
        """Refuse cut-offs beyond the ``num_items`` that are ranked.

        Raises:
            ConfigError: naming settings that would do.
        """
        if self.ks[-1] <= num_items:
            return
        fitting = [k for k in self.ks if k <= num_items] or [num_items]
        cure = f"set evaluation.ks = {fitting}"
        name, _, k = self.metric.partition("@")
        if int(k) not in fitting:
            cure = f'{cure} and evaluation.metric = "{name}@{fitting[-1]}"'
        raise ConfigError(
            f"evaluation.ks: {self.ks[-1]} exceeds the {num_items} items of the catalog; {cure}"
        )

    def during_training(self) -> EvaluationConfig:
        """Settings of a validation inside a training run: the numbers alone, quickly."""
        return self.model_copy(
            update={
                "max_users": self.validation_users,
                "bootstrap": 0,
                "popularity_slices": 0,
                "history_slices": (),
            }
        )
