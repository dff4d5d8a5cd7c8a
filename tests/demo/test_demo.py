from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from candid.data import Role, held_out, open_dataset
from candid.demo import Regime, run_demo
from candid.demo.oracle import OracleModel
from candid.errors import ArtifactError, ConfigError, Interrupted
from candid.synthetic import SyntheticConfig, SyntheticData

SMALL = SyntheticConfig(
    num_items=120,
    num_users=400,
    num_topics=6,
    interactions_mean=12.0,
    history_weight=3.0,
    history_length=1,
    temperature=0.25,
)
REGIMES = (Regime("unsure", SMALL.model_copy(update={"temperature": 2.0})), Regime("sure", SMALL))
SIZES = (4, 64)
LOSSES = ["none", "logq", "logq, hits masked", "refined"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    notes: list[str] = []
    result = run_demo(out, regimes=REGIMES, num_candidates=SIZES, epochs=2, note=notes.append)
    return out, result, notes


def test_run_demo_compares_every_loss_of_every_regime_with_the_oracle(demo):
    _, result, notes = demo
    report = result.report
    for regime in report.regimes:
        rows = report.rows(regime)
        expected = [["full softmax", ""], *([name, str(n)] for n in SIZES for name in LOSSES)]
        assert [row[1:3] for row in rows] == [*expected, ["oracle", ""]]
        excess = [one.value("excess_nll") for one in regime.models]
        # No model beats the oracle, which is at zero except for items that never occurred.
        assert abs(excess[-1]) < 0.05
        assert min(excess[:-1]) > 0.05
        assert regime.models[-1].value("ndcg@10") == max(
            one.value("ndcg@10") for one in regime.models
        )
        assert sum(regime.models[-1].recommended_counts) == 10 * 400
    assert sum(", run " in line for line in notes) == 2 * 9


def test_nll_over_full_softmax_is_the_difference_of_the_two_rows(demo):
    _, result, _ = demo
    rows = result.report.to_json()["rows"]
    for regime in ("unsure", "sure"):
        of_regime = [row for row in rows if row["regime"] == regime]
        full = next(row for row in of_regime if row["model"] == "full softmax")
        assert (full["nll_over_full"], full["drift"], full["drift_se"]) == (0.0, 0.0, 0.0)
        for row in of_regime:
            if row["n"] is not None:
                assert row["nll_over_full"] == pytest.approx(row["nll"] - full["nll"], abs=1e-9)
                assert row["nll_over_full_low"] < row["nll_over_full"] < row["nll_over_full_high"]


def test_drift_and_trained_models_agree_in_the_confident_regime(demo):
    _, result, _ = demo
    rows = {
        (row["n"], row["correction"], row["accidental_hits"]): row
        for row in result.report.to_json()["rows"]
        if row["regime"] == "sure" and row["n"] is not None
    }
    few, many = SIZES
    for n in SIZES:
        kept = rows[n, "logq", "keep"]
        assert abs(kept["drift"]) < 4 * kept["drift_se"] + 1e-3
        assert rows[n, "none", "mask"]["drift"] > 10 * kept["drift_se"]
    assert rows[few, "refined", "mask"]["drift"] > 5 * rows[many, "refined", "mask"]["drift"]
    assert rows[many, "logq", "mask"]["drift"] > 5 * rows[many, "refined", "mask"]["drift"]
    # Trained models agree where the predictions are far apart.
    assert rows[few, "refined", "mask"]["nll"] > rows[few, "logq", "keep"]["nll"]
    assert rows[many, "none", "mask"]["nll"] > rows[many, "logq", "keep"]["nll"]
    # The two rules of accidental hits are two losses.
    assert rows[many, "logq", "mask"]["nll"] != rows[many, "logq", "keep"]["nll"]


def test_oracle_log_prob_equals_that_of_the_synthetic_data(demo):
    out, _, _ = demo
    synthetic, dataset = SyntheticData(SMALL), open_dataset(out / "sure" / "data")
    test = held_out(dataset, Role.TEST)
    log_prob = OracleModel(synthetic, dataset).log_prob(test)
    frame = synthetic.interactions(0, SMALL.num_users)
    for query in (0, 7, 399):
        items = frame.filter(user_id=query)["item_id"].to_numpy()
        expected = synthetic.log_probs(np.array([query]), items[:-1], np.array([0, len(items) - 1]))
        assert log_prob[query] == pytest.approx(expected[0, items[-1]], rel=1e-12)


def test_page_and_json_hold_the_tables(demo):
    out, result, _ = demo
    document = json.loads((out / "demo.json").read_text())
    assert document == json.loads(json.dumps(result.report.to_json()))
    assert document["regimes"].keys() == {"unsure", "sure"}
    assert len(document["rows"]) == 2 * (1 + 2 * len(LOSSES) + 1)
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 1 + 2 * 4

    class Cells(HTMLParser):
        texts: list[str] = []  # noqa: RUF012

        def handle_data(self, data):
            self.texts.append(data)

    reader = Cells()
    reader.feed(page)
    for regime in result.report.regimes:
        for row in result.report.rows(regime):
            assert set(row[1:]) - {""} <= set(reader.texts)


def test_run_demo_replaces_an_earlier_demo(tmp_path):
    def run():
        result = run_demo(tmp_path, regimes=REGIMES[:1], num_candidates=(4,), epochs=1)
        rows = result.report.to_json()["rows"]
        return [{k: v for k, v in row.items() if k != "train_seconds"} for row in rows]

    assert run() == run()


def test_run_demo_without_true_vectors_is_refused(tmp_path):
    topics = Regime("topics", SMALL.model_copy(update={"mode": "topics"}))
    with pytest.raises(ConfigError, match="softmax"):
        run_demo(tmp_path, regimes=[*REGIMES, topics])
    with pytest.raises(ConfigError, match="at least one number of candidates"):
        run_demo(tmp_path, num_candidates=())
    with pytest.raises(ConfigError, match="at least one regime"):
        run_demo(tmp_path, regimes=[])
    assert not list(tmp_path.iterdir())


def test_stopped_demo_does_not_propose_resume(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise Interrupted("run the same command with --resume to continue")

    monkeypatch.setattr("candid.demo.run.train_run", stop)
    with pytest.raises(Interrupted, match="start again") as error:
        run_demo(tmp_path, regimes=REGIMES[:1], num_candidates=(64,))
    assert "--resume" not in str(error.value)


def test_oracle_of_a_foreign_dataset_is_refused(demo):
    out, _, _ = demo
    other = SyntheticData(SMALL.model_copy(update={"num_users": 300}))
    with pytest.raises(ArtifactError, match="this synthetic data"):
        OracleModel(other, open_dataset(out / "sure" / "data"))


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
