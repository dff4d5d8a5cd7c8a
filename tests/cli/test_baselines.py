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
