"""The verb ``candid baselines``."""

import json


def test_baselines_are_ranked(candid, toy, tmp_path):
    out = tmp_path / "baselines.json"
    settings = ["--set", "evaluation.ks=[1, 10]", "--only", "popularity", "--only", "markov"]
    answer = candid("baselines", toy.data, *settings, "--json", "--out", out)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    names = [one["name"] for one in answer.document["baselines"]]
    assert sorted(names) == ["markov", "popularity"]
    assert answer.document["split"] == "test"
    assert answer.document["tuned_on"] == 40
    assert json.loads(out.read_text())["baselines"] == answer.document["baselines"]
    values = [one["report"]["metrics"]["ndcg@10"]["value"] for one in answer.document["baselines"]]
    assert values == sorted(values, reverse=True)


def test_table_has_settings_and_intervals(candid, toy):
    answer = candid(
        "baselines", toy.data, "--only", "markov", "--split", "validation", "--no-tune", "-q"
    )
    assert answer.code == 0, answer.err
    assert "validation: baselines by ndcg@10, 40 users" in answer.out
    assert "default settings, not tuned" in answer.out
    assert "window 3" in answer.out
    assert "±" in answer.out


def test_bad_usage_and_data_have_their_exit_codes(candid, toy, tmp_path):
    answer = candid("baselines", toy.data, "--only", "knn")
    assert answer.code == 2
    assert "unknown baseline 'knn'" in answer.err
    answer = candid("baselines", toy.data, "--set", "training.epochs=3")
    assert answer.code == 2
    assert "only keys of [evaluation]" in answer.err
    assert candid("baselines", tmp_path / "missing").code == 4


def test_evaluation_shows_tuned_baselines_on_the_same_targets(candid, toy):
    answer = candid("evaluate", toy.run, "--baselines", "--json")
    assert answer.code == 0, answer.err
    beside = answer.document["baselines"]
    assert len(beside["comparisons"]) >= 7
    ranked = answer.document["counts"]["users_ranked"]
    for pair, one in zip(beside["comparisons"], beside["results"]["baselines"], strict=True):
        assert pair["users"] == one["report"]["counts"]["users_ranked"] == ranked
        model = answer.document["metrics"]["ndcg@10"]["value"]
        baseline = one["report"]["metrics"]["ndcg@10"]["value"]
        assert abs(pair["difference"] - (model - baseline)) < 1e-12
    stored = json.loads((toy.run / "baselines-test.json").read_text())
    assert stored == beside
    assert "baselines" not in candid("evaluate", toy.run, "--json").document


def test_training_shows_cheap_baselines_unless_they_are_switched_off(candid, toy, tmp_path):
    train = ["train", toy.recipe, "--data", toy.data, "--set", "evaluation.validation_users=16"]
    answer = candid(*train, "--out", tmp_path / "run", "-q")
    assert answer.code == 0, answer.err
    assert "the model beside baselines, 16 users" in answer.out
    assert "baseline, " in answer.out
    assert "candid evaluate" in answer.out
    stored = json.loads((tmp_path / "run" / "baselines-test.json").read_text())
    names = [one["baseline"] for one in stored["comparisons"]]
    assert sorted(names) == ["co_visits", "item_knn", "markov", "popularity"]
    assert stored["results"]["tuned_on"] is None
    answer = candid(*train, "--out", tmp_path / "other", "--no-baselines", "--json")
    assert answer.code == 0, answer.err
    assert answer.document["baselines"] is None
    assert not (tmp_path / "other" / "baselines-test.json").exists()
