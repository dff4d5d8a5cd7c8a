"""The page of ``warm_start.py``: tables from its results.

python benchmarks/warm_start_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from page_blocks import with_block

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks" / "warm_start.md"
SET_NAMES = ("ml-1m", "nowplaying")
ANEW = "anew"
METRIC = "ndcg@10"


def read_all(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results of the sets that are measured, by name."""
    files = {name: folder / f"warm_start_{name}.json" for name in SET_NAMES}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def with_tables(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page with its tables filled from the results."""
    for name in SET_NAMES:
        days = by_variant(results[name]) if name in results else {}
        text = set_table(days) if ANEW in days else "Not measured yet."
        page = with_block(page, f"warm start {name}", text + "\n")
    return page


def by_variant(results: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the measurements of each variant by day, from day 1 on; one seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, values in results["days"].items():
        _, variant, _, day = key.split("/")
        if int(day) > 0:
            found.setdefault(variant, {})[int(day)] = values
    return {variant: found[variant] for variant in results["variants"] if variant in found}


def set_table(days: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Return the table of a set: a line for each variant."""
    lines = [
        "| variant | days | next day | minus anew | CPU s a day | its own day | day 1, last run |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for variant, values in days.items():
        last = max(values)
        cells = [
            variant,
            str(len(values)),
            f"{_mean(values, 'next_day'):.4f}",
            "" if variant == ANEW else _difference(values, days[ANEW]),
            f"{statistics.mean(one['cpu_seconds'] for one in values.values()):.1f}",
            f"{_mean(values, 'same_day'):.4f}",
            f"{values[last]['day_1'][METRIC]:.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Mapping[int, Mapping[str, Any]], part: str) -> float:
    return statistics.mean(one[part][METRIC] for one in values.values())


def _difference(
    values: Mapping[int, Mapping[str, Any]], others: Mapping[int, Mapping[str, Any]]
) -> str:
    """Return the mean over common days of the difference on the next day, and its deviation."""
    found: Sequence[float] = [
        values[day]["next_day"][METRIC] - others[day]["next_day"][METRIC]
        for day in values
        if day in others
    ]
    if len(found) < 2:
        return "".join(f"{one:+.4f}" for one in found)
    return f"{statistics.mean(found):+.4f} ± {statistics.stdev(found):.4f}"


def main() -> None:
    """Write the tables of the page."""
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), read_all()), "utf-8")


if __name__ == "__main__":
    main()
