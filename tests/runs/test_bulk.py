"""Bulk recommendation: the rows of ``recommend``, in blocks that survive a kill."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import candid
from candid.batches import offsets_of
from candid.data import PreparedDataset, Role, open_dataset
from candid.errors import ArtifactError, ConfigError, DataError, Interrupted
from candid.runs import bulk

NUM_USERS, NUM_ITEMS, LENGTH = 61, 20, 6
RECIPE = {
    "threads": 1,
    "device": "cpu",
    "batches": {"max_length": 4, "batch_size": 8},
    "model": {
        "query_tower": {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
    "loss": "full_softmax",
    "training": {"max_steps": 3, "trackers": []},
    "evaluation": {"ks": [1, 3], "metric": "ndcg@3", "intervals": False},
}
READS_TIME = RECIPE | {
    "features": {"context": {"clock": {"type": "clock", "column": "time"}}},
    "model": {
        "query_tower": {
            "type": "joined",
            "dim": 8,
            "towers": [
                {"type": "causal_transformer", "dim": 8, "num_blocks": 1},
                {"type": "context_features", "dim": 8},
            ],
        },
        "item_tower": {"type": "item_embedding", "dim": 8},
    },
}


def films():
    """Users "u0", …; "u61" and "u62" have no history, and "u60" has no test target."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(NUM_ITEMS)[:LENGTH] for _ in range(NUM_USERS)])
    roles = np.tile([Role.TRAIN] * 4 + [Role.VALIDATION, Role.TEST], NUM_USERS)
    roles[-1] = Role.HISTORY
    return PreparedDataset(
        item_ids=items.astype(np.int32),
        user_offsets=offsets_of(np.append(np.full(NUM_USERS, LENGTH), [0, 0])),
        roles=roles.astype(np.uint8),
        users=pl.DataFrame({"source_id": [f"u{user}" for user in range(NUM_USERS + 2)]}),
        items=pl.DataFrame(
            {
                "source_id": np.arange(NUM_ITEMS) + 100,
                "title": [None if item == 3 else f'Film, "{item}"\n' for item in range(NUM_ITEMS)],
            }
        ),
        timestamps=np.arange(NUM_USERS * LENGTH) * 1_000_000,
        manifest={"config": {"order": None}},
    )


@pytest.fixture(name="root", scope="module")
def _root(tmp_path_factory):
    root = tmp_path_factory.mktemp("bulk")
    films().save(root / "data")
    data = open_dataset(root / "data")
    candid.train(data, RECIPE, out=root / "run", measure=False, quiet=True)
    candid.train(data, READS_TIME, out=root / "timed", measure=False, quiet=True)
    return root


@pytest.fixture(name="run", scope="module")
def _run(root):
    return candid.load_run(root / "run")


