"""Settings of the demo: two regimes of synthetic data and the compared losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from candid.audit import Estimator
from candid.config import RunConfig, parse_config
from candid.synthetic import SyntheticConfig

MAX_LENGTH = 10
"""Longest history of the models; the true distribution depends on the last item and the user."""
K = 10
"""Length of the compared lists."""

ESTIMATORS: Final = (
    Estimator("none"),
    Estimator("logq"),
    Estimator("logq", accidental_hits="mask"),
    Estimator("refined"),
)
"""The compared corrections."""
FULL_SOFTMAX = "full softmax"
"""Name of the reference."""


@dataclass(frozen=True, slots=True)
class Regime:
    """Synthetic data of one kind.

    Attributes:
        name: in tables and as the name of a folder.
        synthetic: settings of the data.
    """

    name: str
    synthetic: SyntheticConfig


def _data(temperature: float) -> SyntheticConfig:
    return SyntheticConfig(
        num_items=500,
        num_users=4_000,
        interactions_mean=20.0,
        history_weight=3.0,
        history_length=1,
        temperature=temperature,
    )


REGIMES: Final = (Regime("unsure", _data(1.5)), Regime("confident", _data(0.25)))
"""Users who mostly follow popularity (mean true P(p) = .05), and users with strong tastes (.3)."""
NUM_CANDIDATES: Final = (16, 256)
EPOCHS = 4
NUM_GROUPS = 8
"""Independent samples of candidates in a step: with a single one, the noise of 16 candidates
would hide the differences."""


@dataclass(frozen=True, slots=True)
class Objective:
    """One trained loss.

    Attributes:
        estimator: of the sampled softmax; None for the full softmax.
        num_candidates: n; None for the full softmax.
    """

    estimator: Estimator | None = None
    num_candidates: int | None = None

    @property
    def name(self) -> str:
        """Name in tables."""
        return FULL_SOFTMAX if self.estimator is None else self.estimator.label

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        words = self.name.replace(",", "").replace(" ", "-")
        return words if self.num_candidates is None else f"{words}-{self.num_candidates}"

    def loss(self) -> dict[str, Any]:
        """Return the section ``[loss]`` of the recipe."""
        if self.estimator is None:
            return {"type": "full_softmax"}
        return {
            "type": "sampled_softmax",
            "correction": self.estimator.correction,
            "accidental_hits": self.estimator.accidental_hits,
        }


def objectives(num_candidates: Sequence[int]) -> list[Objective]:
    """Return every estimator with every number of candidates, and the full softmax first."""
    sampled = [Objective(one, n) for n in num_candidates for one in ESTIMATORS]
    return [Objective(), *sampled]


def sampler_settings(num_candidates: int) -> dict[str, Any]:
    """Return the section ``[sampler]`` of the recipe."""
    # min_count 1: some items have no training interaction but must be sampled.
    return {"type": "popularity", "num_candidates": num_candidates, "min_count": 1.0}


def run_config(
    objective: Objective,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    threads: int = 1,
) -> RunConfig:
    """Return the recipe of one run; runs differ in the loss and in the sampler only."""
    table: dict[str, Any] = {
        "name": objective.folder,
        "seed": seed,
        "device": "cpu",
        "threads": threads,
        "batches": {"batch_size": 64, "max_length": MAX_LENGTH},
        "model": {
            "query_tower": {
                "type": "causal_transformer",
                "dim": 32,
                "num_blocks": 1,
                "dropout": 0.0,
            },
            "item_tower": {"type": "item_embedding", "dim": 32},
        },
        "loss": objective.loss(),
        "training": {
            "epochs": epochs,
            "lr": 5e-3,
            "warmup_steps": 50,
            "schedule": "cosine",
            # Every run ends after the last epoch: a choice of the best one would add noise.
            "validate_every": epochs,
            "patience": None,
            "trackers": ["jsonl"],
        },
        "evaluation": {
            # Synthetic users choose items again, and the true distribution has no filter.
            "filter_seen": False,
            "ks": [K],
            "metric": f"ndcg@{K}",
            "validation_users": 500,
        },
    }
    if objective.num_candidates is not None:
        table["sampler"] = sampler_settings(objective.num_candidates)
        table["training"]["num_groups"] = NUM_GROUPS
    return parse_config(table, "demo")
