"""The verb ``candid recipe``: what it writes trains, and follows the dataset."""

import json
import tomllib


def test_recipe_of_a_dataset_is_the_default_recipe_of_training(candid, toy, tmp_path):
    file, out = tmp_path / "recipe.toml", tmp_path / "r"
    short = ["--set", "training.epochs=1"]
    written = candid("recipe", "--data", toy.data, "--out", file, *short)
    assert (written.code, written.out) == (0, f"written to {file}\n")
    trained = candid("train", "--data", toy.data, "--out", out, "--quiet", *short)
    assert trained.code == 0, trained.err
    again = candid("train", file, "--data", toy.data, "--out", tmp_path / "again", "--quiet")
    assert again.code == 0, again.err
    configs = [
        json.loads((run / "run.json").read_text())["config"] for run in (out, tmp_path / "again")
    ]
    assert configs[0] == configs[1]


def test_recipe_is_printed_with_the_reason_of_each_choice(candid, toy):
    answer = candid("recipe", "--data", toy.data, "--set", "seed=5")
    assert answer.code == 0
    assert tomllib.loads(answer.out)["seed"] == 5
    assert "# 30 items are few enough for the whole softmax\n[loss]\n" in answer.out
    reasons = candid("recipe", "--data", toy.data, "--json").document["reasons"]
    assert reasons["loss"] == "30 items are few enough for the whole softmax"


def test_training_prints_the_choices_and_quiet_hides_them(candid, toy, tmp_path):
    short = ["--set", "training.max_steps=1", "--set", "evaluation.intervals=false"]
    answer = candid("train", "--data", toy.data, "--out", tmp_path / "r", *short)
    assert "batches.batch_size = 16: " in answer.err
    assert f"candid recipe --data {toy.data} writes them" in answer.err
    quiet = candid("train", "--data", toy.data, "--out", tmp_path / "q", "--quiet", *short)
    assert quiet.err == ""


def test_recipe_without_data_is_the_same_for_all(candid):
    answer = candid("recipe")
    assert answer.code == 0
    assert tomllib.loads(answer.out)["loss"]["type"] == "sampled_softmax"


def test_existing_file_is_kept(candid, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("mine")
    answer = candid("recipe", "--out", file)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == f"error: {file} exists; remove it, or choose another name\n"
    assert file.read_text() == "mine"


def test_folder_without_a_dataset_is_one_sentence(candid, tmp_path):
    answer = candid("recipe", "--data", tmp_path)
    assert answer.code == 4
    assert answer.err.count("\n") == 1
