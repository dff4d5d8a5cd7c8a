from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from candid.data import Role, held_out, open_dataset
from candid.demo import run_demo
from candid.demo.truth import TrueModel
from candid.errors import ArtifactError, ConfigError
from candid.synthetic import SyntheticConfig, World

SMALL = SyntheticConfig(num_items=120, num_users=400, num_topics=6, interactions_mean=12.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    notes: list[str] = []
    return out, run_demo(out, world=SMALL, epochs=1, threads=1, note=notes.append), notes


def test_every_objective_stands_beside_the_truth(made):
    _, result, notes = made
    rows = result.demonstration.rows()
    assert [row[0] for row in rows] == ["none", "logq", "refined", "full softmax", "truth"]
    assert all(len(row) == len(result.demonstration.columns) for row in rows)
    assert any("refined" in line for line in notes)
    contestants = result.demonstration.contestants
    excess = {name: c.report.metrics["excess_nll"].value for name, c in contestants.items()}
    # No model beats the truth, which is at zero but for items that never occurred.
    assert abs(excess["truth"]) < 0.05
    assert all(value > 0.1 for name, value in excess.items() if name != "truth")
    ndcg = {name: c.report.metrics["ndcg@10"].value for name, c in contestants.items()}
    assert max(ndcg, key=ndcg.get) == "truth"
    assert sum(contestants["truth"].recommended) == 10 * 400


def test_the_truth_is_the_world_s_own(made):
    out, _, _ = made
    world, data = World(SMALL), open_dataset(out / "data")
    questions = held_out(data, Role.TEST)
    found = TrueModel(world, data).log_prob(questions)
    frame = world.interactions(0, SMALL.num_users)
    for query in (0, 7, 399):
        items = frame.filter(user_id=query)["item_id"].to_numpy()
        expected = world.log_probs(np.array([query]), items[:-1], np.array([0, len(items) - 1]))
        assert found[query] == pytest.approx(expected[0, items[-1]], rel=1e-12)


def test_the_page_and_the_json_hold_the_table(made):
    out, result, _ = made
    document = json.loads((out / "demo.json").read_text())
    assert document["contestants"].keys() == result.demonstration.contestants.keys()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 5

    class Cells(HTMLParser):
        texts: list[str] = []  # noqa: RUF012

        def handle_data(self, data):
            self.texts.append(data)

    reader = Cells()
    reader.feed(page)
    for row in result.demonstration.rows():
        assert set(row) - {""} <= set(reader.texts)


def test_a_second_demo_replaces_the_first(made):
    out, result, _ = made
    again = run_demo(out, world=SMALL, epochs=1, threads=1)
    one, two = (
        {n: c.report.summary() for n, c in r.demonstration.contestants.items()}
        for r in (result, again)
    )
    assert one == two


def test_a_world_without_true_vectors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="softmax"):
        run_demo(tmp_path, world=SMALL.model_copy(update={"mode": "topics"}))
    assert not list(tmp_path.iterdir())


def test_a_foreign_dataset_has_no_truth(made):
    out, _, _ = made
    other = World(SMALL.model_copy(update={"num_users": 300}))
    with pytest.raises(ArtifactError, match="world"):
        TrueModel(other, open_dataset(out / "data"))
