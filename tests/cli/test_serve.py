"""Bad arguments of ``candid serve``: refused in one sentence, before it listens."""

import builtins
import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from candid.cli.serve import _keys, _served_names


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 4, "nowhere is not a run"),
        ([], 2, "RUN"),
        (["nowhere", "--set", "max_k=0"], 2, "max_k"),
        (["nowhere", "--set", "max_q=5"], 2, "max_q"),
        (["nowhere", "--port", "70000"], 2, "65535"),
        (["nowhere", "--port", "8123", "--probe-port", "8123"], 2, "is the port of --port"),
        (["nowhere", "--workers", "0"], 2, "--workers"),
        (["nowhere", "--api-key-file", "missing"], 2, "cannot read keys from missing"),
        (["nowhere", "--index", "a", "--index", "b"], 2, "--index is given 2 times for 1 runs"),
        (["nowhere", "--allowed-host", "http://a"], 2, "--allowed-host 'http://a' is not a host"),
        (["nowhere", "--trusted-proxy", "a.b"], 2, "--trusted-proxy: 'a.b' does not appear to be"),
        (["a", "b", "--name", "x"], 2, "--name is given 1 times for 2 runs"),
        (["nowhere", "--name", ""], 2, "'' cannot be the name of the model in 'nowhere'"),
        (["nowhere", "--name", "a\nb"], 2, "give a --name of 1 to 200 printable characters"),
        (["nowhere", "--name", "a" * 201], 2, "give a --name of 1 to 200 printable characters"),
        (["/"], 2, "'' cannot be the name of the model in '/'"),
        (["a/films", "b/films"], 2, "several models would be called 'films'"),
        (["a", "b", "--name", "x", "--name", "x"], 2, "several models would be called 'x'"),
        (["nowhere", "--host", "no.such.host.invalid"], 2, "cannot listen on no.such.host.invalid"),
    ],
)
def test_bad_arguments_are_refused(candid, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    answer = candid("serve", *arguments)
    assert answer.code == code
    assert message in answer.err
    # Beside the lines of the log.
    assert len([line for line in answer.err.splitlines() if not line.startswith("{")]) <= 2


def test_address_in_use_is_refused(candid):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = candid("serve", "nowhere", "--port", str(port))
    assert answer.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in answer.err


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_missing_folder_of_item_updates_is_refused_below_the_log(
    candid, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    updates = tmp_path / "none" / "updates.jsonl"
    answer = candid("serve", "nowhere", "--port", "0", "--item-updates", updates, *options)
    assert answer.code == 2
    *log, error = answer.err.splitlines()
    assert f"the folder of {updates} does not exist" in error
    assert '"no admin key set"' in log[-1]


def test_key_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "keys").write_text("first\nsecond\n", encoding="utf-8-sig")
    assert _keys(tmp_path / "keys", "CANDID_API_KEY") == ("first", "second")


def test_empty_key_file_is_refused(candid, tmp_path):
    (tmp_path / "keys").write_text("\n \n")
    answer = candid("serve", "nowhere", "--admin-key-file", tmp_path / "keys")
    assert answer.code == 2
    assert "contains no key" in answer.err


@pytest.mark.parametrize("variable", ["CANDID_API_KEY", "CANDID_ADMIN_KEY"])
@pytest.mark.parametrize("value", ["", " "])
def test_empty_key_is_refused(candid, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    answer = candid("serve", "nowhere")
    assert answer.code == 2
    assert f"{variable} is empty; set a key, or unset it to serve without a key" in answer.err


@pytest.mark.parametrize(
    ("variable", "kind"), [("CANDID_API_KEY", "read"), ("CANDID_ADMIN_KEY", "admin")]
)
def test_key_that_is_not_utf8_is_refused(candid, monkeypatch, variable, kind):
    monkeypatch.setenv(variable, "\udcff")
    answer = candid("serve", "nowhere")
    assert answer.code == 2
    assert f"{kind} key 1 is not UTF-8; choose another key" in answer.err


def test_missing_extra_of_the_workers_names_the_command(candid, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules["candid.cli.serve"],
        "find_spec",
        lambda name: None if name == "uvicorn" else real(name),
    )
    answer = candid("serve", "nowhere", "--workers", "2")
    assert answer.code == 2
    assert "candid serve needs uvicorn" in answer.err
    assert "pip install 'candid-retrieval[serve]'" in answer.err


def test_missing_extra_names_the_command(candid, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "uvicorn":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return real(name, *arguments, **keywords)

    monkeypatch.delitem(__import__("sys").modules, "candid.serve.http.process", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    answer = candid("serve", "nowhere")
    assert answer.code == 2
    assert "pip install 'candid-retrieval[serve]'" in answer.err


def test_models_are_named_by_the_path_as_written(tmp_path, monkeypatch):
    (tmp_path / "2026-11-27").mkdir()
    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "films").symlink_to(tmp_path / "2026-11-27")
    monkeypatch.chdir(tmp_path / "live" / "films")
    link = tmp_path / "live" / "films"
    for path in (link, Path(f"{link}/"), link / ".", link / "x" / ".."):
        assert _served_names([path], []) == ["films"]
    monkeypatch.chdir(tmp_path / "live")
    assert _served_names([Path("films")], []) == ["films"]
    assert _served_names([Path("../2026-11-27"), Path("films")], []) == ["2026-11-27", "films"]
    assert _served_names([Path(), Path("films")], ["b", "a"]) == ["b", "a"]
    assert _served_names([Path()], []) == ["live"]