@pytest.fixture(name="baseline", scope="module")
def _baseline(root):
    fitted = candid.fit_baseline(root / "data", "item_knn", tuning=False)
    return fitted.save(root / "item_knn")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of eight users for k = 5."""
    monkeypatch.setattr(bulk, "BATCH", 8)
    monkeypatch.setattr(bulk, "BLOCK_ROWS", 40)


def read(path):
    if path.suffix == ".csv":
        return pl.read_csv(path)
    return pl.read_ndjson(path) if path.suffix == ".jsonl" else pl.read_parquet(path)


USERS = [f"u{user}" for user in range(NUM_USERS)]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("kind", ["run", "baseline"])
def test_file_has_the_rows_of_recommend(request, tmp_path, kind, suffix):
    model, out = request.getfixturevalue(kind), tmp_path / f"recs.{suffix}"
    result = candid.write_recommendations(model, out, k=5, deny=[101])
    expected = model.recommend(
        users=USERS if kind == "run" else [*USERS, "u61", "u62"], k=5, deny=[101]
    )
    frame = read(out)
    assert frame.columns == expected.columns
    assert_frame_equal(frame, expected, check_dtypes=suffix == "parquet")
    assert result.rows == expected.height
    assert (result.queries, result.without_history) == ((61, 2) if kind == "run" else (63, 0))
    assert result.num_resumed == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_probabilities_are_left_out_or_wanted(run, baseline, tmp_path, suffix):
    out = tmp_path / f"recs.{suffix}"
    expected = run.recommend(users=USERS, k=5)
    candid.write_recommendations(run, out, k=5, probability=False)
    assert_frame_equal(read(out), expected.drop("probability"), check_dtypes=suffix == "parquet")
    candid.write_recommendations(run, out, k=5, probability=True)
    assert_frame_equal(read(out), expected, check_dtypes=suffix == "parquet")
    with pytest.raises(ConfigError, match=r"do not estimate a probability: .* \(--probability\)"):
        candid.write_recommendations(baseline, out, probability=True)


def test_model_may_be_its_folder(root, run, tmp_path):
    out = tmp_path / "recs.parquet"
    candid.write_recommendations(str(root / "run"), out, k=5)
    assert_frame_equal(read(out), run.recommend(users=USERS, k=5))
    candid.write_similar(root / "run", out, items=[105], k=3)
    assert_frame_equal(read(out), run.similar([105], k=3))
    with pytest.raises(ArtifactError, match="nothing"):
        candid.write_recommendations(tmp_path / "nothing", out)


def test_named_users_are_answered_once_in_their_order(run, tmp_path):
    out = tmp_path / "recs.parquet"
    candid.write_recommendations(
        run, out, users=["u9", "u2", "u9"], k=3, allow=[100, 101, 102, 103]
    )
    expected = run.recommend(users=["u9", "u2"], k=3, allow=[100, 101, 102, 103])
    assert_frame_equal(read(out), expected)


def test_fallback_gives_everyone_a_list(run, tmp_path):
    out = tmp_path / "recs.parquet"
    users = [*USERS, "u61", "u62"]
    result = candid.write_recommendations(run, out, k=5, fallback="popular")
    assert (result.queries, result.without_history) == (63, 0)
    assert_frame_equal(read(out), run.recommend(users=users, k=5, fallback="popular"))
    # A block in which every user has the list of the fallback has the same columns.
    named = [*users[:8], *(f"x{n}" for n in range(8))]
    candid.write_recommendations(run, out, users=named, k=5, fallback="recent")
    assert_frame_equal(read(out), run.recommend(users=named, k=5, fallback="recent"))


def test_request_that_cannot_be_answered_is_refused_and_leaves_no_file(run, tmp_path):
    out = tmp_path / "recs.parquet"
    with pytest.raises(
        DataError, match=r"no user 'u99' .* did you mean 'u9'.*\? Or add a fallback"
    ):
        candid.write_recommendations(run, out, users=["u1", "u99"])
    for fallback in (None, "popular"):
        with pytest.raises(DataError, match=r"no user 'x' .*; with split \(--split\), only users"):
            candid.write_recommendations(
                run, out, users=["u1", "x"], split="test", fallback=fallback
            )
    for shards in (1.5, True, "2"):
        with pytest.raises(ConfigError, match="shards must be a whole number, got"):
            candid.write_recommendations(run, out, shards=shards)
        with pytest.raises(ConfigError, match="shards must be a whole number, got"):
            candid.write_similar(run, out, shards=shards)
    with pytest.raises(ConfigError, match=r"shards 2 must be between 1 and the number of users, 1"):
        candid.write_recommendations(run, out, users=["u1"], shards=2)
    with pytest.raises(ConfigError, match=r"'u61' has no history .* \(--fallback popular"):
        candid.write_recommendations(run, out, users=["u1", "u61"])
    assert list(tmp_path.iterdir()) == []


def test_lists_of_a_split_are_measured_as_the_run(run, tmp_path):
    out = tmp_path / "recs.parquet"
    result = candid.write_recommendations(run, out, k=10, split="test")
    counts = (result.queries, result.without_history, result.without_target)
    assert counts == (60, 0, 3)
    settings = {"ks": (1, 10), "metric": "ndcg@10", "nll": False}
    expected = run.evaluate("test", **settings)
    report = candid.evaluate_recommendations(
        out, run.dataset, item_counts=run.item_counts, **settings
    )
    for name, value in expected.metrics.items():
        assert report.metrics[name].value == pytest.approx(value.value, abs=1e-12), name


def test_shards_divide_the_users(run, tmp_path):
    out, file = tmp_path / "recs.parquet", tmp_path / "one.parquet"
    result = candid.write_recommendations(run, out, k=5, shards=3)
    candid.write_recommendations(run, file, k=5)
    parts = sorted(out.iterdir())
    assert [path.name for path in parts] == [f"part-0000{n}.parquet" for n in range(3)]
    frames = [read(path) for path in parts]
    assert [frame["query"].n_unique() for frame in frames] == [20, 20, 21]
    assert_frame_equal(pl.concat(frames), read(file))
    assert result.rows == read(file).height
    before = parts[0].read_bytes()
    candid.write_recommendations(run, out, k=5, shards=3)
    assert sorted(out.iterdir())[0].read_bytes() == before


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("shards", [None, 2])
def test_interrupted_call_continues_and_gives_the_same_bytes(run, tmp_path, suffix, shards):
    uncut, out = tmp_path / "uncut" / f"recs.{suffix}", tmp_path / f"recs.{suffix}"
    candid.write_recommendations(run, uncut, k=5, shards=shards)

    def stop_in_third_block(stage, done, total):
        if stage == "writing users" and done > 20:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"stopped after 16 of 61 users; the same command"):
        candid.write_recommendations(run, out, k=5, shards=shards, progress=stop_in_third_block)
    assert not out.exists()
    result = candid.write_recommendations(run, out, k=5, shards=shards)
    assert result.num_resumed == 16
    assert result.rows == 61 * 5
    if shards is None:
        assert out.read_bytes() == uncut.read_bytes()
    else:
        for one, other in zip(sorted(out.iterdir()), sorted(uncut.iterdir()), strict=True):
            assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / f".recs.{suffix}.blocks").exists()


@pytest.mark.parametrize(
    ("name", "resumed"), [("block-000000.csv", 0), ("block-000001.csv", 8), ("state.json", 0)]
)
def test_damaged_block_is_written_again(run, tmp_path, name, resumed):
    uncut, out = tmp_path / "uncut" / "recs.csv", tmp_path / "recs.csv"
    candid.write_recommendations(run, uncut, k=5)

    def stop_in_third_block(stage, done, total):
        if stage == "writing users" and done > 20:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        candid.write_recommendations(run, out, k=5, progress=stop_in_third_block)
    path = tmp_path / ".recs.csv.blocks" / name
    content = path.read_text()
    changed = content.replace('"rows": 40', '"rows": 41') if name == "state.json" else None
    path.write_text(changed or content.replace("1", "2", 1))
    assert path.read_text() != content
    result = candid.write_recommendations(run, out, k=5)
    assert result.num_resumed == resumed
    assert result.rows == 61 * 5
    assert out.read_bytes() == uncut.read_bytes()


KILL = """
import os, signal, sys
import candid
from candid.runs import bulk

