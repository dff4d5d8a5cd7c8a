"""The page on speed against the results of other libraries."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = {"ml-1m": 3, "amazon-beauty": 3}


@pytest.fixture(name="report")
def _report(benchmark_script):
    return benchmark_script("peers/report")


@pytest.fixture(name="results")
def _results():
    return json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())


def test_tables_match_results(report, results):
    docs = (ROOT / "docs" / "benchmarks" / "speed.md").read_text()
    assert report.with_tables(docs, results) == docs


def test_each_library_reached_its_level_or_used_its_time(report, results):
    for data, seeds in results["data"].items():
        assert len(seeds) == SEEDS[data]
        for contenders in seeds.values():
            for name, found in contenders.items():
                level = results["levels"][data][found["group"]]
                reached = report.seconds_to(found, level) is not None
                assert len(found["turns"]) >= (5 if reached else 2), name
                assert reached or report.used(found) >= found["seconds"], name


def test_ratio_to_candid_is_a_mean_over_seeds(report):
    def contender(group, seconds, ndcg):
        turns = [{"epochs": 1.0, "wall": s, "cpu": s, "peak": 1.0, "ndcg": n} for s, n in seconds]
        return {"group": group, "versions": {}, "turns": turns, "ndcg": ndcg}

    ours = [contender("sasrec", [(9, 0.0), (2, 0.1), (2, 0.3)], 0.3) for _ in range(2)]
    peers = [
        contender("sasrec", [(9, 0.0), (4, 0.3), (4, 0.3)], 0.3),
        contender("sasrec", [(9, 0.0), (8, 0.1), (8, 0.3)], 0.3),
    ]
    seeds = {
        str(n): {"candid": mine, "rectools": peer}
        for n, (mine, peer) in enumerate(zip(ours, peers, strict=True))
    }
    cells = [cell.strip() for cell in report.row("rectools", "candid", seeds, 0.3).split("|")[1:-1]]
    assert cells[1].startswith("6 ")
    assert cells[3].startswith("3 ")
    assert cells[4].startswith("19 ")  # 13 and 25
    assert cells[5].startswith(f"{statistics.mean([13 / 13, 25 / 13]):.3g} ")


def test_seeds_that_missed_the_level_give_a_lower_bound(report):
    def contender(turns):
        turns = [{"epochs": 1.0, "wall": s, "cpu": s, "peak": 1.0, "ndcg": n} for s, n in turns]
        return {"group": "sasrec", "versions": {}, "turns": turns}

    ours = contender([(2, 0.1), (2, 0.3)])
    seeds = {
        "0": {"candid": ours, "rectools": contender([(40, 0.1), (40, 0.3)])},
        "1": {"candid": ours, "rectools": contender([(20, 0.1), (20, 0.2)])},
    }
    cells = [cell.strip() for cell in report.row("rectools", "candid", seeds, 0.3).split("|")[1:-1]]
    assert cells[4] == "not in 40 by 1 of 2 seeds"
    assert cells[5] == "over 10"


def test_epoch_is_four_times_shorter_than_in_other_libraries(report, results):
    for seed, contenders in results["data"]["ml-1m"].items():
        ours = report.epoch_seconds(contenders["candid"])
        for peer in ("plain-pytorch", "rectools", "recbole"):
            if peer in contenders:
                assert report.epoch_seconds(contenders[peer]) > 4 * ours, (peer, seed)


def test_ndcg_level_is_reached_four_times_sooner(report, results):
    level = results["levels"]["ml-1m"]["sasrec"]
    for seed, contenders in results["data"]["ml-1m"].items():
        ours = report.seconds_to(contenders["candid"], level)
        for peer in ("plain-pytorch", "rectools", "recbole"):
            if peer in contenders:
                found = contenders[peer]
                # A library that did not reach the level needs more than its time.
                reached = report.seconds_to(found, level) or report.used(found)
                assert reached > 4 * ours, (peer, seed)
