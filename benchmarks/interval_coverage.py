"""Coverage of 95 % intervals over users: the share of samples whose interval holds the true value.

    python benchmarks/interval_coverage.py --out benchmarks/results/interval_coverage.json

Samples of users come from distributions whose mean is known: recall@10 and NDCG@10 with few and
with many hits, several targets per user, popularity of recommended items (log-normal), the NLL
with different numbers of targets, and paired differences of two models that share most hits. The
intervals of ``candid.evaluation`` are compared with the percentile bootstrap, with BCa (Efron
1987) and with Student's t, all on the same samples. Each coverage is reported with its standard
error, and with the share of samples whose interval is too low and too high.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from candid import __version__
from candid.evaluation.intervals import difference_interval, ratio_intervals

CONFIDENCE = 0.95
RESAMPLES = 1000
GAIN = 1 / np.log2(np.arange(10) + 2)
RANK = np.arange(1, 11) ** -0.5 / (np.arange(1, 11) ** -0.5).sum()
"""Probability of each rank of a hit."""

Floats = np.ndarray
Interval = tuple[float, float]
Sample = Callable[[np.random.Generator, int], tuple[Floats, Floats]]
"""Returns the numerators and denominators of n users."""


def shares(probability: float, gain: Floats) -> tuple[Sample, float]:
    """Return users with one target: recall with gains of 1, else NDCG."""

    def sample(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        hits = rng.random(n) < probability
        return hits * gain[rng.choice(10, n, p=RANK)], np.ones(n)

    return sample, float(probability * RANK @ gain)


def several_targets(probability: float) -> tuple[Sample, float]:
    """Return recall of users with 1 to 19 targets and different chances."""

    def sample(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        targets = rng.integers(1, 20, n)
        chance = rng.beta(0.5, 0.5 / probability - 0.5, n)
        return rng.binomial(targets, chance) / targets, np.ones(n)

    return sample, probability


def log_normal(sigma: float) -> tuple[Sample, float]:
    """Return skewed values, such as the mean popularity of a list."""

    def sample(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        return np.exp(rng.normal(0, sigma, n)), np.ones(n)

    return sample, float(np.exp(sigma**2 / 2))


def likelihood() -> tuple[Sample, float]:
    """Return sums over 2 or more targets, and their number; users differ in their mean of 8."""

    def sample(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        targets = 1 + rng.geometric(0.3, n)
        return rng.gamma(4, 2, n) * rng.gamma(4 * targets, 0.25), targets.astype(float)

    return sample, 8.0


def paired(first: float, second: float, gain: Floats) -> tuple[Sample, float]:
    """Return differences of two models; 70 % of the users are alike to both, ranks are not."""

    def sample(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
        chance = rng.random(n)
        other = np.where(rng.random(n) < 0.7, chance, rng.random(n))
        ranks = rng.choice(10, (2, n), p=RANK)
        return (chance < first) * gain[ranks[0]] - (other < second) * gain[ranks[1]], np.ones(n)

    return sample, float((first - second) * (RANK @ gain))


ONES = np.ones(10)
SHARES = {
    **{f"recall@10, P = {p}": shares(p, ONES) for p in (0.02, 0.05, 0.1, 0.3, 0.9)},
    **{f"ndcg@10, P = {p}": shares(p, GAIN) for p in (0.02, 0.05, 0.1, 0.3)},
    **{f"recall@10, 1 to 19 targets, {p}": several_targets(p) for p in (0.05, 0.2)},
}
OTHERS = {
    "nll": likelihood(),
    **{f"popularity@10, log-normal, sigma {s}": log_normal(s) for s in (0.5, 1.0)},
}
PAIRS = {
    **{
        f"recall@10, {a} minus {b}": paired(a, b, ONES)
        for a, b in ((0.02, 0.05), (0.05, 0.05), (0.05, 0.1), (0.2, 0.25))
    },
    **{f"ndcg@10, {a} minus {b}": paired(a, b, GAIN) for a, b in ((0.02, 0.05), (0.05, 0.1))},
}


def candid_interval(kind: str, top: Floats, bottom: Floats) -> Interval:
    """Return the interval of ``candid.evaluation``."""
    if kind == "pairs":
        return difference_interval(top, bottom, is_share=True, confidence=CONFIDENCE)
    low, high = ratio_intervals(
        top[:, None],
        bottom[:, None],
        np.zeros(len(top), dtype=np.int64),
        num_groups=1,
        is_share=np.array([kind == "shares"]),
        confidence=CONFIDENCE,
    )
    return low[0, 0], high[0, 0]


def residuals(top: Floats, bottom: Floats) -> tuple[float, Floats]:
    """Return the ratio and the influence of each user on it."""
    ratio = top.sum() / bottom.sum()
    return ratio, (top - ratio * bottom) * len(top) / bottom.sum()


def student(top: Floats, bottom: Floats) -> Interval:
    """Return the t interval of a ratio."""
    ratio, influence = residuals(top, bottom)
    n = len(top)
    half = stdtrit(n - 1, (1 + CONFIDENCE) / 2) * np.sqrt((influence**2).sum() / (n - 1) / n)
    return ratio - half, ratio + half


def percentile(ratios: Floats) -> Interval:
    """Return the percentile interval of resampled ratios."""
    return tuple(np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))


def bias_corrected(ratios: Floats, top: Floats, bottom: Floats) -> Interval:
    """Return the BCa interval; its acceleration is the skewness of the influence."""
    ratio, influence = residuals(top, bottom)
    below = ((ratios < ratio - 1e-12).mean() + (ratios <= ratio + 1e-12).mean()) / 2
    bias = ndtri(np.clip(below, 1 / (RESAMPLES + 1), RESAMPLES / (RESAMPLES + 1)))
    squares = (influence**2).sum()
    acceleration = (influence**3).sum() / 6 / squares**1.5 if squares > 0 else 0.0
    z = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return tuple(np.quantile(ratios, ndtr(bias + z / (1 - acceleration * z))))


def measure(kind: str, sample: Sample, true: float, n: int, samples: int, seed: int) -> dict:
    """Return the coverage of each interval."""
    rng = np.random.default_rng(seed)
    ends: dict[str, list[Interval]] = {}
    weights = rng.poisson(1, (RESAMPLES, n)).astype(float)
    for number in range(samples):
        if number % 50 == 0:
            weights = rng.poisson(1, (RESAMPLES, n)).astype(float)
        top, bottom = sample(rng, n)
        ratios = (weights @ top) / (weights @ bottom)
        for name, interval in (
            ("candid", candid_interval(kind, top, bottom)),
            ("percentile bootstrap", percentile(ratios)),
            ("BCa bootstrap", bias_corrected(ratios, top, bottom)),
            ("student", student(top, bottom)),
        ):
            ends.setdefault(name, []).append(interval)
    result = {}
    for name, pairs in ends.items():
        low, high = np.array(pairs).T
        # Sums in another order differ in the last bits.
        too_high, too_low = (low > true + 1e-12).mean(), (high < true - 1e-12).mean()
        coverage = 1 - too_high - too_low
        result[name] = {
            "coverage": round(float(coverage), 4),
            "standard_error": round(float(np.sqrt(coverage * (1 - coverage) / samples)), 4),
            "too_low": round(float(too_low), 4),
            "too_high": round(float(too_high), 4),
            "mean_width": round(float((high - low).mean()), 5),
        }
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for n in options.users:
        for kind, cases in (("shares", SHARES), ("others", OTHERS), ("pairs", PAIRS)):
            for case, (sample, true) in cases.items():
                measured = measure(kind, sample, true, n, options.samples, options.seed)
                results.append({"users": n, "kind": kind, "case": case, "intervals": measured})
                figures = (f"{name} {one['coverage']:.3f}" for name, one in measured.items())
                print(n, kind, case, *figures, sep="\t", flush=True)
    if options.out:
        content = {
            "command": "python benchmarks/interval_coverage.py " + " ".join(sys.argv[1:]),
            "candid": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "samples": options.samples,
            "seed": options.seed,
            "results": results,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
