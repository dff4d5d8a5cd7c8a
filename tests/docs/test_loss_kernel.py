"""The page on speed against the results of the tiled losses."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "loss_kernel.json"


@pytest.fixture(scope="module")
def script(benchmark_script):
    return benchmark_script("loss_kernel")


@pytest.fixture(scope="module")
def results():
    return json.loads(RESULTS.read_text())["results"]


def test_tables_match_results(script, results):
    docs = (ROOT / "docs" / "benchmarks" / "speed.md").read_text()
    assert script.with_tables(docs, results) == docs


def test_results_contain_every_implementation_in_every_case(script, results):
    found = {
        (line["loss"], line["rows"], line["candidates"], line["contender"]) for line in results
    }
    assert found == {(*case, name) for case in script.CASES for name in script.contenders(*case)}


@pytest.mark.parametrize(
    ("case", "times", "mib"), [(("in-batch", 8192, 8192), 4, 40), (("full", 1024, 100_000), 5, 90)]
)
def test_speed_and_memory_meet_the_targets(results, case, times, mib):
    of = {
        line["contender"]: line
        for line in results
        if (line["loss"], line["rows"], line["candidates"]) == case
    }
    assert of["plain"]["ms"] >= times * of["bfloat16"]["ms"]
    assert of["bfloat16"]["peak_mib"] < mib
    assert of["bfloat16"]["fraction"] >= 0.35


def test_profile_matches_results(benchmark_script):
    script = benchmark_script("loss_profile")
    docs = (ROOT / "docs" / "benchmarks" / "speed.md").read_text()
    found = json.loads(script.RESULTS.read_text())["results"]
    assert script.with_table(docs, found) == docs


@pytest.mark.parametrize(("kind", "num_candidates"), [("in-batch", 500), ("full", 900)])
def test_implementations_compute_the_same_loss(script, kind, num_candidates, monkeypatch):
    losses = {}
    backward = torch.Tensor.backward
    step = script.stepper(kind, 500, num_candidates)
    monkeypatch.setattr(script.tile_pass, "native_pass", script.native_pass)  # put back later
    for name in script.contenders(kind, 500, num_candidates):
        monkeypatch.setattr(
            torch.Tensor,
            "backward",
            lambda loss, name=name: (losses.update({name: loss.item()}), backward(loss)),
        )
        step(name)
    # In-batch, theirs take the positive for drawn and ours does not: that is another loss.
    if kind == "full":
        assert losses["float32"] == pytest.approx(losses["plain"], abs=1e-4)
    assert losses["plain, bfloat16"] == pytest.approx(losses["plain"], abs=1e-2)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=1e-2)
    assert losses["bfloat16, torch alone"] == pytest.approx(losses["bfloat16"], abs=1e-5)


def test_tile_passes_compute_the_same_sum(benchmark_script):
    script = benchmark_script("tile_pass")
    scores, shift = torch.randn(5, 30).bfloat16(), torch.randn(30)
    expected = (scores.double() - shift.double()).logsumexp(dim=1)
    for purposes in script.designs(scores, compiled=False).values():  # that takes a minute
        for run in purposes.values():
            found = run(scores.clone(), shift)
            found = found[1] if isinstance(found, tuple) else found
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
