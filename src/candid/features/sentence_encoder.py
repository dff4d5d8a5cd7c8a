"""Vectors of texts by the small model that the package wordllama ships; computed once.

The model is the token vectors of its wheel, averaged over a text. Tokenizer and vectors are
read from the package's files: importing it would set up logging for the whole program, and
nothing here ever asks the network.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from candid.atomic import replacing
from candid.errors import ArtifactError, ConfigError

PACKAGE: Final = "wordllama"
WEIGHTS: Final = "weights/l2_supercat_256.safetensors"
TOKENIZER: Final = "tokenizers/l2_supercat_tokenizer_config.json"
WIDTH: Final = 256
TEXTS_AT_ONCE: Final = 8192
# Fewer are encoded as fast as a file is read, and serving would fill the folder with them.
FEWEST_TO_CACHE: Final = 512

Vectors = npt.NDArray[np.float32]


def encoder_name() -> str:
    """Name and version of the installed encoder.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "features of type text need a sentence encoder: install it with pip install "
            "candid[text]"
        ) from None


def sentence_vectors(texts: list[str]) -> Vectors:
    """Encode distinct texts, or read what an earlier call computed for the same ones.

    A cache that is damaged or cannot be written costs the time to compute again, no more.

    Args:
        texts: T, distinct, in an order that does not depend on the rows they come from.

    Returns:
        [T, 256] float32, mean of the texts' token vectors; a text's vector does not depend on
        the other texts.

    Raises:
        ConfigError: the encoder is not installed.
    """
    name = encoder_name()
    if len(texts) < FEWEST_TO_CACHE:
        return _encoded(texts)
    path = _cache_file(name, texts)
    vectors = _read(path, len(texts))
    if vectors is None:
        vectors = _encoded(texts)
        with suppress(ArtifactError):
            _write(path, vectors)
    return vectors


def _cache_file(name: str, texts: list[str]) -> Path:
    digest = hashlib.sha256(name.encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # as the XDG base directory specification has it
        root = Path(os.path.expanduser("~")) / ".cache"
    return root / "candid" / "text" / digest.hexdigest()


def _read(path: Path, num_texts: int) -> Vectors | None:
    """Vectors of a cache file: their sha256, then little-endian float32; None if damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, data = content[:32], content[32:]
    if len(data) != num_texts * WIDTH * 4 or hashlib.sha256(data).digest() != digest:
        return None
    return np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(num_texts, WIDTH)


def _write(path: Path, vectors: Vectors) -> None:
    data = vectors.astype("<f4").tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(hashlib.sha256(data).digest() + data)


def _encoded(texts: list[str]) -> Vectors:
    tokenizer, weights = _model()
    parts = [np.zeros((0, WIDTH), dtype=np.float32)]
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        chunk = texts[start : start + TEXTS_AT_ONCE]
        tokens = [found.ids for found in tokenizer.encode_batch(chunk, add_special_tokens=False)]
        lengths = torch.tensor([len(ids) for ids in tokens])
        flat = torch.tensor([token for ids in tokens for token in ids], dtype=torch.int64)
        bags = torch.nn.functional.embedding_bag(
            flat, weights, lengths.cumsum(0) - lengths, mode="mean"
        )
        parts.append(bags.numpy())
    return np.concatenate(parts)


@cache
def _model() -> tuple[Any, torch.Tensor]:
    """The tokenizer and the token vectors [32000, 256]."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent
    for file in (WEIGHTS, TOKENIZER):
        if not (folder / file).is_file():
            raise ConfigError(
                f"the installed {encoder_name()} lacks {file}: install the version that candid "
                "knows with pip install candid[text]"
            )
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, load_file(folder / WEIGHTS)["embedding.weight"].float()
