"""Whole trainings of several processes against those of one, in float64."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from candid.index import open_snapshot
from candid.runs import load_run
from candid.training import BEST, LAST, read_checkpoint

PROGRAM = Path(__file__).with_name("process_cases.py")
specification = importlib.util.spec_from_file_location("process_cases", PROGRAM)
cases = importlib.util.module_from_spec(specification)
specification.loader.exec_module(cases)
DURATIONS = {"seconds", "train_seconds", "cpu_seconds", "rows_per_second"}
ONE_PROCESS = {"mean": "mean-1", "sharded": "rows-1"}
PAIRS = [
    ("mean-1", "mean-2"),
    ("parts-1", "parts-2"),
    ("mean-1", "stopped"),
    ("rows-1", "rows-3"),
    *(("softmax-1", f"sharded-{world_size}") for world_size in (1, 2, 3)),
    *((ONE_PROCESS[variant], name) for name, (variant, _, _) in cases.KILLED.items()),
]
WORLD_SIZES = {"mean-2": 2, "parts-2": 2, "stopped": 3, "rows-3": 3}
WORLD_SIZES |= {f"sharded-{world_size}": world_size for world_size in (1, 2, 3)}
WORLD_SIZES |= {name: after for name, (_, _, after) in cases.KILLED.items()}
SHARDED = ("rows-3", "sharded-2", "sharded-3", "killed-sharded-early", "killed-sharded-late")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_cases):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "stderr.txt").write_text(run_cases(PROGRAM, folder))
    return folder


@pytest.fixture(autouse=True)
def kills(folder):
    """Kills by training; pytest shows them for a test that fails, with their seed."""
    chosen = json.loads((folder / "kills.json").read_text())
    sys.stdout.write(f"{chosen}\n")
    return chosen["kills"]


def results(folder, name, world_size):
    return [
        torch.load(folder / "results" / name / f"{rank}.pt", weights_only=True)
        for rank in range(world_size)
    ]


def without_durations(values):
    return {key: value for key, value in values.items() if key not in DURATIONS}


def lines_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [without_durations(json.loads(line)) for line in lines]


@pytest.mark.parametrize(("one", "several"), PAIRS)
@pytest.mark.parametrize("name", [LAST, BEST])
def test_weights_are_those_of_one_process(folder, one, several, name):
    expected, actual = (read_checkpoint(folder / run / name) for run in (one, several))
    assert actual.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        torch.testing.assert_close(actual.tensors[key], tensor, rtol=1e-9, atol=1e-9)


def test_validated_models_are_those_of_one_process(folder):
    result = load_run(folder / "rows-1", folder / "data").manifest["result"]
    assert result["checkpoints"][:3] == [f"checkpoints/step-{n}.safetensors" for n in (4, 8, 12)]
    assert (
        json.loads((folder / "rows-3" / "run.json").read_text())["result"]["checkpoints"]
        == (result["checkpoints"])
    )
    for name in result["checkpoints"]:
        expected, actual = (read_checkpoint(folder / run / name) for run in ("rows-1", "rows-3"))
        assert actual.tensors.keys() == expected.tensors.keys()
        for key, tensor in expected.tensors.items():
            torch.testing.assert_close(actual.tensors[key], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("one", "several"), PAIRS)
def test_log_is_that_of_one_process(folder, one, several):
    expected, actual = lines_of(folder / one), lines_of(folder / several)
    assert len(actual) == len(expected) > 5
    for line, other in zip(actual, expected, strict=True):
        if several in SHARDED and "validation/nll" in line:
            # The sum over the catalog has the float32 products of other blocks.
            nll = other.pop("validation/nll")
            assert line.pop("validation/nll") == pytest.approx(nll, rel=1e-6)
        assert line == pytest.approx(other, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("one", "several"), PAIRS)
def test_state_is_the_same_on_every_process(folder, one, several):
    (expected,) = results(folder, one, 1)
    for rank, state in enumerate(results(folder, several, WORLD_SIZES[several])):
        assert state.pop("is_main") is (rank == 0)
        for key in ("step", "epoch", "rows", "best_epoch", "best_step", "stale"):
            assert state[key] == expected[key]
        assert state["best"] == pytest.approx(expected["best"], rel=1e-9)
        assert state["seconds"] >= state["train_seconds"] > 0


def test_early_stopping_ends_the_cases(folder):
    (state,) = results(folder, "mean-1", 1)
    assert state["stale"] == 1
    assert state["epoch"] < cases.recipe()["training"]["epochs"]


def test_signal_to_one_process_stops_all_after_the_same_step(folder):
    expected = f"stopped at step {cases.STOPPED_AT} and wrote {folder / 'stopped' / LAST}"
    for message in results(folder, "before", 2):
        assert message.startswith(expected)


@pytest.mark.parametrize("name", cases.KILLED)
def test_killed_process_ends_the_others(folder, kills, name):
    codes = json.loads((folder / "codes.json").read_text())[f"{name}, killed"]
    assert codes.pop(kills[name]["rank"]) == -9
    assert set(codes) == {1}
    assert kills[name]["had_checkpoint"] is name.endswith("late")


def test_signal_between_two_epochs_stops_all(folder):
    steps = load_run(folder / "mean-1", folder / "data").manifest["steps_per_epoch"]
    for message in results(folder, "validating", 2):
        assert message.startswith(f"stopped at step {steps} and wrote ")


def test_refused_folder_ends_all_processes_with_the_code_of_rank_0(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["failed"] == [2, 2]
    assert {path.name for path in (folder / "failed").iterdir()} == {"notes.txt"}
    assert "process 0 failed: " in (folder / "stderr.txt").read_text()


def test_processes_with_other_checkpoints_are_refused(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["copies"] == [2, 2]
    assert "do not have the same input (checkpoint)" in (folder / "stderr.txt").read_text()


def test_metric_that_sharded_tables_cannot_have_is_refused_before_the_first_step(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["diversity"] == [2, 2]
    assert "intra_list_diversity needs the vectors" in (folder / "stderr.txt").read_text()
    assert not (folder / "diversity").exists()


def test_sampler_that_reads_all_rows_of_sharded_tables_is_refused_before_the_first_step(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["follower"] == [2, 2]
    assert "this sampler needs the vectors of all items" in (folder / "stderr.txt").read_text()
    assert not (folder / "follower").exists()


def test_groups_of_samples_are_refused_before_the_data_are_read(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert codes["groups"] == [2, 2]
    expected = "training.num_groups = 2 needs one process: set it to 1, or train without torchrun"
    assert expected in (folder / "stderr.txt").read_text()
    assert not (folder / "groups").exists()


def test_run_of_several_processes_is_a_run(folder):
    run = load_run(folder / "mean-2", folder / "data")
    assert run.recommend([0], k=3).height == 3
    assert not list((folder / "mean-2").glob("*.lock"))


@pytest.mark.parametrize("num_processes", [2, 4])
def test_index_of_several_processes_is_that_of_one(folder, num_processes):
    one, several = (open_snapshot(folder / f"index-{n}") for n in (1, num_processes))
    vectors = one.index.item_vectors
    assert len(vectors) == cases.NUM_ITEMS
    assert torch.equal(several.index.item_vectors, vectors)
    assert several.source_ids.built.equals(one.source_ids.built)
    assert several.fingerprint == one.fingerprint
    query = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    for probes in (1, 2, 4):
        expected, actual = (
            snapshot.index.built.with_settings(num_probes=probes).search(query, 15)
            for snapshot in (one, several)
        )
        assert torch.equal(actual.item_ids, expected.item_ids)
        assert torch.equal(actual.scores, expected.scores)
    # Rank 0 alone measures the merged index, against exact results of all processes.
    recalls, *others = results(folder, f"index-{num_processes}", num_processes)
    assert [recalls] == results(folder, "index-1", 1)
    assert min(recalls.values()) < max(recalls.values()) == 1
    assert others == [None] * (num_processes - 1)
    names = {path.name.split("-")[0] for path in (folder / f"index-{num_processes}").iterdir()}
    assert names == {"index.json", "index", "vectors", "source_ids"}
    assert len(list((folder / f"index-{num_processes}").iterdir())) == 4


def test_sharded_tables_are_measured_on_the_test_split_by_shard(folder):
    for rank, measured in enumerate(results(folder, "measured", 2)):
        own = list(range(7) if rank == 0 else range(7, cases.NUM_ITEMS))
        printed = measured.pop("printed")
        assert printed.count("the model beside baselines") == (rank == 0)
        assert bool(printed) == (rank == 0)
        assert measured == {"encoded": (len(own), own), "num_rows": cases.NUM_ITEMS}
    stored = json.loads((folder / "measured" / "evaluation-test.json").read_text())
    report = load_run(folder / "measured", folder / "data").evaluate()
    assert stored["counts"] == report.counts
    assert stored["metrics"].keys() == report.metrics.keys()
    for name, value in report.summary().items():
        assert stored["metrics"][name]["value"] == pytest.approx(value, rel=1e-5), name
    assert (folder / "measured" / "baselines-test.json").exists()


def test_failed_process_leaves_no_index(folder):
    codes = json.loads((folder / "codes.json").read_text())
    assert (codes["index-infinite"], codes["index-mixed"]) == ([4, 4], [2, 2])
    stderr = (folder / "stderr.txt").read_text()
    assert "process 1 failed: item vectors contain NaN" in stderr
    assert "the processes do not have the same run" in stderr
    assert not (folder / "index-infinite").exists()
    assert not (folder / "index-mixed").exists()
