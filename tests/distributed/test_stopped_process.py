"""Processes that wait outside a process group for one that is stopped, or works for long."""

import json
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("stopped_cases.py")
TIMEOUT, MARGIN = 1.5, 0.5


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, run_cases):
    folder = tmp_path_factory.mktemp("stopped")
    stderr = run_cases(PROGRAM, folder)
    return folder, json.loads((folder / "codes.json").read_text()), stderr


def ending(outcomes, case, rank):
    return torch.load(outcomes[0] / case / f"{rank}.pt", weights_only=True)


@pytest.mark.parametrize(
    ("case", "stopped", "sentence"),
    [
        ("at-work", 0, "process 0 has given no sign of life for "),
        ("before", 1, "process 1 has given no sign of life for "),
        ("store-in-0", 0, "the store of the processes has not answered for "),
    ],
)
def test_wait_for_a_stopped_process_ends_after_the_timeout(outcomes, case, stopped, sentence):
    waiting = 1 - stopped
    assert outcomes[1][case][waiting] == 0
    assert outcomes[1][case][stopped] == -9
    result = ending(outcomes, case, waiting)
    assert result["error"].startswith(sentence)
    assert result["error"].endswith(", then start the command again")
    assert TIMEOUT + MARGIN < result["seconds"] < TIMEOUT + MARGIN + 15


def test_process_that_works_for_long_is_waited_for(outcomes):
    assert outcomes[1]["work"] == [0, 0]
    assert [ending(outcomes, "work", rank) for rank in range(2)] == [[0, 1]] * 2


def test_opening_of_a_group_ends_without_an_answer_of_the_store(outcomes):
    assert outcomes[1]["group"][1] == 1
    assert "error: the opening of the process group has waited " in outcomes[2]