bulk.BATCH, bulk.BLOCK_ROWS = 8, 40

def kill(stage, done, total):
    if stage == "writing users" and done > 30:
        os.kill(os.getpid(), signal.SIGKILL)

candid.write_recommendations(candid.load_run(sys.argv[1]), sys.argv[2], k=5, progress=kill)
"""


def test_killed_process_is_continued_and_gives_the_same_bytes(root, run, tmp_path):
    uncut, out = tmp_path / "uncut.parquet", tmp_path / "recs.parquet"
    candid.write_recommendations(run, uncut, k=5)
    out.write_text("an earlier file")
    killed = subprocess.run([sys.executable, "-c", KILL, root / "run", out], check=False)
    assert killed.returncode == -9
    assert out.read_text() == "an earlier file"
    result = candid.write_recommendations(run, out, k=5)
    assert result.num_resumed == 24
    assert out.read_bytes() == uncut.read_bytes()


def interrupt_after(run, out, blocks, **settings):
    def stop(stage, done, total):
        if stage == "writing users" and done > 8 * blocks:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        candid.write_recommendations(run, out, progress=stop, **settings)


def test_other_settings_begin_anew(run, tmp_path):
    out = tmp_path / "recs.parquet"
    interrupt_after(run, out, 2, k=5)
    result = candid.write_recommendations(run, out, k=5, deny=[100])
    assert result.num_resumed == 0
    assert 100 not in read(out)["item"]


def test_damaged_block_and_those_after_it_are_written_again(run, tmp_path):
    uncut, out = tmp_path / "uncut.csv", tmp_path / "recs.csv"
    candid.write_recommendations(run, uncut, k=5)
    interrupt_after(run, out, 3, k=5)
    (tmp_path / ".recs.csv.blocks" / "block-000001.csv").write_text("cut")
    assert candid.write_recommendations(run, out, k=5).num_resumed == 8
    assert out.read_bytes() == uncut.read_bytes()


def test_time_of_the_first_call_is_kept(root, tmp_path, monkeypatch):
    run, out = candid.load_run(root / "timed"), tmp_path / "recs.parquet"
    assert run.reads_query_time
    day = 86_400_000_000
    monkeypatch.setattr(bulk, "now_microseconds", lambda: 10 * day)
    interrupt_after(run, out, 2, k=5)
    monkeypatch.setattr(bulk, "now_microseconds", lambda: 20 * day + day // 2)
    assert candid.write_recommendations(run, out, k=5).num_resumed == 16
    expected = run.recommend(users=USERS, k=5, time=10 * day)
    assert_frame_equal(read(out), expected)
    later = run.recommend(users=USERS, k=5, time=20 * day + day // 2)
    assert not later["score"].equals(expected["score"])


DISK_FULL = """
import resource, sys
import candid
from candid.errors import ArtifactError

