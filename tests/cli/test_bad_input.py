"""Bad input: one sentence that names place and fix, the exit code, and no half-written file."""

import json
import shutil
import subprocess
import sys

import pytest

LOG = "who,what,at\na,1,100\na,2,200\na,3,300\nb,2,100\nb,3,200\nb,1,300\n"
DATES = "who,what,at\na,1,2020-01-01\na,2,2020-01-02\nb,2,2020-01-03\n"
COLUMNS = ["--user", "who", "--item", "what", "--time", "at"]

USAGE = [
    (["fly"], "No such command 'fly'"),
    (["train", "--fast"], "No such option: --fast"),
    (["prepare", "--interactions", "x.csv"], "Missing option '--out'"),
    (["prepare", "--out", "d"], "name a recipe, or a file with --interactions"),
    (["train"], "name a recipe, or a prepared dataset with --data"),
    (["train", "missing.toml"], "recipe missing.toml not found"),
    (["recommend", "{run}"], "either --user ID, --users FILE, --all-users"),
    (["recommend", "{run}", "--user-attribute", "age"], "'age' is not NAME=VALUE"),
    (["recommend", "{run}", "--user-attribute", "age=3"], "reads no user features"),
    (
        ["recommend", "{run}", "--user-attribute", "age=1", "--user-attribute", "age=2"],
        "'age' is given twice, as '1' and '2'",
    ),
    (["recommend", "{run}", "--user", "u1", "--history", "i01"], "either --user ID"),
    (["recommend", "{run}", "--user", "u1", "-k", "31"], "k 31 must be between 1 and the 30"),
    (["recommend", "{run}", "--user", "u1", "-k", "0"], "k 0 must be between 1"),
    (["recommend", "{run}", "--user", "u1", "--at", "noonish"], "--at 'noonish' is not a time"),
    (["recommend", "{run}", "--user", "u1", "--at", "2026-01-31"], "does not read the time"),
    (["recommend", "{run}", "--user", "u1", "--new-items", "x.csv"], "reads no item features"),
    (["evaluate", "{run}", "--split", "train"], "'--split': 'train' is not one of"),
    (["evaluate", "{run}", "--set", "training.lr=1"], "only keys of [evaluation] can change"),
    (["evaluate", "{run}", "--set", "evaluation.ks=[1, 10, 99]"], "99 exceeds the 30 items"),
    (["evaluate", "{run}", "--set", "evaluation.k=1"], "did you mean 'evaluation.ks'?"),
    (["train", "{recipe}", "--set", "training.epoch=2"], "did you mean 'training.epochs'?"),
    (["train", "{recipe}", "--set", "loss.type=softmax"], "unknown loss 'softmax'"),
    (["train", "{recipe}", "--set", "sampler.type=unifrom"], "did you mean 'uniform'?"),
    (["train", "{recipe}", "--set", "training.epochs"], "has no '='"),
    (["train", "{recipe}", "--set", "training.betas=[1"], "not a complete TOML value"),
    (
        ["train", "{recipe}", "--set", "training.epochs=0"],
        "training.epochs must be greater than or equal to 1, got 0",
    ),
    (["train", "{recipe}", "--set", "sampler=none"], "add a section [sampler]"),
    (["train", "{recipe}", "--set", "loss.type=full_softmax"], "remove the section [sampler]"),
    (["train", "{recipe}", "--set", "data=none"], "has no section [data]"),
    (["train", "{recipe}", "--set", "training.catalog=all"], "is now training.softmax_over"),
    (["train", "{recipe}", "--set", "evaluation.metric=auc"], "'auc' is not reported; known:"),
    (["train", "{recipe}", "--data", "{data}", "--out", "{run}"], "already holds a run"),
    (["train", "{recipe}", "--set", "seed=9223372036854775808"], "seed must be less than"),
    (
        ["train", "{recipe}", "--set", "model.item_tower.dim=9223372036854775808"],
        "model.item_tower.dim must be less than or equal to 65536, got 9223372036854775808",
    ),
    (
        ["train", "{recipe}", "--set", "batches.max_length=9223372036854775808"],
        "batches.max_length must be less than or equal to 2147483648",
    ),
    (
        ["train", "{recipe}", "--set", "batches.micro_batch=9223372036854775808"],
        "batches.micro_batch must be less than or equal to 2147483648",
    ),
    (
        ["train", "{recipe}", "--set", "sampler={{type='uniform', num_candidates=10000000000}}"],
        "sampler.num_candidates must be less than or equal to 2147483648",
    ),
    (["train", "{recipe}", "--set", "seed=1.5"], "seed must be a valid integer, got 1.5"),
    (["train", "{recipe}", "--set", "threads=1000000"], "threads must be less than or equal"),
    (["train", "{recipe}", "--data", "{data}", "--set", "device='gpu'"], 'set device = "cpu"'),
    (
        ["train", "{recipe}", "--data", "{data}", "--set", "evaluation.catalog=cold"],
        'evaluation.catalog = "cold" ranks items that training never has as a target',
    ),
    (
        ["train", "{recipe}", "--set", "sampler={{type='random_fourier', nu=1e3}}"],
        "sampler.nu must be less than or equal to 80",
    ),
    (
        ["train", "{recipe}", "--set", "sampler={{type='quadratic', scale=1e300}}"],
        "sampler.scale must be less than or equal to",
    ),
    (
        ["prepare", "{recipe}", "--out", "d", "--user", "what"],
        "user and item are both column 'what'; name two different columns",
    ),
    (["prepare", "{recipe}", "--out", "d", "--split", "leave-k-out"], "needs split.k, such as 5"),
    (["prepare", "{recipe}", "--out", "d", "--split-k", "5"], "split.k has no effect with split."),
    (
        ["prepare", "{recipe}", "--out", "d", "--split", "ratio", "--test-ratio", "1"],
        "split.test_ratio must be less than 1, got 1",
    ),
    (
        ["prepare", "{recipe}", "--out", "d", "--split", "rolling", "--window", "2 weeks"],
        "split.window must be a number of days or hours such as '7d' or '12h', got '2 weeks'",
    ),
    (
        ["prepare", "{recipe}", "--out", "d", "--split", "cross-validation", "--fold", "5"],
        "split.fold must be between 0 and 4 with split.folds = 5, got 5",
    ),
    (
        ["train", "{recipe}", "--data", "{data}", "--out", "{run}", "--refit", "--resume"],
        "was started without --refit: resume without it",
    ),
    (["audit", "{run}", "--accuracy", "inf"], "--accuracy inf must be positive and finite"),
    (["audit", "{run}", "--seconds", "inf"], "--seconds inf must be positive and finite; leave"),
    (["audit", "{run}", "--noise", "nan"], "--noise nan must be a number of nats from 0"),
    (["audit", "{run}", "--seed", "9223372036854775808"], "'--seed'"),
]


