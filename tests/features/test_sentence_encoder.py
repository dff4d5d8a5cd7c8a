import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from candid.features import sentence_encoder
from candid.features.sentence_encoder import encoder_name, sentence_vectors

pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")

TEXTS = ["Toy Story (1995)", "Babe", "日本語 ☂", "a " * 300, "Léon: The Professional"]


@pytest.fixture
def cached(monkeypatch):
    """Cache any number of texts, and count the calls of the model."""
    calls = []
    encoded = sentence_encoder._encode
    monkeypatch.setattr(sentence_encoder, "MIN_TEXTS_TO_CACHE", 1)
    monkeypatch.setattr(
        sentence_encoder, "_encode", lambda texts: calls.append(texts) or encoded(texts)
    )
    return calls


def test_vectors_equal_those_of_the_package(monkeypatch):
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    wordllama = pytest.importorskip("wordllama")
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    np.testing.assert_allclose(sentence_vectors(TEXTS), model.embed(TEXTS), atol=1e-6)


def test_vector_does_not_depend_on_other_texts_or_chunks(monkeypatch):
    together = sentence_vectors(TEXTS)
    alone = [sentence_vectors([text])[0] for text in TEXTS]
    assert np.array_equal(together, np.stack(alone))
    monkeypatch.setattr(sentence_encoder, "CHUNK", 2)
    assert np.array_equal(together, sentence_vectors(TEXTS))


def test_encoder_uses_no_network_and_configures_no_logging():
    check = (
        "import logging, socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from candid.features.sentence_encoder import sentence_vectors\n"
        "assert sentence_vectors(['Babe']).any()\n"
        "assert not logging.root.handlers\n"
        "assert 'wordllama' not in sys.modules and 'requests' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_second_call_reads_the_cache(cached, cache_folder):
    first = sentence_vectors(TEXTS)
    assert np.array_equal(sentence_vectors(TEXTS), first)
    assert len(cached) == 1
    assert len(list(cache_folder.iterdir())) == 1


def test_other_texts_and_versions_have_other_files(cached, cache_folder, monkeypatch):
    sentence_vectors(["ab", "c"])
    sentence_vectors(["a", "bc"])
    monkeypatch.setattr(sentence_encoder, "encoder_name", lambda: f"{encoder_name()}.1")
    sentence_vectors(["a", "bc"])
    assert len(cached) == 3
    assert len(list(cache_folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damaged_cache_file_is_replaced(cached, cache_folder, damage):
    first = sentence_vectors(TEXTS)
    (file,) = cache_folder.iterdir()
    content = file.read_bytes()
    flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
    file.write_bytes({"flip": flipped, "cut": content[:-4], "empty": b""}[damage])
    assert np.array_equal(sentence_vectors(TEXTS), first)
    assert len(cached) == 2
    assert file.read_bytes() == content


def test_unwritable_cache_is_ignored(cached, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    first = sentence_vectors(TEXTS)
    assert np.array_equal(sentence_vectors(TEXTS), first)
    assert len(cached) == 2
    assert blocked.read_text() == "no folder"


def test_few_texts_are_not_cached(cache_folder):
    sentence_vectors(TEXTS)
    assert not cache_folder.exists()


def test_relative_cache_home_is_ignored(cached, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    sentence_vectors(TEXTS)
    assert not (tmp_path / "relative").exists()
    assert len(list((tmp_path / "home" / ".cache" / "candid" / "text").iterdir())) == 1


def test_no_texts_give_no_vectors():
    assert sentence_vectors([]).shape == (0, 256)
