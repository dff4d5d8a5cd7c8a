"""The page of ``default_parts.py``: tables from its results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from default_parts_variants import DEFAULT, SETS, VARIANTS, Width, base_key
from page_blocks import with_block
from quality_sets import METRIC, SEEDS

NOT_MEASURED = "not measured"
Results = Mapping[str, Any]


def with_blocks(page: str, results: Results) -> str:
    """Return the page with all its generated blocks filled from the results."""
    page = with_block(page, "default parts variants", variant_table() + "\n")
    return with_block(page, "default parts", set_tables(results) + "\n")


def chosen_rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """Return the factor of the learning rate with the highest validation, of one seed's runs."""
    return float(max(runs, key=lambda one: one["validation"])["rate"])


def runs_of(results: Results, set_name: str, share: float, variant: str) -> list[dict[str, Any]]:
    """Return the finished runs of a variant with the rate that its first seed chose, by seed."""
    runs = [
        one
        for one in results["runs"].values()
        if (one["set"], one["share"], one["variant"]) == (set_name, share, variant)
    ]
    if not runs:
        return []
    first = min(one["seed"] for one in runs)
    rate = chosen_rate([one for one in runs if one["seed"] == first])
    return sorted((one for one in runs if one["rate"] == rate), key=lambda one: one["seed"])


def variant_table() -> str:
    """Return the variants with their keys."""
    lines = ["| variant | what is other than in the default recipe | keys |", "|---|---|---|"]
    for name, variant in VARIANTS.items():
        keys = ", ".join(f"`{key} = {_shown(value)}`" for key, value in variant.keys.items())
        lines.append(f"| {name} | {variant.meaning} | {keys} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(f"{one['num_candidates']} {one['type']}" for one in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value) if isinstance(value, int | float | Width) else f'"{value}"'


def set_tables(results: Results) -> str:
    """Return a section for each set and length, and a sentence on sets that are missing."""
    parts, missing = [], []
    for name in SETS:
        shares = [
            float(key.removeprefix(f"{name}/"))
            for key in results["bases"]
            if key.startswith(f"{name}/")
        ]
        for share in sorted(shares, reverse=True):
            parts.append(f"## {name}{_length(share)}\n\n{set_table(results, name, share)}")
        if not shares:
            missing.append(name)
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _length(share: float) -> str:
    return "" if share == 1 else f", {100 * share:g} % of the epochs"


def set_table(results: Results, set_name: str, share: float) -> str:
    """Return the length of the default recipe, and the figures of its variants."""
    base = results["bases"].get(base_key(set_name, share))
    if base is None:
        return f"{set_name}{_length(share)}: {NOT_MEASURED}."
    costs = base["costs"]
    seconds = costs["start"][DEFAULT] + base["steps"] * costs["seconds"][DEFAULT]
    lines = [
        f"Each training has {seconds:,.0f} CPU seconds, those of {base['steps']:,} steps of the "
        f"default recipe and of the start of its item vectors; an epoch has "
        f"{costs['num_batches']:,} steps.",
        "",
        "| variant | NDCG@10 | minus default | CPU s | steps | ms a step |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for variant in base["variants"]:
        runs = runs_of(results, set_name, share, variant)
        cells = [
            variant + _rate(runs),
            _mean(runs),
            _difference(results, set_name, share, variant),
            f"{statistics.mean(one['train_cpu_seconds'] for one in runs):,.0f}" if runs else "",
            _range([one["steps"] for one in runs]),
            f"{1000 * costs['seconds'][variant]:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(runs: Sequence[Mapping[str, Any]]) -> str:
    return "" if not runs or runs[0]["rate"] == 1 else f", lr {runs[0]['lr']:g}"


def _mean(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return mean ± standard deviation over the seeds."""
    if not runs:
        return NOT_MEASURED
    values = [one["metrics"][METRIC]["value"] for one in runs]
    text = f"{statistics.mean(values):.4f}"
    if len(runs) > 1:
        text += f" ± {statistics.stdev(values):.4f}"
    if len(runs) < len(SEEDS):
        text += f" ({_seeds(len(runs))})"
    if len({one["settings"] for one in runs}) > 1:
        text += ", seeds with different settings"
    return text


def _seeds(number: int) -> str:
    return f"{number} seed" + ("" if number == 1 else "s")


def _difference(results: Results, set_name: str, share: float, variant: str) -> str:
    """Return the difference to the default recipe if it is that of the runs in the results."""
    runs = runs_of(results, set_name, share, variant)
    defaults = runs_of(results, set_name, share, DEFAULT)
    if variant == DEFAULT or not runs:
        return ""
    found = results["comparisons"].get(f"{base_key(set_name, share)}/{variant}")
    seeds = sorted({one["seed"] for one in runs} & {one["seed"] for one in defaults})
    settings = [{one["settings"] for one in part} for part in (runs, defaults)]
    if found is None or found["seeds"] != seeds or [{one} for one in found["settings"]] != settings:
        return "not compared"
    text = f"{found['difference']:+.4f}"
    if found["low"] is not None:
        text += f" ({found['low']:+.4f} to {found['high']:+.4f})"
    text += f", p {found['p_value']:.3f}"
    return text if len(seeds) == len(runs) else f"{text} ({_seeds(len(seeds))})"


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
