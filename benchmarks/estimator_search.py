"""Search for an estimator that beats ``refined`` and ``logq`` at few candidates.

    python benchmarks/estimator_search.py

Two experiments. Tables of logits, one for each user of a catalog of 1,000 items with known
choices, are fitted with every estimator: the truth is known, so that the excess NLL is exact, and
so are the drift and the noise of the gradient. Then ``refined``, ``logq`` and the best new
estimator train a small transformer on MovieLens-1M (``CANDID_DATA``). Results that exist are not
measured again: delete results/estimator_search.json and the work folder first. The tables of
docs/benchmarks/estimators.md are rewritten.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import estimator_search_runs as runs
import estimator_search_tables as tables
from candid import __version__
from page_blocks import with_block

RESULT = Path(__file__).parent / "results" / "estimator_search.json"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks" / "estimators.md"


def tables_experiment(document: dict[str, Any]) -> None:
    """Fit and measure every estimator that the document lacks."""
    results = document.setdefault("tables", [])
    done = {(one["chi2"], one["n"], one["estimator"]) for one in results}
    worlds = {chi2: tables.make_world(chi2) for chi2 in tables.CHI2}
    for chi2, name, n in tables.cells():
        if (chi2, n, name) in done:
            continue
        start = time.process_time()
        excess = tables.fit(name, worlds[chi2], n)
        result = {"chi2": chi2, "n": n, "estimator": name, "excess_nll": excess}
        if name != tables.FULL:
            result |= tables.measure(name, worlds[chi2], n)
        results.append(result | {"cpu_seconds": round(time.process_time() - start, 1)})
        write(document)
        print(chi2, n, name, flush=True)


def write(document: dict[str, Any]) -> None:
    """Write the results with what produced them."""
    settings = {
        "tables": {
            "items": tables.NUM_ITEMS,
            "users": tables.NUM_USERS,
            "learning_rates": tables.LEARNING_RATES,
            "seeds": tables.SEEDS,
            "steps": tables.STEPS,
            "rows_of_a_step": tables.ROWS,
            "drift_rows": tables.REPEATS * tables.DRIFT_ROWS,
        },
        "trained": {
            "steps": runs.STEPS,
            "learning_rates": runs.RATES,
            "seeds": runs.SEEDS,
            "num_groups": runs.NUM_GROUPS,
            "batches": runs.BATCHES,
        },
    }
    document |= {
        "command": "python benchmarks/estimator_search.py",
        "versions": {"candid": __version__, "torch": torch.__version__},
        "settings": settings,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


def best_of(result: dict[str, Any]) -> list[float]:
    """Return the excess NLL of the seeds at the best learning rate."""
    return min(result["excess_nll"].values(), key=fmean)


def tables_table(document: dict[str, Any]) -> str:
    """Return a table of the excess NLL, with drifts, by estimator, chi2 and n."""
    cells = {(one["estimator"], one["chi2"], one["n"]): one for one in document["tables"]}
    columns = sorted({(chi2, n) for chi2, _, n in tables.cells() if n}, reverse=True)
    lines = [
        row("estimator", [f"chi2 = {chi2}, n = {n}" for chi2, n in columns]),
        "|---|" + "---|" * len(columns),
    ]
    for name in (tables.FULL, *tables.ESTIMATORS):
        shown = []
        for chi2, n in columns:
            one = cells.get((name, chi2, 0 if name == tables.FULL else n))
            drift = f"; {max(0.0, one['drift']):.3f}" if one and "drift" in one else ""
            shown.append(with_spread(best_of(one)) + drift if one else "")
        lines.append(row(name, shown))
    return "\n".join(lines) + "\n"


def trained_table(document: dict[str, Any]) -> str:
    """Return a table of test NLL and NDCG@10 of the trainings."""
    splits = list(runs.RECIPES)
    heads = [f"{split}, {what}" for split in splits for what in ("NLL", "NDCG@10")]
    lines = [row("estimator", ["n", *heads]), "|---|---|" + "---|" * len(heads)]
    cells = {(one["estimator"], one["n"], one["split"]): one for one in document["trained"]}
    for name, n in dict.fromkeys(key[:2] for key in cells):
        shown = [str(n) if n else "all"]
        for split in splits:
            one = cells.get((name, n, split))
            shown += [with_spread(one[key]) if one else "" for key in ("nll", "ndcg@10")]
        lines.append(row(name, shown))
    return "\n".join(lines) + "\n"


def with_spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation over the seeds."""
    return f"{fmean(values):.3f} ± {stdev(values):.3f}"


def row(first: str, cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {first} | {' | '.join(cells)} |"


def with_tables(content: str, document: dict[str, Any]) -> str:
    """Return the page with its generated blocks replaced."""
    blocks = {"search": tables_table(document), "search trained": trained_table(document)}
    for name, block in blocks.items():
        content = with_block(content, name, block)
    return content


def main() -> None:
    """Run what is missing and rewrite the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/estimator_search"))
    work = parser.parse_args().work
    os.environ.setdefault("CANDID_DATA", "../shared/data")
    torch.set_num_threads(1)
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    tables_experiment(document)
    document["trained"] = runs.trained_experiment(work)
    write(document)
    DOCS.write_text(with_tables(DOCS.read_text(), document))


if __name__ == "__main__":
    main()
