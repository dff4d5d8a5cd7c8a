"""The claims of the study, each with its prediction, the cells it needs, and its test.

The predictions and tests were written down before the cells were run; what changed since then is
stated with the claim. A verdict follows from the records alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from candid.study.claim_tests import (
    CORRELATION,
    COST_SHARE,
    DRIFT_SHARE,
    HUGE_CATALOG,
    KEPT,
    KEPT_OR_DISTINCT,
    LARGE_CATALOG,
    MARGINS,
    MASKED,
    MIN_DATASETS,
    MIN_PAIRS,
    MIN_SEEDS,
    PUBLISHED,
    REFINED,
    UNCORRECTED,
    correction_doubles_ndcg,
    difference_follows_drift,
    drift_ranks_the_excess,
    gain_is_over_the_published_baseline,
    kept_is_never_behind,
    sampled_is_level,
)
from candid.study.drift_cells import FULL
from candid.study.study_cells import StudyCells
from candid.study.verdicts import Judgement


@dataclass(frozen=True)
class Claim:
    """A claim with its test.

    Attributes:
        name: such as "C1".
        prediction: the claim.
        needs: the cells that the test reads.
        test: how the verdict follows from the records.
        judge: the test.
        change: what changed in the test after the first run of the study, and why; "": nothing.
        earlier_test: ``test`` before that; "" where its words are the same.
    """

    name: str
    prediction: str
    needs: str
    test: str
    judge: Callable[[StudyCells], Judgement]
    change: str = ""
    earlier_test: str = ""


def judge_claims(study: StudyCells) -> list[dict[str, Any]]:
    """Return the claims with their verdicts as plain JSON values."""
    return [
        {
            "name": claim.name,
            "prediction": claim.prediction,
            "needs": claim.needs,
            "test": claim.test,
            "change": claim.change,
            **claim.judge(study).to_json(),
        }
        for claim in CLAIMS
    ]


_RANKS: Final = (
    "The 95 % interval of the rank correlation of the drift over all cells (bootstrap over datasets"
    "{together}) is above "
    f"{CORRELATION}, that of the gradient bias below. Against: the first is below, or the second "
    "above. "
)
_SIZE_CHANGE: Final = (
    "The items of a catalog are those that training compares and the evaluation ranks. In the "
    "first run, items that training never has as a target were counted too: 54,542 instead of "
    "46,300 on Amazon Beauty, which is below the least size of the claim."
)

CLAIMS: Final = (
    Claim(
        "C1",
        "Correcting at all doubles NDCG@10.",
        f"The arms {UNCORRECTED} and {KEPT} with a sampler that is not uniform (uniform samples "
        f"need no correction for popularity); {MIN_SEEDS} seeds.",
        f"At each grid point, NDCG@10 of {KEPT} minus twice that of {UNCORRECTED} is above 0.",
        correction_doubles_ndcg,
    ),
    Claim(
        "C2",
        "Sign and size of the difference in NLL between refined and logq follow the drift.",
        f"The arms {REFINED} and {KEPT}, or {MASKED}, with their drifts at the trained models; "
        f"{MIN_SEEDS} seeds.",
        "At each grid point, the measured difference is equivalent to the difference of the "
        f"drifts within {DRIFT_SHARE:.0%} of the latter, at least within {MARGINS['nll']} nats.",
        difference_follows_drift,
    ),
    Claim(
        "C3",
        "logq with kept hits, or on distinct items, is nowhere behind another correction.",
        f"The arm {KEPT} or {KEPT_OR_DISTINCT[1]}, and other arms of the same sampler and n, each "
        f"with {MIN_SEEDS} seeds.",
        "At each grid point, one of the two is not inferior to any other arm: not behind by more "
        f"than {MARGINS['ndcg']} in NDCG@10 and {MARGINS['nll']} nats in NLL. Against: both are "
        "behind by more than a margin.",
        kept_is_never_behind,
    ),
    Claim(
        "C4",
        "The gain of the paper is a gain over its own baseline.",
        f"The arms {REFINED}, {PUBLISHED} and {KEPT}; {MIN_SEEDS} seeds.",
        f"At each grid point, NDCG@10 of {REFINED} is above that of {PUBLISHED}, and not above "
        f"that of {KEPT} by more than {MARGINS['ndcg']}.",
        gain_is_over_the_published_baseline,
    ),
    Claim(
        "C5",
        "Drift predicts the excess NLL over the full softmax; the gradient bias given the positive "
        "does not.",
        f"Arms with a drift and the arm {FULL}; at least {MIN_PAIRS} cells of {MIN_DATASETS} "
        f"datasets, each the mean of at least {MIN_SEEDS} common seeds.",
        _RANKS.format(together=", those of one source together")
        + "Values are used as they were measured, also those below twice their error; the "
        "correlation with 0 in their place is stated beside it.",
        drift_ranks_the_excess,
        "In the first run, a value below twice its error counted as 0. This made 48 of 72 drifts "
        "0, some of them large: the drifts of large catalogs were measured with 8 users, and the "
        "rule ranked the precision of the measurement. Also, the bootstrap drew two datasets of "
        "one source as if they were independent.",
        _RANKS.format(together="") + "A value below twice its error counts as 0.",
    ),
    Claim(
        "C6",
        "A sampled recipe is level with the tuned full softmax at n of at most 1 % of a catalog of "
        "at least 50,000 items, for less than half of its CPU time.",
        f"The arms {KEPT} and {FULL} on catalogs of {LARGE_CATALOG:,} to {HUGE_CATALOG:,} items; "
        f"each sampler at its largest n of at most 1 % of the items; {MIN_SEEDS} seeds.",
        f"For each dataset, split and tower, {KEPT} with one of the samplers is not behind by more "
        f"than {MARGINS['ndcg']} in NDCG@10 and {MARGINS['nll']} nats in NLL, with less than "
        f"{COST_SHARE} of the CPU seconds.",
        lambda study: sampled_is_level(study, LARGE_CATALOG, HUGE_CATALOG),
        _SIZE_CHANGE,
    ),
    Claim(
        "C7",
        "The same at 1,000,000 synthetic items.",
        f"As C6, on catalogs of at least {HUGE_CATALOG:,} items.",
        "As C6.",
        lambda study: sampled_is_level(study, HUGE_CATALOG, math.inf),
    ),
)
"""The claims in order."""
