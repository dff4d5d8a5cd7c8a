"""Bias and spread of every estimator of the softmax: the tables of docs/benchmarks/audit.md.

    python benchmarks/audit.py                      measure what is missing, write the tables
    python benchmarks/audit.py --again --only "quadratic"    measure one sampler again
    python benchmarks/audit.py --tables             write the tables again from the results

Catalogs of N items with Zipf popularity Q and 64 pairs of a user and the item that user chose:
``init`` has logits N(0, 1) that know nothing, ``mid`` log Q + 1.5·N(0, 1), ``late`` is mid with
the positive raised until P(p) = 0.6. Logits are dot products of vectors, as those of a model:
items are N(0, I) of width 32, a user is a direction of length 1 or 1.5, and further dimensions
carry log Q and what raises each pair's positive.

Results are written after each sampler and n, so a run that was cut goes on where it was; two
runs may share the work by ``--items`` and ``--only``. About an hour on one core in all.
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
    ALL,
    REFINED,
    WHOLE,
    Effort,
    Plan,
    Subject,
    audit,
    sampler_config,
    standard_plans,
)

RESULTS = Path(__file__).parent / "results" / "audit.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "audit.md"
SIZES = {1_000: (16, 64, 256, 1024, 4096), 100_000: (16, 64, 256, 1024, 4096)}
KERNELS = ("random Fourier", "quadratic")
KERNELS_UP_TO = {1_000: 4096, 100_000: 256}
"""Candidates; more would take hours, each row having draws of its own."""
SHARES = (64, 256)
"""Numbers of candidates for which heads of another share than half are tried."""
REGIMES = {
    "init": "init: a model that knows nothing, P(p) about 1/N",
    "mid": "mid: popularity learnt and some taste",
    "late": "late: a confident model, P(p) = 0.6",
}
PAIRS, WIDTH = 64, 32
DRAWS = {
    1_000: {16: 1024, 64: 2048, 256: 2048, 1024: 512, 4096: 128},
    100_000: {16: 2048, 64: 4096, 256: 4096, 1024: 512, 4096: 128},
}
"""By n: enough for the differences that docs/benchmarks/audit.md claims."""
FEWER = {
    1_000: {16: 1024, 64: 1024, 256: 1024, 1024: 256, 4096: 64},
    100_000: {16: 256, 64: 256, 256: 256, 1024: 48, 4096: 16},
}
"""Of samplers that no claim speaks of."""
KERNEL_DRAWS = {
    1_000: {16: 256, 64: 256, 256: 128, 1024: 48, 4096: 16},
    100_000: {16: 96, 64: 32, 256: 24},
}
NO_CLAIM = ("uniform", "in-batch", "in-batch, distinct", "popularity + uniform")
MEMORY = 3 << 30
CLAIMS = [
    ("popular head + tail", "refined", 256),
    ("popular head + tail", "refined", 4096),
    ("nearest head, shared", "refined", 64),
    ("nearest head, shared", "refined", 256),
    ("nearest head, shared", "refined", 1024),
    ("nearest head, shared", "refined", 4096),
    ("nearest head of each row", "refined", 64),
    ("nearest head of each row", "refined", 256),
    ("nearest head of each row", "refined", 1024),
    ("nearest head of each row", "refined", 4096),
    ("nearest head of 7/8, shared", "refined", 256),
    ("nearest head of 7/8 of each row", "refined", 256),
    ("popularity", "refined + jackknife", 16),
    ("popularity", "refined + jackknife", 64),
    ("popularity", "refined + jackknife", 256),
    ("nearest head of each row", "refined + jackknife", 256),
    ("popularity, distinct", "refined", 64),
    ("popularity, distinct", "refined", 256),
    ("popularity, distinct", "refined", 1024),
]
"""What is held against popularity draws corrected by ``refined`` at the same n."""
HEADS = (32, 128, 512, 2048)


def subject(num_items: int, regime: str, seed: int = 11) -> Subject:
    """The pairs of one regime over one catalog."""
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
    # Counts in proportion to Q, and a training row for each: the frequency is exact.
    counts = (q / q[-1]).round().long()
    training = torch.arange(num_items).repeat_interleave(counts)
    return Subject(
        name=regime,
        query=query.float(),
        item_vectors=vectors.float(),
        positive_ids=positives[:, 0],
        user_ids=torch.arange(PAIRS),
        counts=counts,
        training_positive_ids=training,
        training_user_ids=PAIRS + torch.arange(len(training)),
    )


def plans_of(num_items: int) -> list[Plan]:
    """The standard set where it can be afforded, and heads of seven eighths of n."""
    plans = standard_plans(SIZES[num_items], num_items, only_fitting=True)
    return [
        # With the jackknife of sets, which nothing but this table offers: it shows why.
        replace(plan, variants=ALL) if plan.config.is_set else plan
        for plan in plans
        if plan.name not in KERNELS or plan.n <= KERNELS_UP_TO[num_items]
    ] + [plan for n in SHARES for plan in _large_heads(n)]


def _large_heads(n: int) -> list[Plan]:
    head = n - n // 8
    table = {
        "type": "exact_nearest",
        "num_exact": head,
        "k": head,
        "rest": {"type": "popularity", "num_candidates": n - head},
    }
    return [
        Plan("nearest head of 7/8, shared", sampler_config(table), n, REFINED),
        Plan(
            "nearest head of 7/8 of each row",
            sampler_config(table | {"shared": False}),
            n,
            REFINED,
        ),
    ]


def draws_of(num_items: int, plan: Plan) -> int:
    """Draws of a plan: those that claims are made of get the most."""
    if plan.name in KERNELS:
        return KERNEL_DRAWS[num_items][plan.n]
    return (FEWER if plan.name in NO_CLAIM else DRAWS)[num_items][plan.n]


def measured(num_items: int, subjects: Sequence[Subject], plan: Plan) -> list[dict[str, Any]]:
    """One sampler on one catalog, under each correction."""
    effort = Effort(draws=draws_of(num_items, plan), memory=MEMORY)
    report = audit(subjects, [plan], effort=effort)
    return [
        {
            "items": num_items,
            "name": entry.name,
            "correction": entry.variant.label,
            "n": entry.n,
            "scores": entry.scores,
            "ms": round(entry.cost.ms, 3),
            "mb": round(entry.cost.mb, 3),
        }
        | {regime: entry.findings[regime][WHOLE].to_json() for regime in REGIMES}
        for entry in report.entries
    ]


def stored() -> dict[str, Any]:
    """What was measured so far."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {"heads": [], "results": []} | document


