"""The table of the page of baselines against its results."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "baselines.md").read_text()
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "baselines.json").read_text())


def lines():
    for one in RESULTS["sets"]:
        for place, line in enumerate(one["baselines"]):
            ndcg, recall = line["metrics"]["ndcg@10"], line["metrics"]["recall@10"]
            name = f"`{line['name']}`"
            yield (
                f"| {one['set'] if place == 0 else ''} | {name} | {ndcg['value']:.4f} "
                f"± {(ndcg['high'] - ndcg['low']) / 2:.4f} | {recall['value']:.4f} "
                f"| {line['seconds']:.1f} |"
            )


def test_table_of_public_data_is_that_of_the_results():
    block = re.search(r"<!-- public-data -->\n(.*?)\n<!--", PAGE, re.DOTALL).group(1)
    assert block.splitlines()[2:] == list(lines())


def test_text_below_the_table_agrees_with_the_results():
    for one in RESULTS["sets"]:
        assert f"{one['set']} {one['cpu_s']:.0f} s and {one['peak_mib']:,} MiB" in re.sub(
            r"\s+", " ", PAGE
        )
