"""The outermost boundary: exit codes and sentences for what no verb handles itself."""

import errno
import json
import threading

import pytest

from candid import cli
from candid.cli.console import Console
from candid.errors import ArtifactError, CandidError, ConfigError, DataError, Interrupted


@pytest.fixture
def failing(monkeypatch, capsys):
    """Make ``candid evaluate`` raise, call it, and return code and stderr."""

    def call(error: BaseException):
        def fail(*arguments, **options):
            raise error

        monkeypatch.setattr("candid.runs.load_run", fail)
        code = cli.run(["evaluate", "run"])
        out, err = capsys.readouterr()
        assert out == ""
        return code, err

    return call


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (CandidError("a"), 1, "a"),
        (ConfigError("b"), 2, "b"),
        (DataError("c"), 3, "c"),
        (ArtifactError("d"), 4, "d"),
        (Interrupted("stopped; resume"), 130, "stopped; resume"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            1,
            "/x/y: no space left on device; free some space and try again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            1,
            "/x/y: permission denied; change its permissions or name another place",
        ),
        (
            RuntimeError("what\n a   mess"),
            1,
            "unexpected RuntimeError: what a mess (set CANDID_DEBUG=1 for the traceback)",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_sentence_and_its_exit_code(failing, error, code, sentence):
    assert failing(error) == (code, f"error: {sentence}\n")


def test_the_traceback_is_there_for_those_who_ask(failing, monkeypatch):
    monkeypatch.setenv("CANDID_DEBUG", "1")
    code, err = failing(RuntimeError("boom"))
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("(set CANDID_DEBUG=1 for the traceback)\n")


@pytest.mark.parametrize(
    ("error", "debug", "is_told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "", False),
        (OSError(errno.ENOSPC, "No space left on device"), "1", True),
        (RuntimeError("boom"), "", True),
    ],
)
def test_a_write_refused_in_a_thread_is_left_to_the_main_thread(
    capsys, monkeypatch, error, debug, is_told
):
    monkeypatch.setenv("CANDID_DEBUG", debug)
    cli._thread_failed(threading.ExceptHookArgs((type(error), error, None, None)))
    assert ("Exception in thread" in capsys.readouterr().err) == is_told


def test_json_has_no_nan_and_stays_one_document(capsys):
    Console(json=True, quiet=False).result(
        {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": None}}, "text"
    )
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": None, "b": [1.5, None], "c": {"d": None}}
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize(("json", "quiet", "said"), [(0, 0, "x\n"), (1, 0, ""), (0, 1, "")])
def test_notes_go_to_stderr_and_only_where_wanted(capsys, json, quiet, said):
    Console(json=bool(json), quiet=bool(quiet)).note("x")
    out, err = capsys.readouterr()
    assert (out, err) == ("", said)
