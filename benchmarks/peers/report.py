"""Tables of docs/benchmarks/speed.md and the figure of the README, from results/peers.json.

python benchmarks/peers/report.py
"""

from __future__ import annotations

import json
import re
import statistics
from typing import Any

from run import CONTENDERS, LEVELS, RESULTS, ROOT

DOCS = ROOT / "docs" / "benchmarks" / "speed.md"
FIGURE = ROOT / "docs" / "figures" / "speed.svg"
OURS = {"sasrec": "candid", "ids": "candid-ids"}
NAMES = {
    "candid": "candid",
    "candid-float32": "candid, float32 throughout",
    "candid-sampled": "candid, sampled softmax",
    "plain-pytorch": "plain PyTorch",
    "rectools": "RecTools",
    "recbole": "RecBole",
    "candid-ids": "candid, two tables of ids",
    "implicit-bpr": "implicit, BPR",
    "implicit-als": "implicit, ALS",
}
INK, MUTED, ACCENT = "#7a8290", "#9aa3b2", "#2f81f7"
"""Read on white and on near-black alike."""


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


def row(name: str, contenders: dict[str, Any], level: float) -> str:
    """A line of the table: a contender beside ours."""
    found, ours = contenders[name], contenders[OURS[contenders[name]["group"]]]
    epoch, reached = epoch_seconds(found), seconds_to(found, level)
    versions = [f"{key} {value}" for key, value in found["versions"].items() if key != "torch"]
    # What was not reached in the time is only known to take longer.
    time = _seconds(reached) if reached is not None else f"not in {used(found):,.0f}"
    fast = seconds_to(ours, level)
    ratio = "–"
    if fast is not None:
        ratio = f"{reached / fast:.3g}" if reached else f"over {used(found) / fast:.3g}"
    peak = max(turn["peak"] for turn in found["turns"])
    label = NAMES[name] + (f" ({', '.join(versions)})" if "env" in CONTENDERS[name] else "")
    return (
        f"| {label} | {epoch:,.1f} | {epoch_seconds(found, 'wall'):,.1f} | "
        f"{epoch / epoch_seconds(ours):.3g} | {time} | {ratio} | {peak:,.0f} | "
        f"{len(found['turns'])} |"
    )


def table(report: dict[str, Any]) -> str:
    """A Markdown table a group."""
    parts = []
    for group, level in LEVELS.items():
        contenders = {
            name: found for name, found in report["contenders"].items() if found["group"] == group
        }
        if OURS[group] not in contenders:
            continue
        parts.append(
            f"| | CPU s an epoch | wall s | to ours | CPU s to NDCG@10 {level} | to ours | "
            "peak MiB | turns |\n|---|---:|---:|---:|---:|---:|---:|---:|"
        )
        parts += [row(name, contenders, level) for name in NAMES if name in contenders]
        parts.append("")
    return "\n".join(parts)


def draw(report: dict[str, Any]) -> None:
    """Bars of the time of an epoch, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "candid", "font.family": "sans-serif", "font.size": 10}
    plt.rcParams |= {"svg.fonttype": "none"}
    contenders = report["contenders"]
    names = [n for n in NAMES if n in contenders and contenders[n]["group"] == "sasrec"]
    seconds = [epoch_seconds(contenders[name]) for name in names]
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
