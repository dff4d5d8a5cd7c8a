"""Which proposals and corrections are audited where nobody names any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from candid.component import lookup
from candid.errors import ConfigError
from candid.losses import Correction
from candid.proposals import PROPOSALS, ProposalConfig


@dataclass(frozen=True, slots=True)
class Variant:
    """How drawn candidates are compared; see ``losses.corrected_log_softmax``."""

    correction: Correction = "refined"
    jackknife: bool = False

    @property
    def label(self) -> str:
        """The name in tables."""
        return f"{self.correction} + jackknife" if self.jackknife else self.correction


REFINED = (Variant(), Variant(jackknife=True))
ALL = (Variant("none"), Variant("logq"), *REFINED)
"""The corrections of draws; beside an exact head only the refined ones are defined."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One proposal to audit, under one or more corrections.

    Attributes:
        name: the name in tables.
        config: the proposal.
        n: candidates that it is meant to give a row.
        variants: the corrections.
        batch_rows: other rows of a batch, where candidates come from it; None: n.
        is_yours: whether it is what the audited recipe trains with.
    """

    name: str
    config: ProposalConfig
    n: int
    variants: Sequence[Variant] = ALL
    batch_rows: int | None = None
    is_yours: bool = False


def proposal_config(table: Mapping[str, Any]) -> ProposalConfig:
    """Make a proposal's config from a table with its type."""
    component: Any = lookup(PROPOSALS, "proposal", table["type"])
    settings = {key: value for key, value in table.items() if key != "type"}
    config: ProposalConfig = component.Config.model_validate(settings)
    return config


def standard_plans(ns: Sequence[int], num_items: int) -> list[Plan]:
    """The standard set: every family of proposals, at each number of candidates.

    Args:
        ns: numbers of candidates, at least 2 each.
        num_items: V.

    Raises:
        ConfigError: a number below 2, or above V: a set of distinct items cannot be larger than
            the catalog.
    """
    for n in ns:
        if n < 2:
            raise ConfigError(f"--n {n}: an estimate needs at least 2 candidates")
        if n > num_items:
            raise ConfigError(
                f"--n {n}: a set of distinct items cannot be larger than the catalog of "
                f"{num_items:,}; name at most {num_items}"
            )
    return [plan for n in ns for plan in _plans(n)]


def _plans(n: int) -> list[Plan]:
    half, rest = n // 2, n - n // 2
    popularity = {"type": "popularity", "num_candidates": n}
    tail = {"type": "popularity", "num_candidates": rest}
    tables: dict[str, dict[str, Any]] = {
        "uniform": {"type": "uniform", "num_candidates": n},
        "popularity": popularity,
        "popularity, distinct": popularity | {"distinct": True},
        "in-batch": {"type": "in_batch"},
        "in-batch, distinct": {"type": "in_batch", "distinct": True},
        "popularity + uniform": {
            "type": "mixture",
            "components": [tail, {"type": "uniform", "num_candidates": half}],
        },
        "popular head + tail": {"type": "head_and_tail", "num_head": half, "tail": tail},
        "nearest head, shared": {
            "type": "nearest_head",
            "num_head": half,
            "k": half,
            "tail": tail,
        },
        "nearest head of each row": {
            "type": "nearest_head",
            "shared": False,
            "num_head": half,
            "k": half,
            "tail": tail,
        },
        "random Fourier": {"type": "random_fourier", "num_candidates": n},
        "quadratic": {"type": "quadratic", "num_candidates": n},
    }
    return [
        Plan(name, proposal_config(table), n, REFINED if "tail" in table else ALL)
        for name, table in tables.items()
        if table["type"] in PROPOSALS
    ]
