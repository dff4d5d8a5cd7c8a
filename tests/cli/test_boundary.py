"""The outermost boundary: exit codes and sentences of errors that no verb handles."""

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
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

        monkeypatch.setattr("candid.runs.load", fail)
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
            4,
            "/x/y: no space left on device; free some space and retry",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            1,
            "/x/y: permission denied; fix the permissions or choose another path",
        ),
        (
            RuntimeError("what\n a   mess"),
            1,
            "unexpected RuntimeError: what a mess; set CANDID_DEBUG=1 for the traceback",
        ),
        (
            RuntimeError(),
            1,
            "unexpected RuntimeError (no message); set CANDID_DEBUG=1 for the traceback",
        ),
        (
            pl.exceptions.PanicException("index out of bounds:\n the len is 1"),
            1,
            "unexpected PanicException: index out of bounds: the len is 1; set CANDID_DEBUG=1 for "
            "the traceback",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_prints_one_sentence_and_sets_the_exit_code(failing, error, code, sentence):
    assert failing(error) == (code, f"error: {sentence}\n")


@pytest.mark.parametrize("options", [["data"], ["data", "--json"], ["--help"], ["--version"]])
def test_full_disk_of_the_output_has_the_code_of_a_full_disk(options):
    command = [sys.executable, "-m", "candid", *options]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.stderr == "error: no space left on device; free some space and retry\n"
    assert result.returncode == ArtifactError.exit_code


def test_error_with_line_breaks_and_control_characters_is_one_line(failing):
    error = DataError("log.csv: no column 'a\nb\u2028c\x1b[31m\x00é': fix it")
    code, err = failing(error)
    assert code == 3
    assert err == "error: log.csv: no column 'a\\nb\\u2028c\\x1b[31m\\x00é': fix it\n"


def test_error_with_a_long_value_keeps_its_beginning_and_its_advice(failing):
    _, err = failing(DataError("row 1: time '" + "9" * 70_000 + "' is not a time; correct it"))
    assert err.startswith("error: row 1: time '999")
    assert err.endswith("999' is not a time; correct it\n")
    assert "characters left out" in err
    assert len(err) < 2100


def test_candid_debug_prints_the_traceback(failing, monkeypatch):
    monkeypatch.setenv("CANDID_DEBUG", "1")
    code, err = failing(RuntimeError("boom"))
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("; set CANDID_DEBUG=1 for the traceback\n")


@pytest.mark.parametrize(
    ("error", "debug", "is_printed"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "", False),
        (OSError(errno.ENOSPC, "No space left on device"), "1", True),
        (RuntimeError("boom"), "", True),
    ],
)
def test_write_error_in_a_thread_is_left_to_the_main_thread(
    capsys, monkeypatch, error, debug, is_printed
):
    monkeypatch.setenv("CANDID_DEBUG", debug)
    cli._on_thread_error(threading.ExceptHookArgs((type(error), error, None, None)))
    assert ("Exception in thread" in capsys.readouterr().err) == is_printed


def test_json_result_is_one_document_without_nan(capsys):
    Console(json=True, quiet=False).result(
        {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": None}}, "text"
    )
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": None, "b": [1.5, None], "c": {"d": None}}
    assert out.count("\n") == 1
    assert err == ""


@pytest.mark.parametrize(("json", "quiet", "expected"), [(0, 0, "x\n"), (1, 0, ""), (0, 1, "")])
def test_notes_go_to_stderr_unless_json_or_quiet(capsys, json, quiet, expected):
    Console(json=bool(json), quiet=bool(quiet)).note("x")
    out, err = capsys.readouterr()
    assert (out, err) == ("", expected)


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (
            "0",
            "error: candid prepare runs in one process: start it without torchrun, or unset "
            "WORLD_SIZE\n",
        ),
        ("1", ""),
    ],
)
def test_verb_of_one_process_is_refused_in_several(monkeypatch, capsys, rank, expected):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert cli.run(["prepare", "--interactions", "log.parquet"]) == 2
    assert capsys.readouterr().err == expected
