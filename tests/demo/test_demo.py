from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from candid.data import Role, held_out, open_dataset
from candid.demo import run_demo
from candid.demo.oracle import OracleModel
from candid.errors import ArtifactError, ConfigError
from candid.synthetic import SyntheticConfig, SyntheticData

SMALL = SyntheticConfig(num_items=120, num_users=400, num_topics=6, interactions_mean=12.0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    notes: list[str] = []
    return out, run_demo(out, synthetic=SMALL, epochs=1, threads=1, note=notes.append), notes


def test_run_demo_compares_every_objective_with_the_oracle(demo):
    _, result, notes = demo
    rows = result.report.rows()
    assert [row[0] for row in rows] == ["none", "logq", "refined", "full softmax", "oracle"]
    assert all(len(row) == len(result.report.columns) for row in rows)
    assert any("refined" in line for line in notes)
    models = result.report.models
    excess = {name: c.report.metrics["excess_nll"].value for name, c in models.items()}
    # No model beats the oracle, which is at zero except for items that never occurred.
    assert abs(excess["oracle"]) < 0.05
    assert all(value > 0.1 for name, value in excess.items() if name != "oracle")
    ndcg = {name: c.report.metrics["ndcg@10"].value for name, c in models.items()}
    assert max(ndcg, key=ndcg.get) == "oracle"
    assert sum(models["oracle"].recommended_counts) == 10 * 400


def test_oracle_log_prob_equals_that_of_the_synthetic_data(demo):
    out, _, _ = demo
    synthetic, dataset = SyntheticData(SMALL), open_dataset(out / "data")
    test = held_out(dataset, Role.TEST)
    log_prob = OracleModel(synthetic, dataset).log_prob(test)
    frame = synthetic.interactions(0, SMALL.num_users)
    for query in (0, 7, 399):
        items = frame.filter(user_id=query)["item_id"].to_numpy()
        expected = synthetic.log_probs(np.array([query]), items[:-1], np.array([0, len(items) - 1]))
        assert log_prob[query] == pytest.approx(expected[0, items[-1]], rel=1e-12)


def test_page_and_json_hold_the_table(demo):
    out, result, _ = demo
    document = json.loads((out / "demo.json").read_text())
    assert document["models"].keys() == result.report.models.keys()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 5

    class Cells(HTMLParser):
        texts: list[str] = []  # noqa: RUF012

        def handle_data(self, data):
            self.texts.append(data)

    reader = Cells()
    reader.feed(page)
    for row in result.report.rows():
        assert set(row) - {""} <= set(reader.texts)


def test_run_demo_replaces_an_earlier_demo(demo):
    out, result, _ = demo
    again = run_demo(out, synthetic=SMALL, epochs=1, threads=1)
    one, two = (
        {n: c.report.summary() for n, c in r.report.models.items()} for r in (result, again)
    )
    assert one == two


def test_run_demo_without_true_vectors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="softmax"):
        run_demo(tmp_path, synthetic=SMALL.model_copy(update={"mode": "topics"}))
    assert not list(tmp_path.iterdir())


def test_oracle_of_a_foreign_dataset_is_refused(demo):
    out, _, _ = demo
    other = SyntheticData(SMALL.model_copy(update={"num_users": 300}))
    with pytest.raises(ArtifactError, match="this synthetic data"):
        OracleModel(other, open_dataset(out / "data"))
