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
    assert "the 5 baselines measured here, " in " ".join(answer.out.split())
    assert "candid evaluate" in answer.out
    stored = json.loads((tmp_path / "run" / "baselines-test.json").read_text())
    names = [one["baseline"] for one in stored["comparisons"]]
    assert sorted(names) == ["co_visits", "item_knn", "markov", "popularity", "session_knn"]
    assert stored["results"]["tuned_on"] is None
    answer = candid(*train, "--out", tmp_path / "other", "--no-baselines", "--json")
    assert answer.code == 0, answer.err
    assert answer.document["baselines"] is None
    assert not (tmp_path / "other" / "baselines-test.json").exists()


def test_a_saved_baseline_is_recommended_from_evaluated_and_compared(candid, toy, tmp_path):
    knn = tmp_path / "knn"
    settings = ["--only", "item_knn", "--no-tune", "--set", "evaluation.ks=[1, 10]"]
    measured = candid("baselines", toy.data, *settings, "--save", knn, "--json")
    assert measured.code == 0, measured.err
    assert measured.document["saved"] == {"baseline": "item_knn", "folder": str(knn)}
    report = measured.document["baselines"][0]["report"]

    by_user = candid("recommend", knn, "--user", "u3", "-k", "4", "--json")
    assert by_user.code == 0, by_user.err
    [answer] = by_user.document["answers"]
    assert answer["user"] == "u3"
    assert [one["rank"] for one in answer["items"]] == [1, 2, 3, 4]
    by_history = candid("recommend", knn, "--history", "The 4th Film", "--history", "i07", "-q")
    assert by_history.code == 0, by_history.err
    assert "i04" not in by_history.out

    evaluated = candid("evaluate", knn, "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.document["metrics"] == report["metrics"]
    stored = json.loads((knn / "evaluation-test.json").read_text())
    assert stored["metrics"] == report["metrics"]

    page = tmp_path / "page.html"
    compared = candid("compare", toy.run, knn, "--out", page, "--json")
    assert compared.code == 0, compared.err
    values = compared.document["reports"]
    assert values[str(knn)]["metrics"]["ndcg@10"] == report["metrics"]["ndcg@10"]
    difference = values[str(knn)]["differences"]["ndcg@10"]["difference"]
    expected = (
        report["metrics"]["ndcg@10"]["value"] - values[str(toy.run)]["metrics"]["ndcg@10"]["value"]
    )
    assert abs(difference - expected) < 1e-12
    assert "baseline.type" in compared.document["settings"]
    assert page.exists()
    other_way = candid("compare", knn, toy.run, "--json")
    assert other_way.code == 0, other_way.err
    assert other_way.document["reference"] == str(knn)
    on_data = candid("compare", knn, toy.run, "--data", toy.data, "-q")
    assert on_data.code == 0, on_data.err


def test_the_best_of_several_is_saved(candid, toy, tmp_path):
    some = ["--only", "popularity", "--only", "markov", "--no-tune", "-q"]
    answer = candid("baselines", toy.data, *some, "--save", tmp_path / "best")
    assert answer.code == 0, answer.err
    manifest = json.loads((tmp_path / "best" / "baseline.json").read_text())
    assert f"{manifest['baseline']} saved in {tmp_path / 'best'}" in answer.out
    first = next(line for line in answer.out.splitlines() if "│" in line)
    assert manifest["baseline"] in first


def test_a_folder_with_content_is_refused_before_the_measurement(candid, toy):
    answer = candid("baselines", toy.data, "--save", toy.run, "--only", "markov")
    assert answer.code == 2
    assert "name a new or empty folder with --save" in answer.err
    assert answer.out == ""


def test_verbs_that_need_a_run_refuse_a_saved_baseline(candid, toy, tmp_path):
    knn = tmp_path / "knn"
    save = ["--only", "item_knn", "--no-tune", "--save", knn, "-q"]
    assert candid("baselines", toy.data, *save).code == 0
    table = tmp_path / "new.csv"
    for verb in ("index", "audit"):
        answer = candid(verb, knn)
        assert answer.code == 4
        assert "is a saved baseline and this needs a trained run" in answer.err
    for option, arguments in (
        ("--baselines", ("evaluate", knn, "--baselines")),
        ("--new-items", ("recommend", knn, "--user", "u1", "--new-items", table)),
    ):
        answer = candid(*arguments)
        assert answer.code == 2
        assert f"is a saved baseline: leave out {option}" in answer.err
    answer = candid("recommend", knn, "--user", "u1", "--at", "2026-01-31")
    assert answer.code == 2
    assert "the baseline item_knn does not read the time of a query" in answer.err
