"""Bad arguments of ``candid serve``: refused in one sentence, before it listens."""

import builtins
import socket

import pytest


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 4, "nowhere is not a run"),
        ([], 2, "RUN"),
        (["nowhere", "--set", "max_k=0"], 2, "max_k"),
        (["nowhere", "--set", "max_q=5"], 2, "max_q"),
        (["nowhere", "--port", "70000"], 2, "65535"),
        (["nowhere", "--api-key-file", "missing"], 2, "cannot read keys from missing"),
        (["nowhere", "--index", "a", "--index", "b"], 2, "--index is given 2 times for 1 runs"),
        (["nowhere", "--allowed-host", "http://a"], 2, "--allowed-host 'http://a' is not a host"),
        (["nowhere", "--trusted-proxy", "a.b"], 2, "--trusted-proxy: 'a.b' does not appear to be"),
        (["nowhere", "--host", "no.such.host.invalid"], 2, "cannot listen on no.such.host.invalid"),
    ],
)
def test_bad_arguments_are_refused(candid, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    answer = candid("serve", *arguments)
    assert answer.code == code
    assert message in answer.err
    assert answer.err.count("\n") <= 2


def test_address_in_use_is_refused(candid):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = candid("serve", "nowhere", "--port", str(port))
    assert answer.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in answer.err


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
