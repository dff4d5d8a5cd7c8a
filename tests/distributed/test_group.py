"""Sums, gathers and failures of several processes, against the same in one process."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import candid
from candid.distributed import (
    Environment,
    Failure,
    Group,
    connected,
    current_group,
    gather_with_gradient,
    is_main,
    job_id,
    on_main,
    open_group,
)
from candid.distributed.group import short_reason
from candid.distributed.watchdog import MARGIN, Watchdog
from candid.errors import ConfigError, DataError, Interrupted

ROWS = {2: [3, 0], 3: [2, 0, 5]}
SOURCE = Path(candid.__file__).parents[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("group_cases.py"), folder],
        env=os.environ
        | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    return folder, json.loads((folder / "codes.json").read_text()), run.stderr


def results(outcomes, case, world_size=2):
    return [
        torch.load(outcomes[0] / case / f"{rank}.pt", weights_only=True)
        for rank in range(world_size)
    ]


def rows_of(rank, world_size):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(ROWS[world_size][rank], 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("world_size", ROWS)
def test_gathered_rows_have_the_gradient_of_one_process(outcomes, world_size):
    rows = [rows_of(rank, world_size).requires_grad_() for rank in range(world_size)]
    whole = torch.cat(rows)
    loss = torch.zeros((), dtype=torch.float64)
    for rank in range(world_size):
        weight = torch.arange(whole.numel(), dtype=torch.float64).view_as(whole) + rank
        loss = loss + (whole.sin() * weight).sum()
    loss.backward()
    for rank, result in enumerate(results(outcomes, f"w{world_size}", world_size)):
        assert torch.equal(result["gathered"], whole.detach())
        torch.testing.assert_close(result["gradient"], rows[rank].grad, rtol=1e-14, atol=0)


@pytest.mark.parametrize("world_size", ROWS)
def test_every_process_has_the_results_of_all(outcomes, world_size):
    total = sum(range(world_size))
    for result in results(outcomes, f"w{world_size}", world_size):
        assert result["sum"].tolist() == [world_size + total, 2.0 * world_size]
        assert result["largest"] == [world_size - 1, 0.0]
        assert result["counts"] == [[rank, 7] for rank in range(world_size)]
        assert result["json"] == {"text": "from 0 ü", "number": 1.5}
        assert result["none"] is None
        assert result["broadcast"].tolist() == [0, 0]
        assert result["empty"] == (0, 2)
        assert result["again"].tolist() == [world_size]


@pytest.mark.parametrize("world_size", ROWS)
def test_traffic_counts_the_bytes_of_a_process(outcomes, world_size):
    for result in results(outcomes, f"w{world_size}", world_size):
        assert result["traffic"] == {
            "gather": {"messages": 1, "bytes": 2 * 3 * 4},
            "sum": {"messages": 1, "bytes": 10 * 4},
        }


def test_other_input_on_one_process_stops_all(outcomes):
    for result in results(outcomes, "w2"):
        start = "the processes do not have the same input (settings): "
        assert result["differs"].startswith(start)


def test_error_of_one_process_reaches_the_others_with_its_exit_code(outcomes):
    message = "interactions.csv, row 7: the user is missing"
    assert results(outcomes, "failing") == [
        ("PeerError", 3, f"process 1 failed: {message}"),
        ("DataError", 3, message),
    ]


def test_processes_wait_for_the_work_of_rank_0(outcomes):
    assert results(outcomes, "waiting") == [("0", [1.0])] * 2


def test_group_that_the_program_has_opened_is_used(outcomes):
    expected = [([3.0], (rank, 2, rank), True, True) for rank in range(2)]
    assert results(outcomes, "given") == expected


def test_same_error_of_all_processes_is_reported_once(outcomes):
    first, second = results(outcomes, "failing_together")
    assert sorted([first[0], second[0]]) == ["ConfigError", "PeerError"]
    assert first[1] == second[1] == 2


def test_killed_process_ends_the_others_with_one_sentence(outcomes):
    assert outcomes[1]["killed"] == [0, -9]
    code, message = torch.load(outcomes[0] / "killed" / "0.pt", weights_only=True)
    assert code == 1
    assert message.startswith("process 0 lost the connection to the other processes (")
    assert message.endswith("cannot be reached; continue with --resume")
    assert "GLHF" not in message


def test_late_process_ends_the_others_after_the_timeout(outcomes):
    name, message = results(outcomes, "late")[0]
    assert name == "ProcessGroupError"
    assert "Timed out waiting 1500ms" in message


def test_process_that_cannot_end_by_itself_is_ended(outcomes):
    assert outcomes[1]["stuck"] == [3, 3]
    assert "error: process 1 failed: row 7 is damaged" in outcomes[2]


def test_watchdog_ends_a_process_whose_collective_hangs(monkeypatch):
    monkeypatch.setattr("candid.distributed.watchdog.INTERVAL", 0.01)
    monkeypatch.setattr("candid.distributed.watchdog.MARGIN", 0.05)
    ended = []
    watchdog = Watchdog(0.05, None, end=lambda *why: (ended.append(why), watchdog.close()))
    watchdog.begin("gather")
    assert watchdog.closed(5)
    ((sentence, code),) = ended
    assert code == 1
    assert sentence.startswith("gather has waited 0 s for the other processes")


def test_watchdog_lets_a_process_work_between_collectives(monkeypatch):
    monkeypatch.setattr("candid.distributed.watchdog.INTERVAL", 0.01)
    ended = []
    watchdog = Watchdog(-MARGIN, None, end=lambda *why: ended.append(why))
    watchdog.begin("gather")
    watchdog.finish()
    assert not watchdog.closed(0.2)
    watchdog.close()
    assert ended == []


def test_one_process_sends_nothing():
    group, rows = Group(), torch.ones(2, 3, requires_grad=True)
    assert gather_with_gradient(rows, group) is rows
    assert torch.equal(group.gather_rows(rows), rows.detach())
    assert group.largest([2.0]) == [2.0]
    assert group.gather_counts([4]) == [[4]]
    assert group.broadcast_json({"a": 1}) == {"a": 1}
    group.check_same({"a": "b"})
    group.barrier()
    assert group.traffic.to_json() == {}


def test_process_without_a_launcher_trains_alone():
    assert Environment.read({}) is None
    assert Environment.read({"WORLD_SIZE": "4"}) is None
    assert Environment.read({"RANK": "0", "WORLD_SIZE": "1"}) is None


def test_environment_of_a_launcher_without_local_ranks():
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    assert Environment.read(variables) == Environment(1, 2, 1, 2)
    variables |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert Environment.read(variables) == Environment(1, 2, 0, 1)


def test_job_is_that_of_the_agent():
    assert job_id({}) is None
    assert job_id({"TORCHELASTIC_RUN_ID": "films"}) == "films"
    without_id = job_id({"TORCHELASTIC_RUN_ID": "none"})
    assert without_id == job_id({"TORCHELASTIC_RUN_ID": ""})
    assert without_id.endswith(f"-{os.getppid()}")


def test_process_without_a_launcher_does_the_work_of_all(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    done = []
    with connected(), open_group() as group:
        on_main(lambda: done.append(True))
        assert group.is_single
        assert current_group() is group
    assert done == [True]
    assert is_main()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "2"}, "RANK is 2, but there are 2 processes"),
        ({"RANK": "one"}, "RANK must be a number, got 'one'"),
    ],
)
def test_wrong_environment_is_refused(changes, message):
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
    with pytest.raises(ConfigError, match=message):
        Environment.read(variables | changes)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("row 7\nis wrong"), Failure(1, 3, "row 7 is wrong")),
        (Interrupted("stopped"), Failure(1, 130, "stopped")),
        (KeyboardInterrupt(), Failure(1, 130, "interrupted")),
        (SystemExit(4), Failure(1, 4, "the process ended")),
        (ValueError(), Failure(1, 1, "ValueError")),
        (OSError(errno.ENOSPC, "full"), Failure(1, 4, f"[Errno {errno.ENOSPC}] full")),
    ],
)
def test_failure_has_the_exit_code_of_its_error(error, expected):
    assert Failure.of(error, 1) == expected


def test_interruption_of_a_process_is_one_of_the_others():
    error = Failure.of(Interrupted("stopped at step 3"), 1).error()
    assert isinstance(error, Interrupted)
    assert (str(error), error.exit_code) == ("stopped at step 3", 130)
    assert not isinstance(Failure(1, 3, "row 7").error(), Interrupted)


def test_reason_leaves_out_the_place_in_the_source_of_torch():
    text = "[/a/pair.cc:553] Connection closed by peer [10.0.0.1]:90. This is typically caused"
    assert short_reason(RuntimeError(text)) == "Connection closed by peer [10.0.0.1]:90"
    assert short_reason(RuntimeError()) == "RuntimeError"
