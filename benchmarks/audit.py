"""Drift, bias and RMSE of every estimator of the softmax: the tables of docs/benchmarks/audit.md.

    python benchmarks/audit.py                      measure missing results, write the tables
    python benchmarks/audit.py --again --only "quadratic"    measure one sampler again
    python benchmarks/audit.py --tables             write the tables from the stored results

Catalogs of N items with Zipf popularity Q and pairs of a user and the user's chosen item: ``init``
has independent logits N(0, 1), ``mid`` log Q + 1.5·N(0, 1), and ``late`` is ``mid`` with the
positive's logit raised until P(p) = 0.6. Logits are dot products of vectors, as in a model: items
are N(0, I) of width 32, a user is a direction of length 1 or 1.5, and further dimensions hold log Q
and the increase of each pair's positive. A seed makes the items, the users and the samples.

Results are written after each sampler, n and seed, so an interrupted run continues. ``--items`` and
``--only`` measure a part.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import candid
from candid.atomic import write_json
from candid.audit import (
    AuditCase,
    AuditInput,
    DriftSampling,
    Estimator,
    InputMeasurement,
    SamplingBudget,
    audit,
    estimators_for,
    expected_excess,
    standard_cases,
)
from page_blocks import with_block

RESULTS = Path(__file__).parent / "results" / "audit.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "audit.md"
SIZES = {1_000: (16, 64, 256), 100_000: (16, 64, 256)}
JACKKNIFE = Estimator("refined", jackknife=True)
ESTIMATORS = (
    Estimator("none"),
    Estimator("logq", accidental_hits="keep"),
    Estimator("logq", accidental_hits="mask"),
    Estimator("refined"),
    Estimator("published_code"),
    JACKKNIFE,
    Estimator(cap=3.0),
)
"""Estimators that are measured where they are defined for the sampler."""
KERNELS = ("random Fourier", "quadratic")
SMALL_ONLY = (*KERNELS, "uniform", "in-batch", "in-batch, distinct")
"""Samplers that are measured in the small catalog alone. Kernel samplers sample for each row, which
takes hours in a large one. In-batch candidates of independent rows are popularity samples."""
REGIMES = {
    "init": "init: a model before training, P(p) about 1/N",
    "mid": "mid: a model with popularity and some taste",
    "late": "late: a confident model, P(p) = 0.6",
}
PAIRS, WIDTH = {1_000: 64, 100_000: 32}, 32
USERS = {1_000: 32, 100_000: 16}
"""Users of the drift, the first of the pairs."""
REPEATS = {1_000: {16: 512, 64: 512, 256: 256}, 100_000: {16: 512, 64: 256, 256: 128}}
"""Repeats of the gradient by n."""
DRIFT_REPEATS = {1_000: {16: 4096, 64: 2048, 256: 512}, 100_000: {16: 4096, 64: 2048, 256: 512}}
"""Repeats of the drift by n."""
KERNEL_REPEATS = {16: 64, 64: 48, 256: 32}
SEEDS = (11, 12, 13)
RANKED = ("logq", "refined", "refined + jackknife")
"""Corrections of the ranking: those to train with, ``logq`` with its default rule of hits."""
NOISE = 0.1
"""Excess NLL of the full softmax in the ranking, as in ``candid audit``."""
BEST = 3
"""Number of estimators in the table of the best ones."""
MEMORY = 1 << 30
LARGEST_DRIFT = 1.0
"""Above it the second-order prediction is not valid, and the tables show only the bound."""


def make_input(num_items: int, regime: str, seed: int = SEEDS[0]) -> AuditInput:
    """Make the pairs of one regime over one catalog."""
    generator = torch.Generator().manual_seed(seed)
    pairs = PAIRS[num_items]
    q = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    q /= q.sum()
    users = torch.randn(pairs, WIDTH, generator=generator, dtype=torch.float64)
    users /= users.norm(dim=1, keepdim=True)
    items = torch.randn(num_items, WIDTH, generator=generator, dtype=torch.float64)
    scale, by_popularity = (1.0, 0.0) if regime == "init" else (1.5, 1.0)
    lift = torch.zeros(num_items, pairs, dtype=torch.float64)
    query = torch.cat([scale * users, torch.full((pairs, 1), by_popularity), torch.eye(pairs)], 1)
    vectors = torch.cat([items, q.log()[:, None], lift], dim=1)
    scores = query @ vectors.T
    positives = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)
    if regime == "late":
        others = scores.scatter(1, positives, -math.inf).logsumexp(dim=1)
        gap = others + math.log(0.6 / 0.4) - scores.gather(1, positives)[:, 0]
        vectors[positives[:, 0], WIDTH + 1 + torch.arange(pairs)] = gap
    # One training row per count, in proportion to Q: the item frequency is exact.
    counts = (q / q[-1]).round().long()
    training = torch.arange(num_items).repeat_interleave(counts)
    return AuditInput(
        name=regime,
        query=query.float(),
        item_vectors=vectors.float(),
        positive_ids=positives[:, 0],
        user_ids=torch.arange(pairs),
        counts=counts,
        training_positive_ids=training,
        training_user_ids=pairs + torch.arange(len(training)),
    )


def audit_cases(num_items: int) -> list[AuditCase]:
    """List the standard cases that are measured in a catalog."""
    return [
        replace(case, estimators=_estimators(case))
        for case in standard_cases(SIZES[num_items], num_items, only_fitting=True)
        if case.name not in SMALL_ONLY or num_items == min(SIZES)
    ]


def _estimators(case: AuditCase) -> list[Estimator]:
    defined = estimators_for(case.sampler)
    # The jackknife of sets is biased; this table alone measures it, to show the bias.
    added = (JACKKNIFE,) if case.name == "popularity, distinct" else ()
    return [one for one in ESTIMATORS if one in (*defined, *added)]


def units(num_items: int) -> Iterator[tuple[AuditCase, int]]:
    """Yield what is measured and stored together: a case and a seed; first all with one seed."""
    for seed in SEEDS:
        for case in audit_cases(num_items):
            yield case, seed


def measure(
    num_items: int, inputs: Sequence[AuditInput], case: AuditCase, seed: int
) -> list[dict[str, Any]]:
    """Measure one sampler on one catalog, under each correction."""
    n, is_kernel = case.num_candidates, case.name in KERNELS
    repeats = KERNEL_REPEATS[n] if is_kernel else REPEATS[num_items][n]
    drift_repeats = KERNEL_REPEATS[n] if is_kernel else DRIFT_REPEATS[num_items][n]
    began = time.process_time()
    report = audit(
        inputs,
        [case],
        sampling=SamplingBudget(repeats=repeats, memory=MEMORY),
        drift=DriftSampling(users=USERS[num_items], repeats=drift_repeats),
        cost_rows=64,
        seed=seed,
    )
    cpu_seconds = round(time.process_time() - began, 1)
    return [
        {
            "items": num_items,
            "name": entry.name,
            "correction": entry.estimator.label,
            "n": entry.num_candidates,
            "seed": seed,
            "num_scores": entry.num_scores,
            "cpu_seconds_of_sampler": cpu_seconds,
        }
        | {regime: _numbers(entry.inputs[regime]) for regime in REGIMES}
        for entry in report.entries
    ]


def _numbers(one: InputMeasurement) -> dict[str, Any]:
    numbers = {
        "drift": one.drift.mean,
        "drift_error": one.drift.error,
        "drift_error_of_samples": one.drift.block_error,
        "expected_excess": expected_excess(one, NOISE),
        "chi2": one.chi2,
        "kl": one.kl,
    }
    rounded = {
        key: None if value is None else float(f"{value:.5g}") for key, value in numbers.items()
    }
    statistics = one.statistics.to_json()
    kept = ("bias", "bias_error", "rmse", "loss_bias", "loss_bias_error", "effective_sample_size")
    return rounded | {key: statistics[key] for key in kept}


def stored() -> dict[str, Any]:
    """Read the stored results."""
    document: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {"results": []} | document


def store(new: list[dict[str, Any]]) -> None:
    """Add to the stored results, replacing those of the same sampler, catalog, n and seed."""
    new_keys = {_key(one) for one in new}
    order = {
        (num_items, case.name, case.num_candidates, seed): position
        for num_items in SIZES
        for position, case in enumerate(audit_cases(num_items))
        for seed in SEEDS
    }
    old = [one for one in stored()["results"] if _key(one) not in new_keys and _key(one) in order]
    results = sorted(old + new, key=lambda one: (one["items"], order[_key(one)], one["seed"]))
    settings = {
        "pairs": PAIRS,
        "drift_users": USERS,
        "width": WIDTH,
        "seeds": SEEDS,
        "repeats": REPEATS,
        "drift_repeats": DRIFT_REPEATS,
        "kernel_repeats": KERNEL_REPEATS,
        "noise": NOISE,
        "threads": torch.get_num_threads(),
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    document = {
        "command": "python benchmarks/audit.py",
        "settings": settings,
        "results": results,
    }
    write_json(RESULTS, document)


def _key(one: dict[str, Any]) -> tuple[int, str, int, int]:
    return one["items"], one["name"], one["n"], one.get("seed", -1)


Cells = dict[tuple[int, str, str, int], list[dict[str, Any]]]
"""The results of all seeds by number of items, sampler, correction and n."""


def by_estimator(results: Sequence[dict[str, Any]]) -> Cells:
    """Group results by estimator: one entry for each seed."""
    cells: Cells = {}
    for one in results:
        key = (one["items"], one["name"], one["correction"], one["n"])
        cells.setdefault(key, []).append(one)
    return cells


def drift_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the drift of popularity samples: mean and standard deviation over the seeds."""
    columns = [(num_items, regime) for num_items in SIZES for regime in REGIMES]
    heads = [f"{num_items:,} {regime}" for num_items, regime in columns]
    lines = [f"| correction | n | {' | '.join(heads)} |", "|---|---|" + "---|" * len(columns)]
    cells = by_estimator(results)
    sizes = SIZES[min(SIZES)]
    first = [one for one in results if one["name"] == "popularity"]
    chi2 = [_chi2(first, num_items, regime) for num_items, regime in columns]
    lines.append(f"| chi2 of popularity samples |  | {' | '.join(chi2)} |")
    for correction in dict.fromkeys(one["correction"] for one in first):
        for n in sizes:
            texts = [
                spread([one[regime]["drift"] for one in cells[items, "popularity", correction, n]])
                for items, regime in columns
            ]
            lines.append(f"| {correction} | {n} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _chi2(results: Sequence[dict[str, Any]], num_items: int, regime: str) -> str:
    by_seed = {one["seed"]: one[regime]["chi2"] for one in results if one["items"] == num_items}
    return f"{fmean(by_seed.values()):.3g}"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation of the seeds; only a bound of a large drift."""
    mean = fmean(values)
    if mean > LARGEST_DRIFT:
        return f"> {LARGEST_DRIFT:g}"
    text = number(mean, 3)
    return text if len(values) < 2 else f"{text} ± {stdev(values):.3f}"


def number(value: float, digits: int) -> str:
    """Return the rounded value, without the sign of a rounded 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def best_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the samplers with the least expected excess for each catalog, model and n."""
    lines = ["| N | model | n | best | second | third |", "|---|---|---|---|---|---|"]
    for num_items, sizes in SIZES.items():
        for regime in REGIMES:
            for n in sizes:
                names = [
                    f"{name}, {correction}: {excess:.3f}"
                    for excess, name, correction in ranking(results, num_items, regime, n)[:BEST]
                ]
                lines.append(f"| {num_items:,} | {regime} | {n} | {' | '.join(names)} |")
    return "\n".join(lines) + "\n"


def ranking(
    results: Sequence[dict[str, Any]], num_items: int, regime: str, n: int
) -> list[tuple[float, str, str]]:
    """Return expected excess, sampler and its best correction of ``RANKED``, best first.

    The expected excess is the mean over the seeds. In-batch candidates are left out: here they are
    popularity samples.
    """
    best: dict[str, tuple[float, str, str]] = {}
    for (items, name, correction, size), seeds in by_estimator(results).items():
        is_here = (items, size) == (num_items, n) and not name.startswith("in-batch")
        if is_here and correction in RANKED:
            excess = fmean(one[regime]["expected_excess"] for one in seeds)
            best[name] = min(best.get(name, (excess, name, correction)), (excess, name, correction))
    return sorted(best.values())


def tables(results: Sequence[dict[str, Any]]) -> str:
    """Return the tables as Markdown: drift, then gradient bias and RMSE of one repeat."""
    lines: list[str] = []
    cells = by_estimator(results)
    for num_items, sizes in SIZES.items():
        names = dict.fromkeys(key[1:3] for key in cells if key[0] == num_items)
        for regime, meaning in REGIMES.items():
            lines += ["", f"**N = {num_items:,}, {meaning}**", ""]
            lines.append("| sampler | correction | " + " | ".join(f"n = {n}" for n in sizes) + " |")
            lines.append("|---|---|" + "---|" * len(sizes))
            for name, correction in names:
                by_size = [cells.get((num_items, name, correction, n)) for n in sizes]
                texts = ["–" if of is None else cell([one[regime] for one in of]) for of in by_size]
                lines.append(f"| {name} | {correction} | {' | '.join(texts)} |")
    return "\n".join(lines[1:]) + "\n"


def cell(seeds: Sequence[dict[str, Any]]) -> str:
    """Return drift with its standard error, bias and RMSE: means over the seeds."""
    drift = fmean(one["drift"] for one in seeds)
    error = math.hypot(*(one["drift_error"] for one in seeds)) / len(seeds)
    bias, rmse = (fmean(one[key] for one in seeds) for key in ("bias", "rmse"))
    digits = 4 if error < 0.00095 else 3
    text = f"{number(drift, digits)} ± {error:.{digits}f}"
    if drift > LARGEST_DRIFT:
        text = f"> {LARGEST_DRIFT:g}"
    return f"{text}; {number(bias, 2)}; {rmse:.2f}"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """Return the page with its generated blocks replaced."""
    blocks = {
        "drift": drift_table(document["results"]),
        "best": best_table(document["results"]),
        "tables": tables(document["results"]),
    }
    for name, block in blocks.items():
        content = with_block(content, name, block)
    return content


def main() -> None:
    """Measure and write the results and tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="SAMPLER", action="append", help="measure only these")
    parser.add_argument("--items", type=int, choices=SIZES, help="measure only this catalog")
    parser.add_argument("--again", action="store_true", help="measure stored results again")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for num_items in () if arguments.tables else SIZES:
        if arguments.items not in (None, num_items):
            continue
        measure_catalog(num_items, arguments.only, again=arguments.again)
    DOCS.write_text(with_tables(DOCS.read_text(), stored()))


def measure_catalog(num_items: int, only: Sequence[str] | None, *, again: bool) -> None:
    """Measure what is missing for one catalog, and store it after each sampler, n and seed."""
    inputs: dict[int, list[AuditInput]] = {}
    for case, seed in units(num_items):
        if only is not None and case.name not in only:
            continue
        key = (num_items, case.name, case.num_candidates, seed)
        if not again and any(_key(one) == key for one in stored()["results"]):
            continue
        if seed not in inputs:
            inputs = {seed: [make_input(num_items, regime, seed) for regime in REGIMES]}
        began = time.process_time()
        store(measure(num_items, inputs[seed], case, seed))
        print(
            f"{time.process_time() - began:5.0f} CPU s  N = {num_items:,}, "
            f"n = {case.num_candidates}, {case.name}, seed {seed}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
