"""Bias and variance of every estimator of the softmax: the tables of docs/benchmarks/audit.md.

    python benchmarks/audit.py                      measure missing results, write the tables
    python benchmarks/audit.py --again --only "quadratic"    measure one sampler again
    python benchmarks/audit.py --tables             write the tables from the stored results

Catalogs of N items with Zipf popularity Q and 64 pairs of a user and the user's chosen item:
``init`` has independent logits N(0, 1), ``mid`` log Q + 1.5·N(0, 1), and ``late`` is ``mid`` with
the positive's logit raised until P(p) = 0.6. Logits are dot products of vectors, as in a model:
items are N(0, I) of width 32, a user is a direction of length 1 or 1.5, and further dimensions
hold log Q and the increase of each pair's positive.

Results are written after each sampler and n, so an interrupted run continues; two runs may share
the work by ``--items`` and ``--only``. The whole benchmark takes about an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import candid
from candid.atomic import write_json
from candid.audit import (
    ALL_ROWS,
    AuditCase,
    AuditInput,
    DriftSampling,
    Estimator,
    SamplingBudget,
    audit,
    sampler_config,
    standard_cases,
)

RESULTS = Path(__file__).parent / "results" / "audit.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "audit.md"
SIZES = {1_000: (16, 64, 256, 1024, 4096), 100_000: (16, 64, 256, 1024, 4096)}
KERNELS = ("random Fourier", "quadratic")
KERNELS_UP_TO = {1_000: 4096, 100_000: 256}
"""Most candidates of the kernel samplers by catalog size; more would take hours."""
ESTIMATORS = (
    Estimator("none"),
    Estimator("logq"),
    Estimator("refined"),
    Estimator("refined", jackknife=True),
)
"""Estimators of the tables; beside exact candidates refined and its jackknife."""
SHARES = (64, 256)
"""Numbers of candidates for which exact shares other than a half are measured."""
REGIMES = {
    "init": "init: a model before training, P(p) about 1/N",
    "mid": "mid: a model with popularity and some taste",
    "late": "late: a confident model, P(p) = 0.6",
}
PAIRS, WIDTH = 64, 32
REPEATS = {
    1_000: {16: 1024, 64: 2048, 256: 2048, 1024: 512, 4096: 128},
    100_000: {16: 2048, 64: 4096, 256: 4096, 1024: 512, 4096: 128},
}
"""Repeats by n: enough for the differences stated in docs/benchmarks/audit.md."""
FEWER = {
    1_000: {16: 1024, 64: 1024, 256: 1024, 1024: 256, 4096: 64},
    100_000: {16: 256, 64: 256, 256: 256, 1024: 48, 4096: 16},
}
"""Repeats of the samplers in ``NO_CLAIM``."""
KERNEL_REPEATS = {
    1_000: {16: 256, 64: 256, 256: 128, 1024: 48, 4096: 16},
    100_000: {16: 96, 64: 32, 256: 24},
}
NO_CLAIM = ("uniform", "in-batch", "in-batch, distinct", "popularity + uniform")
MEMORY = 3 << 30
CLAIMS = [
    ("exact popular", "refined", 256),
    ("exact popular", "refined", 4096),
    ("exact nearest, shared", "refined", 64),
    ("exact nearest, shared", "refined", 256),
    ("exact nearest, shared", "refined", 1024),
    ("exact nearest, shared", "refined", 4096),
    ("exact nearest, per row", "refined", 64),
    ("exact nearest, per row", "refined", 256),
    ("exact nearest, per row", "refined", 1024),
    ("exact nearest, per row", "refined", 4096),
    ("exact nearest 7/8, shared", "refined", 256),
    ("exact nearest 7/8, per row", "refined", 256),
    ("popularity", "refined + jackknife", 16),
    ("popularity", "refined + jackknife", 64),
    ("popularity", "refined + jackknife", 256),
    ("exact nearest, per row", "refined + jackknife", 256),
    ("popularity, distinct", "refined", 64),
    ("popularity, distinct", "refined", 256),
    ("popularity, distinct", "refined", 1024),
]
"""Estimators that are compared with refined popularity sampling at the same n."""
EXACT_SIZES = (32, 128, 512, 2048)
"""Numbers of exact candidates whose share of softmax and noise is measured."""


def make_input(num_items: int, regime: str, seed: int = 11) -> AuditInput:
    """Make the pairs of one regime over one catalog."""
    generator = torch.Generator().manual_seed(seed)
    q = 1.0 / torch.arange(1, num_items + 1, dtype=torch.float64)
    q /= q.sum()
    users = torch.randn(PAIRS, WIDTH, generator=generator, dtype=torch.float64)
    users /= users.norm(dim=1, keepdim=True)
    items = torch.randn(num_items, WIDTH, generator=generator, dtype=torch.float64)
    scale, by_popularity = (1.0, 0.0) if regime == "init" else (1.5, 1.0)
    lift = torch.zeros(num_items, PAIRS, dtype=torch.float64)
    query = torch.cat([scale * users, torch.full((PAIRS, 1), by_popularity), torch.eye(PAIRS)], 1)
    vectors = torch.cat([items, q.log()[:, None], lift], dim=1)
    scores = query @ vectors.T
    positives = torch.multinomial(scores.softmax(dim=1), 1, generator=generator)
    if regime == "late":
        others = scores.scatter(1, positives, -math.inf).logsumexp(dim=1)
        gap = others + math.log(0.6 / 0.4) - scores.gather(1, positives)[:, 0]
        vectors[positives[:, 0], WIDTH + 1 + torch.arange(PAIRS)] = gap
    # One training row per count, in proportion to Q: the item frequency is exact.
    counts = (q / q[-1]).round().long()
    training = torch.arange(num_items).repeat_interleave(counts)
    return AuditInput(
        name=regime,
        query=query.float(),
        item_vectors=vectors.float(),
        positive_ids=positives[:, 0],
        user_ids=torch.arange(PAIRS),
        counts=counts,
        training_positive_ids=training,
        training_user_ids=PAIRS + torch.arange(len(training)),
    )


def audit_cases(num_items: int) -> list[AuditCase]:
    """List the affordable standard cases, and exact shares of seven eighths of n."""
    cases = standard_cases(SIZES[num_items], num_items, only_fitting=True)
    return [
        # The jackknife of sets is biased; only this table measures it, to show the bias.
        replace(case, estimators=ESTIMATORS) if case.sampler.is_set else _measured(case)
        for case in cases
        if case.name not in KERNELS or case.num_candidates <= KERNELS_UP_TO[num_items]
    ] + [_measured(case) for n in SHARES for case in _large_exact_cases(n)]


def _measured(case: AuditCase) -> AuditCase:
    estimators = ESTIMATORS[2:] if case.sampler.has_exact else ESTIMATORS
    return replace(case, estimators=estimators)


def _large_exact_cases(n: int) -> list[AuditCase]:
    num_exact = n - n // 8
    table = {
        "type": "exact_nearest",
        "num_exact": num_exact,
        "k": num_exact,
        "rest": {"type": "popularity", "num_candidates": n - num_exact},
    }
    configs = {
        "exact nearest 7/8, shared": sampler_config(table),
        "exact nearest 7/8, per row": sampler_config(table | {"shared": False}),
    }
    return [
        AuditCase(name, config, num_candidates=n, estimators=ESTIMATORS)
        for name, config in configs.items()
    ]


def repeats_of(num_items: int, case: AuditCase) -> int:
    """Return the number of repeats of a case; the compared samplers have the most."""
    n = case.num_candidates
    if case.name in KERNELS:
        return KERNEL_REPEATS[num_items][n]
    return (FEWER if case.name in NO_CLAIM else REPEATS)[num_items][n]


def measure(num_items: int, inputs: Sequence[AuditInput], case: AuditCase) -> list[dict[str, Any]]:
    """Measure one sampler on one catalog, under each correction."""
    sampling = SamplingBudget(repeats=repeats_of(num_items, case), memory=MEMORY)
    # The tables have no drift: it is measured as briefly as possible.
    report = audit(inputs, [case], sampling=sampling, drift=DriftSampling(users=1, repeats=16))
    return [
        {
            "items": num_items,
            "name": entry.name,
            "correction": entry.estimator.label,
            "n": entry.num_candidates,
            "num_scores": entry.num_scores,
            "ms": round(entry.cost.ms, 3),
            "mb": round(entry.cost.mb, 3),
        }
        | {regime: entry.inputs[regime].slices[ALL_ROWS].to_json() for regime in REGIMES}
        for entry in report.entries
    ]


def stored() -> dict[str, Any]:
    """Read the stored results."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {"exact_shares": [], "results": []} | document