run = candid.load_run(sys.argv[1])
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    candid.write_recommendations(run, sys.argv[2], k=20, filter_seen=False)
except ArtifactError as error:
    print(error)
"""


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_full_disk_is_one_sentence_and_leaves_the_earlier_file(root, tmp_path, suffix):
    out = tmp_path / f"recs.{suffix}"
    out.write_text("an earlier file")
    command = [sys.executable, "-c", DISK_FULL, root / "run", out, "4096"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write" in result.stdout
    assert "no space left" in result.stdout
    assert len(result.stdout.splitlines()) == 1, result.stdout
    assert out.read_text() == "an earlier file"


def test_one_process_writes_an_output(run, tmp_path):
    out = tmp_path / "recs.parquet"
    (tmp_path / ".recs.parquet.blocks").mkdir()
    with (tmp_path / ".recs.parquet.blocks" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=r"another process is writing .*recs\.parquet"):
            candid.write_recommendations(run, out)


@pytest.mark.parametrize("name", ["mine.txt", "block-1.csv", ".state.json.old.tmp"])
def test_folder_of_blocks_with_other_files_is_refused_and_stays(run, tmp_path, name):
    folder = tmp_path / ".recs.csv.blocks"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds other files, such as {re.escape(name)}"):
        candid.write_recommendations(run, tmp_path / "recs.csv")
    assert (folder / name).read_text() == "mine"


def test_target_that_cannot_be_written_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"unknown suffix: .* \.parquet, \.csv, \.jsonl"):
        candid.write_recommendations(run, tmp_path / "recs.xlsx")
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder: choose another path, or write shards"):
        candid.write_recommendations(run, tmp_path / "a.csv")
    (tmp_path / "a.csv" / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds other files, such as mine\.txt"):
        candid.write_recommendations(run, tmp_path / "a.csv", shards=2)
    (tmp_path / "b.csv").write_text("")
    with pytest.raises(ConfigError, match="is a file: remove it"):
        candid.write_recommendations(run, tmp_path / "b.csv", shards=2)
    with pytest.raises(
        ConfigError, match="shards 62 must be between 1 and the number of users, 61"
    ):
        candid.write_recommendations(run, tmp_path / "c.csv", shards=62)
    with pytest.raises(ArtifactError, match="cannot write"):
        candid.write_recommendations(run, tmp_path / "b.csv" / "c.csv")


def test_index_of_the_run_is_searched(root, run, baseline, tmp_path):
    from candid.cli import run as call

    folder, out = tmp_path / "index", tmp_path / "recs.parquet"
    assert call(["index", str(root / "run"), "--out", str(folder), "--quiet"]) == 0
    candid.write_recommendations(run, out, k=5, index=folder)
    assert_frame_equal(read(out), run.recommend(users=USERS, k=5))
    with pytest.raises(ConfigError, match="not searched by an index"):
        candid.write_recommendations(baseline, out, k=5, index=folder)
    with pytest.raises(ArtifactError, match="another"):
        candid.write_recommendations(candid.load_run(root / "timed"), out, k=5, index=folder)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_similar_items_of_all_items(run, tmp_path, suffix):
    out = tmp_path / f"similar.{suffix}"
    result = candid.write_similar(run, out, k=3)
    expected = run.similar(run.dataset.items["source_id"].to_list(), k=3)
    assert_frame_equal(read(out), expected, check_dtypes=suffix == "parquet")
    assert (result.queries, result.rows) == (20, 60)
    candid.write_similar(run, out, items=[105, 103, 105], k=3)
    assert_frame_equal(read(out), run.similar([105, 103], k=3), check_dtypes=suffix == "parquet")


def test_similar_items_need_vectors(baseline, tmp_path):
    with pytest.raises(ConfigError, match="item_knn has no vectors"):
        candid.write_similar(baseline, tmp_path / "similar.parquet")


def test_result_is_plain_json(run, tmp_path):
    result = candid.write_recommendations(run, tmp_path / "recs.csv", k=5)
    assert json.loads(json.dumps(result.to_json())) == {
        "file": str(tmp_path / "recs.csv"),
        "queries": 61,
        "without_history": 2,
        "without_target": 0,
        "rows": 305,
        "resumed": 0,
    }
