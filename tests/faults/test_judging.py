"""The rules by which the fault campaign judges outcomes, and its changes of files."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ONE_SENTENCE = "error: log.csv is damaged; write it again\n"


@pytest.fixture
def modules(monkeypatch):
    """Import modules of the campaign by name."""
    import importlib

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("code", "err", "expected"),
    [
        (0, "", None),
        (0, "a note\n", None),
        (3, ONE_SENTENCE, None),
        (1, ONE_SENTENCE, "exit 1"),
        (-11, "", "ended by signal 11"),
        (4, ONE_SENTENCE * 2, "2 lines on stderr instead of one sentence"),
        (4, "", "0 lines on stderr instead of one sentence"),
        (4, "Traceback (most recent call last):\n" + ONE_SENTENCE, "a traceback"),
        (0, "thread '<unnamed>' panicked at src/lib.rs:1\n", "a panic of a library"),
        (4, "error: unexpected KeyError: x; set CANDID_DEBUG=1\n", "an unexpected error"),
    ],
)
def test_refusal_problem_by_outcome(modules, code, err, expected):
    outcome = modules("faults_process").Outcome(code, "", err, 0.1)
    assert modules("faults_kills").refusal_problem(outcome) == expected


def test_refusal_problem_of_a_hang(modules):
    outcome = modules("faults_process").Outcome(-9, "", "", 90.0, is_hung=True)
    assert modules("faults_kills").refusal_problem(outcome) == "no end after 90 s"


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.toml", "a.csv", "a.csv.gz", "a.npy", "a.bin"]
)
def test_damaged_file_differs_and_repeats_with_the_seed(modules, tmp_path, name):
    import gzip

    import numpy as np

    contents = {
        "a.json": b'{"a": [1, 2, {"b": null}], "c": "x"}',
        "a.jsonl": b'{"a": 1}\n{"a": 2}\n',
        "a.toml": b'[data]\nuser = "u"\nitem = "i"\n',
        "a.csv": b"u,i\n1,2\n3,4\n",
        "a.csv.gz": gzip.compress(b"u,i\n1,2\n3,4\n", mtime=0),
        "a.bin": bytes(range(256)),
    }
    np.save(tmp_path / "a.npy", np.arange(10))
    content = contents.get(name) or (tmp_path / name).read_bytes()
    damaged = modules("faults_content").damaged

    def changed():
        return [damaged(content, name, [b"other"], random.Random(seed)) for seed in range(200)]

    first = changed()
    assert first == changed()
    assert sum(new != content for _, new in first) > 150
    assert len({new for _, new in first}) > 50


def test_leaves_find_one_changed_value(modules, tmp_path):
    snapshot = modules("faults_snapshot")
    for number, value in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"seconds": number, "epochs": value}))
    first, second, third = (snapshot.leaves(tmp_path / str(number)) for number in range(3))
    expected = snapshot.stable(first, second)
    assert expected == {"run.json/epochs": "1"}
    assert snapshot.difference(expected, second) is None
    assert snapshot.difference(expected, third) == "run.json/epochs is 2, not 1"
    assert snapshot.difference(expected, {}) == "run.json/epochs is nothing, not 1"


def test_leaves_have_no_times_and_no_checksum_of_them(modules, tmp_path):
    snapshot = modules("faults_snapshot")
    text = "# trials: 2; {} CPU minutes\n# best: 0.1\nmax_seconds = {}\n# checksum: {}\n"

    def leaves(minutes, seconds, checksum, name="best.toml"):
        (tmp_path / name).write_text(text.format(minutes, seconds, checksum))
        return snapshot.leaves(tmp_path / name)

    expected = {"best.toml:1": "# best: 0.1", "best.toml:2": "max_seconds = 3"}
    assert leaves("0.00", 3, "12") == leaves("0.01", 3, "34") == expected
    assert snapshot.difference(expected, leaves("0.00", 4, "56")) is not None
    document = {"cpu_seconds": 0.0, "peak_mib": 1.5, "step_ms": 2, "items": 40, "checksum": "12"}
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(json.dumps(document))
        values = snapshot.leaves(tmp_path / name).values()
        assert list(values) == ["40"]
    (tmp_path / "b.json").write_text('{"items": 40, "checksum": "12"}')
    assert list(snapshot.leaves(tmp_path / "b.json")) == ["b.json/items", "b.json/checksum"]


def test_leaves_separate_tensors_from_metadata(modules, tmp_path):
    import torch
    from safetensors.torch import save_file

    path, snapshot = tmp_path / "last.safetensors", modules("faults_snapshot")
    tensors = {"model/a": torch.arange(3.0), "random/b": torch.zeros(2)}
    save_file(tensors, path, metadata={"candid": "1"})
    first = snapshot.leaves(path)
    save_file(tensors | {"model/a": torch.arange(3.0) + 1}, path, metadata={"candid": "2"})
    second = snapshot.leaves(path)
    assert snapshot.difference(first, second, "model/").startswith("last.safetensors#model/a is")
    assert snapshot.difference(first, second, "random/") is None


def test_stop_kills_before_the_operation(tmp_path):
    """In a process of its own: the hook cannot be removed."""
    import subprocess

    program = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from faults_process import Stop, stop_at\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "stop_at(Stop(3), folder)\n"
        "for name in 'abcd':\n"
        "    (folder / name).write_text(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_leaves_of_tensors_with_a_damaged_header_are_the_bytes(modules, tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes((2).to_bytes(8, "little") + b"[]")
    assert list(modules("faults_snapshot").leaves(path)) == ["last.safetensors"]


@pytest.mark.parametrize(
    ("at_the_kill", "is_failure"), [("before", True), ("finished", False), ("neither", True)]
)
def test_values_of_an_input_may_differ_only_where_the_command_had_finished(
    modules, tmp_path, monkeypatch, at_the_kill, is_failure
):
    kills = modules("faults_kills")
    path = tmp_path / "out" / "manifest.json"
    path.parent.mkdir()

    def write(earlier, rows):
        path.write_text(json.dumps({"ids_from": {"fingerprint": earlier}, "rows": rows}))
        return {"out": modules("faults_snapshot").leaves(tmp_path / "out")}

    finished, before = write("a", 2), write("0", 1)
    write(*{"before": ("0", 1), "finished": ("a", 2), "neither": ("a", 3)}[at_the_kill])
    outcome = modules("faults_process").Outcome(0, "", "", 0.1)

    def again(*_):
        write("b", 2)
        return outcome

    campaign = kills.Kills(tmp_path, tmp_path, 0)
    monkeypatch.setattr(campaign, "_finish", again)
    scenario = kills.Scenario(("prepare",), ("out",), of_input="^manifest.json/ids_from/")
    reference = kills.Reference(finished, before, {"out/manifest.json"}, [], 1.0)
    found = [text for text, _ in campaign._judge(scenario, tmp_path, reference, outcome)]
    assert bool(found) == is_failure, found
    if at_the_kill == "before":
        assert any("ids_from/fingerprint" in text for text in found)


def test_case_that_cannot_mount_a_disk_is_skipped_and_no_case(modules, tmp_path, monkeypatch):
    server, process = modules("faults_server"), modules("faults_process")
    for name in ("data", "run", "run_features", "index_usearch"):
        (tmp_path / "fixture" / name).mkdir(parents=True)
    refused = SimpleNamespace(returncode=32)
    monkeypatch.setattr(server.subprocess, "run", lambda *_, **__: refused)
    campaign = modules("faults_updates").Updates(tmp_path / "fixture", tmp_path, 0)
    assert campaign.scenario_of(2) == "full_disk"
    result = campaign.run_case(2)
    assert result == process.Skipped("a small disk cannot be mounted, which needs root")
    report = modules("faults").Report({})
    report.add("updates", "updates:0:1", [])
    report.add("updates", "updates:0:2", result)
    document = report.document()
    assert document["cases"] == {"updates": 1}
    assert document["skipped"] == {"updates": {result.reason: 1}}


@pytest.mark.parametrize("cut", [0, 1, 40, 700])
def test_updates_that_are_lost_or_changed_are_reported(modules, tmp_path, monkeypatch, cut):
    from candid.serve.update_log import ItemUpdates

    programs = modules("faults_programs")
    for name in ("fixture", "work"):
        programs.write_updates(tmp_path / name / "updates" / programs.UPDATES)
    path = tmp_path / "work" / "updates" / programs.UPDATES
    path.write_bytes(path.read_bytes()[cut:])

    def found():
        return list(
            programs.PROGRAMS[programs.OPEN_UPDATES](tmp_path / "work", tmp_path / "fixture")
        )

    assert found() == []
    latest = ItemUpdates.latest
    monkeypatch.setattr(
        ItemUpdates, "latest", lambda *given: dict(list(latest(*given).items())[1:])
    )
    assert found()[0].startswith("the first opening has ")


@pytest.mark.parametrize(
    ("memory", "count", "is_leak"),
    [
        (
            [319.8, 321.4, 321.8, 321.9, 322.0, 322.1, 322.1, 322.2, 322.3, 322.3, 322.3],
            2000,
            False,
        ),
        ([300.0, 340.0, *[350.0] * 9], 2000, False),  # caches
        ([300.0 + number for number in range(11)], 2000, True),  # 5 KiB a request
        ([300.0 + number for number in range(11)], 20_000, False),
        ([300.0 + 10 * number for number in range(11)], 20_000, True),
        ([300.0] * 10 + [303.0], 400, True),
    ],
)
def test_memory_growth_by_requests(modules, memory, count, is_leak):
    assert bool(modules("faults_requests").memory_growth(memory, count)) == is_leak


@pytest.mark.parametrize(
    ("took", "problem"),
    [
        ([5.0] * 97 + [120.0, 300.0, 999.0], None),
        ([5.0] * 94 + [101.0] * 6, "6 of 100 probes took more than 100 ms"),
        ([5.0] * 99 + [1001.0], "a probe took 1001 ms"),
    ],
)
def test_probe_problem_by_times(modules, took, problem):
    assert modules("faults_requests").probe_problem(took) == problem


def test_slow_commands_have_one_case_where_others_have_three(modules):
    scenarios = modules("faults_scenarios")
    found = scenarios.scenarios()
    order = scenarios.order_of(found, "order:0")
    assert set(order) == set(found)
    assert (order.count("study"), order.count("recipe")) == (1, 3)