def store(new: list[dict[str, Any]], of_heads: list[dict[str, Any]] | None = None) -> None:
    """Add to the results, in place of what they have of the same sampler, catalog and n."""
    redone = {_key(one) for one in new}
    order = {
        (num_items, plan.name, plan.n): place
        for num_items in SIZES
        for place, plan in enumerate(plans_of(num_items))
    }
    kept = [one for one in stored()["results"] if _key(one) not in redone and _key(one) in order]
    results = sorted(kept + new, key=lambda one: (one["items"], order[_key(one)]))
    settings = {
        "pairs": PAIRS,
        "width": WIDTH,
        "seed": 11,
        "max_draws": {"claims": DRAWS, "others": FEWER, "kernels": KERNEL_DRAWS},
        "candid": candid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    document = {
        "command": "python benchmarks/audit.py",
        "settings": settings,
        "heads": stored()["heads"] if of_heads is None else of_heads,
        "results": results,
    }
    write_json(RESULTS, document)


def _key(one: dict[str, Any]) -> tuple[int, str, int]:
    return one["items"], one["name"], one["n"]


def heads(num_items: int, subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """How much of the other items' softmax, and of its noise under Q, a head of k items holds.

    An item adds P² / (n·Q) to the relative variance of the estimated Z'. ``nearest`` are each
    row's own k items of largest P, ``best`` those of largest P² / Q, ``popular`` those of largest
    Q; all are means over rows.
    """
    lines = []
    for one in subjects:
        scores = one.query.double() @ one.item_vectors.double().T
        p = scores.scatter_(1, one.positive_ids[:, None], -math.inf).softmax(dim=1)
        noise = p.square() / (one.counts / one.counts.sum())
        noise /= noise.sum(dim=1, keepdim=True)
        for size in (size for size in HEADS if size < num_items):
            nearest = p.topk(size, dim=1).indices
            shares = {
                "softmax_nearest": p.gather(1, nearest),
                "noise_nearest": noise.gather(1, nearest),
                "noise_best": noise.topk(size, dim=1).values,
                "softmax_popular": p[:, :size],
                "noise_popular": noise[:, :size],
            }
            found = {key: round(float(part.sum(dim=1).mean()), 4) for key, part in shares.items()}
            lines.append({"items": num_items, "regime": one.name, "size": size} | found)
    return lines


def tables(results: list[dict[str, Any]]) -> str:
    """The tables as Markdown: bias of the mean gradient, then RMSE of a draw."""
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
                found = [cells.get((name, correction, n)) for n in sizes]
                shown = " | ".join("–" if one is None else cell(one[regime]) for one in found)
                lines.append(f"| {name} | {correction} | {shown} |")
    return "\n".join(lines[1:]) + "\n"


def claims(results: list[dict[str, Any]]) -> str:
    """How many times smaller bias and RMSE are than those of refined popularity draws."""
    cells = {(one["items"], one["name"], one["correction"], one["n"]): one for one in results}
    columns = [(num_items, regime) for num_items in SIZES for regime in REGIMES]
    lines = [
        "| bias; RMSE: times smaller | n | "
        + " | ".join(f"{num_items:,} {regime}" for num_items, regime in columns)
        + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, correction, n in CLAIMS:
        shown = [
            _times(
                cells.get((num_items, "popularity", "refined", n), {}).get(regime),
                cells.get((num_items, name, correction, n), {}).get(regime),
            )
            for num_items, regime in columns
        ]
        lines.append(f"| {name}, {correction} | {n} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _times(base: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The two quotients; ">" bounds one by a bias not different from 0, "?": the base's is not."""
    if base is None or other is None:
        return "–"
    spread = f"{base['rmse'] / other['rmse']:.2f}"
    if not is_known(base):
        return f"?; {spread}"
    if not is_known(other, 4.0):  # a quotient by less says little, whatever its error
        return f"> {base['bias'] / bound(other):.1f}; {spread}"
    ratio, error = quotient(base, other)
    return f"{ratio:.1f} ± {error:.1f}; {spread}"


def quotient(base: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Of two biases, with its standard error as if they were independent."""
    ratio = base["bias"] / other["bias"]
    return ratio, ratio * math.hypot(*(one["bias_error"] / one["bias"] for one in (base, other)))


def is_known(found: dict[str, Any], errors: float = 2.0) -> bool:
    """Whether a bias differs from 0 by more than so many standard errors."""
    return bool(found["bias"] > errors * found["bias_error"])


def bound(found: dict[str, Any]) -> float:
    """Two standard errors above what was found."""
    return float(max(found["bias"], 0.0) + 2.0 * found["bias_error"])


def cell(found: dict[str, Any]) -> str:
    """Bias and RMSE, or a bound where the bias is not different from 0."""
    shown = f"{found['bias']:.4f}" if is_known(found) else f"< {bound(found):.4f}"
    return f"{shown} ({found['rmse']:.3f})"


def heads_table(lines: list[dict[str, Any]]) -> str:
    """What heads hold, as Markdown; late is as mid but for the positive, which no head counts."""
    shown = [
        f"| {one['items']:,} | {one['regime']} | {one['size']} | "
        + " | ".join(
            f"{100 * one[key]:.0f} %"
            for key in ("softmax_nearest", "noise_nearest", "noise_best", "noise_popular")
        )
        + " |"
        for one in lines
        if one["regime"] != "late"
    ]
    head = "| N | model | head | softmax, nearest | noise, nearest | noise, best | noise, popular |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *shown]) + "\n"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """The docs with their generated blocks as the results have them."""
    blocks = {
        "claims": claims(document["results"]),
        "heads": heads_table(document["heads"]),
        "tables": tables(document["results"]),
    }
    for name, block in blocks.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        assert place.search(content), f"{DOCS} has no <!-- {name} --> block"
        content = place.sub(lambda _, block=block: block, content)
    return content


def main() -> None:
    """Measure and write; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="SAMPLER", action="append", help="these alone")
    parser.add_argument("--leave", metavar="SAMPLER", action="append", help="all but these")
    parser.add_argument("--items", type=int, choices=SIZES, help="this catalog alone")
    parser.add_argument("--again", action="store_true", help="also what there is already")
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    for num_items in () if arguments.tables else SIZES:
        if arguments.items not in (None, num_items):
            continue
        subjects = [subject(num_items, regime) for regime in REGIMES]
        others = [one for one in stored()["heads"] if one["items"] != num_items]
        of_heads = sorted(others + heads(num_items, subjects), key=lambda one: one["items"])
        store([], of_heads)
        for plan in plans_of(num_items):
            if plan.name in (arguments.leave or ()):
                continue
            if arguments.only is not None and plan.name not in arguments.only:
                continue
            key = (num_items, plan.name, plan.n)
            if not arguments.again and any(_key(one) == key for one in stored()["results"]):
                continue
            store(measured(num_items, subjects, plan))
            line = (
                f"{time.monotonic() - began:5.0f} s  N = {num_items:,}, n = {plan.n}, {plan.name}"
            )
            print(line, file=sys.stderr)
    DOCS.write_text(with_tables(DOCS.read_text(), stored()))


if __name__ == "__main__":
    main()
