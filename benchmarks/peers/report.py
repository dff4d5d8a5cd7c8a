"""Tables of docs/benchmarks/speed.md and the figure of the README, from results/peers.json.

python benchmarks/peers/report.py
"""

from __future__ import annotations

import json
import math
import re
import statistics
from typing import Any

from run import RESULTS, ROOT

DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
FIGURE = ROOT / "docs" / "figures" / "speed.svg"
OURS = {
    "ml-1m": {"sasrec": "candid", "ids": "candid-ids"},
    # The other libraries cannot afford the whole softmax there.
    "amazon-beauty": {"sasrec": "candid-sampled", "ids": "candid-ids"},
}
"""The contender to which the others are compared."""
SETS = {"ml-1m": "MovieLens-1M", "amazon-beauty": "Amazon Beauty"}
NAMES = {
    "candid": "candid",
    "candid-float32": "candid, float32 throughout",
    "candid-sampled": "candid, sampled softmax",
    "plain-pytorch": "plain PyTorch",
    "rectools": "RecTools, SASRec",
    "rectools-esasrec": "RecTools, eSASRec",
    "rectools-hstu": "RecTools, HSTU",
    "recbole": "RecBole, SASRec",
    "candid-ids": "candid, two tables of ids",
    "implicit-bpr": "implicit, BPR",
    "implicit-als": "implicit, ALS",
}
DRAWN = ("candid", "candid-float32", "candid-sampled", "plain-pytorch", "rectools", "recbole")
"""Contenders of the figure: the full softmax at equal settings, and candid's sampled softmax."""
INK, MUTED, ACCENT = "#7a8290", "#9aa3b2", "#2f81f7"
"""Read on white and on near-black alike."""

Seeds = dict[str, dict[str, Any]]
"""Contenders of each seed of a data set, by name."""


def epoch_seconds(contender: dict[str, Any], clock: str = "cpu") -> float:
    """Median seconds of a pass over the data; the first turn, which also warms up, left out."""
    turns = contender["turns"][1:] or contender["turns"]
    return statistics.median(turn[clock] / turn["epochs"] for turn in turns)


def seconds_to(contender: dict[str, Any], level: float) -> float | None:
    """CPU seconds of training until the lists reach a validation NDCG@10, or None."""
    used = 0.0
    for turn in contender["turns"]:
        used += turn["cpu"]
        if turn["ndcg"] >= level:
            return used
    return None


def used(contender: dict[str, Any]) -> float:
    """CPU seconds of training in all."""
    return float(sum(turn["cpu"] for turn in contender["turns"]))


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_spread(values: list[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    text = _seconds(statistics.mean(values))
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if spread == 0:  # also of a ratio to itself
        return text
    return f"{text} ±{spread:.0f}" if spread >= 10 else f"{text} ±{spread:.2g}"


def _to_level(pairs: list[tuple[dict[str, Any], dict[str, Any]]], level: float) -> tuple[str, str]:
    """CPU seconds to the level and their ratio to ours, over the seeds."""
    reached = [(seconds_to(found, level), found, ours) for found, ours in pairs]
    times = [time for time, _, _ in reached if time is not None]
    if len(times) < len(reached):
        # What was not reached in the time is only known to take longer.
        shortest = min(used(found) for time, found, _ in reached if time is None)
        bounds = [used(found) / (seconds_to(ours, level) or math.inf) for _, found, ours in reached]
        seeds = "" if not times else f" by {len(reached) - len(times)} of {len(reached)} seeds"
        return f"not in {_seconds(shortest)}{seeds}", f"over {_seconds(min(bounds))}"
    ratios = [
        time / base for time, _, ours in reached if time and (base := seconds_to(ours, level))
    ]
    return _with_spread(times), _with_spread(ratios) if len(ratios) == len(times) else "–"


def row(name: str, ours: str, seeds: Seeds, level: float) -> str:
    """A line of the table: a contender beside that of candid, seed by seed."""
    pairs = [(one[name], one[ours]) for one in seeds.values() if name in one]
    epochs = [epoch_seconds(contender) for contender, _ in pairs]
    ratios = [epoch_seconds(contender) / epoch_seconds(ours) for contender, ours in pairs]
    versions = [
        f"{key} {value}"
        for key, value in pairs[0][0]["versions"].items()
        if key not in ("torch", "candid", "numpy", "pytorch-lightning")
    ]
    label = NAMES[name] + (f" ({', '.join(versions)})" if versions else "")
    walls = [epoch_seconds(contender, "wall") for contender, _ in pairs]
    peak = max(turn["peak"] for contender, _ in pairs for turn in contender["turns"])
    last = [contender["turns"][-1]["ndcg"] for contender, _ in pairs]
    time, to_ours = _to_level(pairs, level)
    return (
        f"| {label} | {_with_spread(epochs)} | {_seconds(statistics.mean(walls))} | "
        f"{_with_spread(ratios)} | {time} | {to_ours} | {statistics.mean(last):.4f} | "
        f"{peak:,.0f} | {len(pairs)} |"
    )


def table(report: dict[str, Any]) -> str:
    """A Markdown table for each data set and group."""
    parts = []
    for data, seeds in report["data"].items():
        for group, level in report["levels"][data].items():
            names = {name for one in seeds.values() for name in one if one[name]["group"] == group}
            if not names:
                continue
            parts += [
                f"{SETS[data]}:\n",
                f"| | CPU s an epoch | wall s | to candid | CPU s to NDCG@10 {level} | to candid | "
                "NDCG@10 at the end | peak MiB | seeds |\n"
                "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
            ]
            ours = OURS[data][group]
            parts += [row(name, ours, seeds, level) for name in NAMES if name in names]
            parts.append("")
    return "\n".join(parts)


def draw(report: dict[str, Any]) -> None:
    """Bars of the time of an epoch of MovieLens-1M, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "candid", "font.family": "sans-serif", "font.size": 10}
    plt.rcParams |= {"svg.fonttype": "none"}
    seeds = report["data"]["ml-1m"].values()
    names = [name for name in DRAWN if any(name in one for one in seeds)]
    seconds = [
        statistics.mean(epoch_seconds(one[name]) for one in seeds if name in one) for name in names
    ]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(names) + 0.9))
    colors = [ACCENT if name.startswith("candid") else MUTED for name in names]
    bars = axes.barh([NAMES[name] for name in names], seconds, color=colors, height=0.6)
    ours = seconds[0]
    labels = [
        f"{value:,.0f} s" + ("" if value == ours else f"  ({value / ours:.3g}×)")
        for value in seconds
    ]
    axes.bar_label(bars, labels, padding=4, color=INK)
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 3, max(seconds) * 6)
    axes.invert_yaxis()
    axes.tick_params(colors=INK, length=0, which="both")
    axes.set_xticks([])
    axes.set_xticks([], minor=True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(
        "SASRec on MovieLens-1M, full softmax, width 64: CPU seconds an epoch (log scale)",
        color=INK,
        fontsize=10,
        loc="left",
    )
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def with_tables(content: str, report: dict[str, Any]) -> str:
    """The docs with their generated block as the results have it."""
    place = re.compile(r"(?<=<!-- peers -->\n).*?(?=<!-- /peers -->)", re.DOTALL)
    assert place.search(content), f"{DOCS} has no <!-- peers --> block"
    return place.sub(lambda _: table(report), content)


def main() -> None:
    """Write both."""
    report = json.loads(RESULTS.read_text())
    DOCS.write_text(with_tables(DOCS.read_text(), report))
    draw(report)


if __name__ == "__main__":
    main()
