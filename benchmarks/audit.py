"""Bias and spread of every estimator of the softmax: the tables of docs/audit.md.

    python benchmarks/audit.py                      measure all, write the results and the tables
    python benchmarks/audit.py --only "quadratic"   measure one proposal again, keep the rest
    python benchmarks/audit.py --tables             write the tables again from the results

Catalogs of N items with Zipf popularity Q and 64 pairs of a user and the item that user chose:
``init`` has logits N(0, 1) that know nothing, ``mid`` log Q + 1.5·N(0, 1), ``late`` is mid with
the positive raised until P(p) = 0.6. Logits are dot products of vectors, as those of a model:
items are N(0, I) of width 32, a user is a direction of length 1 or 1.5, and further dimensions
carry log Q and what raises each pair's positive.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from candid.atomic import write_json
from candid.audit import WHOLE, Effort, Plan, Subject, audit, standard_plans

RESULTS = Path(__file__).parent / "results" / "audit.json"
DOCS = Path(__file__).parents[1] / "docs" / "audit.md"
SIZES = {1_000: (16, 64, 256, 512), 100_000: (64, 256)}
LEFT_OUT = {1_000: (), 100_000: ("random Fourier", "quadratic")}
"""Whose draws would take hours there."""
REGIMES = {
    "init": "init: a model that knows nothing, P(p) about 1/N",
    "mid": "mid: popularity learnt and some taste",
    "late": "late: a confident model, P(p) = 0.6",
}
MAX_DRAWS = {1_000: 1024, 100_000: 32}
"""Of a block of rows: 64 rows are one block of the small catalog and seven of the large one."""
PAIRS, WIDTH, ACCURACY = 64, 32, 0.002
CLAIMS = [
    ("popular head + tail", "refined", 256),
    ("nearest head, shared", "refined", 256),
    ("nearest head of each row", "refined", 256),
    ("popularity", "refined + jackknife", 64),
    ("popularity", "refined + jackknife", 256),
    ("popularity, distinct", "refined", 64),
    ("popularity, distinct", "refined", 256),
]
"""What is held against popularity draws corrected by ``refined`` at the same n."""


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
    """The standard set, where it can be afforded."""
    plans = standard_plans(SIZES[num_items], num_items)
    return [plan for plan in plans if plan.name not in LEFT_OUT[num_items]]


def measured(num_items: int, only: str | None) -> list[dict[str, Any]]:
    """Every estimator on one catalog."""
    plans = [plan for plan in plans_of(num_items) if only in (None, plan.name)]
    if not plans:
        return []
    began = time.monotonic()
    report = audit(
        [subject(num_items, regime) for regime in REGIMES],
        plans,
        effort=Effort(accuracy=ACCURACY, max_draws=MAX_DRAWS[num_items]),
        progress=lambda done, total, what: print(
            f"{time.monotonic() - began:5.0f} s  {done + 1}/{total}  N = {num_items:,}  {what}",
            file=sys.stderr,
        ),
    )
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


def tables(results: list[dict[str, Any]]) -> str:
    """The tables as Markdown: bias of the mean gradient, then RMSE of a draw."""
    lines: list[str] = []
    for num_items, sizes in SIZES.items():
        of_catalog = [one for one in results if one["items"] == num_items]
        names = dict.fromkeys((one["name"], one["correction"]) for one in of_catalog)
        cells = {(one["name"], one["correction"], one["n"]): one for one in of_catalog}
        for regime, meaning in REGIMES.items():
            lines += ["", f"**N = {num_items:,}, {meaning}**", ""]
            lines.append(
                "| proposal | correction | " + " | ".join(f"n = {n}" for n in sizes) + " |"
            )
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
        "| bias, RMSE: times smaller | n | "
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
    spread = f"{base['rmse'] / other['rmse']:.1f}"
    if base["bias"] <= base["bias_error"]:
        return f"?, {spread}"
    bias, error = other["bias"], other["bias_error"]
    is_known = bias > error
    ratio = base["bias"] / (bias if is_known else max(bias, 0.0) + error)
    return f"{'' if is_known else '> '}{ratio:.1f}, {spread}"


def cell(found: dict[str, Any]) -> str:
    """Bias and RMSE, or a bound where the bias is not different from 0."""
    bias, error = found["bias"], found["bias_error"]
    shown = f"{bias:.4f}" if bias > error else f"< {max(bias, 0.0) + error:.4f}"
    return f"{shown} ({found['rmse']:.3f})"


def with_tables(content: str, results: list[dict[str, Any]]) -> str:
    """The docs with their generated blocks as the results have them."""
    for name, block in (("claims", claims(results)), ("tables", tables(results))):
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        assert place.search(content), f"{DOCS} has no <!-- {name} --> block"
        content = place.sub(lambda _, block=block: block, content)
    return content


def main() -> None:
    """Measure and write; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="PROPOSAL", help="measure this one, keep the others")
    parser.add_argument("--items", type=int, choices=SIZES, help="this catalog alone")
    parser.add_argument("--tables", action="store_true", help="write the tables alone")
    arguments = parser.parse_args()
    before = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []
    if arguments.tables:
        DOCS.write_text(with_tables(DOCS.read_text(), before))
        return
    torch.set_num_threads(1)
    results = before
    for num_items in SIZES if arguments.items is None else (arguments.items,):
        new = measured(num_items, arguments.only)
        redone = {(num_items, one["name"]) for one in new}
        kept = [one for one in results if (one["items"], one["name"]) not in redone]
        results = sorted(kept + new, key=lambda one: one["items"])
        settings = {"pairs": PAIRS, "width": WIDTH, "accuracy": ACCURACY, "seed": 11}
        command = "python benchmarks/audit.py"
        document = {"command": command, "settings": settings, "results": results}
        write_json(RESULTS, document)
    DOCS.write_text(with_tables(DOCS.read_text(), results))


if __name__ == "__main__":
    main()
