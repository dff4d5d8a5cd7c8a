import importlib.metadata

import polars as pl
import pytest
import torch

from candid.errors import ConfigError
from candid.features import Text

pytest.importorskip("tokenizers", reason="the extra 'text' is not installed")

TITLES = pl.Series(["Star Wars", "Star Trek", "Pride and Prejudice", None, "  ", " Star Wars"])


def test_related_titles_are_closer_than_unrelated_ones():
    values = Text.Config().fit(TITLES).encode(TITLES).values
    assert values.shape == (6, 256)
    near, far = values[0] @ values[1], values[0] @ values[2]
    assert near > far + 0.2


def test_vectors_have_length_one_and_blank_text_is_zero():
    for dim in (64, 128, 256):
        values = Text.Config(dim=dim).fit(TITLES).encode(TITLES).values
        assert values.shape == (6, dim)
        assert values.norm(dim=1).tolist() == pytest.approx([1, 1, 1, 0, 0, 1])
        assert torch.equal(values[0], values[5])


def test_each_distinct_text_is_encoded_once(monkeypatch):
    encoded = []

    def vectors(texts):
        encoded.append(texts)
        return torch.ones(len(texts), 256).numpy()

    monkeypatch.setattr("candid.features.text.sentence_vectors", vectors)
    Text.Config().fit(TITLES).encode(pl.concat([TITLES, TITLES]))
    assert encoded == [["Pride and Prejudice", "Star Trek", "Star Wars"]]


def test_missing_encoder_error_names_the_extra(monkeypatch):
    state = Text.Config().fit(TITLES).state()

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    for use in (lambda: Text.Config().fit(TITLES), lambda: Text.Config().restore(state)):
        with pytest.raises(ConfigError, match=r"pip install .candid-retrieval\[text\]"):
            use()


def test_encoder_of_another_version_is_refused():
    with pytest.raises(ConfigError, match=r"pip install wordllama==0\.0\.1"):
        Text.Config().restore({"encoder": "wordllama 0.0.1"})
    with pytest.raises(TypeError):
        Text.Config().restore({"encoder": 3})
