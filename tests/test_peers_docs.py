"""What docs/speed.md says of other libraries is what was measured, over five turns at least."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "benchmarks" / "peers"


@pytest.fixture(name="report")
def _report(benchmark_script, monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS))
    return benchmark_script("peers/report")


@pytest.fixture(name="results")
def _results():
    return json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text())


def test_the_tables_are_those_of_the_results(report, results):
    docs = (ROOT / "docs" / "speed.md").read_text()
    assert report.with_tables(docs, results) == docs


def test_everybody_took_five_turns_at_least_and_was_not_stopped(results):
    assert all(found["done"] for found in results["contenders"].values())
    assert min(len(found["turns"]) for found in results["contenders"].values()) >= 5


def test_an_epoch_is_four_times_shorter_than_that_of_the_peers(report, results):
    epochs = {name: report.epoch_seconds(found) for name, found in results["contenders"].items()}
    for peer in ("plain-pytorch", "rectools", "recbole"):
        assert epochs[peer] > 4 * epochs["candid"], peer


def test_the_level_is_reached_four_times_sooner(report, results):
    level = results["levels"]["sasrec"]
    ours = report.seconds_to(results["contenders"]["candid"], level)
    for peer in ("plain-pytorch", "rectools", "recbole"):
        found = results["contenders"][peer]
        # Who did not reach it in the time is known to take longer than that.
        reached = report.seconds_to(found, level) or report.used(found)
        assert reached > 4 * ours, peer