def check(answer, code, *words):
    assert answer.code == code, answer.err
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in answer.err
    for word in words:
        assert word in last


@pytest.mark.parametrize(("arguments", "words"), USAGE, ids=[" ".join(a) for a, _ in USAGE])
def test_wrong_usage_or_configuration(candid, toy, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    places = {"run": toy.run, "recipe": toy.recipe, "data": toy.data}
    check(candid(*(argument.format(**places) for argument in arguments), "--quiet"), 2, words)
    assert not (tmp_path / "runs").exists()


def test_existing_run_is_refused_before_preparing(candid, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(candid("train", toy.recipe, "--out", toy.run), 2, "already holds a run")
    assert not list(tmp_path.iterdir())


def test_too_large_sizes_are_a_sentence_about_memory(candid, toy, tmp_path):
    out = tmp_path / "out"
    size = "sampler={type='cross_batch_memory', size=10000000000000}"
    arguments = ["--data", toy.data, "--out", out, "--set", size]
    check(candid("train", toy.recipe, *arguments), 1, "not enough memory for one array of", "GB;")
    assert not out.exists()


@pytest.mark.parametrize("out", ["file", "file/folder", "/proc/folder", "folder"])
def test_audit_refuses_a_place_before_measuring(candid, toy, tmp_path, out):
    """A file in place of the folder, and a folder in place of a file."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "audit.html").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    place = tmp_path / out
    answer = candid("audit", toy.run, "--out", place)
    check(answer, 4, f"cannot write {place}/audit.", "choose another path")
    assert "measurements done" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_audit_of_batches_without_candidates_is_refused(candid, toy, tmp_path):
    run = tmp_path / "run"
    settings = ["batches.batch_size=1", "sampler=in_batch", "training.max_steps=1"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    candid("train", toy.recipe, "--data", toy.data, "--out", run, *overrides)
    answer = candid("audit", run, "--users", "2", "--quiet", "--out", tmp_path / "audit")
    check(answer, 2, "there are no candidates to audit", "raise batches.batch_size")
    assert not (tmp_path / "audit").exists()


def test_broken_recipe_error_names_the_line(candid, tmp_path):
    recipe = tmp_path / "broken.toml"
    recipe.write_text('name = "x"\n[loss\n')
    check(candid("train", recipe), 2, str(recipe), "line 2")


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (LOG, ["--user", "user"], "'user'"),
        ("", [], "empty"),
        ("who,what,at\n", [], "has no rows"),
        (LOG + ",1,400\n", [], "empty values"),
        (DATES + "c,1,yesterday\n", [], "'yesterday'"),
        (LOG.replace("b,", "a,"), [], "only one user"),
        ("who,what,at\na,1,1\na,1,2\na,1,3\nb,1,4\nb,1,5\nb,1,6\n", [], "only one item"),
        (
            LOG.replace(",at\n", ",at,w\n").replace("00\n", "00,nan\n"),
            ["--weight", "w"],
            "weights that are negative or not finite",
        ),
    ],
    ids=["column", "empty", "header-only", "null-id", "date", "one-user", "one-item", "weight"],
)
def test_bad_data_is_refused(candid, tmp_path, content, flags, words):
    log = tmp_path / "log.csv"
    log.write_text(content)
    out = tmp_path / "out"
    answer = candid("prepare", "--interactions", log, *COLUMNS, *flags, "--out", out, "--quiet")
    check(answer, 3, "log.csv", words)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_unknown_user_or_title_is_a_data_error(candid, toy):
    check(candid("recommend", toy.run, "--user", "u99"), 3, "no user 'u99'", "did you mean")
    check(candid("recommend", toy.run, "--history", "Jaws"), 3, "no item 'Jaws'")
    check(candid("recommend", toy.run, "--history", "film"), 3, "matches several items")


def test_folder_without_run_or_dataset_is_refused(candid, toy, tmp_path):
    check(candid("evaluate", tmp_path), 4, str(tmp_path), "is not a run")
    check(candid("train", "--data", tmp_path, "--out", tmp_path / "r"), 4, "run candid prepare")


def test_truncated_checkpoint_is_refused(candid, toy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy.run, run)
    for path in run.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    check(candid("evaluate", run), 4, "best.safetensors")


def test_dataset_of_another_format_version_is_refused(candid, toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    manifest = json.loads((data / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 0}))
    check(candid("evaluate", toy.run, "--data", data), 4, str(data), "prepare again")


def test_dataset_that_differs_from_the_recipe_is_refused(candid, toy, tmp_path):
    answer = candid(
        "train", toy.recipe, "--data", toy.data, "--out", tmp_path / "r", "--set", "data.k_core=9"
    )
    check(answer, 4, str(toy.data), "data.k_core")
    assert not (tmp_path / "r").exists()


def test_dataset_that_differs_from_the_training_data_is_refused(candid, toy, tmp_path):
    other = tmp_path / "other"
    log = tmp_path / "log.csv"
    log.write_text(toy.log.read_text() + "u40,i01,1600000000\nu40,i02,1600000001\n")
    candid("prepare", toy.recipe, "--interactions", log, "--out", other)
    check(candid("index", toy.run, "--data", other), 4, str(other), "--data")


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_full_disk_leaves_no_half_written_file(toy, tmp_path, verb):
    """A limit on the size of files simulates a full disk: writes fail half-way."""
    out = tmp_path / "out"
    arguments = {
        "prepare": ["prepare", toy.recipe, "--out", out],
        "train": ["train", toy.recipe, "--data", toy.data, "--out", out],
    }[verb]
    limit = 600 if verb == "prepare" else 6000

    # The child limits itself: a hook between fork and exec is unsafe beside torch's threads.
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "from candid.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode not in (0, 2, 130), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert str(out) in done.stderr.splitlines()[-1]
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith((".tmp", ".safetensors", ".npy"))]