def store(new: list[dict[str, Any]], exact_shares: list[dict[str, Any]] | None = None) -> None:
    """Add to the stored results, replacing those of the same sampler, catalog and n."""
    new_keys = {_key(one) for one in new}
    order = {
        (num_items, case.name, case.num_candidates): position
        for num_items in SIZES
        for position, case in enumerate(audit_cases(num_items))
    }
    old = [one for one in stored()["results"] if _key(one) not in new_keys and _key(one) in order]
    results = sorted(old + new, key=lambda one: (one["items"], order[_key(one)]))
    settings = {
        "pairs": PAIRS,
        "width": WIDTH,
        "seed": 11,
        "repeats": {"claims": REPEATS, "others": FEWER, "kernels": KERNEL_REPEATS},
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    document = {
        "command": "python benchmarks/audit.py",
        "settings": settings,
        "exact_shares": stored()["exact_shares"] if exact_shares is None else exact_shares,
        "results": results,
    }
    write_json(RESULTS, document)


def _key(one: dict[str, Any]) -> tuple[int, str, int]:
    return one["items"], one["name"], one["n"]


def measure_exact_shares(num_items: int, inputs: Sequence[AuditInput]) -> list[dict[str, Any]]:
    """Measure the share of k exact candidates in the other items' softmax and its variance.

    An item adds P² / (n·Q) to the relative variance of the estimated Z'. ``nearest`` are each
    row's k items of largest P, ``best`` those of largest P² / Q, ``popular`` those of largest Q;
    all shares are means over rows.
    """
    lines = []
    for one in inputs:
        scores = one.query.double() @ one.item_vectors.double().T
        p = scores.scatter_(1, one.positive_ids[:, None], -math.inf).softmax(dim=1)
        noise = p.square() / (one.counts / one.counts.sum())
        noise /= noise.sum(dim=1, keepdim=True)
        for size in (size for size in EXACT_SIZES if size < num_items):
            nearest = p.topk(size, dim=1).indices
            shares = {
                "softmax_nearest": p.gather(1, nearest),
                "noise_nearest": noise.gather(1, nearest),
                "noise_best": noise.topk(size, dim=1).values,
                "softmax_popular": p[:, :size],
                "noise_popular": noise[:, :size],
            }
            means = {key: round(float(part.sum(dim=1).mean()), 4) for key, part in shares.items()}
            lines.append({"items": num_items, "regime": one.name, "size": size} | means)
    return lines


def tables(results: list[dict[str, Any]]) -> str:
    """Return the tables as Markdown: bias of the mean gradient, then RMSE of one repeat."""
    lines: list[str] = []
    for num_items, sizes in SIZES.items():
        of_catalog = [one for one in results if one["items"] == num_items]
        names = dict.fromkeys((one["name"], one["correction"]) for one in of_catalog)
        cells = {(one["name"], one["correction"], one["n"]): one for one in of_catalog}
        for regime, meaning in REGIMES.items():
            lines += ["", f"**N = {num_items:,}, {meaning}**", ""]
            lines.append("| sampler | correction | " + " | ".join(f"n = {n}" for n in sizes) + " |")
            lines.append("|---|---|" + "---|" * len(sizes))
            for name, correction in names:
                by_size = [cells.get((name, correction, n)) for n in sizes]
                texts = ["–" if one is None else cell(one[regime]) for one in by_size]
                lines.append(f"| {name} | {correction} | {' | '.join(texts)} |")
    return "\n".join(lines[1:]) + "\n"


def claims(results: list[dict[str, Any]]) -> str:
    """Return the quotients of bias and RMSE, refined popularity over each claimed estimator."""
    cells = {(one["items"], one["name"], one["correction"], one["n"]): one for one in results}
    columns = [(num_items, regime) for num_items in SIZES for regime in REGIMES]
    lines = [
        "| bias; RMSE: times smaller | n | "
        + " | ".join(f"{num_items:,} {regime}" for num_items, regime in columns)
        + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, correction, n in CLAIMS:
        quotients = [
            _times(
                cells.get((num_items, "popularity", "refined", n), {}).get(regime),
                cells.get((num_items, name, correction, n), {}).get(regime),
            )
            for num_items, regime in columns
        ]
        lines.append(f"| {name}, {correction} | {n} | " + " | ".join(quotients) + " |")
    return "\n".join(lines) + "\n"


def _times(base: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """Return both quotients; ">" is a lower bound, "?" means that the base's bias may be 0."""
    if base is None or other is None:
        return "–"
    rmse_quotient = f"{base['rmse'] / other['rmse']:.2f}"
    if not is_known(base):
        return f"?; {rmse_quotient}"
    if not is_known(other, 4.0):  # a quotient by a smaller bias is too uncertain
        return f"> {base['bias'] / bound(other):.1f}; {rmse_quotient}"
    ratio, error = quotient(base, other)
    return f"{ratio:.1f} ± {error:.1f}; {rmse_quotient}"


def quotient(base: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Return the quotient of two biases and its standard error, assuming independence."""
    ratio = base["bias"] / other["bias"]
    return ratio, ratio * math.hypot(*(one["bias_error"] / one["bias"] for one in (base, other)))


def is_known(one: dict[str, Any], errors: float = 2.0) -> bool:
    """Return whether a bias exceeds the given number of standard errors."""
    return bool(one["bias"] > errors * one["bias_error"])


def bound(one: dict[str, Any]) -> float:
    """Return the bias plus two standard errors."""
    return float(max(one["bias"], 0.0) + 2.0 * one["bias_error"])


def cell(one: dict[str, Any]) -> str:
    """Return bias and RMSE; an upper bound if the bias may be 0."""
    bias = f"{one['bias']:.4f}" if is_known(one) else f"< {bound(one):.4f}"
    return f"{bias} ({one['rmse']:.3f})"


def exact_shares_table(lines: list[dict[str, Any]]) -> str:
    """Return the exact shares as Markdown; ``late`` has those of ``mid``."""
    rows = [
        f"| {one['items']:,} | {one['regime']} | {one['size']} | "
        + " | ".join(
            f"{100 * one[key]:.0f} %"
            for key in ("softmax_nearest", "noise_nearest", "noise_best", "noise_popular")
        )
        + " |"
        for one in lines
        if one["regime"] != "late"
    ]
    head = (
        "| N | model | exact | softmax, nearest | noise, nearest | noise, best | noise, popular |"
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows]) + "\n"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """Return the page with its generated blocks replaced."""
    blocks = {
        "claims": claims(document["results"]),
        "exact_shares": exact_shares_table(document["exact_shares"]),
        "tables": tables(document["results"]),
    }
    for name, block in blocks.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        assert pattern.search(content), f"{DOCS} has no <!-- {name} --> block"
        content = pattern.sub(lambda _, block=block: block, content)
    return content


def main() -> None:
    """Measure and write the results and tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="SAMPLER", action="append", help="measure only these")
    parser.add_argument("--skip", metavar="SAMPLER", action="append", help="measure all others")
    parser.add_argument("--items", type=int, choices=SIZES, help="measure only this catalog")
    parser.add_argument("--again", action="store_true", help="measure stored results again")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    for num_items in () if arguments.tables else SIZES:
        if arguments.items not in (None, num_items):
            continue
        inputs = [make_input(num_items, regime) for regime in REGIMES]
        others = [one for one in stored()["exact_shares"] if one["items"] != num_items]
        exact_shares = others + measure_exact_shares(num_items, inputs)
        store([], sorted(exact_shares, key=lambda one: one["items"]))
        for case in audit_cases(num_items):
            if case.name in (arguments.skip or ()):
                continue
            if arguments.only is not None and case.name not in arguments.only:
                continue
            key = (num_items, case.name, case.num_candidates)
            if not arguments.again and any(_key(one) == key for one in stored()["results"]):
                continue
            store(measure(num_items, inputs, case))
            elapsed = f"{time.monotonic() - began:5.0f} s"
            name = f"n = {case.num_candidates}, {case.name}"
            print(f"{elapsed}  N = {num_items:,}, {name}", file=sys.stderr)
    DOCS.write_text(with_tables(DOCS.read_text(), stored()))


if __name__ == "__main__":
    main()
