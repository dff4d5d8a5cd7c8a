"""What docs/audit.md says is what was measured, and its example runs."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "audit.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = json.loads((RESULTS / "audit.json").read_text())
FOUND = {
    (one["items"], one["name"], one["correction"], one["n"]): one for one in DOCUMENT["results"]
}
HEADS = {(one["items"], one["regime"], one["size"]): one for one in DOCUMENT["heads"]}
SMALL, LARGE = 1_000, 100_000
SHARED, OWN = "nearest head, shared", "nearest head of each row"


def times_smaller(num_items, regime, name, correction, n):
    """Bias at the least, two standard errors against it, and RMSE, against refined popularity."""
    base = FOUND[num_items, "popularity", "refined", n][regime]
    other = FOUND[num_items, name, correction, n][regime]
    least = base["bias"] - 2 * base["bias_error"]
    most = max(other["bias"], 0.0) + 2 * other["bias_error"]
    return least / most, base["rmse"] / other["rmse"]


def test_the_tables_are_those_of_the_results(benchmark_script):
    assert benchmark_script("audit").with_tables(DOCS, DOCUMENT) == DOCS


def test_every_estimator_of_the_standard_set_was_measured(benchmark_script):
    script = benchmark_script("audit")
    assert set(FOUND) == {
        (num_items, plan.name, variant.label, plan.n)
        for num_items in script.SIZES
        for plan in script.plans_of(num_items)
        for variant in plan.variants
    }


@pytest.mark.parametrize("regime", ["mid", "late"])
def test_a_head_of_a_small_catalog_takes_bias_and_spread_away(regime):
    bias, spread = times_smaller(SMALL, regime, OWN, "refined", 256)
    assert bias > 10
    assert spread > 3
    bias, spread = times_smaller(SMALL, regime, SHARED, "refined", 256)
    assert bias > 5
    assert spread > 2


@pytest.mark.parametrize("regime", ["mid", "late"])
def test_a_head_of_a_large_catalog_does_so_only_when_it_is_large(regime):
    for name in (SHARED, OWN):
        base = FOUND[LARGE, "popularity", "refined", 256][regime]
        other = FOUND[LARGE, name, "refined", 256][regime]
        assert base["bias"] / other["bias"] < 3.2
        assert times_smaller(LARGE, regime, name, "refined", 256)[1] < 1.25
        assert times_smaller(LARGE, regime, name, "refined", 4096)[1] > 2
    bias, spread = times_smaller(LARGE, regime, OWN, "refined + jackknife", 256)
    assert bias > {"mid": 10, "late": 4}[regime]
    assert 1 < spread < 1.1


def test_the_noise_that_heads_hold_foretells_the_spread():
    # Half of the draws for what is left of the noise.
    for n, size in ((256, 128), (1024, 512), (4096, 2048)):
        left = 1 - HEADS[LARGE, "mid", size]["noise_nearest"]
        spread = times_smaller(LARGE, "mid", OWN, "refined", n)[1]
        assert spread == pytest.approx((2 * left) ** -0.5, rel=0.1)
    assert HEADS[LARGE, "mid", 128]["noise_best"] < 1 - 0.5 / 1.5**2


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
def test_a_larger_share_of_the_head_is_worse_than_half(num_items):
    for regime in ("mid", "late"):
        for half, larger in (
            (SHARED, "nearest head of 7/8, shared"),
            (OWN, "nearest head of 7/8 of each row"),
        ):
            at_half = FOUND[num_items, half, "refined", 256][regime]["rmse"]
            assert FOUND[num_items, larger, "refined", 256][regime]["rmse"] > 1.1 * at_half


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
@pytest.mark.parametrize("n", [64, 256])
def test_the_jackknife_halves_the_bias_of_a_confident_model(num_items, n):
    bias, spread = times_smaller(num_items, "late", "popularity", "refined + jackknife", n)
    assert bias > 2
    assert spread > 0.88


@pytest.mark.parametrize("num_items", [SMALL, LARGE])
@pytest.mark.parametrize("regime", ["mid", "late"])
def test_a_set_beats_draws_and_does_not_bear_the_jackknife(num_items, regime):
    for n, least in ((64, 1.02), (256, 1.07)):
        spread = times_smaller(num_items, regime, "popularity, distinct", "refined", n)[1]
        assert spread > least
    floors = [
        FOUND[num_items, "popularity, distinct", "refined + jackknife", n][regime]["bias"]
        for n in (64, 256)
    ]
    assert min(floors) > 0.02
    assert floors[1] > 0.9 * floors[0]


def test_a_million_items_took_what_is_said():
    million = json.loads((RESULTS / "audit_million.json").read_text())
    said = (
        f"{million['samplers']} samplers at n = 64 and 256 for {million['users']} users took "
        f"{million['minutes']:g} minutes"
    )
    assert said in " ".join(DOCS.split())
    assert f"{million['gigabytes']:g} GB" in DOCS
    assert million["largest_bias_error"] <= 0.01


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(compile(example, "docs/audit.md", "exec"), {"__name__": "example"})
    label, sentence = capsys.readouterr().out.splitlines()
    assert "n = 16" in label
    assert sentence.startswith("without a budget the full softmax is the choice")
