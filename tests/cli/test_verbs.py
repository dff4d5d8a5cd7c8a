import json
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

import candid as package
from candid.data import open_dataset


def test_prepare_reports_counts_and_skips_an_up_to_date_dataset(candid, toy, tmp_path):
    flags = ["--interactions", toy.log, "--user", "who", "--item", "what", "--time", "at"]
    first = candid("prepare", *flags, "--out", tmp_path / "d")
    assert first.code == 0
    assert "320 interactions of 40 users with 30 items" in first.out
    assert "split: 240 train, 40 validation, 40 test" in first.out
    assert "reading" in first.err
    again = candid("prepare", *flags, "--out", tmp_path / "d", "--json")
    assert (again.code, again.err) == (0, "")
    assert again.document["up_to_date"] is True
    assert again.document["counts"]["users"] == 40


def test_prepare_options_override_the_recipe_and_set_overrides_both(candid, toy, tmp_path):
    answer = candid(
        "prepare", toy.recipe, "--k-core", "3", "--set", "data.k_core=2", "--split", "temporal",
        "--validation", "0.5", "--test", "0.75", "--out", tmp_path / "d", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    config = answer.document["config"]
    assert (config["k_core"], config["split"]["kind"]) == (2, "temporal")
    assert (config["split"]["validation"], config["split"]["test"]) == (0.5, 0.75)
    assert config["items"]["title"] == "title"


def test_prepare_keeps_the_ids_of_an_earlier_dataset(candid, toy, tmp_path):
    log = tmp_path / "log.csv"
    lines = toy.log.read_text().splitlines()
    log.write_text("\n".join([lines[0], "a0,i05,1", "a0,a99,2", "a0,i07,3", *lines[9:]]) + "\n")
    out = tmp_path / "out"
    options = ["--interactions", log, "--ids-from", toy.data, "--out", out]
    answer = candid("prepare", toy.recipe, *options)
    assert answer.code == 0, answer.err
    assert "ids of users: 39 kept, 1 new, 1 retired" in answer.out
    assert "ids of items: 30 kept, 1 new, 0 retired" in answer.out
    before, now = open_dataset(toy.data), open_dataset(out)
    for kind, new in (("users", "a0"), ("items", "a99")):
        ids = getattr(before, kind)["source_id"].to_list()
        assert getattr(now, kind)["source_id"].to_list() == [*ids, new]


SPLIT_FLAGS = {
    "leave-k-out": ({"--split-k": 2}, {"k": 2}, (160, 80, 80)),
    "ratio": (
        {"--validation-ratio": 0.25, "--test-ratio": 0.5},
        {"validation_ratio": 0.25, "test_ratio": 0.5},
        (80, 80, 160),
    ),
    "rolling": (
        {"--window": "1h", "--folds": 2, "--fold": 1},
        {"window": "1h", "folds": 2, "fold": 1},
        (200, 80, 40),
    ),
    "cross-validation": (
        {"--folds": 4, "--fold": 3, "--split-unit": "interaction"},
        {"folds": 4, "fold": 3, "unit": "interaction"},
        (160, 80, 80),
    ),
    "none": ({}, {}, (320, 0, 0)),
}


@pytest.mark.parametrize("kind", SPLIT_FLAGS)
def test_prepare_takes_the_settings_of_each_split(candid, tmp_path, kind):
    flags, settings, sizes = SPLIT_FLAGS[kind]
    # 40 users with 8 interactions each, every 30 minutes from 12:30 to 16:00.
    start = 1_600_000_200
    rows = [f"{user},{(user + n) % 30},{start + 1800 * n}" for user in range(40) for n in range(8)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,time", *rows]) + "\n")
    answer = candid(
        *("prepare", "--interactions", tmp_path / "log.csv", "--time", "time", "--split", kind),
        *(part for flag in flags.items() for part in flag),
        *("--out", tmp_path / "d", "--json"),
    )
    assert answer.code == 0, answer.err
    split = answer.document["config"]["split"]
    assert split | {"kind": kind} | settings == split
    counts = answer.document["counts"]
    assert (counts["train"], counts["validation"], counts["test"]) == sizes


def test_a_run_without_a_split_keeps_the_last_weights_and_cannot_be_evaluated(
    candid, toy, tmp_path
):
    data, run = tmp_path / "data", tmp_path / "run"
    assert candid("prepare", toy.recipe, "--split", "none", "--out", data, "--quiet").code == 0
    settings = ["--set", "data.split.kind=none", "--set", "training.epochs=2"]
    answer = candid("train", toy.recipe, *settings, "--data", data, "--out", run, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["test"] is None
    assert answer.document["result"]["best"] is None
    assert answer.document["result"]["epochs"] == 2
    assert (run / "last.safetensors").exists()
    assert not (run / "best.safetensors").exists()
    assert candid("recommend", run, "--user", "u1", "-k", "3").code == 0
    answer = candid("evaluate", run)
    assert (answer.code, answer.out) == (3, "")
    assert "the dataset has no test split: measure on another split, or prepare" in answer.err


def test_train_with_a_refit_shows_the_measurements_of_the_model_before_it(candid, toy, tmp_path):
    flags = ["--data", toy.data, "--out", tmp_path / "run", "--refit", "--no-baselines"]
    answer = candid("train", toy.recipe, *flags, "--json")
    assert (answer.code, answer.err) == (0, "")
    document = answer.document
    record = document["refit"]
    assert record["before"] == "before-refit"
    assert document["result"]["steps"] == record["steps"]
    assert document["targets"]["interactions"] == 320
    stored = tmp_path / "run" / "before-refit" / "evaluation-test.json"
    assert json.loads(stored.read_text()) == document["test"]
    again = candid("train", toy.recipe, *flags, "--resume")
    assert again.code == 0, again.err
    text = " ".join(again.out.split())
    assert re.search(r"best validation \S+ [0-9.]+ .*before the refit: test: 40 users", text)
    assert record["steps"] == 1
    assert "refit on all interactions: 1 epoch, 1 step in" in text
    assert "as validation " in again.err
    refused = candid("evaluate", tmp_path / "run")
    assert (refused.code, refused.out) == (2, "")
    assert (
        f"measure the model before the refit ({tmp_path / 'run' / 'before-refit'})" in refused.err
    )
    for verb in (["recommend", "--user", "u1"], ["index"], ["export", "--out", tmp_path / "e"]):
        assert candid(verb[0], tmp_path / "run", *verb[1:]).code == 0, verb


def test_prepare_reads_tables_of_users_and_items(candid, tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"u{user},i{(user + at) % 30:02},{at}" for user in range(40) for at in range(4)]
    log.write_text("\n".join(["who,what,at", *rows]) + "\n")
    users = tmp_path / "users.csv"
    users.write_text("who,age,job\n" + "".join(f"u{n},{n},baker\n" for n in range(1, 40)))
    films = tmp_path / "films.csv"
    films.write_text("what,year,country\n" + "".join(f"i{n:02},{n},IS\n" for n in range(30)))
    flags = ["--interactions", log, "--user", "who", "--item", "what", "--time", "at"]
    flags += ["--users", users, "--users-user", "who", "--users-attribute", "age"]
    flags += ["--users-attribute", "job", "--items", films, "--items-item", "what"]
    flags += ["--items-attribute", "year", "--set", "data.items.title=none"]
    answer = candid("prepare", *flags, "--out", tmp_path / "d", "--json")
    assert answer.code == 0, answer.err
    dataset = package.data.open_dataset(tmp_path / "d")
    assert dataset.users.columns == ["source_id", "age", "job"]
    assert dataset.users["age"].to_list()[:3] == [None, 1, 10]
    assert dataset.items.columns == ["source_id", "year"]
    again = candid("prepare", *flags, "--out", tmp_path / "d")
    assert "users without a row in their table: 1" in again.out
    assert "items without" not in again.out
    assert "is up to date" in again.out
    bare = candid("prepare", *flags[:8], "--users", users, "--out", tmp_path / "e")
    assert bare.code == 2
    assert "users.attributes is empty" in bare.err
    assert not (tmp_path / "e").exists()


def test_train_ends_well_where_all_test_targets_are_new_items(candid, tmp_path):
    log = ["user_id,item_id,time,role"]
    for user in range(8):
        log += [f"u{user},i{(user + day) % 6},{day},train" for day in range(4)]
        log += [f"u{user},i{(user + 4) % 6},4,validation", f"u{user},new{user % 2},5,test"]
    (tmp_path / "log.csv").write_text("\n".join(log))
    split = ["--set", "data.split.kind=column", "--set", "data.split.column=role"]
    data, run = tmp_path / "data", tmp_path / "run"
    answer = candid(
        *("prepare", "--interactions", tmp_path / "log.csv", "--time", "time", *split),
        *("--out", data),
    )
    assert (answer.code, "8 have an untrained item" in answer.out) == (0, True)
    small = ["training.epochs=1", "evaluation.ks=[1,2]", 'evaluation.metric="ndcg@2"']
    settings = [part for one in small for part in ("--set", one)]
    answer = candid("train", "--data", data, "--out", run, *settings, "--quiet")
    assert answer.code == 0
    assert "not measured on the test split: all 8 test targets are cold items" in answer.out
    among_cold = ["--set", 'evaluation.catalog="cold"']
    assert f"candid evaluate {run} --set KEY=VALUE" in answer.out
    answer = candid("evaluate", run, *among_cold, "--json")
    assert (answer.code, answer.document["counts"]["cold_targets"]) == (0, 8)


def test_train_starts_from_an_earlier_run(candid, toy, tmp_path):
    out = tmp_path / "next"
    arguments = ["--data", toy.data, "--init", toy.run, "--out", out, "--no-baselines"]
    answer = candid("train", *arguments, "--set", "training.init_optimizer=keep")
    assert answer.code == 0, answer.err
    assert f"settings of {toy.run}" in answer.err
    assert "which has 30 of 30 items and 40 of 40 users" in " ".join(answer.err.split())
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["config"]["training"]["epochs"] == 1
    assert manifest["result"]["epochs"] == 2
    assert manifest["init"]["optimizer"] == "keep"
    flags = ["--epochs-new", "2", "--replay", "0.5"]
    nothing = candid(
        "train", "--data", toy.data, "--init", toy.run, "--out", tmp_path / "n", *flags
    )
    assert nothing.code == 3
    assert "leave out training.epochs_new (--epochs-new)" in nothing.err
    wrong = candid("train", "--data", toy.data, "--init", tmp_path, "--out", tmp_path / "no")
    assert wrong.code == 4
    assert "is not a run" in wrong.err


def test_train_prepares_trains_and_measures_from_a_recipe(candid, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = candid("train", toy.recipe, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["run"] == "runs/toy"
    targets = answer.document["targets"]  # 40 users with 6 training interactions each
    assert (targets["interactions"], targets["trained"], targets["without_history"]) == (
        240,
        200,
        40,
    )
    manifest = json.loads((tmp_path / "runs/toy/run.json").read_text())
    assert manifest["targets"] == targets
    assert set(answer.document["test"]["metrics"]) >= {"ndcg@10", "recall@1", "nll"}
    assert (tmp_path / "data/toy/manifest.json").exists()
    stored = json.loads((tmp_path / "runs/toy/evaluation-test.json").read_text())
    assert stored == answer.document["test"]
    warm = candid("evaluate", "runs/toy", "--set", "evaluation.catalog=warm")
    assert "users, among warm items" in " ".join(warm.out.split())
    # The report of a part of the catalog has its own file.
    assert json.loads((tmp_path / "runs/toy/evaluation-test.json").read_text()) == stored
    part = json.loads((tmp_path / "runs/toy/evaluation-test-warm.json").read_text())
    assert part["settings"]["catalog"] == "warm"


def test_a_refused_refit_leaves_the_dataset_of_other_runs(candid, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert candid("prepare", toy.recipe, "--out", "data/toy").code == 0
    before = (tmp_path / "data/toy/manifest.json").read_bytes()
    answer = candid("train", toy.recipe, "--refit", "--set", "data.split.kind=none")
    assert answer.code == 2, answer.err
    assert 'with split.kind = "none": leave out --refit' in answer.err
    assert (tmp_path / "data/toy/manifest.json").read_bytes() == before


@pytest.mark.parametrize(("steps", "when"), [(1, "within the first epoch"), (9, "after epoch 1")])
def test_train_reports_the_epoch_of_the_best_validation(candid, toy, tmp_path, steps, when):
    flags = ["--set", f"training.max_steps={steps}", "--set", "batches.batch_size=8", "--quiet"]
    answer = candid("train", toy.recipe, "--data", toy.data, "--out", tmp_path / "r", *flags)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[0].endswith(when)


def test_interrupt_while_measuring_reports_that_training_is_done(
    candid, toy, tmp_path, monkeypatch
):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    out = tmp_path / "r"
    with monkeypatch.context() as patch:
        patch.setattr("candid.runs.Run.evaluate", stop)
        answer = candid("train", toy.recipe, "--data", toy.data, "--out", out, "--quiet")
    assert answer.code == 130
    assert answer.err.endswith(f"{out} is trained, measure it with: candid evaluate {out}\n")
    assert candid("evaluate", out).code == 0


def test_default_recipe_fits_the_dataset(candid, toy, tmp_path):
    out = tmp_path / "r"
    answer = candid(
        "train", "--data", toy.data, "--out", out, "--set", "training.epochs=1", "--quiet"
    )
    assert (answer.code, answer.err) == (0, "")
    assert "ndcg" in answer.out
    config = json.loads((out / "run.json").read_text())["config"]
    assert config["name"] == "data"
    assert config["evaluation"]["ks"] == [1, 5, 10, 20]


def test_default_recipe_uses_embeddings_for_interactions_without_order(candid, toy, tmp_path):
    lines = toy.log.read_text().splitlines()
    roles = ["role", *(("train", "train", "validation", "test")[n % 4] for n in range(320))]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(f"{line},{role}" for line, role in zip(lines, roles, strict=True)))
    prepared = candid(
        "prepare", "--interactions", log, "--user", "who", "--item", "what",
        "--split", "column", "--split-column", "role", "--out", tmp_path / "d",
    )  # fmt: skip
    assert prepared.code == 0, prepared.err
    trained = candid(
        "train", "--data", tmp_path / "d", "--out", tmp_path / "r", "--json",
        "--set", "training.epochs=1",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    config = json.loads((tmp_path / "r/run.json").read_text())["config"]
    assert config["model"]["query_tower"]["type"] == "user_embedding"
    assert config["batches"]["unit"] == "interaction"


def test_evaluate_applies_split_and_overrides(candid, toy):
    answer = candid(
        "evaluate", toy.run, "--split", "validation", "--json",
        "--set", "evaluation.ks=[2]", "--set", "evaluation.metric=recall@2",
    )  # fmt: skip
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["split"] == "validation"
    assert answer.document["metric"] == "recall@2"
    assert not (toy.run / "evaluation-validation.json").exists()
    [written] = toy.run.glob("evaluation-validation-set-*.json")
    assert json.loads(written.read_text())["metric"] == "recall@2"
    text = candid("evaluate", toy.run)
    assert text.code == 0
    assert "recall" in text.out
    assert "history length" in text.out


def test_recommend_shows_titles_and_excludes_seen_items(candid, toy):
    answer = candid("recommend", toy.run, "--user", "u1", "--user", "u2", "-k", "5", "--json")
    assert answer.code == 0, answer.err
    seen = {line.split(",")[1] for line in toy.log.read_text().splitlines() if "u1," in line[:3]}
    first, second = answer.document["answers"]
    assert (first["user"], second["user"]) == ("u1", "u2")
    assert len(first["items"]) == 5
    assert not seen & {item["item"] for item in first["items"]}
    number = int(first["items"][0]["item"][1:])
    assert first["items"][0]["title"] == f"The {number}th Film"


def test_recommend_accepts_a_history_of_ids_and_titles(candid, toy):
    arguments = ["recommend", toy.run, "--history", "i03", "--history", "the 4th film", "-k", "28"]
    items = candid(*arguments, "--json").document["answers"][0]["items"]
    assert {item["item"] for item in items} == {f"i{n:02}" for n in range(30)} - {"i03", "i04"}
    arguments[-1] = "30"
    both = candid(*arguments, "--include-seen", "--json").document["answers"][0]["items"]
    assert {"i03", "i04"} <= {item["item"] for item in both}
    assert "The 5th Film" in candid(*arguments).out


def test_sigterm_while_preparing_removes_the_temporary_folder(tmp_path):
    """A writer that waits simulates a large dataset."""
    program = (
        "import sys, time, candid.data\n"
        "from candid.cli import main\n"
        "def wait(folder, *rest):\n"
        "    (folder / 'half').write_text('x')\n"
        "    time.sleep(60)\n"
        "sys.modules['candid.data.dataset'].write_dataset_files = wait\n"
        "main()"
    )
    rows = [f"{user},{(user + step) % 5},{step}" for user in range(5) for step in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,t", *rows]))
    flags = ["--interactions", tmp_path / "log.csv", "--order", "t", "--out", tmp_path / "d"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "prepare", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".d.*.tmp/half")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.splitlines()[-1] == "error: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_that_resume_continues(candid, toy, tmp_path):
    out = tmp_path / "r"
    arguments = ["train", toy.recipe, "--data", toy.data, "--out", out, "--quiet"]
    endless = ["--set", "training.epochs=100000", "--set", "training.patience=none"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from candid.cli import main; main()",
            *map(str, arguments + endless),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "last.safetensors").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint after a minute"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.startswith("error: stopped at step ")
    assert "--resume" in stderr
    steps = int(stderr.split()[4].rstrip(";"))
    resumed = candid(
        *arguments, *endless, "--resume", "--json", "--set", f"training.max_steps={steps + 1}"
    )
    assert resumed.code == 0, resumed.err
    assert resumed.document["result"]["steps"] == steps + 1


def test_evaluate_writes_the_report_to_the_given_file(candid, toy, tmp_path):
    out = tmp_path / "report.json"
    before = (toy.run / "evaluation-test.json").read_bytes()
    answer = candid("evaluate", toy.run, "--set", "evaluation.ks=[10]", "--out", out, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["file"] == str(out)
    assert json.loads(out.read_text())["metrics"] == answer.document["metrics"]
    assert (toy.run / "evaluation-test.json").read_bytes() == before


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_evaluate_measures_given_lists(candid, toy, tmp_path, suffix):
    """Lists in which the first item is the target of half of the users."""
    dataset = package.open_dataset(toy.data)
    users = dataset.users["source_id"].to_list()
    last = [dataset.item_ids[stop - 1] for stop in dataset.user_offsets[1:]]
    other = [dataset.item_ids[start] for start in dataset.user_offsets[:-1]]
    chosen = [last[u] if u % 2 else other[u] for u in range(len(users))]
    frame = pl.DataFrame(
        {"query": users, "item": dataset.items["source_id"][chosen], "rank": [1] * len(users)}
    )
    file, out = tmp_path / f"recs.{suffix}", tmp_path / "report.json"
    getattr(frame, f"write_{suffix}")(file)
    flags = ["--recommendations", file, "--data", toy.data, "--out", out]
    answer = candid("evaluate", *flags, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["metrics"]["recall@1"]["value"] == 0.5
    assert answer.document["counts"]["short_lists"] == 40
    assert json.loads(out.read_text())["metrics"] == answer.document["metrics"]
    assert "recall" in candid("evaluate", *flags).out


def test_evaluate_of_given_lists_counts_missing_users_and_items(candid, toy, tmp_path):
    dataset = package.open_dataset(toy.data)
    users, items = (table["source_id"].to_list() for table in (dataset.users, dataset.items))
    rows = [(users[0], items[0], 1), (users[0], 987_654_321, 2), (987_654_321, items[0], 1)]
    frame = pl.DataFrame(rows, schema=["query", "item", "rank"], orient="row")
    frame.write_csv(tmp_path / "recs.csv")
    flags = ["--recommendations", tmp_path / "recs.csv", "--data", toy.data]
    answer = candid("evaluate", *flags, "--set", "evaluation.ks=[1,10]")
    assert answer.code == 0, answer.err
    text = " ".join(answer.out.split())
    assert f"users with targets and without a list: {len(users) - 1};" in text
    assert "lists of fewer than 10 items: 1;" in text
    assert "users that the dataset does not have: 1;" in text
    assert "rows with an item that the dataset does not have: 1;" in text
    assert "no list has a target of the test split" in text
    full = [(user, item, rank) for user in users for rank, item in enumerate(items[:10])]
    frame = pl.DataFrame(full, schema=["query", "item", "rank"], orient="row")
    frame.write_csv(tmp_path / "recs.csv")
    answer = candid("evaluate", *flags, "--set", "evaluation.ks=[1,10]")
    assert answer.code == 0, answer.err
    assert "without a list" not in answer.out
    assert "does not have" not in answer.out
    assert "no list has a target" not in answer.out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "either the folder of a run, or --recommendations FILE"),
        (["{run}", "--recommendations", "recs.csv"], "either the folder of a run"),
        (["--recommendations", "recs.csv"], "add --data DATASET"),
        (["--recommendations", "recs.csv", "--data", "{data}", "--baselines"], "leave it out"),
    ],
)
def test_evaluate_of_unclear_input_is_refused(candid, toy, flags, sentence):
    answer = candid("evaluate", *(flag.format(run=toy.run, data=toy.data) for flag in flags))
    assert answer.code == 2
    assert sentence in answer.err


def test_prepare_prints_dates_ties_and_steps(candid, tmp_path):
    rows = [
        f"{user},{item},{1_700_000_000 + 60 * (item // 2)}"
        for user in range(4)
        for item in range(6)
    ]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["user_id,item_id,t", *rows]))
    (tmp_path / "items.csv").write_text(
        "item_id,title\n" + "".join(f"{i},t{i}\n" for i in range(9))
    )
    command = ["prepare", "--interactions", log, "--time", "t", "--items", tmp_path / "items.csv"]
    answer = candid(*command, "--out", tmp_path / "d")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert "time: 2023-11-14T22:13:20Z to 2023-11-14T22:15:20Z (numbers read as seconds)" in lines
    assert (
        "100% of the interactions have the same time as another one of their user, and keep the "
        "order of the file; --order COLUMN would order them" in lines
    )
    assert "rows of the table of items without an interaction or an id, left out: 3" in lines
    steps = [line.split()[0] for line in answer.err.splitlines()]
    assert steps == [
        "reading",
        "checking",
        "numbering",
        "sorting",
        "filtering",
        "splitting",
        "reading",
        "writing",
    ]
    document = candid(*command, "--out", tmp_path / "e", "--json").document
    assert document["time"]["first"] == "2023-11-14T22:13:20.000000Z"
    assert document["tied"] == 24
    ordered = candid(*command, "--order", "item_id", "--out", tmp_path / "f")
    assert "same time" not in ordered.out
    assert (
        candid(*command, "--order", "item_id", "--out", tmp_path / "f", "--json").document["tied"]
        == 0
    )
